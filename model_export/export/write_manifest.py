"""From exported graphs to the manifest of their bundle: tensors, plans with cost and quality,
provenance."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from model_export.data.augment import PAD
from model_export.data.datasets import Dataset
from model_export.data.scenes import COUNTABLE
from model_export.export.graphs import ONE_HEAD, Heads, graphs_of, heads_of
from model_export.network.config import Config
from model_export.network.knobs import Knobs
from model_export.tasks import task_of
from model_export.tasks.detection import SURE
from model_export.training.bundle_weights import WEIGHTS
from model_export.training.run_files import read_json
from service import bundle
from service.bundle import Canvas
from service.core import Margin

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def manifest_of(
    folder: Path,
    config: Config,
    canvases: Sequence[Canvas],
    data: Dataset,
    plans: list[bundle.EncoderPlan],
    errors: dict[str, float],
    *,
    margins: Iterable[dict[str, float | None]] = (),
    calibration: dict[str, Any] | None = None,
    provenance: dict[str, str] | None = None,
    kernels: tuple[bundle.KernelFile, ...] = (),
) -> bundle.Manifest:
    """For the graphs in `folder`. data: has names and colours of the classes. errors: parity of
    each stage."""
    heads = tuple(several_heads(config, data)) if config.tasks else (one_head(config, data),)
    return bundle.Manifest(
        name=folder.name,
        revision=revision(),
        provenance=provenance or {},
        heads=heads,
        default_preference={head.name: round(1 / len(heads), 4) for head in heads},
        input=bundle.InputSpec.of(canvases, (PAD,) * 3),
        stages={name: stage_of(folder / f"{name}.onnx", error) for name, error in errors.items()},
        files=(bundle.BundleFile(WEIGHTS, ""),),
        encoder_plans=tuple(plans),
        graphs=graphs_of(canvases, [Knobs.parse(plan.name) for plan in plans], heads_of(config)),
        margins=tuple(Margin(float(row["asked"] or 0.0), row["margin"]) for row in margins),
        calibration=calibration or {},
        kernels=kernels,
    )


def one_head(config: Config, data: Dataset) -> bundle.Head:
    """Of a network with one task."""
    things = config.things or (task_of(config).objects,) * len(data.classes)
    classes = tuple(map(bundle.ClassInfo, data.classes, data.palette, things))
    queries = config.head == "queries"
    thresholds = bundle.Thresholds(*config.thresholds) if queries else None
    return bundle.Head(config.task, config.task, classes, thresholds=thresholds)


def several_heads(config: Config, data: Dataset) -> Iterator[bundle.Head]:
    """Of a network with several tasks. data: the generated streets."""
    everything = tuple(
        bundle.ClassInfo(name, colour, thing=False)
        for name, colour in zip(data.classes, data.palette, strict=True)
    )
    countable = tuple(replace(everything[place], thing=True) for place in COUNTABLE)
    for head in config.tasks:
        about: dict[str, Any] = {"widths": head.widths}
        if head.task == "detection":
            about |= {"classes": countable, "thresholds": bundle.Thresholds(SURE)}
        elif head.task == "depth":
            about |= {"classes": (), "unit": head.unit, "range": head.range}
        else:
            about["classes"] = everything
        yield bundle.Head(head.name, head.task, **about)


def stage_of(path: Path, error: float) -> bundle.Stage:
    """error: parity."""
    graph = onnx.load(path, load_external_data=False).graph

    def specs(values: Iterable[onnx.ValueInfoProto]) -> tuple[bundle.TensorSpec, ...]:
        tensors = []
        for value in values:
            kind = value.type.tensor_type
            dims = tuple(d.dim_param or d.dim_value for d in kind.shape.dim)
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
            tensors.append(bundle.TensorSpec(value.name, dtype, ("batch", *dims[1:])))
        return tuple(tensors)

    return bundle.Stage(path.name, "", specs(graph.input), specs(graph.output), error)


def plan_of(
    knobs: Knobs,
    canvases: Sequence[Canvas],
    parts: dict[str, float],
    quality: Mapping[str, NDArray[np.float64]],
    heads: Heads,
) -> bundle.EncoderPlan:
    """parts: GFLOPs of each stage. quality: of this plan with a head at a width, by its key, on
    each held-out image, (N,)."""
    before, own = costs_of(knobs, canvases, parts, heads)
    return bundle.EncoderPlan(
        name=knobs.name,
        depth=knobs.depth,
        keep=knobs.keep,
        width=knobs.width,
        gflops=round(before, 4),
        heads={
            key: bundle.HeadWorth(round(own[key], 4), **worth(of_images))
            for key, of_images in quality.items()
        },
        canvas=knobs.canvas,
    )


def cost_of(knobs: Knobs, canvases: Sequence[Canvas], parts: dict[str, float]) -> float:
    """All that runs for an image through a network with one head, the glance included: the sum over
    the stages, of GFLOPs or of ms.

    parts: of each stage. Of several shapes of a canvas the one that costs most counts.
    """
    before, heads = costs_of(knobs, canvases, parts)
    return before + sum(heads.values())


def costs_of(
    knobs: Knobs,
    canvases: Sequence[Canvas],
    parts: dict[str, float],
    heads: Heads = ONE_HEAD,
) -> tuple[float, dict[str, float]]:
    """The same up to the heads, and of each head at each of its widths. A tiled canvas takes its
    tiles times what one of them does."""
    named = {canvas.name: canvas for canvas in canvases}
    glance, own = canvases[0], named[knobs.canvas]
    count, base = (1, own) if own.tiles is None else (own.tiles.count, named[own.tiles.of])
    stage = replace(knobs, canvas=base.name)
    before, after = max(
        (
            (
                count * (parts[stages.front] * (own is not glance) + parts[encoder]),
                {key: count * parts[name] for key, name in stages.heads.items()},
            )
            for stages in graphs_of([base], [stage], heads).values()
            for encoder in stages.encoders.values()
        ),
        key=lambda costs: costs[0] + sum(costs[1].values()),
    )
    return max(parts[stages.front] for stages in graphs_of([glance], []).values()) + before, after


def worth(quality: NDArray[np.float64]) -> dict[str, Any]:
    """What a plan's entry says about its quality. quality: on each held-out image, (N,)."""
    quantiles = tuple(round(float(q), 5) for q in np.quantile(quality, QUANTILES))
    return {"quality": round(float(quality.mean()), 5), "quality_quantiles": quantiles}


def provenance_of(path: Path | None, arguments: dict[str, Any]) -> dict[str, str]:
    """path: a JSON file with it; None: what the run's arguments tell. Raises RunError."""
    if path is not None:
        told = read_json(path, "name another in --provenance, or leave it out")
        return {name: str(value) for name, value in told.items()}
    if "imported" in arguments:
        return {
            "data": "as the checkpoint's",
            "recipe": f"imported from {arguments['imported']}",
            "licence": "as the checkpoint's",
            "backbone": "as the checkpoint's",
        }
    chosen = ("train", "scenes", "steps", "batch", "lr", "crop", "sampling", "distill", "seed")
    recipe = [f"{name}={arguments[name]}" for name in chosen if name in arguments]
    if sources := arguments.get("averaged"):
        alone = len(sources) == 1  # a bundle, from which `average` made a run
        mean = f"mean of {len(sources)} runs"
        recipe.append(f"weights of {Path(sources[0]).name}" if alone else mean)
    return {
        "data": str(arguments["train"]),
        "recipe": " ".join(recipe),
        "licence": "as the training data's",
        "backbone": Path(str(arguments["backbone_weights"] or "random initialisation")).name,
    }


def revision() -> str:
    """Of this code; "unknown" where it is not in a repository or git is not installed."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return (
            subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
            or "unknown"
        )
    except FileNotFoundError:
        return "unknown"
