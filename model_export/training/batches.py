"""Training batches: which images to draw, crops of them, and what their pixels count in the
loss."""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_export.data.augment import parse_size, random_crop
from model_export.data.datasets import DataError, Dataset, Scenes
from model_export.tasks.core_and_border import gaps


def chances(train: Dataset, power: float) -> NDArray[np.float64]:
    """(N,), sum 1: how often to draw each image, in proportion to the size of its group to the
    -power.

    0: every image alike; 1: every group alike; 0.5 gives a small group more than its share and does
    not repeat it as often. Raises DataError where the data set has no groups.
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


def draw_batch(
    train: Dataset,
    scenes: Scenes,
    args: argparse.Namespace,
    canvas: tuple[int, int],
    rng: np.random.Generator,
    often: NDArray[np.float64] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """images (B, h, w, 3) uint8, masks (B, h, w) uint8, emphasis (B, h, w) float32; all of the
    generator's state.

    often: `chances` of the training images; None = all alike.
    """
    crops, size, scale = [], parse_size(args.crop), tuple(args.zoom)
    for _ in range(args.batch):
        source: Dataset = scenes if rng.random() < args.scenes else train
        index = int(rng.choice(len(source), p=often if source is train else None))
        crops.append(random_crop(source[index], rng, size, scale, canvas, args.turn))
    images, masks = (np.stack(each) for each in zip(*crops, strict=True))
    emphasis = None
    if args.gap_weight != 1:
        meet = np.stack([gaps(mask) for mask in masks])
        emphasis = torch.from_numpy(np.where(meet, np.float32(args.gap_weight), np.float32(1)))
    return torch.from_numpy(images), torch.from_numpy(masks), emphasis
