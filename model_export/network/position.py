"""Sine position embedding (normalised, as in DETR and Mask2Former) and reference points of a
feature map."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_embedding(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """(height * width, channels): half of the channels for y, half for x, wavelengths 2 pi .. 10000
    * 2 pi."""

    def axis(size: int) -> Tensor:
        position = (
            torch.arange(1, size + 1, device=device, dtype=torch.float32)
            / (size + 1e-6)
            * (2 * math.pi)
        )
        half = torch.arange(channels // 4, device=device, dtype=torch.float32)
        angle = position[:, None] * torch.exp(half * (-math.log(10000.0) * 4 / channels))
        return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)  # (size, channels / 2)

    y = axis(height)[:, None].expand(-1, width, -1)
    x = axis(width)[None].expand(height, -1, -1)
    return torch.cat((y, x), -1).flatten(0, 1)


def reference_points(shapes: list[tuple[int, int]], device: torch.device) -> Tensor:
    """(S, 2): the centre of every token of every level, (x, y) in 0..1."""
    levels = []
    for height, width in shapes:
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        grid = torch.stack((x[None].expand(height, -1), y[:, None].expand(-1, width)), -1)
        levels.append(grid.flatten(0, 1))
    return torch.cat(levels)
