"""The encoder: post-norm layers of deformable attention over three scales, with an exit after every
layer.

A schedule gives the number of scales that each layer updates. (3, 3, 3, 3, 3, 3) is Mask2Former's
pixel decoder (arXiv 2112.01527); (1, 1, 2, 2, 3, 3) is PRO-SCALE's progressive token length (arXiv
2404.14657, section 3). Within a layer there are two more knobs at run time: which stride-8 tokens
it updates (pausing.py) and how many FFN channels it uses (slimmable widths, arXiv 2308.11744).
LayerNorm has no running statistics, so all widths share all weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_export.network.config import Config
from model_export.network.deformable_attention import DeformableAttention
from model_export.network.pausing import Active, TokenHead, choose_active
from model_export.network.position import reference_points, sine_embedding


@dataclass(frozen=True)
class Encoded:
    """maps: strides 32, 16, 8, each (B, C, h, w). tokens: (B, classes, h, w) logits of the token
    head at stride 8, from the exit on where it has run. active: the stride-8 tokens that later
    layers update; None = all of them."""

    maps: list[Tensor]
    tokens: Tensor | None = None
    active: Active | None = None


class EncoderLayer(nn.Module):
    def __init__(self, config: Config, scales: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(config.channels, config.heads, scales, config.points)
        self.norm1 = nn.LayerNorm(config.channels)
        self.linear1 = nn.Linear(config.channels, config.encoder_ffn)
        self.linear2 = nn.Linear(config.encoder_ffn, config.channels)
        self.norm2 = nn.LayerNorm(config.channels)

    def forward(
        self,
        tokens: Tensor,
        position: Tensor,
        reference: Tensor,
        shapes: list[tuple[int, int]],
        width: float = 1.0,
        active: Active | None = None,
    ) -> Tensor:
        """tokens: (B, N, C), position: (N, C), reference: (N, 2). Tokens that are not active come
        back as they were."""
        queries = tokens
        if active is not None:
            queries, position, reference = (
                active.of(rows) for rows in (tokens, position, reference)
            )
        queries = self.norm1(
            queries + self.attention(queries + position, tokens, reference, shapes)
        )
        queries = self.norm2(queries + self._feed_forward(queries, width))
        return queries if active is None else active.into(tokens, queries)

    def _feed_forward(self, x: Tensor, width: float) -> Tensor:
        """With the first channels only: the same ones in every wider configuration."""
        n = round(self.linear1.out_features * width)
        if n == self.linear1.out_features:
            return self.linear2(F.relu(self.linear1(x)))
        hidden = F.relu(F.linear(x, self.linear1.weight[:n], self.linear1.bias[:n]))
        return F.linear(hidden, self.linear2.weight[:, :n], self.linear2.bias)


class TokenRecalibration(nn.Module):
    """PRO-SCALE 3.1: a coarse map is scaled by a gate that a linear layer reads off the finest
    map."""

    temperature = 0.1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.excite = nn.Linear(channels, 1)

    def forward(self, coarse: Tensor, finest: Tensor) -> Tensor:
        """coarse: (B, C, h, w), finest: (B, C, H, W)."""
        seen = F.interpolate(finest, coarse.shape[-2:], mode="bilinear", align_corners=False)
        gate = self.excite(seen.movedim(1, -1)).movedim(-1, 1)  # (B, 1, h, w)
        return coarse * torch.sigmoid(self.temperature * gate)


class ExitAdapter(nn.Module):
    """Brings the features of an exit nearer to those of the last one, which the decoder knows: a
    linear map per scale, added to its input. It starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.change = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(3))
        for layer in self.change:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """maps: strides 32, 16, 8, each (B, C, h, w). Keeps the shapes."""
        return [m + change(m) for m, change in zip(maps, self.change, strict=True)]


class Encoder(nn.Module):
    """adapters: of every exit but the last; None where nobody has taught any."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.schedule, self.pause_after = config.schedule, config.pause_after
        self.layers = nn.ModuleList(EncoderLayer(config, scales) for scales in config.schedule)
        self.level_embedding = nn.Parameter(torch.randn(3, config.channels))
        self.recalibration = TokenRecalibration(config.channels) if config.recalibration else None
        # from the coarser encoded scale to the next one, which no layer has reached yet
        self.top_down = (
            nn.ModuleList(nn.Conv2d(config.channels, config.channels, 1) for _ in range(2))
            if config.top_down
            else None
        )
        self.token_head = (
            None if config.pause_after is None else TokenHead(config.channels, config.classes)
        )
        self.adapters = (
            nn.ModuleList(ExitAdapter(config.channels) for _ in range(config.exits - 1))
            if config.exit_adapters
            else None
        )

    def forward(
        self, maps: list[Tensor], exit: int, keep: float = 1.0, width: float = 1.0
    ) -> list[Tensor]:
        """maps: projected features at strides 32, 16, 8, each (B, C, h, w). Runs layers 1..exit,
        keeps the shapes.

        Scales that no layer has reached pass through, plus what comes down from the coarser ones if
        the network has a top-down path. keep, width: as in `run`.
        """
        *_, encoded = self.run(maps, exit, keep, width)
        return encoded.maps

    def run(
        self,
        maps: list[Tensor],
        exit: int,
        keep: float = 1.0,
        width: float = 1.0,
        threshold: float | None = None,
    ) -> Iterator[Encoded]:
        """What `forward` gives for exit 1, 2, .. exit, with every layer run once.

        keep: share of the stride-8 tokens that layers after `pause_after` still update. threshold:
        instead, all whose entropy, as a share of its largest possible value, is at least this.
        width: share of the FFN's channels.
        """
        for done, encoded in enumerate(self.layered(maps, exit, keep, width, threshold)):
            if self.adapters is not None and done < len(self.adapters):
                yield replace(encoded, maps=self.adapters[done](encoded.maps))
            else:
                yield encoded

    def layered(
        self,
        maps: list[Tensor],
        exit: int,
        keep: float = 1.0,
        width: float = 1.0,
        threshold: float | None = None,
    ) -> Iterator[Encoded]:
        """As `run`, but what leaves the layers themselves, without adapters."""
        assert 1 <= exit <= len(self.layers), exit
        assert self.token_head is not None or (keep == 1 and threshold is None), (
            "this network has no token head"
        )
        shapes = [(m.shape[-2], m.shape[-1]) for m in maps]
        reference = reference_points(shapes, maps[0].device)
        position = torch.cat(
            [
                sine_embedding(*shape, maps[0].shape[1], maps[0].device) + level
                for shape, level in zip(shapes, self.level_embedding, strict=True)
            ]
        )
        current, active, logits, tokens = maps, None, None, None
        for done, (scales, layer) in enumerate(
            zip(self.schedule[:exit], self.layers, strict=False)
        ):
            if done == self.pause_after and self.token_head is not None:
                logits = self.token_head(current)
                if keep < 1 or threshold is not None:
                    active = choose_active(logits, keep, threshold, shapes)
            joined = self.schedule[done - 1] if done else 0
            joining = [self._joining(current, scale) for scale in range(joined, scales)]
            if joining:
                tokens = torch.cat(joining if tokens is None else (tokens, *joining), 1)
            n = tokens.shape[1]
            some = active if scales == 3 else None
            tokens = layer(tokens, position[:n], reference[:n], shapes[:scales], width, some)
            current = self._maps(tokens, scales, maps)
            yield Encoded(current, logits, active)

    def _joining(self, current: list[Tensor], scale: int) -> Tensor:
        """(B, h * w, C): the tokens of a scale at the layer that reaches it first."""
        joining = current[scale]
        if self.recalibration is not None and scale < 2:
            joining = self.recalibration(joining, current[2])
        return joining.flatten(2).mT

    def _maps(self, tokens: Tensor, joined: int, maps: list[Tensor]) -> list[Tensor]:
        """All three maps: those of the scales reached so far from the tokens, the others from
        `maps`."""
        start, done = 0, []
        for m in maps[:joined]:
            height, width = m.shape[-2:]
            done.append(tokens[:, start : start + height * width].mT.unflatten(2, (height, width)))
            start += height * width
        for scale in range(joined, len(maps)):
            m = maps[scale]
            if self.top_down is not None:
                above = self.top_down[scale - 1](done[-1])
                m = m + F.interpolate(above, m.shape[-2:], mode="bilinear", align_corners=False)
            done.append(m)
        return done
