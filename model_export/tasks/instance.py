"""The instance task: an object for every pixel, all of one class, judged by panoptic quality.

Counts are (4,): summed IoU of the true positives, their number, false positives, false negatives.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model_export.tasks.base import Labels, Mask
from model_export.tasks.core_and_border import core_and_border
from model_export.tasks.panoptic_quality import image_quality, match_counts, panoptic_quality
from service.core import Geometry
from service.tasks.instance_objects import instance_map


class Instance:
    """See the module, and Task for attributes and methods."""

    name, measure = "instance", "PQ"
    folder, bits = "instances", 16
    objects, void = True, False
    views = 8  # turns by right angles, and their mirror images

    def channels(self, classes: int) -> int:
        return 1 + 2 * classes  # background, then core and border of each class

    def unknown(self, labels: Labels, classes: int) -> list[int]:
        return []  # any value is an object

    def target(self, labels: Labels) -> Mask:
        return core_and_border(labels)

    def predicted(self, probabilities: Tensor, geometry: Geometry) -> Labels:
        runs, _ = instance_map(probabilities[0].cpu().numpy(), geometry)
        return runs.labels()

    def counts(self, labels: Labels, truth: Labels, channels: int) -> NDArray[np.float64]:
        return match_counts(labels, truth)

    def of_set(self, counts: NDArray[np.float64]) -> float:
        return panoptic_quality(counts)

    def by_class(self, counts: NDArray[np.float64]) -> NDArray[np.float64] | None:
        return None

    def of_image(self, counts: NDArray[np.float64]) -> float:
        return image_quality(counts)
