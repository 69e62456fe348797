"""One annotation of COCO's -> its pixels: polygons, and run lengths as lists or as COCO's text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco


@dataclass(frozen=True, slots=True)
class Annotated:
    """An image of an annotation file. size: (height, width). entries: its annotations, or the
    segments of its panoptic PNG."""

    name: str
    size: tuple[int, int]
    entries: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Region:
    """size: (height, width). runs: lengths down the columns, outside and inside in turn."""

    size: tuple[int, int]
    runs: NDArray[np.intp]

    @property
    def area(self) -> int:
        """Pixels."""
        return int(self.runs[1::2].sum())

    def pixels(self) -> NDArray[np.bool_]:
        """(H, W)."""
        inside = np.arange(len(self.runs)) % 2 == 1
        return np.repeat(inside, self.runs).reshape(self.size[::-1]).T


def region_of(entry: dict[str, Any], size: tuple[int, int]) -> Region:
    """The pixels of an annotation in an image of this (height, width). Raises ValueError that names
    the annotation."""
    name, shape = f"annotation {entry.get('id')}", entry.get("segmentation")
    if isinstance(shape, list) and shape:
        return _polygons(shape, size, name)
    if isinstance(shape, dict):
        return _runs(shape, size, name)
    raise ValueError(f"{name} has no segmentation: boxes alone are not enough")


def _polygons(shape: list[Any], size: tuple[int, int], name: str) -> Region:
    """The union of [x, y, x, y, ...] lists. Those of fewer than three points cover nothing."""
    rings = []
    for points in shape:
        if not isinstance(points, list) or len(points) % 2 or not points:
            raise ValueError(f"{name} has a polygon that is no list of x, y, x, y, ...")
        if not all(type(value) in (int, float) and abs(value) < 1e6 for value in points):
            raise ValueError(f"{name} has a polygon with coordinates that are no numbers")
        if len(points) >= 6:  # pycocotools takes four numbers for a box
            rings.append([float(value) for value in points])
    if not rings:
        return _region([size[0] * size[1]], size, name)
    merged = coco.merge(coco.frPyObjects(rings, *size))
    return _region(_lengths(merged["counts"]), size, name)


def _runs(shape: dict[str, Any], size: tuple[int, int], name: str) -> Region:
    own, counts = shape.get("size"), shape.get("counts")
    if own != list(size):
        raise ValueError(f"{name} has run lengths of the size {own}, its image is of {list(size)}")
    if isinstance(counts, str):
        return _region(_lengths(counts.encode("ascii", "replace")), size, name)
    if isinstance(counts, list) and all(type(run) is int for run in counts):
        return _region(counts, size, name)
    raise ValueError(f"{name} has a segmentation without counts")


def _region(runs: Sequence[int], size: tuple[int, int], name: str) -> Region:
    if min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        raise ValueError(f"{name} has run lengths that do not add up to its image")
    return Region(size, np.array(runs, np.intp))


def _lengths(text: bytes) -> list[int]:
    """COCO's text: six bits a character, the lowest five of a number first; from the fourth on,
    each run is stored as the difference to the one before the last. [] where it is none."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64:
            return []
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return [] if shift else runs
