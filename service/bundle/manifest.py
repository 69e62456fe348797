"""The types of `manifest.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.bundle.canvases import Canvas
from service.bundle.kernel import KernelFile
from service.core import Margin, Plan

SCHEMA = 3


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a graph. dims: a string is a size that varies; the first is always "batch"."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]


# Input of the glance's front: the image's own height and width, in pixels.
SIZE = TensorSpec("size", "float32", ("batch", 2))


@dataclass(frozen=True, slots=True)
class Stage:
    """One exported graph. parity: its largest absolute difference from the network in torch."""

    file: str
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parity: float

    @property
    def paused(self) -> TensorSpec | None:
        """The map of paused tokens, (batch, rows, columns) uint8 over the canvas.

        None unless the stage is an encoder that pauses tokens.
        """
        return next((spec for spec in self.outputs if spec.name == "paused"), None)


@dataclass(frozen=True, slots=True)
class BundleFile:
    """A file that graphs refer to, e.g. their weights."""

    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """color: RGB, 0..255. thing: countable (car), as opposed to stuff (road)."""

    name: str
    color: tuple[int, int, int]
    thing: bool


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How segments are made from the queries of a head, all 0..1.

    score: a segment must reach at least. mask: probability from which a pixel is inside. overlap:
    share of a mask that must be left where more certain ones lie over it.
    """

    score: float
    mask: float
    overlap: float


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How images come in.

    canvases: from small to large; the gate sees every image on the first one, the glance.
    pad: the RGB colour of the part of a canvas that an image does not fill.
    """

    canvases: tuple[Canvas, ...]
    dtype: str
    layout: str
    pad: tuple[int, int, int]

    @classmethod
    def of(cls, canvases: Sequence[Canvas], pad: tuple[int, int, int]) -> InputSpec:
        return cls(tuple(canvases), "uint8", "NHWC", pad)


@dataclass(frozen=True, slots=True)
class Graphs:
    """The stages that were exported for one shape of a canvas.

    encoders: plan's name -> stage's name, for the plans of that canvas.
    """

    front: str
    decoder: str
    encoders: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json as an object.

    plans: from cheapest to most expensive; the last one is the full plan.
    graphs: shape's name -> its stages.
    margins: the calibration of max-loss, ascending in `asked`; without it only the full plan keeps
        a max-loss.
    kernels: for custom nodes in the graphs, if any: TensorRT engines are built with them, and some
        engines launch them.
    thresholds: of a head that answers by queries; None: it gives a map for each channel.
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
    graphs: Mapping[str, Graphs]
    margins: tuple[Margin, ...]
    calibration: Mapping[str, Any]
    kernels: tuple[KernelFile, ...] = ()
    thresholds: Thresholds | None = None

    @property
    def glance(self) -> Canvas:
        """The canvas on which the gate sees every image."""
        return self.input.canvases[0]

    @property
    def layers(self) -> int:
        """The encoder's layers, K: the depth of the deepest plan."""
        return max(plan.depth for plan in self.plans)
