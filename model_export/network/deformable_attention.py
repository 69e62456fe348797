"""Multi-scale deformable attention (arXiv 2010.04159, section 4.1): the one definition in torch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def deformable_attention(
    value: Tensor, offsets: Tensor, logits: Tensor, reference: Tensor, shapes: list[tuple[int, int]]
) -> Tensor:
    """Each query gathers `points` bilinear samples around its reference point on every level.

    value: (B, S, M, D) with S = sum of h*w over the levels, M heads of D channels.
    offsets: (B, Q, M, L, P, 2) in pixels of each level, (x, y). logits: (B, Q, M, L, P), softmax over L*P is inside.
    reference: (Q, 2) in 0..1, (x, y). shapes: [(h, w)] per level. Returns (B, Q, M*D).
    """
    batch, _, heads, width = value.shape
    queries, levels, points = logits.shape[1], logits.shape[3], logits.shape[4]
    weights = logits.flatten(3).softmax(-1).unflatten(3, (levels, points))  # (B, Q, M, L, P)
    weights = weights.permute(3, 0, 2, 1, 4).flatten(1, 2)  # (L, B*M, Q, P)
    offsets = offsets.permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # (L, B*M, Q, P, 2)
    out = value.new_zeros(())
    start = 0
    for level, (height, wide) in enumerate(shapes):
        plane = value[:, start : start + height * wide].permute(0, 2, 3, 1).reshape(-1, width, height, wide)
        start += height * wide
        # grid_sample wants -1..1: 2 * (reference + offset / size) - 1
        step = torch.tensor((2.0 / wide, 2.0 / height), dtype=value.dtype, device=value.device)
        grid = offsets[level] * step + (2 * reference - 1)[None, :, None]
        sampled = F.grid_sample(plane, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        out = out + (sampled * weights[level].unsqueeze(1)).sum(-1)  # (B*M, D, Q)
    return out.reshape(batch, heads * width, queries).transpose(1, 2)


class DeformableAttention(nn.Module):
    """Deformable self-attention over a prefix of the token sequence that spans `levels` scales."""

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = nn.Linear(channels, heads * levels * points * 2)
        self.logits = nn.Linear(channels, heads * levels * points)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Heads look in 8 directions, point p at distance p + 1; all points weigh the same."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        ring = torch.stack((angles.cos(), angles.sin()), -1)
        ring = ring / ring.abs().amax(-1, keepdim=True)  # (M, 2) on the unit square
        steps = torch.arange(1, self.points + 1)[:, None]
        bias = ring[:, None, None] * steps  # (M, 1, P, 2)
        with torch.no_grad():
            self.offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, tokens: Tensor, reference: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """query, tokens: (B, N, C), reference: (N, 2), shapes of the levels that N covers. Returns (B, N, C)."""
        split = (self.heads, self.levels, self.points)
        value = self.value(tokens).unflatten(-1, (self.heads, -1))
        offsets = self.offsets(query).unflatten(-1, (*split, 2))
        logits = self.logits(query).unflatten(-1, split)
        return self.output(deformable_attention(value, offsets, logits, reference, shapes))
