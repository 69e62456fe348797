"""The mean of several runs' weights, as a new run: one network with what fine-tunings of one parent
learned separately.

A bundle may be among them, e.g. the one from which a run started, for what it still did better. A
bundle alone becomes a run with its weights and its plans, e.g. to search tiled plans for it.

Weight averaging ("model soups", Wortsman et al. 2022, arXiv 2203.05482) costs nothing at inference.
It works for runs that started from the same trained weights (`train-exits --start-from`); others
lie too far apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from model_export.data.class_names import refuse_other_classes
from model_export.network.config import Config
from model_export.network.knobs import Knobs
from model_export.training.bundle_weights import WEIGHTS, read_weights
from model_export.training.initial_weights import (
    classes_by,
    parse_canvases,
    read_trained,
    seen_by,
)
from model_export.training.run_files import MAKERS, RUN, reading, refuse_other
from model_export.training.runs import (
    RunError,
    discard_derived,
    read_config,
    tiles_of,
    write_config,
    write_plans,
)
from service import bundle
from service.bundle import Canvas


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "runs",
        type=Path,
        nargs="+",
        help="finished runs of one config; canvases and arguments are the first one's; the others "
        "may be bundles; or one bundle alone",
    )
    add("--out", type=Path, required=True, help="the new run's folder")
    add(
        "--canvases",
        nargs="+",
        metavar="CANVAS",
        help="other canvases than the first run's, as in train-exits: weights fit any",
    )


def main(args: argparse.Namespace) -> None:
    alone = len(args.runs) == 1 and (args.runs[0] / bundle.FILE).exists()
    config, canvases, arguments = (of_bundle if alone else read_config)(args.runs[0])
    if len(args.runs) < 2 and not alone:
        raise RunError(
            f"there is nothing to average in {args.runs[0]} alone: name two runs or more"
        )
    if args.out.resolve() in [run.resolve() for run in args.runs]:
        raise RunError(f"--out {args.out} is one of the runs; choose another folder")
    refuse_other(args.out, MAKERS["averaged"])
    if args.canvases:
        canvases = parse_canvases(args.canvases)
    models = [read_trained(run)[0] for run in args.runs]
    for run, model in zip(args.runs, models, strict=True):
        if model.config != config:
            raise RunError(
                f"{run} has another config ({model.config}) than {args.runs[0]} ({config})"
            )
    classes = classes_by(args.runs[0])
    for run in args.runs[1:]:
        refuse_other_classes(
            str(run), classes_by(run), classes, str(args.runs[0]), "only like can be averaged"
        )
    states = [model.state_dict() for model in models]
    with torch.no_grad():
        mean = {
            name: reduce(torch.add, [s[name] for s in states]) / len(states) for name in states[0]
        }
    before = read_text(args.out / RUN)
    seen = [data for run in args.runs for data in seen_by(run)]
    about = arguments | {"averaged": [str(run) for run in args.runs]}
    made = f"the weights of {args.runs[0]}" if alone else f"the mean of these {len(states)} runs"
    same = holds(args.out, mean)
    write_config(args.out, config, canvases, about, seen, classes, None if same else mean)
    if before == read_text(args.out / RUN) and same:
        print(f"{args.out} already has {made}; plans, targets and gate stay")
        return
    discard_derived(args.out)
    if alone:
        write_plans(args.out, *plans_of(args.runs[0]))
    print(f"{args.out}: {made}")


def of_bundle(folder: Path) -> tuple[Config, Sequence[Canvas], dict[str, Any]]:
    """As `read_config` of a run: the network's config, the canvases, and what is known of how it
    was trained."""
    model, _, canvases = read_weights(folder / WEIGHTS)
    made = bundle.load(folder).manifest.provenance
    return model.config, canvases, {"train": made.get("data", ""), "backbone_weights": None}


def plans_of(folder: Path) -> tuple[list[Knobs], dict[str, Any]]:
    """A bundle's plans, and what its search has found, as plans.json has them. Raises RunError for
    a bundle that does not tell."""
    manifest = bundle.load(folder).manifest
    known = manifest.calibration
    if not known.get("search"):
        raise RunError(f"{folder} does not tell what its search found: make its run again")
    plans = [Knobs.parse(plan.name) for plan in manifest.encoder_plans]
    report = {"search": known["search"], "tiles": tiles_of(manifest.input.canvases)}
    report |= {name: known[name] for name in ("judged_by", "search_tiles") if name in known}
    return plans, report | known.get("searched_on", {})


def read_text(file: Path) -> str:
    """ "" where there is no such file."""
    return file.read_text() if file.exists() else ""


def holds(run: Path, state: dict[str, Tensor]) -> bool:
    """Whether the run's weights are these."""
    file = run / WEIGHTS
    known: dict[str, Tensor] = {}
    if file.exists():
        with reading(file, f"delete {run}, and repeat the command"):
            known = load_file(file)
    return known.keys() == state.keys() and all(
        torch.equal(known[name], state[name].float()) for name in known
    )
