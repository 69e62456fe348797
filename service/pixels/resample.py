"""Resamples the decoder's cells to the image's own size.

The cells cover the whole canvas, the image only its top left part. The value of a pixel is the
bilinear interpolation between the centres of the cells, as with torch's
`interpolate(align_corners=False)`. Cells with their centres on padding have no part in it: training
does not judge what they say.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.core import Geometry


class Axis(NamedTuple):
    """Per pixel along an axis: the two cells around its centre, and the weight of the second.

    tops: (strips + 1,) where the pixels between the same two centres of cells begin; in such a
    strip the weight rises by equal steps, or stays 0. The last one is the number of pixels.
    """

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    weight: NDArray[np.float32]
    tops: NDArray[np.intp]

    def at(self, pixels: NDArray[np.intp] | slice) -> Axis:
        """The same of some pixels; of strips they know nothing."""
        return Axis(
            self.first[pixels], self.second[pixels], self.weight[pixels], np.zeros(0, np.intp)
        )


def extents(geometry: Geometry, cells: tuple[int, int]) -> tuple[float, float]:
    """How many rows and columns of cells the image covers. cells: those of the canvas."""
    height, width = geometry.canvas
    return (
        geometry.scaled_height / height * cells[0],
        geometry.scaled_width / width * cells[1],
    )


def centred(extent: float) -> int:
    """How many of the cells that are covered so far have their centres there; at least one."""
    return max(1, math.floor(extent + 0.5))


def axes(geometry: Geometry, cells: tuple[int, int]) -> tuple[Axis, Axis]:
    """The image's rows and columns. cells: (rows, columns) that cover the canvas."""
    rows, columns = extents(geometry, cells)
    return axis(geometry.height, rows), axis(geometry.width, columns)


@lru_cache(16)  # a caller's images often have one size
def axis(size: int, extent: float) -> Axis:
    """`size` pixels that cover `extent` of the cells, from the first one on. Not to be changed."""
    centre = (np.arange(size) + 0.5) * (extent / size) - 0.5
    tops = np.r_[np.flatnonzero(np.diff(np.floor(centre), prepend=-2)), size]
    last = centred(extent) - 1
    centre = centre.clip(0, last)
    first = centre.astype(np.intp)
    weight = (centre - first).astype(np.float32)
    return Axis(first, np.minimum(first + 1, last), weight, tops)


def sample(plane: NDArray[np.float32], rows: Axis, columns: Axis) -> NDArray[np.float32]:
    """(h, w) cells -> (pixels of rows, pixels of columns)."""
    across = mix(plane[:, columns.first], plane[:, columns.second], columns.weight)
    return mix(across[rows.first], across[rows.second], rows.weight[:, None])


def covering(grid: tuple[int, int], geometry: Geometry) -> tuple[NDArray[np.intp], ...]:
    """The row and the column of the cell that covers each pixel's centre, (height,) and (width,).

    grid: the (rows, columns) of cells over the whole canvas.
    """
    rows, columns = (
        (np.arange(size) + 0.5) * (scaled / size) * (cells / canvas)
        for size, scaled, cells, canvas in zip(
            (geometry.height, geometry.width),
            (geometry.scaled_height, geometry.scaled_width),
            grid,
            geometry.canvas,
            strict=True,
        )
    )
    return rows.astype(np.intp), columns.astype(np.intp)


def mix(
    a: NDArray[np.float32], b: NDArray[np.float32], weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    """a + (b - a) * weight, written into b."""
    b -= a
    b *= weight
    b += a
    return b
