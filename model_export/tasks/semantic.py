"""The semantic task: a class for every pixel, judged by intersection over union.

Counts are confusion matrices, (classes, classes), rows = truth.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model_export.tasks.base import VOID, Labels, Mask
from service.core import Geometry
from service.pixels.resample import centred


class Semantic:
    """See the module, and Task for attributes and methods."""

    name, measure = "semantic", "mIoU"
    folder, bits = "masks", 8
    objects, views, void = False, None, True

    def channels(self, classes: int) -> int:
        return classes

    def unknown(self, labels: Labels, classes: int) -> list[int]:
        return sorted(set(np.unique(labels).tolist()) - {*range(classes), VOID})

    def target(self, labels: Labels) -> Mask:
        return labels

    def predicted(self, probabilities: Tensor, geometry: Geometry) -> Labels:
        inner = (geometry.scaled_height, geometry.scaled_width)
        size = (geometry.height, geometry.width)
        return labels_at(probabilities, geometry.canvas, inner, size)

    def counts(self, labels: Labels, truth: Labels, channels: int) -> NDArray[np.int64]:
        return confusion(labels, truth, channels)

    def of_set(self, counts: NDArray[np.int64]) -> float:
        return mean_iou(counts)

    def by_class(self, counts: NDArray[np.int64]) -> NDArray[np.float64] | None:
        return class_iou(counts)

    def of_image(self, counts: NDArray[np.int64]) -> float:
        return image_quality(counts)


def confusion(predicted: Labels, truth: Labels, classes: int) -> NDArray[np.int64]:
    """(classes, classes) pixel counts, rows = truth; void pixels are left out."""
    known = truth != VOID
    pairs = truth[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_iou(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Per class; nan where a class is neither there nor predicted."""
    hit = np.diag(matrix).astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - hit
    with np.errstate(invalid="ignore"):
        return np.where(union > 0, hit / np.maximum(union, 1), np.nan)


def mean_iou(matrix: NDArray[np.int64]) -> float:
    """Over the classes that are there or predicted, 0..1."""
    return float(np.nanmean(class_iou(matrix)))


def image_quality(matrix: NDArray[np.int64]) -> float:
    """Per-image mIoU over the classes that the image shows: a stray pixel of an absent class must
    not cost 1/n."""
    shown = matrix.sum(1) > 0
    return float(class_iou(matrix)[shown].mean()) if shown.any() else float("nan")


def labels_at(
    probabilities: Tensor, canvas: tuple[int, int], inner: tuple[int, int], size: tuple[int, int]
) -> Mask:
    """(1, C, h, w) on the canvas -> (H, W) class indices at the image's own size, by one
    interpolation as served."""
    covered = [i / c * n for i, c, n in zip(inner, canvas, probabilities.shape[2:], strict=True)]
    rows, columns = map(centred, covered)
    y, x = (
        (torch.arange(n, device=probabilities.device) + 0.5) * (2 * extent / (n * cells)) - 1
        for n, extent, cells in zip(size, covered, (rows, columns), strict=True)
    )
    # (1, H, W, 2), where -1..1 spans the cells that are not padding
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
    shown = probabilities[..., :rows, :columns]
    full = F.grid_sample(shown, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return full[0].argmax(0).to(torch.uint8).cpu().numpy()
