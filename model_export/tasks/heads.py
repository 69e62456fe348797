"""JUDGES: how good a head of a network with several is, one row per task, as it is served.

Counts of images are a sequence here: they do not all add up (those of boxes are ranked together).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model_export.network.config import DEPTHS
from model_export.tasks.depth import Depth
from model_export.tasks.detection import Detection, large_enough
from model_export.tasks.semantic import Semantic, confusion, labels_at
from service.core import Geometry

Counts = NDArray[Any]


class Truth(Protocol):
    """The labels of one image, as data.sample.Sample has them."""

    mask: NDArray[np.uint8]
    depth: NDArray[np.float32] | None
    boxes: NDArray[np.float32] | None


class Judge(Protocol):
    """One row. name: of the task. measure: for people and reports."""

    name: str
    measure: str

    def judged(self, tensors: Mapping[str, Tensor], geometry: Geometry, truth: Truth) -> Counts:
        """What was right and wrong in one image. tensors: of the head, at batch 1."""
        ...

    def of_image(self, counts: Counts) -> float:
        """Quality of one image, 0..1."""
        ...

    def of_set(self, counts: Sequence[Counts]) -> float:
        """Quality of a set of images, 0..1."""
        ...


class SemanticJudge(Semantic):
    """As the task of a network by itself, of tensors."""

    def judged(self, tensors: Mapping[str, Tensor], geometry: Geometry, truth: Truth) -> Counts:
        probabilities = tensors["probabilities"]
        inner = (geometry.scaled_height, geometry.scaled_width)
        labels = labels_at(probabilities, geometry.canvas, inner, truth.mask.shape)
        return confusion(labels, truth.mask, probabilities.shape[1])

    def of_set(self, counts: Sequence[Counts]) -> float:
        return super().of_set(np.sum(counts, 0))


class DepthJudge(Depth):
    """The same."""

    def judged(self, tensors: Mapping[str, Tensor], geometry: Geometry, truth: Truth) -> Counts:
        assert truth.depth is not None
        return self.counts(self.read(_arrays(tensors)["depth"], geometry, DEPTHS), truth.depth)


class DetectionJudge(Detection):
    """The same."""

    def judged(self, tensors: Mapping[str, Tensor], geometry: Geometry, truth: Truth) -> Counts:
        assert truth.boxes is not None
        counted = large_enough(truth.boxes, truth.mask.shape)
        return self.counts(self.read(_arrays(tensors), geometry), truth.boxes, counted)


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """Of the one image."""
    return {name: tensor[0].cpu().numpy() for name, tensor in tensors.items()}


JUDGES: Mapping[str, Judge] = {
    judge.name: judge for judge in (SemanticJudge(), DetectionJudge(), DepthJudge())
}
