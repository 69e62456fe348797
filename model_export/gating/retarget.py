"""A bundle for other data or another trade-off: a new gate, new margins, new qualities of plans.

The network is not trained. This is ECO-M2F's promise (arXiv 2404.15244) that a new budget repeats
only the cheap steps. Network and graphs stay as they are: the new gate's tensors replace the old
ones in the weights file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from model_export.export.weights import read_entries
from model_export.export.write_manifest import worth
from model_export.gating.derive_targets import (
    Network,
    add_data_arguments,
    data_options,
    measure_parts,
)
from model_export.gating.partial_results import discard_partial
from model_export.gating.train_gate import add_block_argument, fit_and_calibrate
from model_export.tasks import Task, qualities, task_of
from model_export.training.bundle_weights import WEIGHTS, read_weights, write_weights
from model_export.training.initial_weights import knobs_of, seen_by_bundle
from model_export.training.run_files import RunError, new_folder, refuse_full
from service import bundle
from service.bundle import plain_of
from service.core import Margin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle", type=Path, help="the bundle's folder, e.g. trained_weights/camvid-tiny"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the new bundle")
    add_data_arguments(parser)
    add_block_argument(parser)


def main(args: argparse.Namespace) -> None:
    began = time.monotonic()
    manifest = bundle.load(args.bundle).manifest
    if len(manifest.heads) > 1:
        raise RunError(f"{args.bundle} has several heads: repeat derive-targets with its run")
    refuse_full(args.out)
    model, _, canvases = read_weights(args.bundle / WEIGHTS)
    canvases = (*canvases, *(each for each in manifest.input.canvases if each.tiles is not None))
    plans = knobs_of(args.bundle, manifest)
    seen, place = seen_by_bundle(manifest), args.out.resolve()
    options = data_options(args)
    classes = [entry.name for entry in manifest.head.classes]
    network = Network(model, canvases, args.bundle / WEIGHTS, seen, classes)
    parts: dict[str, dict[str, Any]] = dict(measure_parts(network, plans, options, place))
    cost = np.array([plan.gflops for plan in manifest.plans])
    gate, fitted = fit_and_calibrate(model.config, parts, cost, args.block)

    changed = retargeted(manifest, args.out.name, parts, task_of(model.config), fitted)
    with new_folder(args.out) as folder:
        graphs = shutil.ignore_patterns(bundle.FILE)
        shutil.copytree(args.bundle, folder, dirs_exist_ok=True, ignore=graphs)
        half = any(entry.half for entry in read_entries(args.bundle / WEIGHTS).values())
        write_weights(folder / WEIGHTS, model.cpu(), gate, plain_of(canvases), half=half)
        if read_entries(folder / WEIGHTS) != read_entries(args.bundle / WEIGHTS):
            raise RunError(
                f"{args.bundle} was written by another version: its graphs expect the gate in "
                f"another place"
            )
        bundle.save(folder, changed)
    discard_partial(place)
    for plan in changed.plans:
        print(f"{plan.name:<12} {plan.gflops:6.2f} GFLOPs, quality {plan.quality:.4f}")
    margins = [{"asked": row.asked, "margin": row.margin} for row in changed.margins]
    images = sum(len(targets["names"]) for targets in parts.values())
    seconds = round(time.monotonic() - began, 1)
    print(
        json.dumps(
            {"bundle": str(args.out), "seconds": seconds, "images": images, "margins": margins}
        )
    )


def retargeted(
    manifest: bundle.Manifest,
    name: str,
    parts: dict[str, dict[str, Any]],
    task: Task,
    fitted: dict[str, Any],
) -> bundle.Manifest:
    """The manifest of the new bundle. parts, fitted: as `measure_parts` and `fit_and_calibrate`
    have them."""
    quality = qualities(task, parts["held"]["counts"])  # (N, plans)
    head = manifest.head.name
    return replace(
        manifest,
        name=name,
        encoder_plans=tuple(
            replace(plan, heads={head: replace(plan.heads[head], **worth(of_images))})
            for plan, of_images in zip(manifest.encoder_plans, quality.T, strict=True)
        ),
        margins=tuple(Margin(row["asked"], row["margin"]) for row in fitted.pop("margins")),
        calibration={"data": str(parts["held"]["spec"]), "images": len(quality), "gate": fitted}
        | {
            about: manifest.calibration[about]
            for about in ("gflops", "parity", "trained_on")
            if about in manifest.calibration
        },
    )
