"""The bundle: a folder that the service can serve, and its contract, `manifest.json`. Standard library only.

`load` verifies every file against its sha256 before anything is opened; `save` is what an exporter calls. Reading is
strict: an unknown or missing key, a wrong type and stages that do not fit together are refused with the key's name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from service.core import Plan
from service.errors import BundleError

SCHEMA = 1
TASKS = ("semantic",)
FILE = "manifest.json"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """dims: sizes; a string is a size that varies, and the first one is always "batch"."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """One exported graph. parity: largest absolute difference from the network that it was exported from."""

    file: str
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parity: float


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
    """The canvas, in pixels. pad: the RGB colour right of and below an image that does not fill it."""

    height: int
    width: int
    dtype: str
    layout: str
    pad: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json as an object. plans: from cheap to dear; encoder_of: plan's name -> stage's name."""

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
    calibration: Mapping[str, Any]

    @property
    def layers(self) -> int:
        """The encoder's layers, K: the depth of the deepest plan."""
        return max(plan.depth for plan in self.plans)

    @property
    def mask_shape(self) -> tuple[int, int, int]:
        """(classes, h, w) of the decoder's probabilities for one image."""
        classes, height, width = (int(size) for size in self.stages["decoder"].outputs[0].dims[1:])
        return classes, height, width


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified folder. digest: sha256 of its manifest.json, in hex."""

    root: Path
    manifest: Manifest
    digest: str


def load(folder: Path) -> Bundle:
    """Read and verify a bundle. Raises BundleError that names the file or key and the command that mends it."""
    try:
        content = (folder / FILE).read_bytes()
        manifest = _parse(json.loads(content, parse_constant=_no_constant))
        entries: tuple[Stage | BundleFile, ...] = (*manifest.stages.values(), *manifest.files)
        for entry in entries:
            if _sha256(folder, entry.file) != entry.sha256:
                raise BundleError(f"{entry.file}: its sha256 is not the manifest's")
    except BundleError as error:
        raise _mending(folder, error.detail) from error
    except OSError as error:
        raise _mending(folder, f"{error.filename}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _mending(folder, f"{FILE}: no JSON ({error})") from error
    return Bundle(folder, manifest, hashlib.sha256(content).hexdigest())


def save(folder: Path, manifest: Manifest) -> Bundle:
    """Write manifest.json with each file's sha256, computed here, after the same checks as `load` makes.

    Raises BundleError for what could not be loaded again; then nothing is written. OSError when the disk refuses.
    """
    value = dataclasses.asdict(manifest)
    encoder_of = value.pop("encoder_of")
    for entry in [*value["stages"].values(), *value["files"]]:
        entry["sha256"] = _sha256(folder, entry["file"])
    for plan in value["plans"]:
        plan["encoder"] = encoder_of.get(plan["name"], "")
    text = json.dumps({"schema": SCHEMA} | value, indent=1, allow_nan=False) + "\n"
    checked = _parse(json.loads(text))
    partial = folder / (FILE + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, folder / FILE)
    return Bundle(folder, checked, hashlib.sha256(text.encode()).hexdigest())


def _mending(folder: Path, detail: str) -> BundleError:
    return BundleError(f"{folder}: {detail}. Make it again with: python -m model_export export RUN -o {folder}")


def _no_constant(name: str) -> NoReturn:
    raise BundleError(f"{FILE}: {name} is no number")


def _sha256(folder: Path, name: str) -> str:
    path = (folder / name).resolve()
    if not name or not path.is_relative_to(folder.resolve()):  # an absolute name, "..", or a link to elsewhere
        raise BundleError(f"{name!r}: the name leaves the folder")
    if not path.is_file():
        raise BundleError(f"{name}: there is no such file")
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _parse(value: Any) -> Manifest:
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        found = value.get("schema") if isinstance(value, dict) else value
        raise BundleError(f"schema: {found!r} is unknown, this service reads {SCHEMA}")
    value = {key: item for key, item in value.items() if key != "schema"}
    encoder_of: dict[str, Any] = {}
    plans = value.get("plans")
    for row, plan in enumerate(plans if isinstance(plans, list) else []):
        if isinstance(plan, dict) and "encoder" in plan:
            encoder_of[str(plan.get("name"))] = plan["encoder"]
            plans[row] = {key: item for key, item in plan.items() if key != "encoder"}
        else:
            raise BundleError(f"plans[{row}].encoder: is missing")
    manifest = _build(Manifest, value | {"encoder_of": encoder_of}, "")
    _check(manifest)
    return manifest


def _build(kind: type[_T], value: Any, where: str) -> _T:
    """JSON -> the annotated type; `where` is the path of keys so far."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints, prefix = get_type_hints(kind), f"{where}." if where else ""
        for key in sorted(hints.keys() ^ value.keys()):
            raise BundleError(f"{prefix}{key}: is {'missing' if key in hints else 'unknown'}")
        return kind(**{key: _build(hints[key], item, prefix + key) for key, item in value.items()})
    built: Any
    if origin is UnionType and type(value) in arguments:
        built = value
    elif origin is tuple and isinstance(value, list) and len(value) == (len(value) if ... in arguments else 3):
        built = tuple(_build(arguments[0], item, f"{where}[{row}]") for row, item in enumerate(value))
    elif origin is Mapping and isinstance(value, dict):
        built = {key: _build(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    elif kind is Any or type(value) is kind:  # type(), since True is an int to isinstance
        built = value
    elif kind is float and type(value) is int:
        built = float(value)
    else:
        raise BundleError(f"{where}: {value!r} has the wrong type")
    return built  # type: ignore[no-any-return]


def _check(manifest: Manifest) -> None:
    """What types cannot say. Raises BundleError that names the key."""
    plans, stages, canvas = manifest.plans, manifest.stages, manifest.input
    _require(manifest.task in TASKS, f"task: {manifest.task!r} is not one of {TASKS}")
    _require(1 <= len(manifest.classes) <= 255, "classes: there must be 1 to 255")  # 255 is void in masks
    colors = [canvas.pad, *(entry.color for entry in manifest.classes)]
    _require(all(0 <= v <= 255 for color in colors for v in color), "classes, input.pad: a color is outside of 0..255")
    _require((canvas.dtype, canvas.layout) == ("uint8", "NHWC"), "input: it must be uint8 and NHWC")
    _require(canvas.height > 0 and canvas.width > 0, "input: height and width must be positive")
    _require(bool(plans), "plans: there is none")
    _require(len({plan.name for plan in plans}) == len(plans), "plans: a name is there twice")
    _require(sorted(plans, key=lambda p: p.gflops) == [*plans], "plans: they must go from cheap to dear in gflops")
    for plan in plans:
        _require(plan.depth >= 1 and plan.gflops > 0, f"plans: {plan.name}: depth and gflops must be positive")
        _require(0 < plan.keep <= 1 and 0 < plan.width <= 1, f"plans: {plan.name}: keep and width must be in (0, 1]")
        values = (plan.quality, *plan.quality_quantiles)
        _require(all(0 <= v <= 1 for v in values), f"plans: {plan.name}: quality is outside of 0..1")
        _require(len(plan.quality_quantiles) == 5, f"plans: {plan.name}: quality_quantiles must be 5")
    for name in ("front", "decoder", *manifest.encoder_of.values()):
        _require(name in stages, f"stages.{name}: is missing")
    front, decoder = stages["front"], stages["decoder"]
    image = TensorSpec("image", "uint8", ("batch", canvas.height, canvas.width, 3))
    _require(front.inputs == (image,), f"stages.front.inputs: it must be {image}")
    quality = TensorSpec("quality", "float32", ("batch", len(plans)))
    _require(quality in front.outputs, f"stages.front.outputs: it must hold {quality}")
    for name in dict.fromkeys(manifest.encoder_of.values()):
        _feeds(front.outputs, stages[name], name)
        _feeds((*front.outputs, *stages[name].outputs), decoder, "decoder")
    dims = decoder.outputs[0].dims if len(decoder.outputs) == 1 else ()
    fits = len(dims) == 4 and dims[1] == len(manifest.classes) and all(isinstance(size, int) for size in dims[2:])
    _require(fits, "stages.decoder.outputs: it must be one, (batch, classes, h, w)")


def _feeds(given: tuple[TensorSpec, ...], stage: Stage, name: str) -> None:
    for spec in stage.inputs:
        _require(spec in given, f"stages.{name}.inputs: no stage before it gives {spec}")


def _require(holds: bool, detail: str) -> None:
    if not holds:
        raise BundleError(detail)
