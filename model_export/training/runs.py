"""A run's folder: config and arguments as JSON, checkpoint, averaged weights as safetensors, CSV
log.

Later steps add what belongs to these weights: plans, targets, gate, margins.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model_export.files import replacing
from model_export.network.config import Config
from model_export.network.gate import Gate
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from model_export.training.run_files import (
    PLANS,
    RUN,
    WEIGHTS,
    RunError,
    maker_of,
    read_json,
    reading,
    refuse_other,
    write_json,
)
from service.bundle import Canvas, Shape

# A data set, as it was named, and its folder if it has one.
Trained = tuple[str, Path | None]
AGAIN = "make it with `python -m model_export train-exits`"


def write_config(
    run: Path,
    config: Config,
    canvases: Sequence[Canvas],
    arguments: dict[str, Any],
    trained: Iterable[Trained],
    classes: Sequence[str],
    state: dict[str, Tensor] | None = None,
) -> None:
    """arguments: of the command that made the run. trained: all that the weights were trained on,
    also before this run. classes: their names, in the order of the labels. state: the weights,
    where they are known. If these cannot be written, as on a disk that is full, those of before
    keep the config that is theirs. Raises OSError, and RunError where the folder holds anything
    else than a run of the same kind of command."""
    refuse_other(run, maker_of(arguments))
    run.mkdir(parents=True, exist_ok=True)
    known = [(spec, root and root.resolve()) for spec, root in trained]
    document = {
        "config": config.as_dict(),
        "canvases": shapes_of(canvases),
        "classes": list(classes),
        "arguments": arguments,
        "trained_on": list(dict.fromkeys(known)),
    }
    if state is None or not (run / WEIGHTS).exists():
        write_json(run / RUN, document)  # the folder is a run's, whatever happens
    if state is not None:
        with replacing(run / WEIGHTS) as temporary:
            save_file(_stored(state), temporary)
            write_json(run / RUN, document)


def read_config(run: Path) -> tuple[Config, tuple[Canvas, ...], dict[str, Any]]:
    """The network's config, the canvases from small to large, and the arguments that it was trained
    with. Raises RunError."""
    document = _read_run(run)
    with reading(run / RUN, AGAIN):
        # Before there were several canvases, a run named its only one.
        canvases = document.get("canvases") or [[document["canvas"]]]
        arguments = dict(document["arguments"].items())
        return Config.from_dict(document["config"]), canvases_of(canvases), arguments


def shapes_of(canvases: Sequence[Canvas]) -> list[list[list[int]]]:
    """Canvases as JSON has them: of each the (height, width) of its shapes."""
    return [[[shape.height, shape.width] for shape in canvas.shapes] for canvas in canvases]


def described(canvases: Sequence[Canvas]) -> list[Any]:
    """All that results depend on, as JSON: `shapes_of`, and how tiled ones are cut."""
    return [*shapes_of(canvases), *tiles_of(canvases)]


def tiles_of(canvases: Sequence[Canvas]) -> list[dict[str, Any]]:
    """Of tiled canvases, as plans.json has them, how each is cut."""
    return [asdict(canvas.tiles) for canvas in canvases if canvas.tiles is not None]


def canvases_of(shapes: Sequence[Sequence[Sequence[int]]]) -> tuple[Canvas, ...]:
    """The reverse of `shapes_of`."""
    return tuple(Canvas.of([Shape(*sides) for sides in canvas]) for canvas in shapes)


def trained_on(run: Path) -> list[Trained]:
    """All that the run's weights were trained on, in this run and in those that it started from.
    Raises RunError."""
    document = _read_run(run)
    if "trained_on" not in document:
        raise RunError(
            f"{run}/{RUN} does not tell all that the weights were trained on, since it is of an "
            f"older version: add "
            '"trained_on": [[DATA SET, FOLDER or null], ...] to it, with what the run started from'
        )
    with reading(run / RUN, AGAIN):
        return [(spec, Path(root) if root else None) for spec, root in document["trained_on"]]


def classes_of(run: Path) -> tuple[str, ...]:
    """The names of the classes that the run was trained on, in the order of the labels. Raises
    RunError."""
    document = _read_run(run)
    if "classes" not in document:
        raise RunError(
            f"{run}/{RUN} does not name the classes that the weights were trained on, since it "
            f'is of an older version: add "classes": [NAME, ...] to it, in the order of the labels'
        )
    with reading(run / RUN, AGAIN):
        return tuple(document["classes"])


def _read_run(run: Path) -> dict[str, Any]:
    if not (run / RUN).exists():
        raise RunError(f"{run} is no run: {RUN} is missing; {AGAIN}")
    return read_json(run / RUN, AGAIN)


def load_model(run: Path) -> Segmenter:
    """The run's averaged weights, in eval mode. Raises RunError where there are none: random
    weights would be useless."""
    config, _, _ = read_config(run)
    model = Segmenter(config)
    with reading(run / WEIGHTS, f"train it with `python -m model_export train-exits --out {run}`"):
        model.load_state_dict(load_file(run / WEIGHTS))
    return model.eval()


def save_model(run: Path, state: dict[str, Tensor]) -> None:
    with replacing(run / WEIGHTS) as temporary:
        save_file(_stored(state), temporary)


def _stored(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().float().cpu().contiguous() for name, value in state.items()}


class Average:
    """Exponential moving average of a model's weights. Early steps count more, so that the first
    weights leave no bias."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)


def append_log(run: Path, row: dict[str, float | int | str]) -> None:
    """One row of log.csv. The columns are those of the first row; csv refuses others."""
    path = run / "log.csv"
    if not path.exists():
        _write_log(path, [row])
        return
    with path.open("r+", newline="") as file:
        with reading(path, "delete it: a new one begins"):
            columns = next(csv.reader(file), [])
        file.seek(0, 2)
        csv.DictWriter(file, columns).writerow(row)


def _write_log(path: Path, rows: list[Any]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_log(run: Path) -> list[dict[str, str]]:
    """Raises RunError where nothing has been logged yet."""
    path = run / "log.csv"
    if not path.exists():
        raise RunError(
            f"{path} is missing; it is written by `python -m model_export train-exits --out {run}`"
        )
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def cut_log(run: Path, step: int) -> None:
    """Drop the rows after `step`: a resumed run repeats those steps."""
    path = run / "log.csv"
    if not path.exists():  # stopped between its first checkpoint and the row about it
        return
    with reading(path, "delete it: a new one begins"):
        rows = [row for row in read_log(run) if int(row["step"]) <= step]
    if rows:
        _write_log(path, rows)
    else:
        path.unlink()


TEACHING = "distill.pt"  # how far `adapt --train` is
DERIVED = (
    TEACHING,
    PLANS,
    "targets-fit.npz",
    "targets-held.npz",
    "gate.safetensors",
    "gate.json",
)


def discard_derived(run: Path, after: str = "") -> None:
    """Remove the results of later steps: all of them where the weights have changed, or those that
    follow the file `after`."""
    for name in DERIVED[DERIVED.index(after) + 1 if after else 0 :]:
        (run / name).unlink(missing_ok=True)


def write_plans(run: Path, plans: list[Knobs], report: dict[str, Any]) -> None:
    """plans: from the cheapest to the full one. report: how they were found, written beside
    them."""
    discard_derived(run, PLANS)
    write_json(run / PLANS, {"plans": [plan.name for plan in plans]} | report)


def read_canvases(run: Path) -> tuple[Canvas, ...]:
    """Those of the run's plans: the run's own, and the tiled ones that the search has added."""
    own, path, again = read_config(run)[1], run / PLANS, _repeat(f"search-plans {run}")
    if not path.exists():
        return own
    named = {canvas.name: canvas for canvas in own}
    cuts = read_json(path, again).get("tiles", [])
    with reading(path, again):
        tiled = [
            Canvas.tiled(named[cut["of"]], cut["rows"], cut["columns"], cut["overlap"])
            for cut in cuts
        ]
    return (*own, *tiled)


def read_plans(run: Path) -> tuple[list[Knobs], dict[str, Any]]:
    """The chosen plans, from the cheapest to the full one, and the whole report. Raises
    RunError."""
    path, again = run / PLANS, _repeat(f"search-plans {run}")
    report = read_json(path, again)
    with reading(path, again):
        plans = [Knobs.parse(name) for name in report["plans"]]
    if not all(plan.canvas for plan in plans):
        raise RunError(
            f"{run}/{PLANS} has plans without a canvas, since it is of an older version; repeat "
            f"`python -m model_export search-plans {run}`"
        )
    return plans, report


def write_targets(run: Path, part: str, arrays: dict[str, Any]) -> None:
    """part: "fit" (the gate's own training) or "held" (never seen by it)."""
    discard_derived(run, "targets-held.npz")
    with replacing(run / f"targets-{part}.npz") as temporary:
        np.savez_compressed(temporary, **arrays)


def read_targets(run: Path, part: str) -> dict[str, Any]:
    """names, groups, larger (N,), counts (N, plans, ..) or of several heads quality (N, plans,
    columns), inputs (N, gate inputs), plans: their names, spec. Raises RunError."""
    path, plans = run / f"targets-{part}.npz", [plan.name for plan in read_plans(run)[0]]
    again = _repeat(f"derive-targets {run}")
    arrays = read_archive(path, again)
    with reading(path, again):
        if arrays["plans"].tolist() != plans:
            raise RunError(f"{path} has other plans than plans.json; {again}")
        # Before there were tiled canvases, all images were alike.
        return {"larger": np.zeros(len(arrays["names"]), np.bool_)} | arrays


def read_archive(path: Path, again: str) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz. Raises RunError as `reading` does."""
    # numpy leaves a broken archive open
    with reading(path, again), path.open("rb") as file, np.load(file) as archive:
        return {name: archive[name] for name in archive.files}


def write_gate(run: Path, gate: Gate, report: dict[str, Any]) -> None:
    """report: how it was fitted, with "margins", the conformal table."""
    with replacing(run / "gate.safetensors") as temporary:
        save_file(gate.state_dict(), temporary)
    write_json(run / "gate.json", report)


def read_gate(run: Path) -> tuple[Gate, dict[str, Any]]:
    """The gate in eval mode, and how it was fitted, with "margins". Raises RunError."""
    again, weights = _repeat(f"train-gate {run}"), run / "gate.safetensors"
    report = read_json(run / "gate.json", again)
    with reading(run / "gate.json", again):
        list(report["margins"])
    with reading(weights, again):
        return gate_of(load_file(weights)), report


def gate_of(weights: dict[str, Tensor]) -> Gate:
    """The gate with these weights, in eval mode; its sizes follow from them."""
    plans, inputs = weights["output.weight"].shape
    gate = Gate(inputs, plans)
    gate.load_state_dict(weights)
    return gate.eval()


def _repeat(command: str) -> str:
    return f"make it with `python -m model_export {command}`"
