"""`manifest.json` as an object: its types, how JSON becomes them, and what must hold between them.

Reading is strict: an unknown or missing key, a wrong type and stages that do not fit together are
refused with the key's name. Everybody but `bundle` takes these names from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from service.bundle.kernel import KernelFile
from service.core import Margin, Plan
from service.errors import BundleError

SCHEMA = 2
TASKS = ("semantic", "instance")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """dims: sizes; a string is a size that varies, and the first one is always "batch"."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """One exported graph. parity: largest absolute difference from the network that it was exported
    from."""

    file: str
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parity: float

    @property
    def paused(self) -> TensorSpec | None:
        """Of an encoder that pauses tokens: its map of them, (batch, rows, columns) uint8 over the
        canvas."""
        return next((spec for spec in self.outputs if spec.name == "paused"), None)


@dataclass(frozen=True, slots=True)
class BundleFile:
    """A file that the graphs refer to, e.g. their weights."""

    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """color: RGB, 0..255. thing: countable (car), as opposed to stuff (road)."""

    name: str
    color: tuple[int, int, int]
    thing: bool


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The canvas, in pixels. pad: the RGB colour right of and below an image that does not fill
    it."""

    height: int
    width: int
    dtype: str
    layout: str
    pad: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json as an object.

    plans: from cheap to dear, the last one is the full plan; encoder_of: plan's name -> stage's
    name. margins: the calibration of max-loss, ascending in `asked`; without any, all but the full
    plan is unsafe. kernels: compiled for the graphs' nodes of our own, if any; engines are built
    with them, and some run them.
    """

    name: str
    revision: str
    provenance: Mapping[str, str]
    task: str
    classes: tuple[ClassInfo, ...]
    input: InputSpec
    stages: Mapping[str, Stage]
    files: tuple[BundleFile, ...]
    plans: tuple[Plan, ...]
    encoder_of: Mapping[str, str]
    margins: tuple[Margin, ...]
    calibration: Mapping[str, Any]
    kernels: tuple[KernelFile, ...] = ()

    @property
    def layers(self) -> int:
        """The encoder's layers, K: the depth of the deepest plan."""
        return max(plan.depth for plan in self.plans)

    @property
    def channels(self) -> int:
        """Of the decoder: one per class; for the instance task background, then core and rim of
        each class."""
        return 1 + 2 * len(self.classes) if self.task == "instance" else len(self.classes)

    @property
    def mask_shape(self) -> tuple[int, int, int]:
        """(channels, h, w) of the decoder's probabilities for one image."""
        channels, height, width = (int(size) for size in self.stages["decoder"].outputs[0].dims[1:])
        return channels, height, width


def parse(value: Any) -> Manifest:
    """What stands in manifest.json -> the object, checked. Raises BundleError that names the
    key."""
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        found = value.get("schema") if isinstance(value, dict) else value
        raise BundleError(f"schema: {found!r}, but this service reads {SCHEMA}")
    value = {key: item for key, item in value.items() if key != "schema"}
    encoder_of: dict[str, Any] = {}
    plans = value.get("plans")
    for row, plan in enumerate(plans if isinstance(plans, list) else []):
        if isinstance(plan, dict) and "encoder" in plan:
            encoder_of[str(plan.get("name"))] = plan["encoder"]
            plans[row] = {key: item for key, item in plan.items() if key != "encoder"}
        else:
            raise BundleError(f"plans[{row}].encoder: is missing")
    manifest = build(Manifest, value | {"encoder_of": encoder_of}, "")
    _check(manifest)
    return manifest


def build(kind: type[_T], value: Any, where: str) -> _T:
    """JSON -> the annotated type; `where` is the path of keys so far."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints, prefix = get_type_hints(kind), f"{where}." if where else ""
        optional = {
            field.name
            for field in dataclasses.fields(kind)
            if field.default is not dataclasses.MISSING
        }
        for key in sorted((hints.keys() ^ value.keys()) - (optional - value.keys())):
            raise BundleError(f"{prefix}{key}: is {'missing' if key in hints else 'unknown'}")
        return kind(**{key: build(hints[key], item, prefix + key) for key, item in value.items()})
    built: Any
    if origin is UnionType:
        built = build(type(value) if type(value) in arguments else arguments[0], value, where)
    elif (
        origin is tuple
        and isinstance(value, list)
        and len(value) == (len(value) if ... in arguments else len(arguments))
    ):
        built = tuple(
            build(arguments[0], item, f"{where}[{row}]") for row, item in enumerate(value)
        )
    elif origin is Mapping and isinstance(value, dict):
        built = {key: build(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    elif kind is Any or type(value) is kind:  # type(), since True is an int to isinstance
        built = value
    elif kind is float and type(value) is int:
        built = float(value)
    else:
        raise BundleError(f"{where}: {value!r} has the wrong type")
    return built  # type: ignore[no-any-return]


def _check(manifest: Manifest) -> None:
    """What types cannot say. Raises BundleError that names the key."""
    canvas = manifest.input
    _require(manifest.task in TASKS, f"task: {manifest.task!r} is not one of {TASKS}")
    _require(
        1 <= len(manifest.classes) <= 255, "classes: there must be 1 to 255"
    )  # 255 is void in masks
    things = manifest.task == "semantic" or all(entry.thing for entry in manifest.classes)
    _require(things, "classes: those of the instance task must be things")
    colors = [canvas.pad, *(entry.color for entry in manifest.classes)]
    _require(
        all(0 <= v <= 255 for color in colors for v in color),
        "classes, input.pad: a color is outside of 0..255",
    )
    _require((canvas.dtype, canvas.layout) == ("uint8", "NHWC"), "input: it must be uint8 and NHWC")
    _require(canvas.height > 0 and canvas.width > 0, "input: height and width must be positive")
    _check_plans(manifest)
    _check_stages(manifest)


def _check_plans(manifest: Manifest) -> None:
    plans, asked = manifest.plans, [row.asked for row in manifest.margins]
    _require(bool(plans), "plans: there is none")
    _require(len({plan.name for plan in plans}) == len(plans), "plans: a name is there twice")
    _require(
        sorted(plans, key=lambda p: p.gflops) == [*plans],
        "plans: they must go from cheap to dear in gflops",
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
        _require(
            all(0 <= v <= 1 for v in values), f"plans: {plan.name}: quality is outside of 0..1"
        )
        _require(
            len(plan.quality_quantiles) == 5, f"plans: {plan.name}: quality_quantiles must be 5"
        )
    _require(all(0 < v <= 1 for v in asked), "margins: asked must be in (0, 1]")
    _require(all(a < b for a, b in pairwise(asked)), "margins: asked must ascend")
    safe = all(row.margin is None or -1 <= row.margin <= 1 for row in manifest.margins)
    _require(safe, "margins: a margin is outside of -1..1")


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
                plan.keep < 1, f"stages.{name}.outputs: paused is there, but {plan.name} has keep 1"
            )
            right = encoder.paused.dtype == "uint8" and _is_grid(encoder.paused.dims, 3)
            _require(right, f"stages.{name}.outputs: paused must be uint8, (batch, rows, columns)")
    dims = decoder.outputs[0].dims if len(decoder.outputs) == 1 else ()
    fits = _is_grid(dims, 4) and dims[1] == manifest.channels
    what = "1 + 2 * classes" if manifest.task == "instance" else "classes"
    _require(fits, f"stages.decoder.outputs: it must be one, (batch, {what}, h, w)")


def _is_grid(dims: tuple[int | str, ...], count: int) -> bool:
    return len(dims) == count and all(isinstance(size, int) and size > 0 for size in dims[1:])


def _feeds(given: tuple[TensorSpec, ...], stage: Stage, name: str) -> None:
    for spec in stage.inputs:
        _require(spec in given, f"stages.{name}.inputs: no stage before it gives {spec}")


def _require(holds: bool, detail: str) -> None:
    if not holds:
        raise BundleError(detail)
