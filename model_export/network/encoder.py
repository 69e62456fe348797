"""The encoder: post-norm layers of deformable attention over three scales, with an exit after every layer.

A schedule says how many scales each layer updates. (3, 3, 3, 3, 3, 3) is Mask2Former's pixel decoder (arXiv
2112.01527); (1, 1, 2, 2, 3, 3) is PRO-SCALE's progressive token length (arXiv 2404.14657, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_export.network.config import Config
from model_export.network.deformable_attention import DeformableAttention
from model_export.network.position import reference_points, sine_embedding


class EncoderLayer(nn.Module):
    def __init__(self, config: Config, scales: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(config.channels, config.heads, scales, config.points)
        self.norm1 = nn.LayerNorm(config.channels)
        self.linear1 = nn.Linear(config.channels, config.encoder_ffn)
        self.linear2 = nn.Linear(config.encoder_ffn, config.channels)
        self.norm2 = nn.LayerNorm(config.channels)

    def forward(self, tokens: Tensor, position: Tensor, reference: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        tokens = self.norm1(tokens + self.attention(tokens + position, tokens, reference, shapes))
        return self.norm2(tokens + self.linear2(F.relu(self.linear1(tokens))))


class TokenRecalibration(nn.Module):
    """PRO-SCALE 3.1: a coarse map is scaled by a gate that a linear layer reads off the finest map."""

    temperature = 0.1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.excite = nn.Linear(channels, 1)

    def forward(self, coarse: Tensor, finest: Tensor) -> Tensor:
        """coarse: (B, C, h, w), finest: (B, C, H, W)."""
        seen = F.interpolate(finest, coarse.shape[-2:], mode="bilinear", align_corners=False)
        gate = self.excite(seen.movedim(1, -1)).movedim(-1, 1)  # (B, 1, h, w)
        return coarse * torch.sigmoid(self.temperature * gate)


class Encoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.schedule = config.schedule
        self.layers = nn.ModuleList(EncoderLayer(config, scales) for scales in config.schedule)
        self.level_embedding = nn.Parameter(torch.randn(3, config.channels))
        self.recalibration = TokenRecalibration(config.channels) if config.recalibration else None

    def forward(self, maps: list[Tensor], exit: int) -> list[Tensor]:
        """maps: projected features at strides 32, 16, 8, each (B, C, h, w). Runs layers 1..exit, keeps the shapes.

        Scales that no layer has reached pass through as they came.
        """
        assert 1 <= exit <= len(self.layers), exit
        *_, (tokens, active) = self._run(maps, exit)
        return self._split(tokens, active, maps)

    def every_exit(self, maps: list[Tensor], last: int) -> Iterator[list[Tensor]]:
        """What `forward` gives for exit 1, 2, .. last, with every layer run once."""
        for tokens, active in self._run(maps, last):
            yield self._split(tokens, active, maps)

    def _run(self, maps: list[Tensor], exit: int) -> Iterator[tuple[Tensor, int]]:
        """After every layer: the tokens (B, N, C) of the scales reached so far, coarse to fine, and their number."""
        shapes = [(m.shape[-2], m.shape[-1]) for m in maps]
        reference = reference_points(shapes, maps[0].device)
        position = torch.cat(
            [
                sine_embedding(*shape, maps[0].shape[1], maps[0].device) + level
                for shape, level in zip(shapes, self.level_embedding, strict=True)
            ]
        )
        active, parts = 0, []
        for scales, layer in zip(self.schedule[:exit], self.layers, strict=False):
            for scale in range(active, scales):  # scales join when the schedule reaches them
                joining = maps[scale]
                if self.recalibration is not None and scale < 2:
                    joining = self.recalibration(joining, maps[2])
                parts.append(joining.flatten(2).mT)
            active = scales
            tokens = torch.cat(parts, 1)
            n = tokens.shape[1]
            tokens = layer(tokens, position[:n], reference[:n], shapes[:scales])
            parts = [tokens]
            yield tokens, active

    @staticmethod
    def _split(tokens: Tensor, active: int, maps: list[Tensor]) -> list[Tensor]:
        start, done = 0, []
        for m in maps[:active]:
            height, width = m.shape[-2:]
            done.append(tokens[:, start : start + height * width].mT.unflatten(2, (height, width)))
            start += height * width
        return done + maps[active:]
