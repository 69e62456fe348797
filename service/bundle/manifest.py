"""The types of `manifest.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.bundle.canvases import Canvas, Tiles
from service.bundle.heads import EncoderPlan, Head
from service.bundle.kernel import KernelFile
from service.bundle.plans import complete_plans
from service.core import HeadWidth, Margin, Plan

SCHEMA = 4


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a graph. dims: a string is a size that varies; the first is always "batch"."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of one image, without the batch; empty where a size varies."""
        own = tuple(size for size in self.dims[1:] if isinstance(size, int) and size > 0)
        return own if len(own) == len(self.dims) - 1 else ()


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
class InputSpec:
    """How images come in.

    canvases: from small to large, the tiled ones last; the gate sees every image on the first one,
        the glance.
    pad: the RGB colour of the part of a canvas that an image does not fill.
    """

    canvases: tuple[Canvas, ...]
    dtype: str
    layout: str
    pad: tuple[int, int, int]

    @classmethod
    def of(cls, canvases: Sequence[Canvas], pad: tuple[int, int, int]) -> InputSpec:
        return cls(tuple(canvases), "uint8", "NHWC", pad)

    @property
    def tiled(self) -> Mapping[str, Tiles]:
        """The tiled canvases by name, and how they are cut."""
        return {canvas.name: canvas.tiles for canvas in self.canvases if canvas.tiles is not None}


@dataclass(frozen=True, slots=True)
class Graphs:
    """The stages that were exported for one shape of a canvas that is not tiled.

    encoders: encoder plan's name -> stage's name, for the plans of that canvas and of those that
        are cut into tiles of it.
    heads: `HeadWidth.key` -> stage's name.
    """

    front: str
    encoders: Mapping[str, str]
    heads: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json as an object.

    heads: what the bundle answers, in order.
    default_preference: how much each head matters to those who say nothing of it, by name; one that
        is not named does not run for them.
    encoder_plans: from cheapest to most expensive; the last one is the full plan. Those on tiled
        canvases are for larger images alone, see `open_to`.
    graphs: shape's name -> its stages; of tiled canvases there are none.
    margins: the calibration of max-loss, ascending in `asked`; without it only the full plan keeps
        a max-loss.
    kernels: for custom nodes in the graphs, if any: TensorRT engines are built with them, and some
        engines launch them.
    """

    name: str
    revision: str
    provenance: Mapping[str, str]
    heads: tuple[Head, ...]
    default_preference: Mapping[str, float]
    input: InputSpec
    stages: Mapping[str, Stage]
    files: tuple[BundleFile, ...]
    encoder_plans: tuple[EncoderPlan, ...]
    graphs: Mapping[str, Graphs]
    margins: tuple[Margin, ...]
    calibration: Mapping[str, Any]
    kernels: tuple[KernelFile, ...] = ()

    @property
    def glance(self) -> Canvas:
        """The canvas on which the gate sees every image."""
        return self.input.canvases[0]

    @property
    def layers(self) -> int:
        """The encoder's layers, K: the depth of the deepest plan."""
        return max(plan.depth for plan in self.encoder_plans)

    @property
    def head(self) -> Head:
        """The head that matters most to those who say nothing of it; the first of equals."""
        return max(self.heads, key=lambda head: self.default_preference.get(head.name, 0.0))

    @property
    def head_widths(self) -> list[HeadWidth]:
        """Each head at each of its widths, in the order of gate scores."""
        return [at for head in self.heads for at in head.at_widths()]

    @property
    def head_keys(self) -> list[str]:
        """The same by `HeadWidth.key`."""
        return [at.key for at in self.head_widths]

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The complete plans for those who say nothing of heads, the cheapest first."""
        return complete_plans(self.encoder_plans, self.heads, self.default_preference)
