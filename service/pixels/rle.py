"""COCO's compressed run lengths of label maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco


@dataclass(frozen=True, slots=True)
class RunLengths:
    """One mask. size: (height, width); counts: COCO's text; box: (x, y, width, height)."""

    size: tuple[int, int]
    counts: str
    area: int
    box: tuple[int, int, int, int]

    def as_json(self) -> dict[str, object]:
        """COCO's own form."""
        return {"size": list(self.size), "counts": self.counts}


def run_lengths(labels: NDArray[np.unsignedinteger], values: NDArray[np.intp]) -> list[RunLengths]:
    """COCO's run lengths of the pixels of each value, for all values in one pass.

    The result is that of `coco.encode(labels == value)`, which would read the whole image once per
    object: six seconds for 400 objects in 1.4 megapixels.
    """
    pixels = labels.T.ravel()  # COCO counts down the columns
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    starts, ends = np.r_[0, changes], np.r_[changes, pixels.size]  # of all runs
    order = np.argsort(pixels[starts], kind="stable")  # the runs, value by value
    sorted_values = pixels[starts[order]]
    first = np.searchsorted(sorted_values, values, "left")
    last = np.searchsorted(sorted_values, values, "right")
    masks: list[RunLengths] = []
    for low, high in zip(first, last, strict=True):
        inside = order[low:high]  # the runs of this value
        edges = np.zeros(2 * inside.size + 2, np.intp)  # outside and inside alternate
        edges[1:-1:2], edges[2:-1:2], edges[-1] = starts[inside], ends[inside], pixels.size
        runs = np.diff(edges)
        runs = runs if runs[-1] else runs[:-1]  # an empty last one is left out
        masks.append(_encoded(labels.shape, runs))
    return masks


def _encoded(shape: tuple[int, ...], runs: NDArray[np.intp]) -> RunLengths:
    height, width = shape
    rle = coco.frPyObjects({"size": shape, "counts": runs}, height, width)
    # One mask a call: with numpy 2, coco.area overflows for a list of more than 255.
    area = int(coco.area(rle))
    x, y, w, h = (int(value) for value in coco.toBbox(rle))
    return RunLengths((height, width), rle["counts"].decode("ascii"), area, (x, y, w, h))
