"""What a task is for training: how labels become targets, and how answers are judged."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.core import Geometry

VOID = 255  # in targets: a pixel that counts nowhere

Labels = NDArray[np.unsignedinteger]
Mask = NDArray[np.uint8]


class Task(Protocol):
    """One row of the table of tasks.

    name: as configs, runs and manifests have it. measure: of quality, for people and reports.
    folder, bits: where a data set has its labels, and of how many bits they are. objects: whether
    labels tell single objects apart: they have borders, can touch, are turned whole and are ranked
    by their scores. views: that an image can have at most; None = any number. void: whether labels
    themselves say which pixels count nowhere.
    """

    name: str
    measure: str
    folder: str
    bits: int
    objects: bool
    views: int | None
    void: bool

    def channels(self, classes: int) -> int:
        """Of the network."""
        ...

    def unknown(self, labels: Labels, classes: int) -> list[int]:
        """The values in a label file that mean nothing."""
        ...

    def target(self, labels: Labels) -> Mask:
        """(H, W) labels -> (H, W): which of the network's channels each pixel is, or VOID."""
        ...

    def predicted(self, answer: Any, geometry: Geometry) -> Labels:
        """What the network's head gives in torch for one image (network.segmenter.head_of) ->
        labels at the image's own size, (H, W)."""
        ...

    def counts(self, labels: Labels, truth: Labels, channels: int) -> NDArray[Any]:
        """What was right and wrong in one image, as numbers that add up over images."""
        ...

    def of_set(self, counts: NDArray[Any]) -> float:
        """Summed counts -> quality of the set, 0..1; nan where there is nothing to judge."""
        ...

    def by_class(self, counts: NDArray[Any]) -> NDArray[np.float64] | None:
        """Summed counts -> quality of each class, nan where there is nothing to judge; None where
        the task tells no classes apart."""
        ...

    def of_image(self, counts: NDArray[Any]) -> float:
        """Quality of one image, 0..1; nan where there is nothing to judge."""
        ...


def qualities(task: Task, counts: NDArray[Any]) -> NDArray[np.float64]:
    """(N, settings, ...) counts -> (N, settings): the quality of each image at each setting."""
    return np.array([[task.of_image(setting) for setting in image] for image in counts])
