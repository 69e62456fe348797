"""What a training run keeps on its way: its checkpoint, and a log of losses and of quality."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from model_export.network.config import Config
from model_export.network.segmenter import Segmenter
from model_export.training.runs import Average, append_log, discard_derived, save_model

CHECKPOINT = "checkpoint.pt"


class Progress:
    """Adds up the losses of the steps since the last report.

    every: steps between two reports. terms: the names of the losses; a step may lack some.
    first_step: the one that this process begins with.
    """

    def __init__(self, run: Path, every: int, terms: Iterable[str], first_step: int) -> None:
        self._run, self._every, self._first_step = run, every, first_step
        self._sums = dict.fromkeys(terms, 0.0)
        self._began = time.monotonic()

    def add(self, terms: Mapping[str, Tensor]) -> None:
        for name, value in terms.items():
            self._sums[name] += float(value.detach())

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
        since = step + 1 - max(self._first_step, step // self._every * self._every)
        row: dict[str, float | int | str] = {
            "step": step + 1,
            "seconds": round(time.monotonic() - self._began, 1),
        }
        row |= {name: round(value / since, 4) for name, value in self._sums.items()}
        save_checkpoint(self._run, model, optimizer, average, step + 1)
        row |= quality()
        append_log(self._run, row)
        tqdm.write(str(row))

    def start_anew(self) -> None:
        """After a report: losses and time count from here on."""
        self._sums = dict.fromkeys(self._sums, 0.0)
        self._began = time.monotonic()


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
    """Take everything from a run's checkpoint. Returns how many steps it has seen."""
    saved = torch.load(run / CHECKPOINT, map_location="cpu", weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    average.state = {name: value.to(device) for name, value in saved["average"].items()}
    steps: int = saved["step"]
    return steps


def save_checkpoint(
    run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average, steps: int
) -> None:
    """steps: that the weights have seen."""
    temporary = run / f"{CHECKPOINT}.new"
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.state,
        "step": steps,
    }
    torch.save(state, temporary)
    temporary.replace(run / CHECKPOINT)
    discard_derived(run)
    save_model(run, average.state)
