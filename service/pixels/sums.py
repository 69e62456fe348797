"""Sums of probabilities over the pixels of each class, from the runs of a label map.

Down a column a probability is a straight line between two rows of cells, so that the sums from the
upper edge to the rows of cells and a little more give those of a run.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.core import Geometry
from service.pixels.resample import axes
from service.pixels.runs import Positions, Runs, grouped


def areas_and_sums(
    runs: Runs, probabilities: NDArray[np.float32], geometry: Geometry
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Per channel, its pixels and the sum of its own probability over them, both (C,)."""
    above = _Above(geometry, probabilities.shape[1:])
    starts, ends, values = runs.by_column()
    areas, sums = np.zeros(len(probabilities), np.intp), np.zeros(len(probabilities))
    for channel, own in enumerate(grouped(values, np.arange(len(probabilities)))):
        if own.size:
            areas[channel] = (ends[own] - starts[own]).sum()
            column = starts[own] // geometry.height
            top, bottom = (edges[own] - column * geometry.height for edges in (starts, ends))
            sums[channel] = above.sums(probabilities[channel], top, bottom, column)
    return areas, sums


class _Above:
    """Sums of a channel down the columns of an image. cells: (rows, columns) over the canvas."""

    def __init__(self, geometry: Geometry, cells: tuple[int, int]) -> None:
        rows, self._columns = axes(geometry, cells)
        self._tops, strips = rows.tops, np.diff(rows.tops)
        # Of the upper edge of each row of pixels and, at last, the image's lower edge: the strip
        # that it is in, the rows of it that lie above, and the sum of their weights.
        self._strip = np.r_[np.repeat(np.arange(len(strips)), strips), len(strips)]
        self._count = np.arange(len(self._strip)) - rows.tops[self._strip]
        weights = np.r_[0, np.cumsum(rows.weight, dtype=np.float64)]
        self._weights = weights - weights[rows.tops[self._strip]]
        top = np.minimum(rows.tops, geometry.height - 1)
        self._above, self._below = rows.first[top], rows.second[top]  # (strips + 1,)
        self._counts = strips[:, None].astype(np.float64)
        self._sums = np.diff(weights[rows.tops])[:, None]

    def sums(
        self, plane: NDArray[np.float32], top: Positions, bottom: Positions, column: Positions
    ) -> float:
        """Of all pixels of these parts of columns. plane: the channel on the cells."""
        upper = plane[self._above].astype(np.float64)  # (strips + 1, w)
        rise = plane[self._below] - upper
        whole = np.zeros_like(upper)
        np.cumsum(self._counts * upper[:-1] + self._sums * rise[:-1], axis=0, out=whole[1:])
        across = self._columns.at(column)
        sides = []
        for cell in (across.first, across.second):
            low, high = (
                whole[self._strip[row], cell]
                + self._count[row] * upper[self._strip[row], cell]
                + self._weights[row] * rise[self._strip[row], cell]
                for row in (top, bottom)
            )
            sides.append(high - low)
        return float((sides[0] + (sides[1] - sides[0]) * across.weight).sum())
