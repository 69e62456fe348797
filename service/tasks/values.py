"""A measured value per pixel, such as depth: at the image's own size, and as a PNG in stated
units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from service.core import Geometry
from service.pixels import png
from service.pixels.resample import axes, centred, extents, sample

PERCENTILES = (5, 25, 75, 95)
DIGITS = 4  # of statistics, as they are told
BAND_PIXELS = 1 << 18  # interpolated at a time, in four bytes each
_MOST = 65535  # of a pixel of 16 bits; 0 is none


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of the values of one image, in its unit. percentiles: by PERCENTILES."""

    least: float
    most: float
    mean: float
    median: float
    percentiles: dict[int, float]


@dataclass(frozen=True)
class Values:
    """cells: (h, w) over the whole canvas, float32 in the unit. least, most: what lies beyond is
    cut off; a value that is no number is least."""

    cells: NDArray[np.float32]
    geometry: Geometry
    unit: str
    least: float
    most: float

    @property
    def scale(self) -> float:
        """By which a value is multiplied for a PNG: the largest power of 2 that leaves room for
        all, so that dividing by it is exact."""
        return float(2.0 ** math.floor(math.log2(_MOST / self.most)))

    @cached_property
    def values(self) -> NDArray[np.float32]:
        """(height, width) at the image's own size, in the unit; cells are interpolated as masks
        are."""
        height, width = self.cells.shape
        return sample(self._bounded(self.cells), *axes(self.geometry, (height, width)))

    def statistics(self) -> Statistics:
        """Of the cells that the image covers."""
        shown = self._bounded(self.cells)[self._covered]
        low, median, high = shown.min(), np.median(shown), shown.max()
        at = np.percentile(shown, PERCENTILES)
        return Statistics(
            *(float(low), float(high), float(shown.mean()), float(median)),
            {share: float(value) for share, value in zip(PERCENTILES, at, strict=True)},
        )

    def as_json(self) -> dict[str, object]:
        """The statistics as every transport tells them."""
        told = self.statistics()
        return {
            "unit": self.unit,
            "min": round(told.least, DIGITS),
            "max": round(told.most, DIGITS),
            "mean": round(told.mean, DIGITS),
            "median": round(told.median, DIGITS),
            "percentiles": {
                str(share): round(at, DIGITS) for share, at in told.percentiles.items()
            },
        }

    def png(self) -> bytes:
        """(height, width), 16-bit gray: value times scale, at least 1."""
        cells, (height, width) = self._bounded(self.cells), self.cells.shape
        rows, columns = axes(self.geometry, (height, width))
        drawn = np.empty((self.geometry.height, self.geometry.width), np.uint16)
        step = max(1, BAND_PIXELS // self.geometry.width)
        for top in range(0, len(drawn), step):
            band = slice(top, top + step)
            drawn[band] = np.rint(sample(cells, rows.at(band), columns) * self.scale).clip(1, _MOST)
        return png.levels(drawn)

    @property
    def _covered(self) -> tuple[slice, slice]:
        """The cells with their centres on the image; at least one."""
        height, width = self.cells.shape
        rows, columns = extents(self.geometry, (height, width))
        return slice(centred(rows)), slice(centred(columns))

    def _bounded(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        known = np.nan_to_num(values, nan=self.least, posinf=self.most, neginf=self.least)
        return np.asarray(known.clip(self.least, self.most), np.float32)
