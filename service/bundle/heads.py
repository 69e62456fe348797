"""The heads of a bundle, what its plans cost up to them, and what each adds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from service.core import HeadWidth


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
    share of a mask that must be left where more certain ones lie over it. The last two are of heads
    that give masks.
    """

    score: float
    mask: float = 0.5
    overlap: float = 0.8


@dataclass(frozen=True, slots=True)
class Head:
    """What a decoder answers.

    name: as callers name it, in lower case. widths: the fractions of its channels that it can run
    with, ascending, the last is 1. classes: none for a head that measures something.
    thresholds: of a head that answers by queries; None: it gives a map for each channel.
    unit, range: of a head that measures something: of its values, and the least and the largest.
    """

    name: str
    task: str
    classes: tuple[ClassInfo, ...]
    widths: tuple[float, ...] = (1.0,)
    thresholds: Thresholds | None = None
    unit: str | None = None
    range: tuple[float, float] | None = None

    def at_widths(self) -> Iterator[HeadWidth]:
        """From the narrowest to the full one."""
        return (HeadWidth(self.name, width) for width in self.widths)


@dataclass(frozen=True, slots=True)
class HeadWorth:
    """What a head at one width adds to a plan's GFLOPs, and how good its answers then are: the
    calibrated mean (0..1) and the 5, 25, 50, 75 and 95 % quantiles on held-out images."""

    gflops: float
    quality: float
    quality_quantiles: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class EncoderPlan:
    """One way to spend compute before the heads; see `Plan` for the fields.

    gflops: of the glance, the front and the encoder. heads: by `HeadWidth.key`.
    """

    name: str
    depth: int
    keep: float
    width: float
    gflops: float
    heads: Mapping[str, HeadWorth]
    canvas: str = ""

    @property
    def encoder(self) -> str:
        """As of a complete plan: the name of what runs before the heads."""
        return self.name
