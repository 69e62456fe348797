"""The data that flows through the service: no I/O, no HTTP, no engine.

bytes + Ask -> Frames -> (glance) -> scores -> Decision -> (front, encoder, head) -> Outcome
-> answer
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from enum import StrEnum
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Color: TypeAlias = tuple[int, int, int]  # RGB, 0..255
# How samples of more than eight bits become eight: over their full range, or over the range that
# the image uses (percentiles), as for microscopes.
ValueRange: TypeAlias = Literal["full", "auto"]


class Reason(StrEnum):
    """Why a plan was chosen: the closed label set of `Compute-Used` and of the depth histogram."""

    GATE = "gate"  # the gate found that this plan is good enough
    REQUEST = "request"  # the request's ceiling on depth or gflops decided
    NODE = "node"  # the node's ceiling decided
    DEADLINE = "deadline"  # a more expensive plan would have missed the deadline
    LOAD = "load"  # the objective, or what waits, leaves no time for the plan


@dataclass(frozen=True, slots=True)
class HeadWidth:
    """A head of a bundle at one of its widths, the fraction of its channels in use."""

    name: str
    width: float = 1.0

    @property
    def key(self) -> str:
        """Its name in manifests and in the names of plans: semantic, semantic-w50."""
        return self.name if self.width == 1 else f"{self.name}-w{round(100 * self.width)}"


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to spend compute. Plans of a bundle are in order of cost, the cheapest first.

    keep:  fraction of the high-resolution tokens that later layers still update (PAUMER), 1 = all.
    width: fraction of the encoder's FFN channels in use (slimmable), 1 = all.
    gflops: all that runs for one image, the glance included; a multiply and an add are 2.
    quality: calibrated mean quality (mIoU or PQ, 0..1) on held-out images; of several heads, the
        mean weighted by the preference.
    quality_quantiles: the 5, 25, 50, 75 and 95 % quantiles of the same images' quality; of several
        heads none.
    canvas: the name of the canvas, the size at which the image is looked at.
    heads: those that run, in the bundle's order.
    """

    name: str
    depth: int
    keep: float
    width: float
    gflops: float
    quality: float
    quality_quantiles: tuple[float, ...] = ()
    canvas: str = ""
    heads: tuple[HeadWidth, ...] = ()

    @property
    def chooses_heads(self) -> bool:
        """Whether its bundle has several heads, or one of several widths."""
        return "+" in self.name

    @property
    def encoder(self) -> str:
        """The name of what runs before the heads: c192-d3 of the plan c192-d3+semantic-w50."""
        return self.name.partition("+")[0]

    @property
    def price(self) -> float:
        """The GFLOPs as they are told, everywhere: sent back as a ceiling, they buy this plan."""
        return told(self.gflops)


def told(number: float) -> float:
    """A cost as a ceiling that allows it, in the three decimals that a header can hold (RFC 9651):
    rounded up."""
    return float(Decimal(str(number)).quantize(Decimal("0.001"), ROUND_CEILING))


@dataclass(frozen=True, slots=True)
class Margin:
    """One row of a bundle's calibration: the margin on the gate's scores that keeps a max-loss.

    asked: a max-loss, 0..1.
    margin: a plan keeps it if its score is at most this far below the full plan's; if negative, the
        score must be at least that far above. None: only the full plan keeps it.
    """

    asked: float
    margin: float | None


@dataclass(frozen=True, slots=True)
class Budget:
    """Ceilings on compute and time, and a floor on quality. None = not set.

    depth: most encoder layers.
    gflops: most compute for the image.
    ms: deadline on the server, queueing included.
    max_loss: largest expected loss of quality against the full plan that is accepted, 0..1;
        0 asks for the most expensive plan that the ceilings allow.
    strict: refuse the image if that floor is out of reach.
    """

    depth: int | None = None
    gflops: float | None = None
    ms: float | None = None
    max_loss: float | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """What one caller wants of one image, however it came in.

    urgency: of RFC 9218, from 0 (the most urgent) to 7.
    preference: how much each head matters, by name, 0 or more; a head with 0, or without one, does
        not run. None: as the bundle has it.
    """

    budget: Budget = Budget()
    value_range: ValueRange = "full"
    urgency: int = 3
    preference: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where an image lies on the canvas: scaled by one factor, at the top left, the rest padding.

    width, height: the image as shown (after EXIF orientation), in pixels.
    scaled_width, scaled_height: its size on the canvas, in canvas pixels.
    canvas: (height, width) of the canvas, in pixels.
    orientation_applied: whether the image was rotated or flipped as its EXIF asks.
    damaged: pixels of the file are missing or do not match their checksum.
    narrow_range: its 16-bit values use under a quarter of their range, and were taken over the full
    one: a value range of "auto" would show more.
    """

    width: int
    height: int
    scaled_width: int
    scaled_height: int
    canvas: tuple[int, int]
    orientation_applied: bool = False
    damaged: bool = False
    narrow_range: bool = False

    @property
    def shape(self) -> str:
        """The canvas as HEIGHTxWIDTH: the name of its shape."""
        height, width = self.canvas
        return f"{height}x{width}"


@dataclass(frozen=True, slots=True)
class Frame:
    """An image on a canvas, as a front takes it: pixels (height, width, 3) uint8 RGB."""

    pixels: NDArray[np.uint8]
    geometry: Geometry

    @classmethod
    def filling(cls, pixels: NDArray[np.uint8]) -> Frame:
        """An image of exactly the canvas' size."""
        height, width = pixels.shape[:2]
        return cls(pixels, Geometry(width, height, width, height, (height, width)))


# An image on the canvases of a bundle, by their names, from small to large.
Frames: TypeAlias = Mapping[str, Frame]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy chose for one image, and why.

    predicted_quality: the gate's estimate for the chosen plan, 0..1.
    wanted: the plan that the gate asked for, if a ceiling, the deadline or the load ruled it out;
        None: it ran.
    quality_given_up: the gate's estimate for `wanted` minus that for `plan`, never below 0.
    floor_kept: whether `plan` keeps the max-loss that was in force.
    """

    plan: Plan
    reason: Reason
    predicted_quality: float
    wanted: Plan | None = None
    quality_given_up: float = 0.0
    floor_kept: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """The engine's result for one image.

    heads: of each head that ran its tensors by name, without the batch; the head's task gives them
        a meaning. shares: of the same heads, how much each was to matter; they add up to 1.
    paused: (rows, columns) uint8 over the whole canvas, 1 = a token that the plan did not update to
        the end; None if the plan pauses none.
    """

    decision: Decision
    geometry: Geometry
    heads: Mapping[str, Mapping[str, NDArray[Any]]]
    shares: Mapping[str, float]
    paused: NDArray[np.uint8] | None = None

    def usage(self, of: int) -> dict[str, Any]:
        """What the image took, in plain values, as every transport tells it. of: the bundle's
        deepest exit."""
        plan, (height, width) = self.decision.plan, self.geometry.canvas
        heads = {head.name: head.width for head in plan.heads}
        return {
            "plan": plan.name,
            "canvas": {"name": plan.canvas, "height": height, "width": width},
            "depth": plan.depth,
            "of": of,
            "gflops": plan.price,
            "reason": self.decision.reason.value,
            "predicted_quality": round(self.decision.predicted_quality, 4),
            **({"heads": heads} if plan.chooses_heads else {}),
        }
