"""The detection task: a box, a class and a score per object, from queries, without their masks
(DETR, arXiv 2005.12872).

The head gives for each query the logits of the classes and of "no object", (Q, classes + 1), and a
box, (Q, 4): centre x, centre y, width and height in 0..1 of the canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from service.bundle import ClassInfo, Head, TensorSpec, Thresholds
from service.core import Geometry
from service.errors import BundleError
from service.tasks import made_up
from service.tasks.base import Tensors, check_classes
from service.tasks.boxes import Box, Boxes, in_image
from service.tasks.queries import CLASSES
from service.tasks.query_maps import softmax

BOXES = "boxes"
_GRID = 32  # cells per side by which the fake engine finds the box of a band of brightness


@dataclass(frozen=True)
class Detection:
    """See the module, and Task for the methods. classes, thresholds: of the head; None: of no head
    in particular, which can be described, and nothing else."""

    classes: Sequence[ClassInfo] = ()
    thresholds: Thresholds | None = None

    name: ClassVar[str] = "detection"
    objects: ClassVar[bool] = True
    dense: ClassVar[bool] = False
    png: ClassVar[str] = ""
    gives: ClassVar[type[Boxes]] = Boxes

    @classmethod
    def of(cls, head: Head) -> Detection:
        return cls(head.classes, head.thresholds)

    def check(self, classes: Sequence[ClassInfo], outputs: Sequence[TensorSpec], key: str) -> None:
        check_classes(classes)
        if self.thresholds is None:
            raise BundleError("thresholds: a head of detection needs its score")
        specs = {spec.name: spec.dims for spec in outputs}
        queries = specs.get(BOXES, (0, 0))[1]
        fits = {CLASSES: ("batch", queries, len(classes) + 1), BOXES: ("batch", queries, 4)}
        if specs != fits or not isinstance(queries, int) or queries < 1:
            raise BundleError(
                f"{key}: they must be {CLASSES} (batch, queries, {len(classes) + 1}) and {BOXES} "
                f"(batch, queries, 4)"
            )

    def read(self, tensors: Tensors, geometry: Geometry) -> Boxes:
        """One box per query whose most probable class reaches the score, as transformers'
        post_process_object_detection has it; what lies on padding alone is none."""
        assert self.thresholds is not None  # checked with the bundle
        probabilities = softmax(tensors[CLASSES])[:, :-1]
        kinds, scores = probabilities.argmax(1), probabilities.max(1)
        corners = in_image(tensors[BOXES], geometry)
        sides = corners[:, 2:] - corners[:, :2]
        kept = np.flatnonzero((scores >= self.thresholds.score) & (sides > 0).all(1))
        order = kept[(-scores[kept]).argsort(kind="stable")]
        places = np.concatenate((corners[order, :2], sides[order]), 1).tolist()
        return Boxes(
            [
                Box(i, int(kinds[query]), float(scores[query]), (x, y, width, height))
                for i, (query, (x, y, width, height)) in enumerate(
                    zip(order, places, strict=True), 1
                )
            ]
        )

    def made_up(
        self, images: NDArray[np.uint8], certainty: NDArray[np.float64], spec: TensorSpec
    ) -> NDArray[np.float32]:
        """Query k answers for class k, with the box of the band k of brightness where there is one;
        the others answer for no object."""
        queries = spec.sizes[0]
        bands = min(queries, len(self.classes))
        brightness = made_up.brightness(images, _GRID, _GRID)
        band = (brightness * bands / 256).astype(np.intp)
        inside = band[:, None] == np.arange(queries)[:, None, None]  # (B, Q, rows, columns)
        if spec.name == BOXES:
            (x, width), (y, height) = _extent(inside.any(2)), _extent(inside.any(3))
            return np.stack((x, y, width, height), 2).astype(np.float32)
        shown = inside.any((2, 3)) & (np.arange(queries) < bands)
        kinds = np.where(shown, np.arange(queries), bands)
        sure = np.log(certainty / (1 - certainty) * bands)[:, None, None]
        logits = np.where(np.arange(bands + 1) == kinds[..., None], sure, 0.0)
        return logits.astype(np.float32)


def _extent(flags: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(B, Q, cells) -> (B, Q) the centre and the size of the part from the first to the last that
    is set, in 0..1."""
    cells = flags.shape[2]
    first = flags.argmax(2) / cells
    last = (cells - flags[..., ::-1].argmax(2)) / cells
    return (first + last) / 2, last - first
