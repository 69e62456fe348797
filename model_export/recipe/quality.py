"""Quality of predictions: intersection over union from a confusion matrix, per data set and per image."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model_export.network.segmenter import Segmenter, semantic_probabilities
from model_export.recipe.augment import on_canvas
from model_export.recipe.datasets import VOID, Sample


def confusion(predicted: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
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
    return float(np.nanmean(class_iou(matrix)))


def image_quality(matrix: NDArray[np.int64]) -> float:
    """Per-image mIoU over the classes that the image shows: a stray pixel of an absent class must not cost 1/n."""
    shown = matrix.sum(1) > 0
    return float(class_iou(matrix)[shown].mean()) if shown.any() else float("nan")


def qualities(confusions: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N, exits, C, C) -> (N, exits)."""
    return np.array([[image_quality(matrix) for matrix in image] for image in confusions])


@torch.inference_mode()
def confusions_by_exit(
    model: Segmenter, sample: Sample, canvas: tuple[int, int], exits: list[int]
) -> NDArray[np.int64]:
    """(len(exits), classes, classes). Backbone and every encoder layer run once; only the decoder runs per exit."""
    return confusions_and_pooled(model, sample, canvas, exits)[0]


@torch.inference_mode()
def confusions_and_pooled(
    model: Segmenter, sample: Sample, canvas: tuple[int, int], exits: list[int]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """`confusions_by_exit`, and the gate's input of the same features, (2 * channels,)."""
    pixels, inner = on_canvas(sample, canvas)
    lateral, maps = model.features(torch.from_numpy(pixels)[None].to(model.mean.device))
    found = []
    for exit, encoded in enumerate(model.encoder.every_exit(maps, max(exits)), 1):
        if exit in exits:
            probabilities = semantic_probabilities(model.decoder(lateral, encoded)[-1])
            labels = labels_at(probabilities, canvas, inner, sample.mask.shape)
            found.append(confusion(labels, sample.mask, model.config.classes))
    return np.stack(found), model.gate.pool(maps[0])[0].cpu().numpy()


def labels_at(
    probabilities: Tensor, canvas: tuple[int, int], inner: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """(1, C, h, w) on the canvas -> (H, W) class indices at the image's own size, by one interpolation as served."""
    y, x = (
        (torch.arange(n, device=probabilities.device) + 0.5) * (2 * i / (n * c)) - 1
        for n, i, c in zip(size, inner, canvas, strict=True)
    )
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]  # (1, H, W, 2), -1..1 spans the canvas
    full = F.grid_sample(probabilities, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return full[0].argmax(0).to(torch.uint8).cpu().numpy()
