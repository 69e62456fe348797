"""COCO's compressed run lengths of label maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from service.pixels.runs import Positions, Runs, grouped


@dataclass(frozen=True, slots=True)
class RunLengths:
    """One mask. size: (height, width); counts: COCO's text; box: (x, y, width, height)."""

    size: tuple[int, int]
    counts: str = field(repr=False)  # thousands of characters
    area: int
    box: tuple[int, int, int, int]

    def as_json(self) -> dict[str, object]:
        """COCO's own form."""
        return {"size": list(self.size), "counts": self.counts}


def run_lengths(runs: Runs, values: Sequence[int] | Positions) -> list[RunLengths]:
    """COCO's run lengths of the pixels of each value, for all values in one pass.

    The result is that of `coco.encode(labels == value)`, which would read the whole image once per
    object: six seconds for 400 objects in 1.4 megapixels.
    """
    starts, ends = runs.starts, runs.ends
    size = int(ends[-1])
    masks: list[RunLengths] = []
    for inside in grouped(runs.values, values):
        edges = np.zeros(2 * inside.size + 2, np.intp)  # outside and inside alternate
        edges[1:-1:2], edges[2:-1:2], edges[-1] = starts[inside], ends[inside], size
        lengths = np.diff(edges)
        lengths = lengths if lengths[-1] else lengths[:-1]  # an empty last one is left out
        masks.append(_encoded(runs.shape, lengths))
    return masks


def _encoded(shape: tuple[int, ...], runs: NDArray[np.intp]) -> RunLengths:
    height, width = shape
    rle = coco.frPyObjects({"size": shape, "counts": runs}, height, width)
    # One mask a call: with numpy 2, coco.area overflows for a list of more than 255.
    area = int(coco.area(rle))
    x, y, w, h = (int(value) for value in coco.toBbox(rle))
    return RunLengths((height, width), rle["counts"].decode("ascii"), area, (x, y, w, h))
