"""The semantic task: a class per pixel, and one segment per class.

The head gives the probabilities of the classes, (classes, h, w). A segment's score is the mean
probability of its class over its pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from service.bundle import ClassInfo, TensorSpec
from service.core import Geometry
from service.pixels import png
from service.pixels.most_probable import most_probable, most_probable_map
from service.pixels.runs import Runs
from service.pixels.sums import areas_and_sums
from service.tasks import made_up
from service.tasks.base import Labels, Masks, Region, Tensors, check_classes, check_planes


class Semantic:
    """See the module, and Task for the methods."""

    name = "semantic"
    objects = False
    dense = True
    png = "the class, in a palette"
    gives = Masks

    def check(self, classes: Sequence[ClassInfo], outputs: Sequence[TensorSpec], key: str) -> None:
        check_classes(classes)
        check_planes(outputs, key, len(classes), "classes")

    def channels(self, classes: Sequence[ClassInfo]) -> list[str]:
        return [entry.name for entry in classes]

    def read(self, tensors: Tensors, geometry: Geometry) -> Masks:
        (probabilities,) = tensors.values()  # (C, h, w)
        return _ClassMasks(probabilities, geometry)

    def to_png(self, labels: Labels, classes: Sequence[ClassInfo]) -> bytes:
        return png.palette(labels.astype(np.uint8, copy=False), [entry.color for entry in classes])

    def made_up(
        self, images: NDArray[np.uint8], certainty: NDArray[np.float64], spec: TensorSpec
    ) -> NDArray[np.float32]:
        classes, height, width = spec.sizes
        brightness = made_up.brightness(images, height, width)
        return made_up.planes((brightness * classes / 256).astype(np.intp), certainty, classes)


class _ClassMasks(Masks):
    """The label map is made in the form that is read: a PNG needs no runs, and most else needs
    nothing but them."""

    def __init__(self, probabilities: NDArray[np.float32], geometry: Geometry) -> None:
        self._probabilities, self._geometry = probabilities, geometry

    @cached_property
    def labels(self) -> Labels:
        if "runs" in vars(self):
            return self.runs.labels()
        return most_probable_map(self._probabilities, self._geometry)

    @cached_property
    def runs(self) -> Runs:
        return most_probable(self._probabilities, self._geometry)

    @cached_property
    def regions(self) -> list[Region]:
        return _regions(self.runs, self._probabilities, self._geometry)


def _regions(runs: Runs, probabilities: NDArray[np.float32], geometry: Geometry) -> list[Region]:
    """One region per class that occurs, in order of class id."""
    areas, sums = areas_and_sums(runs, probabilities, geometry)
    occurring = np.flatnonzero(areas).tolist()
    # Queries that agree on a class add up to more than 1 (Mask2Former, semantic inference).
    return [
        Region(k, i, k, min(1.0, float(sums[k] / areas[k]))) for i, k in enumerate(occurring, 1)
    ]
