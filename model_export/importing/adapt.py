"""A run and photos without labels -> plans, gate and promise.

The full plan is the teacher: its own answer stands for the labels. The quality of a plan is how far
it agrees with the full plan, per image (panoptic quality or mIoU), and what max-loss promises is
that agreement. Nothing is trained but the gate: canvases need no training, and of the exits those
become plans that are already of use. With --train early exits are taught first (distill.py).

The photos are split: two of three choose the plans and fit the gate, the third is held out. With
--train half of those two thirds is what the exits learn from; the gate learns from it, too, but
plans and promise do not rest on it. Where --on names data with labels, these judge.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.data.checks import check
from model_export.data.datasets import Dataset, refuse_unread
from model_export.data.folders import images_below
from model_export.data.for_network import open_samples
from model_export.data.sample import DataError
from model_export.data.unlabelled import PHOTOS, photos_in, without_labels
from model_export.gating.combinations import combinations_of, full_of
from model_export.gating.derive_targets import measure_plans
from model_export.gating.partial_results import PartialResults, key_of
from model_export.gating.search_plans import choose
from model_export.gating.search_table import CostOptions
from model_export.gating.train_gate import fit_and_calibrate
from model_export.importing import distill
from model_export.importing.checkpoint import PROCESSOR
from model_export.importing.distill import DistillOptions
from model_export.network.config import Config
from model_export.option_types import number, whole
from model_export.tasks import qualities, task_of
from model_export.training.run_files import WEIGHTS
from model_export.training.runs import (
    RunError,
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
LEAST_TO_TRAIN = 30
JUDGED_BY = "the full plan's own answer: quality is agreement with it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, help="a run's folder, e.g. of `import`")
    add("--images", type=Path, help="photos like those to be served, also in subfolders; no labels")
    add("--on", help="in place of --images: data with labels, which then judge, as coco:PATH.json")
    add("--data", type=Path, help="folder of the data set that --on names")
    add("--most", type=whole(2), default=8, help="plans to choose at most, the full one included")
    add("--rounds", type=whole(), default=7, help="rounds of the measurement of milliseconds")
    add(
        "--threads",
        type=whole(),
        default=os.cpu_count() or 1,
        help="threads of the engine while milliseconds are measured",
    )
    train = parser.add_argument_group("early exits").add_argument
    train("--train", action="store_true", help="teach them first, from the full plan's own answers")
    train("--steps", type=whole(), default=400, help="of that")
    train("--batch", type=whole(), default=2, help="crops in each step")
    train("--rate", type=number(), default=1e-3, help="learning rate")
    train("--seed", type=whole(0), default=0, help="of the crops")
    train(
        "--minutes",
        type=number(0, math.inf),
        default=math.inf,
        help="stop teaching after so many; the same command goes on",
    )


def main(args: argparse.Namespace) -> None:
    began = time.monotonic()
    config, canvases, arguments = read_config(args.run)
    spec, taught = args.on or PHOTOS, "taught" in arguments
    photos = _open(args, config, LEAST_TO_TRAIN if args.train or taught else LEAST_PHOTOS)
    place = np.arange(len(photos))
    options = DistillOptions(args.steps, args.batch, args.rate, args.seed, args.minutes)
    if args.train and taught and arguments["taught"] != distill.key_of(options):
        raise RunError(
            f"{args.run} was taught with {arguments['taught']}: repeat those options, or import "
            f"the checkpoint again to teach it anew"
        )
    if args.train and not taught:
        mine = without_labels(photos, config, classes_of(args.run)).part(place[::3].tolist())
        taught = distill.teach(args.run, load_model(args.run), mine, canvases, options)
        if not taught:
            print(json.dumps({"run": str(args.run), "taught": False, "go on": "the same command"}))
            return
        config, _, _ = read_config(args.run)
    model = load_model(args.run)
    combinations = combinations_of(config, canvases, (1.0,), config.widths)
    names = [knobs.name for knobs in combinations]
    files = images_below(args.images) if args.images else []
    sizes = [len(photos), *((str(file), file.stat().st_size) for file in files)]
    key = key_of(args.run / WEIGHTS, spec, sizes, names, shapes_of(canvases))
    results = PartialResults(args.run / CACHE, key)
    targets = measure_plans(model, combinations, [photos], spec, canvases, 1, 0, results)
    if len(targets["names"]) < len(photos):
        raise DataError(f"{spec}: the labels of some images are all void: leave those out")
    if not args.on and not targets["counts"][:, names.index(full_of(config, canvases).name)].any():
        print(
            f"the full plan finds nothing on any of these photos, and so every plan that finds "
            f"nothing agrees with it. If there is something, look at --threshold and "
            f"--mask-threshold of `import`, and at image_mean, image_std and rescale_factor of the "
            f"checkpoint's {PROCESSOR}",
            file=sys.stderr,
        )
    held, seen = place % 3 == 2, (place % 3 == 0) & taught
    choice = CostOptions(
        run=args.run,
        on=spec,
        most=args.most,
        least=min(args.most, 4),
        threads=args.threads,
        rounds=args.rounds,
    )
    about = {"judged_by": "labels" if args.on else JUDGED_BY}
    counts = targets["counts"][~held & ~seen]
    plans = choose(choice, model, photos, canvases, combinations, counts, about)
    columns = [names.index(plan.name) for plan in plans]
    parts = {
        part: _part(targets, rows, columns, spec, seen[rows])
        for part, rows in (("held", held), ("fit", ~held))
    }
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
                "photos": {
                    "taught": int(seen.sum()),
                    "fit": int((~held & ~seen).sum()),
                    "held": int(held.sum()),
                },
                "quality" if args.on else "agreement": dict(
                    zip((plan.name for plan in plans), np.round(quality, 4).tolist(), strict=True)
                ),
                "margins": report["margins"],
                "seconds": round(time.monotonic() - began, 1),
            }
        )
    )


def _open(args: argparse.Namespace, config: Config, least: int) -> Dataset:
    """Raises DataError where there are fewer images than `least`."""
    if (args.images is None) == (args.on is None):
        raise ValueError("give adapt either --images FOLDER or, with labels, --on DATA")
    refuse_unread(args.data, "--on", args.on)
    classes = classes_of(args.run)
    if args.on is None:
        photos: Dataset = photos_in(args.images, config, classes)
    else:
        photos = open_samples("--on", args.on, args.data, config, classes)
    if len(photos) < least:
        raise DataError(
            f"{args.images or args.on} has {len(photos)} images; a gate and its promise need at "
            f"least {least}, like those to be served"
        )
    check(photos, f"--on {args.on}" if args.on else f"--images {args.images}", complete=False)
    return photos


def _part(
    targets: dict[str, Any],
    rows: NDArray[np.bool_],
    columns: list[int],
    spec: str,
    seen: NDArray[np.bool_],
) -> dict[str, NDArray[Any]]:
    """Targets of some images and some plans, as derive-targets writes them. seen: the images that
    exits learned from; what the checkpoint was trained on does not matter where its full plan
    judges itself."""
    part = {name: values[rows] for name, values in targets.items() if name != "plans"}
    return part | {
        "counts": part["counts"][:, columns],
        "plans": targets["plans"][columns],
        "spec": np.array(spec),
        "specs": np.array([spec]),
        "seen": seen,
    }
