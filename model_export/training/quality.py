"""Quality of predictions, per data set and per image, from counts that add up over images.

Semantic: intersection over union from confusion matrices. Instance: panoptic quality from matched
objects. Masks are made from probabilities as the service makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from service.tasks.objects import instance_map
from torch import Tensor

from model_export.data.augment import on_canvas
from model_export.data.datasets import VOID, Sample
from model_export.network.config import Config
from model_export.network.gate import gate_input
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter, semantic_probabilities
from model_export.tasks.panoptic_quality import image_quality as image_panoptic_quality
from model_export.tasks.panoptic_quality import match_counts, panoptic_quality
from service.core import Geometry


def confusion(
    predicted: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int
) -> NDArray[np.int64]:
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
    """Per-image mIoU over the classes that the image shows: a stray pixel of an absent class must
    not cost 1/n."""
    shown = matrix.sum(1) > 0
    return float(class_iou(matrix)[shown].mean()) if shown.any() else float("nan")


class Semantic:
    """Counts are confusion matrices, (classes, classes)."""

    name = "mIoU"

    def __init__(self, config: Config) -> None:
        self.classes = config.classes

    def counts(
        self, probabilities: Tensor, sample: Sample, canvas: tuple[int, int], inner: tuple[int, int]
    ) -> NDArray[Any]:
        """probabilities: (1, C, h, w); inner: (height, width) of the image on the canvas."""
        return confusion(
            labels_at(probabilities, canvas, inner, sample.mask.shape), sample.mask, self.classes
        )

    of_set = staticmethod(mean_iou)
    of_image = staticmethod(image_quality)


class Instance:
    """Counts are (4,): summed IoU of the true positives, their number, false positives, false
    negatives."""

    name = "PQ"

    def __init__(self, config: Config) -> None:
        self.classes = (config.classes - 1) // 2

    def counts(
        self, probabilities: Tensor, sample: Sample, canvas: tuple[int, int], inner: tuple[int, int]
    ) -> NDArray[Any]:
        height, width = sample.mask.shape
        geometry = Geometry(width, height, inner[1], inner[0])
        labels, _ = instance_map(probabilities[0].cpu().numpy(), geometry, canvas)
        return match_counts(labels, sample.instances)

    of_set = staticmethod(panoptic_quality)
    of_image = staticmethod(image_panoptic_quality)


Measure = Semantic | Instance


def measure_of(config: Config) -> Measure:
    return Instance(config) if config.task == "instance" else Semantic(config)


def qualities(measure: Measure, counts: NDArray[Any]) -> NDArray[np.float64]:
    """(N, settings, ...) -> (N, settings)."""
    return np.array([[measure.of_image(each) for each in image] for image in counts])


@torch.inference_mode()
def counts_by_knobs(
    model: Segmenter,
    measure: Measure,
    sample: Sample,
    canvas: tuple[int, int],
    knobs: Sequence[Knobs],
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """(len(knobs), ...) counts, and the gate's input of the same image, (inputs,).

    The backbone runs once, an encoder once for all exits of the same keep and width.
    """
    pixels, inner = on_canvas(sample, canvas)
    lateral, maps = model.features(torch.from_numpy(pixels)[None].to(model.mean.device))
    found: dict[Knobs, NDArray[Any]] = {}
    for keep, width in dict.fromkeys((k.keep, k.width) for k in knobs):
        depths = {k.depth: k for k in knobs if (k.keep, k.width) == (keep, width)}
        for depth, encoded in enumerate(model.encoder.run(maps, max(depths), keep, width), 1):
            if depth in depths:
                probabilities = semantic_probabilities(model.decoder(lateral, encoded.maps)[-1])
                found[depths[depth]] = measure.counts(probabilities, sample, canvas, inner)
    return np.stack([found[k] for k in knobs]), gate_input(maps, model.front_head(maps))[
        0
    ].cpu().numpy()


def labels_at(
    probabilities: Tensor, canvas: tuple[int, int], inner: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """(1, C, h, w) on the canvas -> (H, W) class indices at the image's own size, by one
    interpolation as served."""
    y, x = (
        (torch.arange(n, device=probabilities.device) + 0.5) * (2 * i / (n * c)) - 1
        for n, i, c in zip(size, inner, canvas, strict=True)
    )
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[
        None
    ]  # (1, H, W, 2), -1..1 spans the canvas
    full = F.grid_sample(
        probabilities, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return full[0].argmax(0).to(torch.uint8).cpu().numpy()
