"""The instance task: an object per pixel, and one segment per object.

The head gives the probabilities of the background, then of the core and the border of each class,
(1 + 2 * classes, h, w). `instance_objects` turns them into objects with scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.bundle import ClassInfo, TensorSpec
from service.core import Geometry
from service.errors import BundleError
from service.pixels import png
from service.tasks import made_up
from service.tasks.base import Labels, Masks, Tensors, check_classes, check_planes
from service.tasks.instance_objects import instance_map


class Instance:
    """See the module, and Task for the methods."""

    name = "instance"
    objects = True
    dense = True
    png = "the object's id as 16-bit gray, 0 is the background"
    gives = Masks

    def check(self, classes: Sequence[ClassInfo], outputs: Sequence[TensorSpec], key: str) -> None:
        if not all(entry.thing for entry in classes):
            raise BundleError("classes: those of the instance task must be things")
        check_classes(classes)
        check_planes(outputs, key, 1 + 2 * len(classes), "1 + 2 * classes")

    def channels(self, classes: Sequence[ClassInfo]) -> list[str]:
        parts = [f"{entry.name} {part}" for entry in classes for part in ("core", "border")]
        return ["background", *parts]

    def read(self, tensors: Tensors, geometry: Geometry) -> Masks:
        (probabilities,) = tensors.values()
        runs, regions = instance_map(probabilities, geometry)
        return Masks(runs, lambda: regions)

    def to_png(self, labels: Labels, classes: Sequence[ClassInfo]) -> bytes:
        return png.gray(labels.astype(np.uint16))

    def made_up(
        self, images: NDArray[np.uint8], certainty: NDArray[np.float64], spec: TensorSpec
    ) -> NDArray[np.float32]:
        """A cell is core if its neighbours are of the same band, else border."""
        channels, height, width = spec.sizes
        brightness = made_up.brightness(images, height, width)
        band = (brightness * ((channels + 1) // 2) / 256).astype(np.intp)
        edged = np.pad(band, ((0, 0), (1, 1), (1, 1)), mode="edge")
        around = np.lib.stride_tricks.sliding_window_view(edged, (3, 3), axis=(1, 2))
        inside = (around == band[..., None, None]).all(axis=(3, 4))  # (B, h, w)
        return made_up.planes(np.where(band > 0, 2 * band - inside, 0), certainty, channels)
