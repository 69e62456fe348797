"""The checks of a manifest beyond its types. Tasks check their own part (service/tasks)."""

from __future__ import annotations

from itertools import pairwise

from service.bundle.manifest import Manifest, Stage, TensorSpec
from service.errors import BundleError


def check(manifest: Manifest) -> None:
    """Check what types cannot express. Raises BundleError that names the key."""
    canvas = manifest.input
    # 255 is void in masks.
    _require(1 <= len(manifest.classes) <= 255, "classes: there must be 1 to 255")
    colors = [canvas.pad, *(entry.color for entry in manifest.classes)]
    _require(
        all(0 <= v <= 255 for color in colors for v in color),
        "classes, input.pad: a color is outside 0..255",
    )
    _require((canvas.dtype, canvas.layout) == ("uint8", "NHWC"), "input: it must be uint8 and NHWC")
    _require(canvas.height > 0 and canvas.width > 0, "input: height and width must be positive")
    _check_plans(manifest)
    _check_stages(manifest)


def _check_plans(manifest: Manifest) -> None:
    plans, asked = manifest.plans, [row.asked for row in manifest.margins]
    _require(bool(plans), "plans: there are none")
    _require(len({plan.name for plan in plans}) == len(plans), "plans: a name occurs twice")
    _require(
        sorted(plans, key=lambda p: p.gflops) == [*plans],
        "plans: they must be in order of gflops, the cheapest first",
    )
    for plan in plans:
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
    stages, canvas = manifest.stages, manifest.input
    for name in ("front", "decoder", *manifest.encoder_of.values()):
        _require(name in stages, f"stages.{name}: is missing")
    front, decoder = stages["front"], stages["decoder"]
    image = TensorSpec("image", "uint8", ("batch", canvas.height, canvas.width, 3))
    _require(front.inputs == (image,), f"stages.front.inputs: it must be {image}")
    quality = TensorSpec("quality", "float32", ("batch", len(manifest.plans)))
    _require(quality in front.outputs, f"stages.front.outputs: it must hold {quality}")
    for plan in manifest.plans:
        name = manifest.encoder_of[plan.name]
        encoder = stages[name]
        _feeds(front.outputs, encoder, name)
        _feeds((*front.outputs, *encoder.outputs), decoder, "decoder")
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
