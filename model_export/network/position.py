"""Sine position embedding (normalised, as in DETR and Mask2Former) and reference points of a
feature map."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model_export.network.names import DOMAIN, EMBEDDING, POINTS

CPU = torch.device("cpu")


def sine_embedding(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """(height * width, channels): half of the channels for y, half for x, wavelengths 2 pi .. 10000
    * 2 pi."""
    if torch.onnx.is_in_onnx_export():
        return _one_node(EMBEDDING, [height, width, channels], (height * width, channels))

    def axis(size: int) -> Tensor:
        angle = turns(size, device)[:, None] * rates(channels, device)
        return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)  # (size, channels / 2)

    y = axis(height)[:, None].expand(-1, width, -1)
    x = axis(width)[None].expand(height, -1, -1)
    return torch.cat((y, x), -1).flatten(0, 1)


def turns(size: int, device: torch.device = CPU) -> Tensor:
    """(size,): where each row or column lies, in 0..2 pi."""
    places = torch.arange(1, size + 1, device=device, dtype=torch.float32)
    return places / (size + 1e-6) * (2 * math.pi)


def rates(channels: int, device: torch.device = CPU) -> Tensor:
    """(channels / 4,): how often each pair of channels turns."""
    half = torch.arange(channels // 4, device=device, dtype=torch.float32)
    return torch.exp(half * (-math.log(10000.0) * 4 / channels))


def reference_points(shapes: list[tuple[int, int]], device: torch.device) -> Tensor:
    """(S, 2): the centre of every token of every level, (x, y) in 0..1."""
    if torch.onnx.is_in_onnx_export():
        sizes = [side for shape in shapes for side in shape]
        return _one_node(POINTS, sizes, (sum(height * width for height, width in shapes), 2))
    levels = []
    for height, width in shapes:
        y, x = centers(height, device), centers(width, device)
        grid = torch.stack((x[None].expand(height, -1), y[:, None].expand(-1, width)), -1)
        levels.append(grid.flatten(0, 1))
    return torch.cat(levels)


def centers(size: int, device: torch.device = CPU) -> Tensor:
    """(size,): of each row or column, in 0..1."""
    return (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size


def _one_node(operator: str, sizes: list[int], shape: tuple[int, int]) -> Tensor:
    """For the exporter only, which takes seconds for what export/places.py writes: the result is
    empty."""
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{operator}",
        (),
        {"sizes": sizes},
        dtype=torch.float32,
        shape=shape,
        version=1,
    )
