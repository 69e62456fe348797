"""Mask2Former's decoder: masked cross-attention over three scales, self-attention, FFN; one decoder
for every exit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_export.network.config import Config
from model_export.network.position import sine_embedding


@dataclass
class Prediction:
    """The answer of one head. classes: (B, Q, C + 1) logits, the last is "no object". masks: (B, Q,
    H/4, W/4) logits."""

    classes: Tensor
    masks: Tensor


def semantic_probabilities(prediction: Prediction) -> Tensor:
    """(B, C, H/4, W/4): every query votes for its classes where its mask is (Mask2Former, semantic
    inference)."""
    classes = prediction.classes.softmax(-1)[..., :-1]  # (B, Q, C)
    return torch.einsum("bqc,bqhw->bchw", classes, prediction.masks.sigmoid())


class PixelEmbedding(nn.Module):
    """Stride-4 mask features: lateral features plus the upsampled finest scale, smoothed, then
    projected."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels = config.channels
        smooth: nn.Module
        if config.pixel_embedding == "light":
            smooth = nn.MaxPool2d(3, stride=1, padding=1)
        else:
            groups = channels if config.pixel_embedding == "depthwise" else 1
            smooth = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.smooth = nn.Sequential(smooth, nn.GroupNorm(32, channels), nn.ReLU())
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, lateral: Tensor, finest: Tensor) -> Tensor:
        """lateral: (B, C, H/4, W/4), finest: (B, C, H/8, W/8) -> (B, C, H/4, W/4)."""
        up = F.interpolate(finest, lateral.shape[-2:], mode="bilinear", align_corners=False)
        return self.project(self.smooth(lateral + up))


class Attention(nn.Module):
    """Multi-head attention with an optional mask. Keys and values have positions of their own."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None
    ) -> Tensor:
        """query: (B, Q, C), key, value: (B, K, C), blocked: (B, Q, K) bool, True = may not look.
        Returns (B, Q, C)."""
        q = self.query(query).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, M, Q, D)
        k = self.key(key).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        v = self.value(value).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        score = q @ k.mT * q.shape[-1] ** -0.5  # (B, M, Q, K)
        if blocked is not None:
            # finite: engines in half precision have no -inf
            score = score.masked_fill(blocked.unsqueeze(1), -1e9)
        return self.output((score.softmax(-1) @ v).transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    def __init__(self, channels: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.cross = Attention(channels, heads)
        self.norm1 = nn.LayerNorm(channels)
        self.self_attention = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, ffn)
        self.linear2 = nn.Linear(ffn, channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(
        self, x: Tensor, query_position: Tensor, key: Tensor, value: Tensor, blocked: Tensor
    ) -> Tensor:
        x = self.norm1(x + self.cross(x + query_position, key, value, blocked))
        placed = x + query_position
        x = self.norm2(x + self.self_attention(placed, placed, x))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))


class Decoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        channels = config.channels
        self.pixel_embedding = PixelEmbedding(config)
        self.queries = nn.Parameter(torch.randn(config.queries, channels))
        self.query_positions = nn.Parameter(torch.randn(config.queries, channels))
        self.level_embedding = nn.Parameter(torch.randn(3, channels))
        self.layers = nn.ModuleList(
            DecoderLayer(channels, config.heads, config.decoder_ffn)
            for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(channels)
        self.classify = nn.Linear(channels, config.classes + 1)
        self.embed_mask = nn.Sequential(
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Linear(channels, channels),
        )

    def forward(self, lateral: Tensor, maps: list[Tensor], deep: bool = False) -> list[Prediction]:
        """lateral: (B, C, H/4, W/4); maps: encoded features at strides 32, 16, 8. Predictions, the
        final one last.

        deep: also the predictions before and between the layers, for deep supervision. Otherwise
        only the last head sees full-size mask features: an attention mask needs them at its own
        scale only, and resizing the features first is exact, since resizing and the product with a
        query are both linear.
        """
        features = self.pixel_embedding(lateral, maps[-1])
        small = [
            F.interpolate(features, m.shape[-2:], mode="bilinear", align_corners=False).flatten(2)
            for m in maps
        ]
        keys, values = [], []
        for m, level in zip(maps, self.level_embedding, strict=True):
            value = m.flatten(2).mT + level
            keys.append(value + sine_embedding(*m.shape[-2:], m.shape[1], m.device))
            values.append(value)
        x = self.queries.expand(lateral.shape[0], -1, -1)
        heads = []
        for i, layer in enumerate(self.layers):
            scale = i % 3
            embedding = self.embed_mask(self.norm(x))  # (B, Q, C)
            if deep:
                heads.append(self._predict(x, features))
            blocked = (embedding @ small[scale] < 0).detach()  # sigmoid < 0.5
            blocked = blocked & ~blocked.all(-1, keepdim=True)  # an empty mask looks everywhere
            x = layer(x, self.query_positions, keys[scale], values[scale], blocked)
        return [*heads, self._predict(x, features)]

    def _predict(self, x: Tensor, features: Tensor) -> Prediction:
        x = self.norm(x)
        masks = (self.embed_mask(x) @ features.flatten(2)).unflatten(2, features.shape[-2:])
        return Prediction(self.classify(x), masks)
