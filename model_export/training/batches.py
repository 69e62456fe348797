"""Training batches: which images to draw, crops of them, and the weight of their pixels in the
loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as StepDataset

from model_export.data.augment import random_crop, weather
from model_export.data.datasets import DataError, Dataset, Scenes
from model_export.tasks.core_and_border import gaps
from service.bundle import Canvas


def chances(train: Dataset, power: float) -> NDArray[np.float64]:
    """(N,), sum 1: how often to draw each image, in proportion to the size of its group to the
    -power.

    0: every image alike; 1: every group alike; 0.5 gives a small group more than its share without
    repeating it as often. Raises DataError where the data set has no groups.
    """
    if not 0 <= power <= 1:
        raise DataError(
            f"--balance {power} must be between 0 (images as they come) and 1 (every group alike)"
        )
    group_of = getattr(train, "group_of", None)
    groups = [group_of(i) for i in range(len(train))] if group_of else []
    sizes = Counter(groups)
    if len(sizes) < 2:
        raise DataError(
            "--balance needs a data set with groups (kinds, sequences), like nuclei or camvid: "
            "leave it out"
        )
    weights = np.array([sizes[group] ** -power for group in groups])
    return np.asarray(weights / weights.sum())


@dataclass(frozen=True, slots=True)
class Batches:
    """What batches are like.

    size: images in each. scenes: share of generated scenes. crop: (height, width). zoom: range of
    the crops' scale. turn: also by right angles. weather: share of crops in other light or weather.
    gap_weight: of the pixels where two objects meet.
    """

    size: int
    scenes: float
    crop: tuple[int, int]
    zoom: tuple[float, float]
    turn: bool
    weather: float
    gap_weight: float


def draw_batch(
    train: Dataset,
    scenes: Scenes,
    batches: Batches,
    canvases: Sequence[Canvas],
    rng: np.random.Generator,
    often: NDArray[np.float64] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """images (B, h, w, 3) uint8, masks (B, h, w) uint8, emphasis (B, h, w) float32 or None; they
    depend on the generator's state alone.

    Every crop is of the size that its image has on one of the canvases: half of them on the
    largest, and otherwise each as often. The crop itself has the same size on all of them.

    often: `chances` of the training images; None = all alike.
    """
    crops = []
    for _ in range(batches.size):
        source: Dataset = scenes if rng.random() < batches.scenes else train
        sample = source[int(rng.choice(len(source), p=often if source is train else None))]
        others = canvases[:-1] if rng.random() < 0.5 else ()
        canvas = others[int(rng.integers(len(others)))] if others else canvases[-1]
        height, width = sample.mask.shape
        shape = canvas.fitting(width, height)
        size = shape.height, shape.width
        image, mask = random_crop(sample, rng, batches.crop, batches.zoom, size, batches.turn)
        if batches.weather and rng.random() < batches.weather:
            image = weather(image, rng)
        crops.append((image, mask))
    images, masks = (np.stack(parts) for parts in zip(*crops, strict=True))
    emphasis = None
    if batches.gap_weight != 1:
        meet = np.stack([gaps(mask) for mask in masks])
        emphasis = torch.from_numpy(np.where(meet, np.float32(batches.gap_weight), np.float32(1)))
    return torch.from_numpy(images), torch.from_numpy(masks), emphasis


@dataclass(frozen=True)
class StepBatches(StepDataset[tuple[Tensor, Tensor, Tensor | None]]):
    """The batch of a step, by the step's number: a DataLoader's workers may draw it ahead.

    seed: of the run and of the process. A batch depends on them and on the step alone.
    """

    train: Dataset
    scenes: Scenes
    batches: Batches
    canvases: Sequence[Canvas]
    often: NDArray[np.float64] | None
    seed: tuple[int, int]

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        run, process = self.seed
        rng = np.random.default_rng((run, step, process))
        return draw_batch(self.train, self.scenes, self.batches, self.canvases, rng, self.often)
