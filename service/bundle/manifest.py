"""`manifest.json` as an object: its types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.bundle.kernel import KernelFile
from service.core import Margin, Plan

SCHEMA = 2


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
