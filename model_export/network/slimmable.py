"""Layers that can run with the first part of their channels: slimmable networks (arXiv 1812.08928).

Every width uses the first channels of the full one. Norms work on groups of eight channels, so what
a group's statistics are does not depend on the width, and all widths share all weights.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 8  # channels


class SlimConv(nn.Conv2d):
    """A convolution of stride 1 that keeps the size; its inputs are as many as come in."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """x: (B, n, H, W), n <= inputs -> (B, outputs, H, W); None: all of them."""
        weight, bias = self.weight[:outputs, : x.shape[1]], self.bias
        return F.conv2d(x, weight, None if bias is None else bias[:outputs], padding=self.padding)


class SlimNorm(nn.GroupNorm):
    def __init__(self, channels: int) -> None:
        super().__init__(channels // GROUP, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, n, H, W), n a multiple of 8."""
        n = x.shape[1]
        return F.group_norm(x, n // GROUP, self.weight[:n], self.bias[:n], self.eps)


class SlimLinear(nn.Linear):
    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """x: (..., n), n <= inputs -> (..., outputs); None: all of them."""
        return F.linear(x, self.weight[:outputs, : x.shape[-1]], self.bias[:outputs])


class Branch(nn.Module):
    """The convolutions of a head: a reduction to its width, then two residual 3x3 ones."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.reduce, self.norm = SlimConv(inputs, channels, 1), SlimNorm(channels)
        self.convs = nn.ModuleList(SlimConv(channels, channels, 3) for _ in range(2))
        self.norms = nn.ModuleList(SlimNorm(channels) for _ in range(2))

    def forward(self, x: Tensor, width: float) -> Tensor:
        """x: (B, inputs, H, W) -> (B, width * channels, H, W)."""
        n = round(width * self.channels)
        x = F.relu(self.norm(self.reduce(x, n)))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + F.relu(norm(conv(x, n)))
        return x
