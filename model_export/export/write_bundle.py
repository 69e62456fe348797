"""Write a bundle: for each shape of each canvas front, decoder and one encoder per plan as ONNX.

The weights are stored once; parity and cost are in the manifest.

The graphs are compared with torch on real images before the manifest is written: without one, a
folder is no bundle.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.data.augment import frames_by_shape
from model_export.data.datasets import Dataset, is_nameless, refuse_unread
from model_export.data.for_network import IMAGES, open_samples
from model_export.export.flops import count_gflops
from model_export.export.graphs import graphs_of, heads_of
from model_export.export.kernel_files import write_kernels
from model_export.export.parity import BATCHES, check_parity
from model_export.export.weights import write_stages
from model_export.export.write_manifest import manifest_of, plan_of, provenance_of
from model_export.network.config import Config
from model_export.network.gate import Gate, gate_inputs
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from model_export.tasks import qualities, task_of
from model_export.training.run_files import PLANS, graphs_in, refuse_no_bundle
from model_export.training.runs import (
    RunError,
    classes_of,
    load_model,
    read_canvases,
    read_config,
    read_gate,
    read_plans,
    read_targets,
    trained_on,
)
from service import bundle
from service.bundle import Canvas
from service.tasks import check_tiles
from service.tasks import task_of as answers_of


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
    add_parity_arguments(parser)
    add(
        "--weights",
        choices=("fp16", "fp32"),
        help="of the matrices on disk; default: fp16, and fp32 of an imported checkpoint, whose "
        "full plan then stays what it was",
    )
    add(
        "--graphs-of",
        type=Path,
        help="a bundle of the same network, whose graphs are taken over where it has them: only "
        "the others are made, and those with the gate",
    )
    add(
        "--provenance",
        type=Path,
        help="JSON with data, recipe, licence and backbone; default: what the run says",
    )


def add_parity_arguments(parser: argparse.ArgumentParser) -> None:
    """The images that graphs are compared on, as `open_samples` opens them."""
    add = parser.add_argument
    add("--data", type=Path, help="folder of the data set (not needed for scenes)")
    add(
        "--parity",
        default="scenes:3:5",
        help="data set whose first three images are compared with torch; photos: the images in "
        "--data, without labels",
    )


def main(args: argparse.Namespace) -> None:
    refuse_no_bundle(args.out)
    config, _, arguments = read_config(args.run)
    provenance = provenance_of(args.provenance, arguments)
    canvases = read_canvases(args.run)
    trained, derived = load_model(args.run), read_derived(args.run, config, canvases)
    refuse_unread(args.data, "--parity", args.parity)
    samples = open_samples("--parity", args.parity, args.data, config, classes_of(args.run))
    half = args.weights == "fp16" if args.weights else config.imported is None
    if args.graphs_of is not None:
        bundle.load(args.graphs_of)  # verified
        if args.graphs_of.resolve() == args.out.resolve():
            raise RunError(f"--graphs-of {args.graphs_of} is --out, too: choose another folder")
    plans, heads = derived.plans, heads_of(config)
    # With one plan there is nothing to choose, and no smaller canvas to do so.
    canvases = used(canvases, plans) if len(plans) > 1 else canvases[-1:]
    graphs = write_graphs(
        args.out,
        trained,
        derived.gate,
        canvases,
        plans,
        samples,
        half=half,
        reused=args.graphs_of,
    )
    manifest = manifest_of(
        args.out,
        config,
        canvases,
        samples,
        [
            plan_of(
                knobs,
                canvases,
                graphs.gflops,
                {key: derived.quality[:, row, i] for i, key in enumerate(heads)},
                heads,
            )
            for row, knobs in enumerate(plans)
        ],
        graphs.errors,
        margins=derived.margins,
        calibration=derived.about
        | graphs.about
        | {
            "trained_on": [spec for spec, _ in trained_on(args.run) if not is_nameless(spec)],
        },
        provenance=provenance,
        kernels=graphs.kernels,
    )
    check_tiles(manifest, {head.name: answers_of(head) for head in manifest.heads})
    bundle.save(args.out, manifest)
    report(args.out, manifest)


@dataclass(frozen=True, slots=True)
class Written:
    """The graphs in a folder that is no bundle yet. errors, gflops: of each stage."""

    errors: dict[str, float]
    gflops: dict[str, float]
    kernels: tuple[bundle.KernelFile, ...]

    @property
    def about(self) -> dict[str, Any]:
        """For the manifest's calibration."""
        return {
            "gflops": {name: round(value, 4) for name, value in self.gflops.items()},
            "parity": {"images": IMAGES, "batches": list(BATCHES), "largest_error": self.errors},
        }


def write_graphs(
    folder: Path,
    trained: Segmenter,
    gate: Gate,
    canvases: Sequence[Canvas],
    plans: Sequence[Knobs],
    samples: Dataset,
    *,
    half: bool,
    reused: Path | None = None,
) -> Written:
    """Weights, graphs and kernels, compared with torch on the first of the samples; see
    `write_stages`. Raises RunError where they differ."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (*graphs_in(folder), folder / bundle.FILE):
        # A folder without a manifest is no bundle: a failed export cannot be served.
        stale.unlink(missing_ok=True)
    stages = write_stages(folder, trained, gate, canvases, plans, half=half, reused=reused)
    errors = check_parity(
        folder,
        stages,
        graphs_of(canvases, plans, heads_of(trained.config)),
        frames_by_shape(samples, canvases, IMAGES),
    )
    files = {name: folder / f"{name}.onnx" for name in stages}
    gflops = {name: count_gflops(file) for name, file in files.items()}
    return Written(errors, gflops, write_kernels(folder, list(files.values())))


def report(folder: Path, manifest: bundle.Manifest) -> None:
    """Prints the plans, and a JSON line."""
    for plan in manifest.plans:
        print(f"{plan.name:<12} {plan.gflops:6.3f} GFLOPs, quality {plan.quality:.4f}")
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    errors = {name: stage.parity for name, stage in manifest.stages.items()}
    print(json.dumps({"bundle": str(folder), "megabytes": round(size, 2), "parity": errors}))


@dataclass(frozen=True, slots=True)
class Derived:
    """What search, targets and gate have found. quality: (N, plans, heads at widths). about: free
    JSON, for people and for a later calibration."""

    plans: Sequence[Knobs]
    gate: Gate
    quality: NDArray[np.float64]
    margins: Sequence[dict[str, Any]]
    about: dict[str, Any]


def read_derived(run: Path, config: Config, canvases: Sequence[Canvas]) -> Derived:
    """Raises RunError where a step is missing. An imported checkpoint can go without any of them:
    it then has its full plan alone."""
    if config.imported is not None and not (run / PLANS).exists():
        full = Knobs(config.exits, canvas=canvases[-1].name)
        gate = Gate(gate_inputs(config.channels, config.glanced), 1)
        with torch.no_grad():
            gate.output.weight.zero_()
            gate.output.bias.fill_(1)
        about = {"data": "none: there is one plan, which agrees with itself", "images": 0}
        return Derived([full], gate.eval(), np.ones((1, 1, 1)), [], about)
    (plans, search), held, (gate, fitted) = (
        read_plans(run),
        read_targets(run, "held"),
        read_gate(run),
    )
    if config.tasks:
        about = {
            "data": str(held["spec"]),
            "images": len(held["names"]),
            "quality": "mean over images of each image's mIoU, AP and share of depths within 1.25",
            "gate": {name: value for name, value in fitted.items() if name != "margins"},
            "search": search["search"],
            "searched_on": {"data": search["data"], "images": search["images"]},
        }
        return Derived(plans, gate, held["quality"], fitted["margins"], about)
    about = calibration(config, held, search, fitted)
    quality = qualities(task_of(config), held["counts"])[..., None]
    return Derived(plans, gate, quality, fitted["margins"], about)


def used(canvases: Sequence[Canvas], plans: Sequence[Knobs]) -> tuple[Canvas, ...]:
    """The canvases that some plan has, those whose tiles it has, and the first one, on which the
    gate sees every image."""
    wanted = {plan.canvas for plan in plans}
    wanted |= {each.tiles.of for each in canvases if each.tiles and each.name in wanted}
    return tuple(canvas for canvas in canvases if canvas is canvases[0] or canvas.name in wanted)


def calibration(
    config: Config,
    held: dict[str, Any],
    search: dict[str, Any],
    fitted: dict[str, Any],
) -> dict[str, Any]:
    """What was measured on which images: free JSON, for people and for a later calibration."""
    counts, task = held["counts"], task_of(config)
    of_sets = [float(task.of_set(counts[:, k].sum(0))) for k in range(counts.shape[1])]
    return {
        "data": str(held["spec"]),
        "images": len(counts),
        "quality": f"mean over images of each image's {task.measure}",
        "judged_by": search.get("judged_by", "labels"),
        # None where no held-out image has anything on it, and nothing was found: JSON has no NaN.
        f"dataset_{task.measure}": [
            round(value, 5) if math.isfinite(value) else None for value in of_sets
        ],
        "gate": {name: value for name, value in fitted.items() if name != "margins"},
        "search": search.get("search", []),
        "searched_on": {name: search[name] for name in ("data", "machine") if name in search},
    } | {name: search[name] for name in ("search_tiles",) if name in search}
