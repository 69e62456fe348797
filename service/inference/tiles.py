"""Cutting an image into overlapping tiles, and joining what was made of them. Pure functions.

Maps are blended where tiles overlap, by linear ramps that add up to 1: what lies on a border is
whole, and the joined map is as one that a larger canvas had made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle import Shape, Tiles

Map = NDArray[Any]


def split(pixels: NDArray[np.uint8], tiles: Tiles, tile: Shape) -> list[NDArray[np.uint8]]:
    """(H, W, 3) -> the tiles, each (h, w, 3), row by row.

    tile: its size; together they cover exactly the image.
    """
    covered = tiles.covered(tile)
    assert pixels.shape[:2] == (covered.height, covered.width)
    tops = [row * (tile.height - tiles.overlap) for row in range(tiles.rows)]
    lefts = [column * (tile.width - tiles.overlap) for column in range(tiles.columns)]
    return [
        pixels[top : top + tile.height, left : left + tile.width] for top in tops for left in lefts
    ]


def join(maps: Sequence[Map], tiles: Tiles, tile: Shape, *, blend: bool = True) -> Map:
    """A map of each tile, row by row, each (..., h, w) -> the map of the image, (..., H, W).

    Cells may be of any size that divides tile and overlap. blend: where two tiles overlap, by a
    ramp; else each has half of it.
    """
    height, width = maps[0].shape[-2:]
    stride = tiles.stride(height, width, tile)
    assert stride is not None  # a bundle's heads were checked when it was opened
    overlap, columns = tiles.overlap // stride, tiles.columns
    rows = [
        _joined(maps[start : start + columns], overlap, -1, blend)
        for start in range(0, len(maps), columns)
    ]
    return _joined(rows, overlap, -2, blend)


def _joined(parts: Sequence[Map], overlap: int, axis: int, blend: bool) -> Map:
    """Neighbours along an axis, each with so many cells in common with the next one."""
    if len(parts) == 1 or overlap == 0:
        return np.concatenate(parts, axis)
    length, last = parts[0].shape[axis], len(parts) - 1
    if not blend:
        half = overlap // 2
        cut = [
            _along(
                part,
                axis,
                overlap - half if place else 0,
                length - half if place < last else length,
            )
            for place, part in enumerate(parts)
        ]
        return np.concatenate(cut, axis)
    ramp = ((np.arange(overlap, dtype=np.float32) + 0.5) / overlap).reshape(
        (-1, *(1,) * (-axis - 1))
    )
    pieces: list[Map] = []
    for place, part in enumerate(parts):
        inner = length - (overlap if place < last else 0)
        pieces.append(_along(part, axis, overlap if place else 0, inner))
        if place < last:
            before = _along(part, axis, length - overlap, length)
            after = _along(parts[place + 1], axis, 0, overlap)
            pieces.append(before + ramp * (after - before))
    return np.concatenate(pieces, axis)


def _along(part: Map, axis: int, start: int, end: int) -> Map:
    """A stretch of one of the last two axes."""
    return part[..., start:end] if axis == -1 else part[..., start:end, :]
