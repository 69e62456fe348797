"""Frozen linear probe: how well a backbone's features tell a data set's classes apart before any
training.

A ridge classifier on the features of strides 4 to 32, brought together at stride 8, fitted in
closed form on pixels of the training images. It checks that weights were loaded right (random ones
score far lower) and ranks backbones.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from model_export.data.augment import on_canvases, parse_size
from model_export.data.class_names import refuse_other_classes
from model_export.data.datasets import VOID, Dataset, open_dataset, refuse_unread
from model_export.network.backbone import BACKBONES, load_pretrained
from model_export.option_types import whole
from model_export.tasks.semantic import confusion, labels_at, mean_iou
from service.bundle import Canvas, Shape

RIDGE = 1e-2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--backbone", choices=sorted(BACKBONES), required=True, help="whose features")
    add(
        "--backbone-weights",
        type=Path,
        help=".npz; without it the weights are random, as a lower bound",
    )
    add("--data", type=Path, help="folder of the data set (not needed for scenes)")
    add("--train", default="camvid:train", help="data set to fit on")
    add("--dev", default="camvid:dev", help="data set to score on")
    add("--images", type=whole(), default=120, help="training images, spread evenly")
    add("--canvas", default="384x480", help="size of the images, height x width")


def features(backbone: nn.Module, pixels: Tensor) -> Tensor:
    """(1, H, W, 3) uint8 -> (1, C + 1, H/8, W/8): all strides at stride 8, and a constant."""
    x = (pixels.permute(0, 3, 1, 2).float() - backbone.mean) / backbone.std
    maps = backbone(x)
    size = maps[1].shape[-2:]
    joined = [F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps]
    return torch.cat([*joined, torch.ones_like(joined[0][:, :1])], 1)


@torch.inference_mode()
def fit(backbone: nn.Module, train: Dataset, rows: list[int], canvas: Canvas) -> Tensor:
    """(C + 1, classes): least squares of one-hot labels, a class weighed by 1 / sqrt(its
    pixels)."""
    classes = len(train.classes)
    gram: Tensor | float = 0.0
    cross: Tensor | float = 0.0
    for row in tqdm(rows, mininterval=5):
        sample = train[row]
        (frame,) = on_canvases(sample, [canvas]).values()
        maps = features(backbone, torch.from_numpy(frame.pixels)[None])[0]
        inner = frame.geometry.scaled_height, frame.geometry.scaled_width
        height, width = inner[0] // 8, inner[1] // 8
        x = maps[:, :height, :width].flatten(1).double()  # (C + 1, N)
        placed = Image.fromarray(sample.mask).resize((inner[1], inner[0]), Image.Resampling.NEAREST)
        labels = torch.from_numpy(
            np.asarray(placed)[4::8, 4::8][:height, :width].astype(np.int64)
        ).flatten()
        known = labels != VOID
        hot = F.one_hot(labels[known], classes).double()
        counts = hot.sum(0).clamp(min=1)
        weight = (1 / counts.sqrt())[labels[known]]
        x = x[:, known]
        gram = gram + (x * weight) @ x.T
        cross = cross + (x * weight) @ hot
    assert isinstance(gram, Tensor)
    damping = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + damping, cross).float()


def main(args: argparse.Namespace) -> None:
    refuse_unread(args.data, "--train", args.train, args.dev)
    canvas = Canvas.of([Shape(*parse_size(args.canvas))])
    torch.manual_seed(0)
    backbone = BACKBONES[args.backbone]().eval()
    if args.backbone_weights:
        load_pretrained(backbone, args.backbone_weights)
    train, dev = open_dataset(args.train, args.data), open_dataset(args.dev, args.data)
    refuse_other_classes(
        f"--dev {args.dev}",
        dev.classes,
        train.classes,
        f"--train {args.train}",
        "name a --dev of the same classes",
    )
    rows = np.linspace(0, len(train) - 1, min(args.images, len(train))).round().astype(int).tolist()
    weights = fit(backbone, train, rows, canvas)
    total, seconds = 0, 0.0
    for i in range(len(dev)):
        sample = dev[i]
        (frame,) = on_canvases(sample, [canvas]).values()
        geometry = frame.geometry
        with torch.inference_mode():
            began = time.perf_counter()
            maps = features(backbone, torch.from_numpy(frame.pixels)[None])
            seconds += time.perf_counter() - began
            scores = torch.einsum("bchw,ck->bkhw", maps, weights)
        inner = geometry.scaled_height, geometry.scaled_width
        labels = labels_at(scores, geometry.canvas, inner, sample.mask.shape)
        total = total + confusion(labels, sample.mask, len(dev.classes))
    result = {
        "backbone": args.backbone,
        "weights": args.backbone_weights.name if args.backbone_weights else "random",
        "dev": args.dev,
        "miou": round(mean_iou(np.asarray(total)), 4),
        "torch_ms": round(1000 * seconds / len(dev), 1),
    }
    print(json.dumps(result))
