"""Resamples the decoder's cells to the image's own size, in bands of rows that bound the memory.

The cells cover the whole canvas, the image only its top left part. The value of a pixel is the
bilinear interpolation between the centres of the cells, as with torch's
`interpolate(align_corners=False)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.core import Geometry

BAND_PIXELS = 1 << 19  # image pixels per band of rows; bounds the memory for a large image


class Axis(NamedTuple):
    """Per pixel along an axis: the two cells around its centre, and the weight of the second."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    weight: NDArray[np.float32]


class Band(NamedTuple):
    """Rows [top, bottom) of the image, and the cells around its pixels."""

    top: int
    bottom: int
    rows: Axis
    columns: Axis


def rows_of(height: int, width: int) -> Iterator[slice]:
    """The rows of an image, band by band."""
    step = max(1, BAND_PIXELS // width)
    return (slice(top, min(top + step, height)) for top in range(0, height, step))


def bands(geometry: Geometry, cells: tuple[int, int]) -> Iterator[Band]:
    """The image, band by band. cells: (rows, columns) that cover the canvas."""
    height, width = geometry.canvas
    rows = _axis(geometry.height, geometry.scaled_height, height, cells[0])
    columns = _axis(geometry.width, geometry.scaled_width, width, cells[1])
    for part in rows_of(geometry.height, geometry.width):
        yield Band(part.start, part.stop, _part(rows, part), columns)


def most_probable(probabilities: NDArray[np.float32], geometry: Geometry) -> NDArray[np.uint8]:
    """The most probable channel of each pixel: (C, h, w) -> (height, width) uint8.

    Ties go to the lower channel. Where the four cells around a pixel agree on a channel, so does
    every mixture of them, so only the pixels at borders between channels are interpolated. The
    result is the same as if all were.
    """
    cells = probabilities.argmax(axis=0).astype(np.uint8)  # (h, w)
    right, below = np.roll(cells, -1, axis=1), np.roll(cells, -1, axis=0)
    # A cell and its next neighbours. In the last row and column, roll compares with the first,
    # which can only cost time.
    agree = (cells == right) & (cells == below) & (cells == np.roll(below, -1, axis=1))
    channels = len(probabilities)
    flat = np.ascontiguousarray(probabilities.transpose(1, 2, 0)).reshape(-1, channels)  # (h*w, C)
    labels = np.empty((geometry.height, geometry.width), np.uint8)
    for band in bands(geometry, cells.shape):
        (y0, y1, fy), (x0, x1, fx) = band.rows, band.columns
        part = labels[band.top : band.bottom]
        part[:] = cells[y0][:, x0]
        y, x = np.nonzero(~agree[y0][:, x0])
        first, second = y0[y] * cells.shape[1], y1[y] * cells.shape[1]
        left, right_of = x0[x], x1[x]
        across, down = fx[x, None], fy[y, None]
        upper = mix(flat.take(first + left, axis=0), flat.take(first + right_of, axis=0), across)
        lower = mix(flat.take(second + left, axis=0), flat.take(second + right_of, axis=0), across)
        part[y, x] = mix(upper, lower, down).argmax(axis=1)
    return labels


def nearest(grid: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """(rows, columns) over the canvas -> (height, width): the value at the centre of each pixel."""
    rows, columns = (
        (np.arange(size) + 0.5) * (scaled / size) * (cells / canvas)
        for size, scaled, cells, canvas in zip(
            (geometry.height, geometry.width),
            (geometry.scaled_height, geometry.scaled_width),
            grid.shape,
            geometry.canvas,
            strict=True,
        )
    )
    return np.asarray(grid[rows.astype(np.intp)][:, columns.astype(np.intp)])


def mix(
    a: NDArray[np.float32], b: NDArray[np.float32], weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    """a + (b - a) * weight, written into b."""
    b -= a
    b *= weight
    b += a
    return b


def _part(axis: Axis, part: slice) -> Axis:
    return Axis(axis.first[part], axis.second[part], axis.weight[part])


def _axis(size: int, scaled: int, canvas: int, cells: int) -> Axis:
    """The image's `size` pixels cover `scaled` pixels of the canvas; the cells cover all of it."""
    centre = (np.arange(size) + 0.5) * (scaled / size) * (cells / canvas) - 0.5
    centre = centre.clip(0, cells - 1)
    first = centre.astype(np.intp)
    return Axis(first, np.minimum(first + 1, cells - 1), (centre - first).astype(np.float32))
