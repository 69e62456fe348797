"""Mask2Former's decoder: masked cross-attention over three scales, self-attention, FFN; one decoder
for every exit."""

from __future__ import annotations

import math
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


def merged(lateral: Tensor, finest: Tensor) -> Tensor:
    """lateral: (B, C, H/4, W/4), finest: (B, C, H/8, W/8) -> (B, C, H/4, W/4)."""
    up = F.interpolate(finest, lateral.shape[-2:], mode="bilinear", align_corners=False)
    return lateral + up


class PixelEmbedding(nn.Module):
    """Stride-4 mask features: lateral features plus the upsampled finest scale, smoothed, then
    projected.

    The projection is left to `mask_logits`.
    """

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
        """lateral: (B, C, H/4, W/4), finest: (B, C, H/8, W/8) -> (B, C, H/4, W/4), before the
        projection."""
        return self.smooth(merged(lateral, finest))


def mask_logits(embedding: Tensor, features: Tensor, project: nn.Conv2d) -> Tensor:
    """embedding: (B, Q, C), features: (B, C', N) -> (B, Q, N): the product of every query with the
    projected features. It is the query that is projected, since there are far more pixels.

    Of a projection for more channels the first ones are taken (slimmable.py).
    """
    outputs, inputs = embedding.shape[2], features.shape[1]
    weights = embedding @ project.weight[:outputs, :inputs].flatten(1)
    if project.bias is None:
        return weights @ features
    return weights @ features + (embedding @ project.bias[:outputs]).unsqueeze(-1)


def fine_mask_logits(parts: Tensor, features: Tensor, project: nn.Conv2d) -> Tensor:
    """parts: (B, Q, f * f, C), an embedding of every query for each of the f x f parts of a cell;
    features: (B, C', h, w) -> (B, Q, f * h, f * w): sub-pixel convolution (arXiv 1609.05158), whose
    kernels the queries are."""
    count = parts.shape[2]
    logits = mask_logits(parts.flatten(1, 2), features.flatten(2), project)
    logits = logits.unflatten(2, features.shape[-2:])
    return logits if count == 1 else F.pixel_shuffle(logits, math.isqrt(count))


def blocked_by(masks: Tensor) -> Tensor:
    """(B, Q, N) logits -> (B, Q, N) bool: where the masked attention of a query may not look."""
    blocked = (masks < 0).detach()  # sigmoid < 0.5
    return blocked & ~blocked.all(-1, keepdim=True)  # an empty mask looks everywhere


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
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """query: (B, Q, C), key, value: (B, K, C). mask: (B, Q, K), bool, True = may not look, or
        float, added to the scores. Returns (B, Q, C)."""
        (count, channels), keys = query.shape[1:], key.shape[1]
        # Few queries: it is cheaper to multiply them by the weights than all the keys and values.
        projected = keys * channels + keys * count
        folded = count * channels + self.heads * count * keys
        attend = self._folded if folded < projected else self._projected
        return self.output(attend(query, key, value, mask).transpose(1, 2).flatten(2))

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """(B, M, Q, D)"""
        q, k = self._split(self.query(query)), self._split(self.key(key))
        return self._weights(q @ k.mT, mask) @ self._split(self.value(value))

    def _folded(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """(B, M, Q, D). The key's bias adds the same to all scores of a query, so it is left
        out; weights have the sum 1, so the value's bias is added last."""
        heads = (self.heads, -1)
        q = self._split(self.query(query)) @ self.key.weight.unflatten(0, heads)  # (B, M, Q, C)
        score = (q.flatten(1, 2) @ key.mT).unflatten(1, heads)
        seen = (self._weights(score, mask).flatten(1, 2) @ value).unflatten(1, heads)
        return seen @ self.value.weight.unflatten(0, heads).mT + self._split(self.value.bias)

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, M, N, D), or (C,) -> (M, 1, D)."""
        x = x.unflatten(-1, (self.heads, -1))
        return x.transpose(1, 2) if x.dim() == 4 else x.unsqueeze(1)

    def _weights(self, score: Tensor, mask: Tensor | None) -> Tensor:
        """score: (B, M, Q, K), not scaled -> the same, with the sum 1 over the keys."""
        score = score * (self.query.out_features // self.heads) ** -0.5
        if mask is not None:
            mask = mask.unsqueeze(1)
            # finite: engines in half precision have no -inf
            score = score.masked_fill(mask, -1e9) if mask.dtype == torch.bool else score + mask
        return score.softmax(-1)


def keys_and_values(features: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Of all tokens, (B, H * W, C) each; keys have their positions. features: (B, C, H, W), level:
    (C,), the embedding of their scale.

    Added while channels come first: engines then multiply without transposing.
    """
    value = features.flatten(2) + level.unsqueeze(-1)
    position = sine_embedding(*features.shape[-2:], features.shape[1], features.device)
    return (value + position.mT).mT, value.mT


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, FFN, each with its norm behind it."""

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
        """x: (B, Q, C), query_position: (Q, C), key, value: (B, N, C), blocked: (B, Q, N). Returns
        (B, Q, C)."""
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
        memory = [
            keys_and_values(m, level) for m, level in zip(maps, self.level_embedding, strict=True)
        ]
        x, project = self.queries.expand(lateral.shape[0], -1, -1), self.pixel_embedding.project
        heads = []
        for i, layer in enumerate(self.layers):
            scale = i % 3
            if deep:
                heads.append(self._predict(x, features))
            masks = mask_logits(self.embed_mask(self.norm(x)), small[scale], project)
            x = layer(x, self.query_positions, *memory[scale], blocked_by(masks))
        return [*heads, self._predict(x, features)]

    def _predict(self, x: Tensor, features: Tensor) -> Prediction:
        x = self.norm(x)
        masks = mask_logits(self.embed_mask(x), features.flatten(2), self.pixel_embedding.project)
        return Prediction(self.classify(x), masks.unflatten(2, features.shape[-2:]))
