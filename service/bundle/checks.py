"""The checks of a manifest beyond its types. Tasks check their own part (service/tasks)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from service.bundle.canvases import Canvas, Shape
from service.bundle.manifest import SIZE, Manifest, Stage, TensorSpec
from service.core import Plan
from service.errors import BundleError


def check(manifest: Manifest) -> None:
    """Check what types cannot express. Raises BundleError that names the key."""
    spec = manifest.input
    # 255 is void in masks.
    _require(1 <= len(manifest.classes) <= 255, "classes: there must be 1 to 255")
    colors = [spec.pad, *(entry.color for entry in manifest.classes)]
    _require(
        all(0 <= v <= 255 for color in colors for v in color),
        "classes, input.pad: a color is outside 0..255",
    )
    _require((spec.dtype, spec.layout) == ("uint8", "NHWC"), "input: it must be uint8 and NHWC")
    if manifest.thresholds is not None:
        values = (getattr(manifest.thresholds, key) for key in ("score", "mask", "overlap"))
        _require(all(0 <= v <= 1 for v in values), "thresholds: a value is outside 0..1")
    _check_canvases(spec.canvases)
    _check_plans(manifest)
    _check_stages(manifest)


def _check_canvases(canvases: Sequence[Canvas]) -> None:
    _require(bool(canvases), "input.canvases: there are none")
    shapes = [shape for canvas in canvases for shape in canvas.shapes]
    _require(
        all(shape.height > 0 and shape.width > 0 for shape in shapes),
        "input.canvases: height and width must be positive",
    )
    for what, names in (
        ("name", [canvas.name for canvas in canvases]),
        ("shape", [shape.name for shape in shapes]),
    ):
        _require(len(set(names)) == len(names), f"input.canvases: a {what} occurs twice")
    for canvas in canvases:
        _require(bool(canvas.shapes), f"input.canvases: {canvas.name} has no shape")
    areas = [canvas.largest.area for canvas in canvases]
    ascend = all(a < b for a, b in pairwise(areas))
    _require(ascend, "input.canvases: they must go from small to large")
    for canvas in canvases:  # headers and metrics name it
        named = re.fullmatch("c[1-9][0-9]*", canvas.name) is not None
        _require(named, f"input.canvases: {canvas.name!r} must be named like c640")


def _check_plans(manifest: Manifest) -> None:
    canvases = {canvas.name for canvas in manifest.input.canvases}
    plans, asked = manifest.plans, [row.asked for row in manifest.margins]
    _require(bool(plans), "plans: there are none")
    _require(len({plan.name for plan in plans}) == len(plans), "plans: a name occurs twice")
    _require(
        sorted(plans, key=lambda p: p.gflops) == [*plans],
        "plans: they must be in order of gflops, the cheapest first",
    )
    for plan in plans:
        _require(
            plan.canvas in canvases,
            f"plans: {plan.name}: {plan.canvas!r} is not among input.canvases",
        )
        _require(
            plan.depth >= 1 and plan.gflops > 0,
            f"plans: {plan.name}: depth and gflops must be positive",
        )
        _require(
            0 < plan.keep <= 1 and 0 < plan.width <= 1,
            f"plans: {plan.name}: keep and width must be in (0, 1]",
        )
        values = (plan.quality, *plan.quality_quantiles)
        _require(all(0 <= v <= 1 for v in values), f"plans: {plan.name}: quality is outside 0..1")
        _require(
            len(plan.quality_quantiles) == 5,
            f"plans: {plan.name}: quality_quantiles must have 5 values",
        )
    _require(all(0 < v <= 1 for v in asked), "margins: asked must be in (0, 1]")
    _require(all(a < b for a, b in pairwise(asked)), "margins: asked must ascend")
    safe = all(row.margin is None or -1 <= row.margin <= 1 for row in manifest.margins)
    _require(safe, "margins: a margin is outside -1..1")


def _check_stages(manifest: Manifest) -> None:
    shapes = {shape.name for canvas in manifest.input.canvases for shape in canvas.shapes}
    for name in manifest.graphs:
        _require(name in shapes, f"graphs.{name}: no canvas has this shape")
    for canvas in manifest.input.canvases:
        plans = [plan for plan in manifest.plans if plan.canvas == canvas.name]
        for shape in canvas.shapes:
            _require(shape.name in manifest.graphs, f"graphs.{shape.name}: is missing")
            _check_shape(manifest, shape, plans, glance=canvas is manifest.glance)


def _check_shape(manifest: Manifest, shape: Shape, plans: Sequence[Plan], *, glance: bool) -> None:
    """The stages of one shape. plans: of its canvas."""
    stages, graphs, at = manifest.stages, manifest.graphs[shape.name], f"graphs.{shape.name}"
    names = {plan.name for plan in plans}
    for name in graphs.encoders:
        _require(name in names, f"{at}.encoders.{name}: no plan of this canvas has this name")
    for name in (graphs.front, graphs.decoder, *graphs.encoders.values()):
        _require(name in stages, f"stages.{name}: is missing")
    front, decoder = stages[graphs.front], stages[graphs.decoder]
    images = TensorSpec("image", "uint8", ("batch", shape.height, shape.width, 3))
    allowed = [{images}, {images, SIZE}] if glance else [{images}]
    _require(
        {*front.inputs} in allowed,
        f"stages.{graphs.front}.inputs: it must be {images}"
        + (f", and may have {SIZE}" if glance else ""),
    )
    quality = TensorSpec("quality", "float32", ("batch", len(manifest.plans)))
    _require(
        not glance or quality in front.outputs,
        f"stages.{graphs.front}.outputs: it must hold {quality}",
    )
    for plan in plans:
        _require(plan.name in graphs.encoders, f"{at}.encoders.{plan.name}: is missing")
        name = graphs.encoders[plan.name]
        encoder = stages[name]
        _feeds(front.outputs, encoder, name)
        _feeds((*front.outputs, *encoder.outputs), decoder, graphs.decoder)
        if encoder.paused is not None:
            _require(
                plan.keep < 1,
                f"stages.{name}.outputs: paused is listed, but {plan.name} has keep 1",
            )
            right = encoder.paused.dtype == "uint8" and _is_grid(encoder.paused.dims, 3)
            _require(right, f"stages.{name}.outputs: paused must be uint8, (batch, rows, columns)")


def _is_grid(dims: tuple[int | str, ...], count: int) -> bool:
    return len(dims) == count and all(isinstance(size, int) and size > 0 for size in dims[1:])


def _feeds(available: tuple[TensorSpec, ...], stage: Stage, name: str) -> None:
    for spec in stage.inputs:
        _require(spec in available, f"stages.{name}.inputs: no stage before it gives {spec}")


def _require(holds: bool, detail: str) -> None:
    if not holds:
        raise BundleError(detail)
