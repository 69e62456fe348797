"""The semantic task: a class per pixel, and one segment per class.

The head gives the probabilities of the classes, (classes, h, w). A segment's score is the mean
probability of its class over its pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.bundle import ClassInfo, TensorSpec
from service.core import Geometry
from service.pixels import png
from service.pixels.resample import bands, mix, most_probable
from service.tasks import made_up
from service.tasks.base import Dims, Labels, Masks, Region, Tensors, check_planes


class Semantic:
    """See the module, and Task for the methods."""

    name = "semantic"
    objects = False
    png = "the class, in a palette"

    def check(self, classes: Sequence[ClassInfo], outputs: Sequence[TensorSpec]) -> None:
        check_planes(outputs, len(classes), "classes")

    def read(self, tensors: Tensors, geometry: Geometry) -> Masks:
        (probabilities,) = tensors.values()  # (C, h, w)
        labels = most_probable(probabilities, geometry)
        return Masks(labels, lambda: _regions(labels, probabilities, geometry))

    def to_png(self, labels: Labels, classes: Sequence[ClassInfo]) -> bytes:
        return png.palette(labels.astype(np.uint8), [entry.color for entry in classes])

    def made_up(
        self, images: NDArray[np.uint8], certainty: NDArray[np.float64], dims: Dims
    ) -> NDArray[np.float32]:
        classes, height, width = (int(size) for size in dims[1:])
        brightness = made_up.brightness(images, height, width)
        return made_up.planes((brightness * classes / 256).astype(np.intp), certainty, classes)


def _regions(
    labels: NDArray[np.uint8], probabilities: NDArray[np.float32], geometry: Geometry
) -> list[Region]:
    """One region per class that occurs, in order of class id."""
    areas, sums = _areas_and_confidence(labels, probabilities, geometry)
    occurring = np.flatnonzero(areas).tolist()
    return [Region(k, i, k, float(sums[k] / areas[k])) for i, k in enumerate(occurring, 1)]


def _areas_and_confidence(
    labels: NDArray[np.uint8], probabilities: NDArray[np.float32], geometry: Geometry
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Per class, the number of its pixels and its probability summed over them, both (C,)."""
    classes, height, width = probabilities.shape
    flat = probabilities.reshape(-1)
    areas, sums = np.zeros(classes, np.intp), np.zeros(classes)
    for band in bands(geometry, (height, width)):
        (y0, y1, fy), (x0, x1, fx) = band.rows, band.columns
        part = labels[band.top : band.bottom].astype(np.intp)
        plane = part * (height * width)
        upper, lower = plane + (y0 * width)[:, None], plane + (y1 * width)[:, None]
        above = mix(flat.take(upper + x0), flat.take(upper + x1), fx)
        under = mix(flat.take(lower + x0), flat.take(lower + x1), fx)
        areas += np.bincount(part.ravel(), minlength=classes)
        confidence = mix(above, under, fy[:, None])
        sums += np.bincount(part.ravel(), confidence.ravel(), minlength=classes)
    return areas, sums
