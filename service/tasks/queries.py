"""The tasks of a mask classifier (Mask2Former, arXiv 2112.01527): panoptic and instance, from
queries.

The head gives for each query the logits of the classes and of "no object", (Q, classes + 1), and
its mask's logits on the decoder's cells, (Q, h, w). query_maps.py makes segments of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from service.bundle import ClassInfo, Head, TensorSpec, Thresholds
from service.core import Geometry
from service.errors import BundleError
from service.pixels import png
from service.tasks import made_up
from service.tasks.base import Labels, Masks, Tensors, check_classes
from service.tasks.query_maps import object_map, panoptic_map, sigmoid, softmax

CLASSES, MASKS = "class_logits", "mask_logits"
MOST = 255  # queries, since a query has a value of 8 bits


@dataclass(frozen=True)
class QueryTask(ABC):
    """What both tasks share. classes, thresholds: of the bundle; None: of no bundle in particular,
    which can be described, and nothing else."""

    classes: Sequence[ClassInfo] = ()
    thresholds: Thresholds | None = None

    name: ClassVar[str]
    objects: ClassVar[bool] = True
    dense: ClassVar[bool] = False
    png: ClassVar[str] = "the segment's id as 16-bit gray, 0 is none"
    gives: ClassVar[type[Masks]] = Masks

    @classmethod
    def of(cls, head: Head) -> QueryTask:
        return cls(head.classes, head.thresholds)

    @abstractmethod
    def read(self, tensors: Tensors, geometry: Geometry) -> Masks: ...

    def check(self, classes: Sequence[ClassInfo], outputs: Sequence[TensorSpec], key: str) -> None:
        if self.thresholds is None:
            raise BundleError("thresholds: a head of queries needs them")
        check_classes(classes)
        specs = {spec.name: spec.sizes for spec in outputs}
        kinds, masks = specs.get(CLASSES, ()), specs.get(MASKS, ())
        if len(specs) != 2 or len(kinds) != 2 or len(masks) != 3:
            raise BundleError(
                f"{key}: they must be {CLASSES} (batch, queries, classes + 1) and {MASKS} (batch, "
                f"queries, h, w)"
            )
        if kinds[1] != len(classes) + 1 or kinds[0] != masks[0] or kinds[0] > MOST:
            raise BundleError(
                f"{key}: {CLASSES} must be of {len(classes)} classes and one more, and both of the "
                f"same queries, at most {MOST}"
            )

    def channels(self, classes: Sequence[ClassInfo]) -> list[str]:
        return [entry.name for entry in classes]

    def to_png(self, labels: Labels, classes: Sequence[ClassInfo]) -> bytes:
        return png.gray(labels.astype(np.uint16))

    def made_up(
        self, images: NDArray[np.uint8], certainty: NDArray[np.float64], spec: TensorSpec
    ) -> NDArray[np.float32]:
        """Query k answers for class k, as far as there are classes, and has the band k."""
        queries, *rest = spec.sizes
        if len(rest) == 1:
            classes = rest[0] - 1
            kinds = np.where(np.arange(queries) < classes, np.arange(queries), classes)
            logits = np.where(np.arange(classes + 1) == kinds[:, None], 9.0, 0.0)
            return np.tile(logits.astype(np.float32), (len(images), 1, 1))
        classes = min(queries, len(self.classes))
        brightness = made_up.brightness(images, *rest)
        band = (brightness * classes / 256).astype(np.intp)[:, None]
        sure = np.log(certainty / (1 - certainty))[:, None, None, None]
        inside = band == np.arange(queries)[:, None, None]
        return np.where(inside, sure, -sure).astype(np.float32)


class Panoptic(QueryTask):
    """A segment for every pixel: one per countable object, one per class of the others."""

    name = "panoptic"

    def read(self, tensors: Tensors, geometry: Geometry) -> Masks:
        assert self.thresholds is not None  # checked with the bundle
        things = [entry.thing for entry in self.classes]
        runs, regions = panoptic_map(
            tensors[CLASSES], tensors[MASKS], geometry, things, self.thresholds
        )
        return Masks(runs, lambda: regions)


class InstanceQueries(QueryTask):
    """A segment per object; where objects overlap, a pixel is the most certain one's."""

    name = "instance"

    def read(self, tensors: Tensors, geometry: Geometry) -> Masks:
        assert self.thresholds is not None
        runs, regions = object_map(tensors[CLASSES], tensors[MASKS], geometry, self.thresholds)
        return Masks(runs, lambda: regions)


def class_planes(tensors: Tensors) -> NDArray[np.float32]:
    """(classes, h, w), 0..1: how probable each class is on the cells, whichever query says so."""
    weights = softmax(tensors[CLASSES])[:, :-1]
    masks = sigmoid(tensors[MASKS])
    planes = (weights.T @ masks.reshape(len(masks), -1)).reshape(-1, *masks.shape[1:])
    return np.asarray(np.minimum(planes, 1), np.float32)
