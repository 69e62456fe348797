"""Write a bundle: for each shape of each canvas front, decoder and one encoder per plan as ONNX.

The weights are stored once; parity and cost are in the manifest.

The graphs are compared with torch on real images before the manifest is written: without one, a
folder is no bundle.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_export.data.augment import frames_by_shape
from model_export.data.class_names import refuse_other_classes
from model_export.data.datasets import Dataset, is_nameless, open_dataset
from model_export.export.flops import count_gflops
from model_export.export.graphs import graphs_of
from model_export.export.kernel_files import write_kernels
from model_export.export.parity import BATCHES, check_parity
from model_export.export.weights import write_stages
from model_export.export.write_manifest import manifest_of, plan_of, provenance_of
from model_export.network.config import Config
from model_export.network.knobs import Knobs
from model_export.tasks import qualities, task_of
from model_export.training.runs import (
    RunError,
    classes_of,
    load_model,
    read_config,
    read_gate,
    read_plans,
    read_targets,
    trained_on,
)
from service import bundle
from service.bundle import Canvas

IMAGES = 3  # that are compared with torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, help="a run's folder with a trained parent, plans, targets and gate")
    add(
        "-o",
        "--out",
        type=Path,
        required=True,
        help="the bundle's folder, e.g. trained_weights/NAME",
    )
    add("--data", type=Path, help="folder of the data set (not needed for scenes)")
    add(
        "--parity",
        default="scenes:3:5",
        help="data set whose first three images are compared with torch",
    )
    add(
        "--provenance",
        type=Path,
        help="JSON with data, recipe, licence and backbone; default: what the run says",
    )


def main(args: argparse.Namespace) -> None:
    config, canvases, arguments = read_config(args.run)
    trained, (plans, search) = load_model(args.run), read_plans(args.run)
    held = read_targets(args.run, "held")
    gate, fitted = read_gate(args.run)
    samples = open_samples(args.parity, args.data, config, classes_of(args.run))
    args.out.mkdir(parents=True, exist_ok=True)
    for stale in (*args.out.glob("*.onnx"), *args.out.glob("*.ptx.gz"), args.out / bundle.FILE):
        # A folder without a manifest is no bundle: a failed export cannot be served.
        stale.unlink(missing_ok=True)
    canvases = used(canvases, plans)
    stages = write_stages(args.out, trained, gate, canvases, plans)
    errors = check_parity(
        args.out, stages, graphs_of(canvases, plans), frames_by_shape(samples, canvases, IMAGES)
    )
    kernels = write_kernels(args.out, [args.out / f"{name}.onnx" for name in stages])
    parts = {name: count_gflops(args.out / f"{name}.onnx") for name in stages}
    quality = qualities(task_of(config), held["counts"])  # (N, plans)
    manifest = manifest_of(
        args.out,
        config,
        canvases,
        samples,
        [
            plan_of(knobs, canvases, parts, of_images)
            for knobs, of_images in zip(plans, quality.T, strict=True)
        ],
        errors,
        margins=fitted["margins"],
        calibration=calibration(config, held, search, fitted, parts, errors)
        | {"trained_on": [spec for spec, _ in trained_on(args.run) if not is_nameless(spec)]},
        provenance=provenance_of(args.provenance, arguments),
        kernels=kernels,
    )
    bundle.save(args.out, manifest)
    size = sum(f.stat().st_size for f in args.out.iterdir()) / 1e6
    for plan in manifest.plans:
        print(f"{plan.name:<12} {plan.gflops:6.2f} GFLOPs, quality {plan.quality:.4f}")
    print(json.dumps({"bundle": str(args.out), "megabytes": round(size, 2), "parity": errors}))


def used(canvases: Sequence[Canvas], plans: Sequence[Knobs]) -> tuple[Canvas, ...]:
    """The canvases that some plan has, and the first one, on which the gate sees every image."""
    wanted = {plan.canvas for plan in plans}
    return tuple(canvas for canvas in canvases if canvas is canvases[0] or canvas.name in wanted)


def open_samples(spec: str, data: Path | None, config: Config, classes: Sequence[str]) -> Dataset:
    """The data set with the images and class names for a bundle. classes: the run's.

    Raises RunError or DataError where it does not fit the network."""
    samples: Dataset = open_dataset(spec, data)
    if (samples.task, samples.channels) != (config.task, config.classes):
        raise RunError(
            f"{spec} is a data set of the {samples.task} task with {samples.channels} channels, "
            f"the run's network is {config.task} with {config.classes}; give the data that the run "
            f"was trained on"
        )
    refuse_other_classes(
        spec, samples.classes, classes, "the run", "give the data that the run was trained on"
    )
    if len(samples) < IMAGES:
        raise RunError(f"{spec} has {len(samples)} images; {IMAGES} are needed")
    return samples


def calibration(
    config: Config,
    held: dict[str, Any],
    search: dict[str, Any],
    fitted: dict[str, Any],
    parts: dict[str, float],
    errors: dict[str, float],
) -> dict[str, Any]:
    """What was measured on which images: free JSON, for people and for a later calibration."""
    counts, task = held["counts"], task_of(config)
    return {
        "data": str(held["spec"]),
        "images": len(counts),
        "quality": f"mean over images of each image's {task.measure}",
        f"dataset_{task.measure}": [
            round(float(task.of_set(counts[:, k].sum(0))), 5) for k in range(counts.shape[1])
        ],
        "gate": {name: value for name, value in fitted.items() if name != "margins"},
        "search": search.get("search", []),
        "searched_on": {name: search[name] for name in ("data", "machine") if name in search},
        "gflops": {name: round(value, 4) for name, value in parts.items()},
        "parity": {"images": IMAGES, "batches": list(BATCHES), "largest_error": errors},
    }
