"""Pausing easy tokens (PAUMER, arXiv 2311.00586): where a token head is sure, later layers skip the
token.

Paused tokens keep their value, are still sampled by the others and reach the decoder. Only stride-8
tokens are paused: they are three quarters of all. The entropy of the head's prediction decides, so
that one network serves any share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenHead(nn.Module):
    """A linear classifier of every stride-8 token, which also sees the coarser tokens above it."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classify = nn.ModuleList(nn.Conv2d(channels, classes, 1) for _ in range(3))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """maps: strides 32, 16, 8, each (B, C, h, w) -> class logits at stride 8, (B, classes, h,
        w)."""
        size = maps[-1].shape[-2:]
        *coarse, finest = (head(m) for head, m in zip(self.classify, maps, strict=True))
        for logits in coarse:
            finest = finest + F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return finest


def entropy(logits: Tensor) -> Tensor:
    """(B, classes, h, w) -> (B, h, w): entropy of the prediction as a share of its largest possible
    value, 0..1."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1) / math.log(logits.shape[1])


@dataclass(frozen=True)
class Active:
    """Which tokens are updated. rows: (B, k) int64 positions in the whole sequence; first all
    coarser tokens, `start` of them, then the active ones of stride 8. counted: (B, k) bool, False =
    a row that only fills up the batch and keeps its value."""

    rows: Tensor
    start: int
    counted: Tensor | None = None

    def of(self, x: Tensor) -> Tensor:
        """x: (B, N, C), or (N, C) for all images alike -> (B, k, C)."""
        if x.ndim == 2:
            return x[self.rows]
        return x.flatten(0, 1)[self._places(x)].unflatten(0, self.rows.shape)

    def into(self, tokens: Tensor, updated: Tensor) -> Tensor:
        """tokens: (B, N, C) with the rows of `updated` (B, k, C) put into their places."""
        if self.counted is not None:
            updated = torch.where(self.counted.unsqueeze(-1), updated, self.of(tokens))
        flat = tokens.flatten(0, 1).index_copy(0, self._places(tokens), updated.flatten(0, 1))
        return flat.unflatten(0, (tokens.shape[0], tokens.shape[1]))

    def _places(self, tokens: Tensor) -> Tensor:
        """(B * k,): the rows in the flattened batch. Whole rows are then moved, which is several
        times faster than single elements."""
        batch, count = tokens.shape[:2]
        images = torch.arange(batch, dtype=torch.int64, device=self.rows.device)
        return (self.rows + count * images.unsqueeze(1)).flatten()

    def paused(self, shape: tuple[int, int]) -> Tensor:
        """(B, h, w) uint8: 1 = paused."""
        fine = self.rows[:, self.start :] - self.start
        ones = torch.ones_like(fine, dtype=torch.uint8)
        if self.counted is not None:
            ones = self.counted[:, self.start :].to(torch.uint8)
        flat = torch.zeros(
            fine.shape[0], shape[0] * shape[1], dtype=torch.uint8, device=fine.device
        )
        return (1 - flat.scatter(1, fine, ones)).unflatten(1, shape)


def choose_active(
    logits: Tensor, keep: float, threshold: float | None, shapes: list[tuple[int, int]]
) -> Active:
    """The tokens of highest entropy: a share `keep` of them, or all at or above `threshold` (then
    `keep` is unused).

    logits: (B, classes, h, w). shapes: of all scales, coarse to fine. At least one token stays
    active.
    """
    unsure = entropy(logits.detach()).flatten(1)  # (B, h * w)
    start = sum(h * w for h, w in shapes[:-1])
    coarser = torch.arange(start, dtype=torch.int64, device=unsure.device).expand(
        unsure.shape[0], -1
    )
    most = max(1, round(keep * unsure.shape[1]))
    if threshold is not None:
        most = max(1, int((unsure >= threshold).sum(1).max()))
    values, fine = unsure.topk(most, 1)
    rows = torch.cat((coarser, fine + start), 1)
    if threshold is None:
        return Active(rows, start)
    return Active(
        rows, start, torch.cat((torch.ones_like(coarser, dtype=torch.bool), values >= threshold), 1)
    )
