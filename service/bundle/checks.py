"""The checks of a manifest beyond its types. Tasks check their own part (service/tasks)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from service.bundle.canvases import Canvas, Shape, Tiles, plain_of
from service.bundle.check_heads import check_heads, check_worth, require
from service.bundle.heads import EncoderPlan
from service.bundle.manifest import SIZE, Manifest, Stage, TensorSpec
from service.errors import BundleError

# Far above any network's layers; metrics have a bucket for each.
MOST_LAYERS = 256


def check(manifest: Manifest) -> None:
    """Check what types cannot express. Raises BundleError that names the key."""
    spec = manifest.input
    require(bool(manifest.name), "name: it is empty")
    require(all(0 <= v <= 255 for v in spec.pad), "input.pad: a value is outside 0..255")
    require((spec.dtype, spec.layout) == ("uint8", "NHWC"), "input: it must be uint8 and NHWC")
    check_heads(manifest)
    check_canvases(spec.canvases)
    _check_plans(manifest)
    _check_stages(manifest)


def check_canvases(canvases: Sequence[Canvas]) -> None:
    """Raises BundleError that names the canvas."""
    require(bool(canvases), "input.canvases: there are none")
    shapes = [shape for canvas in canvases for shape in canvas.shapes]
    require(
        all(shape.height > 0 and shape.width > 0 for shape in shapes),
        "input.canvases: height and width must be positive",
    )
    for what, names in (
        ("name", [canvas.name for canvas in canvases]),
        ("shape", [shape.name for shape in shapes]),
    ):
        require(len(set(names)) == len(names), f"input.canvases: a {what} occurs twice")
    for canvas in canvases:
        require(bool(canvas.shapes), f"input.canvases: {canvas.name} has no shape")
    areas = [canvas.largest.area for canvas in canvases]
    ascend = all(a < b for a, b in pairwise(areas))
    require(ascend, "input.canvases: they must go from small to large")
    for canvas in canvases:  # headers and metrics name it
        letter = "c" if canvas.tiles is None else "t"
        named = re.fullmatch(f"{letter}[1-9][0-9]*", canvas.name) is not None
        require(named, f"input.canvases: {canvas.name!r} must be named like {letter}640")
    plain = plain_of(canvases)
    require(
        bool(plain) and all(canvas.tiles is None for canvas in canvases[: len(plain)]),
        "input.canvases: the first must not be tiled, and tiled ones must follow all others",
    )
    for canvas in canvases[len(plain) :]:
        if canvas.tiles is not None:
            _check_tiles(canvas, canvas.tiles, plain)


def _check_tiles(canvas: Canvas, tiles: Tiles, plain: Sequence[Canvas]) -> None:
    """plain: the canvases that are not tiled."""
    at = f"input.canvases: {canvas.name}: tiles"
    base = next((each for each in plain if each.name == tiles.of), None)
    if base is None:
        names = ", ".join(each.name for each in plain)
        raise BundleError(f"{at}.of: {tiles.of!r} must be a canvas that is not tiled, of {names}")
    require(
        min(tiles.rows, tiles.columns) >= 1 and tiles.count >= 2,
        f"{at}: rows and columns must be at least 1, and one of them at least 2",
    )
    # At most two tiles may lie over a place.
    most = min(min(shape.height, shape.width) for shape in base.shapes) // 2
    require(
        0 <= tiles.overlap <= most and tiles.overlap % 32 == 0,
        f"{at}.overlap: {tiles.overlap} must be a multiple of 32 from 0 to {most}, half of a side",
    )
    expected = tuple(tiles.covered(shape) for shape in base.shapes)
    require(
        canvas.shapes == expected,
        f"{at}: its shapes must be {', '.join(shape.name for shape in expected)}",
    )


def _check_plans(manifest: Manifest) -> None:
    canvases = {canvas.name for canvas in manifest.input.canvases}
    plans, asked = manifest.encoder_plans, [row.asked for row in manifest.margins]
    require(bool(plans), "encoder_plans: there are none")
    require(len({plan.name for plan in plans}) == len(plans), "encoder_plans: a name occurs twice")
    for plan in plans:
        require(
            plan.canvas in canvases,
            f"encoder_plans: {plan.name}: {plan.canvas!r} is not among input.canvases",
        )
        require(
            plan.depth >= 1 and plan.gflops > 0,
            f"encoder_plans: {plan.name}: depth and gflops must be positive",
        )
        require(
            plan.depth <= MOST_LAYERS,
            f"encoder_plans: {plan.name}: depth must be at most {MOST_LAYERS}",
        )
        require(bool(plan.name), "encoder_plans: a name is empty")
        require(
            0 < plan.keep <= 1 and 0 < plan.width <= 1,
            f"encoder_plans: {plan.name}: keep and width must be in (0, 1]",
        )
        require("+" not in plan.name, f"encoder_plans: {plan.name}: a name has no +")
        check_worth(manifest, plan)
    costs = [
        round(plan.gflops + sum(plan.heads[head.name].gflops for head in manifest.heads), 4)
        for plan in plans
    ]
    # They stand in Compute-Used, as a decimal of RFC 9651.
    require(max(costs) < 1e12, "encoder_plans: gflops with all heads must be below 10^12")
    require(
        costs == sorted(costs),
        "encoder_plans: they must be in order of gflops with all heads, the cheapest first",
    )
    require(all(0 < v <= 1 for v in asked), "margins: asked must be in (0, 1]")
    require(all(a < b for a, b in pairwise(asked)), "margins: asked must ascend")
    safe = all(row.margin is None or -1 <= row.margin <= 1 for row in manifest.margins)
    require(safe, "margins: a margin is outside -1..1")


def _check_stages(manifest: Manifest) -> None:
    plain = plain_of(manifest.input.canvases)
    shapes = {shape.name for canvas in plain for shape in canvas.shapes}
    for name in manifest.graphs:
        require(name in shapes, f"graphs.{name}: no canvas has this shape, but for tiled ones")
    bases = {name: tiles.of for name, tiles in manifest.input.tiled.items()}
    require(
        any(plan.canvas not in bases for plan in manifest.encoder_plans),
        "encoder_plans: all are on tiled canvases, but only larger images take those",
    )
    for canvas in plain:
        plans = [
            plan
            for plan in manifest.encoder_plans
            if bases.get(plan.canvas, plan.canvas) == canvas.name
        ]
        for shape in canvas.shapes:
            require(shape.name in manifest.graphs, f"graphs.{shape.name}: is missing")
            _check_shape(manifest, shape, plans, glance=canvas is manifest.glance)


def _check_shape(
    manifest: Manifest, shape: Shape, plans: Sequence[EncoderPlan], *, glance: bool
) -> None:
    """The stages of one shape. plans: of its canvas, and of those cut into tiles of it."""
    stages, graphs, at = manifest.stages, manifest.graphs[shape.name], f"graphs.{shape.name}"
    names = {plan.name for plan in plans}
    for name in graphs.encoders:
        require(name in names, f"{at}.encoders.{name}: no plan of this canvas has this name")
    keys = manifest.head_keys
    for key in graphs.heads:
        require(key in keys, f"{at}.heads.{key}: no head at one of its widths has this name")
    for key in keys:
        require(key in graphs.heads, f"{at}.heads.{key}: is missing")
    for name in (graphs.front, *graphs.heads.values(), *graphs.encoders.values()):
        require(name in stages, f"stages.{name}: is missing")
    front = stages[graphs.front]
    images = TensorSpec("image", "uint8", ("batch", shape.height, shape.width, 3))
    allowed = [{images}, {images, SIZE}] if glance else [{images}]
    require(
        {*front.inputs} in allowed,
        f"stages.{graphs.front}.inputs: it must be {images}"
        + (f", and may have {SIZE}" if glance else ""),
    )
    # A score per plan, then per head, then per width from the narrowest on.
    scores = len(manifest.encoder_plans) * len(keys)
    quality = TensorSpec("quality", "float32", ("batch", scores))
    require(
        not glance or quality in front.outputs,
        f"stages.{graphs.front}.outputs: it must hold {quality}",
    )
    for plan in plans:
        require(plan.name in graphs.encoders, f"{at}.encoders.{plan.name}: is missing")
        name = graphs.encoders[plan.name]
        encoder = stages[name]
        _feeds(front.outputs, encoder, name)
        for head in graphs.heads.values():
            _feeds((*front.outputs, *encoder.outputs), stages[head], head)
        if encoder.paused is not None:
            require(
                plan.keep < 1,
                f"stages.{name}.outputs: paused is listed, but {plan.name} has keep 1",
            )
            right = encoder.paused.dtype == "uint8" and len(encoder.paused.sizes) == 2
            require(right, f"stages.{name}.outputs: paused must be uint8, (batch, rows, columns)")


def _feeds(available: tuple[TensorSpec, ...], stage: Stage, name: str) -> None:
    for spec in stage.inputs:
        require(spec in available, f"stages.{name}.inputs: no stage before it gives {spec}")
