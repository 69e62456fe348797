"""A run and photos without labels -> plans, gate and promise.

The full plan is the teacher: its own answer stands for the labels. The quality of a plan is how far
it agrees with the full plan, per image (panoptic quality or mIoU), and what max-loss promises is
that agreement. Nothing is trained but the gate: canvases need no training, and of the exits those
become plans that are already of use.

The photos are split: two of three choose the plans and fit the gate, the third is held out.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.data.folders import listed_in
from model_export.data.sample import DataError
from model_export.data.unlabelled import PHOTOS, photos_in
from model_export.gating.derive_targets import measure_plans
from model_export.gating.partial_results import PartialResults, key_of
from model_export.gating.search_plans import CostOptions, choose, combinations_of
from model_export.gating.train_gate import fit_and_calibrate
from model_export.tasks import qualities, task_of
from model_export.training.runs import (
    classes_of,
    load_model,
    read_config,
    read_plans,
    shapes_of,
    write_gate,
    write_targets,
)

CACHE = "adapt.npz"
LEAST_PHOTOS = 20  # with fewer, the gate has nothing to learn from, and nothing can be promised
JUDGED_BY = "the full plan's own answer: quality is agreement with it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, help="a run's folder, e.g. of `import`")
    add("--images", type=Path, required=True, help="folder of photos like those to be served")
    add("--most", type=int, default=8, help="plans to choose at most")
    add("--rounds", type=int, default=7, help="rounds of the measurement of milliseconds")
    add(
        "--threads",
        type=int,
        default=os.cpu_count() or 1,
        help="threads of the engine while milliseconds are measured",
    )


def main(args: argparse.Namespace) -> None:
    if args.most < 2 or args.rounds < 1 or args.threads < 1:
        raise ValueError(
            "--most must be at least 2 (the cheapest and the full plan), --rounds and --threads at "
            "least 1"
        )
    began = time.monotonic()
    config, canvases, _ = read_config(args.run)
    photos = photos_in(args.images, config, classes_of(args.run))
    if len(photos) < LEAST_PHOTOS:
        raise DataError(
            f"{args.images} has {len(photos)} images; a gate and its promise need at least "
            f"{LEAST_PHOTOS}, like those to be served"
        )
    model = load_model(args.run)
    combinations = combinations_of(config, canvases, (1.0,), config.widths)
    names = [knobs.name for knobs in combinations]
    sizes = [(file.name, file.stat().st_size) for file in listed_in(args.images)]
    key = key_of(args.run / "model.safetensors", PHOTOS, sizes, names, shapes_of(canvases))
    results = PartialResults(args.run / CACHE, key)
    targets = measure_plans(model, combinations, [photos], PHOTOS, canvases, 1, 0, results)
    held = np.arange(len(photos)) % 3 == 2
    options = CostOptions(
        run=args.run,
        on=PHOTOS,
        most=args.most,
        least=min(args.most, 4),
        threads=args.threads,
        rounds=args.rounds,
    )
    about = {"judged_by": JUDGED_BY}
    plans = choose(options, model, photos, canvases, combinations, targets["counts"][~held], about)
    columns = [names.index(plan.name) for plan in plans]
    parts = {"held": _part(targets, held, columns), "fit": _part(targets, ~held, columns)}
    for part, arrays in parts.items():
        write_targets(args.run, part, arrays)
    gflops = {row["plan"]: row["gflops"] for row in read_plans(args.run)[1]["search"]}
    cost = np.array([gflops[plan.name] for plan in plans])
    gate, report = fit_and_calibrate(config, parts, cost, 1)
    write_gate(args.run, gate, report | about)
    quality = qualities(task_of(config), parts["held"]["counts"]).mean(0)
    print(
        json.dumps(
            {
                "run": str(args.run),
                "photos": {"fit": int((~held).sum()), "held": int(held.sum())},
                "agreement": dict(
                    zip((plan.name for plan in plans), np.round(quality, 4).tolist(), strict=True)
                ),
                "margins": report["margins"],
                "seconds": round(time.monotonic() - began, 1),
            }
        )
    )


def _part(
    targets: dict[str, Any], rows: NDArray[np.bool_], columns: list[int]
) -> dict[str, NDArray[Any]]:
    """Targets of some images and some plans, as derive-targets writes them.

    seen: the network may have been trained on them, but its full plan judges itself.
    """
    part = {name: values[rows] for name, values in targets.items() if name != "plans"}
    return part | {
        "counts": part["counts"][:, columns],
        "plans": targets["plans"][columns],
        "spec": np.array(PHOTOS),
        "seen": np.zeros(int(rows.sum()), np.bool_),
    }
