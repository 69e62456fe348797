"""What a training run keeps on its way: its checkpoint, and a log of losses and of quality."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from model_export.files import replacing
from model_export.network.config import Config
from model_export.network.segmenter import Segmenter
from model_export.training.run_files import (
    CHECKPOINT,
    TRAIN,
    RunError,
    reading,
    refuse_finished,
    refuse_other,
)
from model_export.training.runs import (
    Average,
    append_log,
    discard_derived,
    read_config,
    save_model,
)

# Arguments that may differ when a training goes on, and change nothing of its result.
FREE = {"out", "stop_after", "workers", "cache_mb", "cache", "check_every"}


class Progress:
    """Adds up the losses of the steps since the last report.

    every: steps between two reports. terms: the names of the losses; a step may lack some.
    first_step: the one that this process begins with. checkpoint: the name of its file. rate: the
    option with the learning rate.
    """

    def __init__(
        self,
        run: Path,
        every: int,
        terms: Iterable[str],
        first_step: int,
        checkpoint: str = CHECKPOINT,
        rate: str = "--lr",
    ) -> None:
        self._every, self._first_step = every, first_step
        self._run, self._checkpoint, self._rate = run, checkpoint, rate
        self._sums = dict.fromkeys(terms, 0.0)
        self._began = time.monotonic()

    def add(self, step: int, terms: Mapping[str, Tensor]) -> None:
        """Raises RunError where a loss is no number any more: nothing later would be of use, and
        the last checkpoint stays as it is."""
        for name, value in terms.items():
            loss = float(value.detach())
            if not math.isfinite(loss):
                raise self._diverged(step, f"the loss {name!r} is {loss}")
            self._sums[name] += loss

    def _diverged(self, step: int, what: str) -> RunError:
        kept = "the last one stays" if (self._run / self._checkpoint).exists() else "there is none"
        return RunError(
            f"step {step + 1}: {what}, so no checkpoint is written ({kept}): lower {self._rate}, "
            f"or look at the data"
        )

    def check(self, step: int, *states: Mapping[str, Tensor]) -> None:
        """Raises RunError where a weight is no number any more."""
        if not all(bool(value.isfinite().all()) for state in states for value in state.values()):
            raise self._diverged(step, "some weights are not finite")

    def means(self, step: int) -> dict[str, float]:
        """Of the losses since the last report. step: the last one that was done."""
        since = step + 1 - max(self._first_step, step // self._every * self._every)
        return {name: round(value / since, 4) for name, value in self._sums.items()}

    def due(self, step: int) -> bool:
        return (step + 1) % self._every == 0

    def report(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: Average,
        quality: Callable[[], Mapping[str, float]],
    ) -> None:
        """Write the checkpoint, measure the quality, and add a row to the log.

        step: the last one that was done.
        """
        row: dict[str, float | int | str] = {
            "step": step + 1,
            "seconds": round(time.monotonic() - self._began, 1),
        }
        row |= self.means(step)
        self.check(step, model.state_dict(), average.state)
        save_checkpoint(self._run, model, optimizer, average, step + 1)
        row |= quality()
        append_log(self._run, row)
        tqdm.write(str(row))

    def start_anew(self) -> None:
        """After a report: losses and time count from here on."""
        self._sums = dict.fromkeys(self._sums, 0.0)
        self._began = time.monotonic()


def resumed_at(out: Path) -> Path | None:
    """The run to go on from; None where a new one begins. Raises RunError where the folder holds
    anything else."""
    refuse_other(out, TRAIN)
    refuse_finished(out)
    return out if (out / CHECKPOINT).exists() else None


def name_changes(run: Path, arguments: Mapping[str, Any]) -> None:
    """Says which arguments are others than before, since the weights come of both. The learning
    rate, e.g., follows the new --steps from here on."""
    before = read_config(run)[2]
    now = json.loads(json.dumps(arguments, default=str))
    changed = [
        f"--{name.replace('_', '-')} {value} (was {before[name]})"
        for name, value in now.items()
        if name in before and name not in FREE and value != before[name]
    ]
    if changed:
        tqdm.write(f"{run} goes on with other arguments: {', '.join(changed)}", file=sys.stderr)


def averaged(config: Config, average: Average, device: torch.device | str = "cpu") -> Segmenter:
    """A network with the averaged weights, in eval mode."""
    model = Segmenter(config).to(device)
    model.load_state_dict(average.state)
    return model.eval()


def load_checkpoint(
    run: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average,
    device: torch.device | str = "cpu",
) -> int:
    """Take everything from a run's checkpoint, but for rates and weight decay: those are the
    arguments', which may have changed. Returns how many steps it has seen. Raises RunError."""
    with reading(run / CHECKPOINT, "delete the run and repeat its training"):
        saved = torch.load(run / CHECKPOINT, map_location="cpu", weights_only=True)
        model.load_state_dict(saved["model"])
        arguments = [
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        optimizer.load_state_dict(saved["optimizer"])
        average.state = {name: value.to(device) for name, value in saved["average"].items()}
        step = int(saved["step"])
    for group, own in zip(optimizer.param_groups, arguments, strict=True):
        group.update(own)
    return step


def save_checkpoint(
    run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average, steps: int
) -> None:
    """steps: that the weights have seen."""
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.state,
        "step": steps,
    }
    with replacing(run / CHECKPOINT) as temporary:
        torch.save(state, temporary)
    discard_derived(run)
    save_model(run, average.state)
