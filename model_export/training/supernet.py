"""One training step: a batch divided among the full network, the smallest and a random one between.

The sandwich rule (US-Nets, arXiv 1903.05134) trains the largest and the smallest configuration and
random ones in every step. Here each gets its own images out of one batch, so that a step costs no
more than that of a single network. On the images of the smaller ones the full encoder runs once
more, without gradients, as the teacher of CI-KD (arXiv 2308.11744): features should not depend on
the configuration that made them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_export.data.datasets import VOID
from model_export.network.config import Config
from model_export.network.encoder import Encoded
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from model_export.training.losses import at_centres, set_loss

TERMS = ("class", "bce", "dice", "pixel", "token", "distill")
LEAST_KEEP = 0.1


@dataclass(frozen=True)
class Draw:
    """rows: the images of the batch that go through this network. threshold: pause by entropy
    instead of by knobs.keep."""

    rows: slice
    knobs: Knobs
    threshold: float | None = None


def random_draw(config: Config, rows: slice, rng: np.random.Generator) -> Draw:
    """Any depth and width. Where the depth allows pausing, three quarters of the draws pause: half
    of them by a share, half by a threshold."""
    depth, width = int(rng.integers(1, config.exits + 1)), float(rng.choice(config.widths))
    keep, threshold = 1.0, None
    if config.pauses_from is not None and depth >= config.pauses_from and rng.random() < 0.75:
        if rng.random() < 0.5:
            keep = float(rng.uniform(LEAST_KEEP, 1))
        else:
            threshold = float(rng.uniform(0.02, 0.5))
    return Draw(rows, Knobs(depth, keep, width), threshold)


def sandwich(config: Config, batch: int, rng: np.random.Generator) -> list[Draw]:
    """Half of the batch for the full network, a quarter each for a random and the smallest one, at
    least one image each.

    With fewer than three images a step has either the full network or a random one.
    """
    full = Knobs(config.exits)
    if batch < 3:
        return (
            [Draw(slice(0, batch), full)]
            if rng.random() < 0.5
            else [random_draw(config, slice(0, batch), rng)]
        )
    quarter = max(1, batch // 4)
    half = batch - 2 * quarter
    least = Knobs(1, 1.0, min(config.widths))
    return [
        Draw(slice(0, half), full),
        random_draw(config, slice(half, half + quarter), rng),
        Draw(slice(half + quarter, batch), least),
    ]


def one_exit(config: Config, batch: int, rng: np.random.Generator) -> list[Draw]:
    """ECO-M2F's weighted stochastic depth: the whole batch leaves at one random exit."""
    return [Draw(slice(0, batch), Knobs(int(rng.integers(1, config.exits + 1))))]


SAMPLING = {"sandwich": sandwich, "exit": one_exit}


def exit_weights(kind: str, exits: int) -> list[float]:
    """Of each exit, mean 1. kind: "uniform", or "linear", ECO-M2F's alpha_k = k."""
    if kind == "uniform":
        return [1.0] * exits
    return [2 * k / (exits + 1) for k in range(1, exits + 1)]


@dataclass(frozen=True)
class Weights:
    """points: sampled per mask. pixel, token, distill: weights of the semantic cross-entropy, of
    that of the token heads at stride 8, and of CI-KD. exits: the weight of the loss at every exit.
    stride: of the labels of the semantic cross-entropy."""

    points: int
    pixel: float
    token: float
    distill: float
    exits: list[float]
    stride: int = 4


class Supernet(nn.Module):
    """The segmenter with its losses: one forward pass, as distributed training wants it."""

    def __init__(self, model: Segmenter, weights: Weights) -> None:
        super().__init__()
        self.model, self.weights = model, weights

    def forward(
        self, images: Tensor, masks: Tensor, draws: list[Draw], emphasis: Tensor | None = None
    ) -> dict[str, Tensor]:
        """images: (B, H, W, 3) uint8, masks: (B, H, W) uint8 -> weighted terms, scalars; their sum
        is the loss.

        emphasis: (B, H, W), the weight of each pixel in the semantic cross-entropy.
        """
        lateral, maps = self.model.features(images)
        totals = {"token": self.weights.token * token_loss(self.model.front_head(maps), masks)}
        for draw in draws:
            share = (draw.rows.stop - draw.rows.start) / len(images)
            share *= self.weights.exits[draw.knobs.depth - 1]
            part = None if emphasis is None else emphasis[draw.rows]
            mine = [m[draw.rows] for m in maps]
            for name, value in self._terms(lateral[draw.rows], mine, masks[draw.rows], part, draw):
                totals[name] = totals.get(name, 0.0) + share * value
        return totals

    def _terms(
        self,
        lateral: Tensor,
        maps: list[Tensor],
        masks: Tensor,
        emphasis: Tensor | None,
        draw: Draw,
    ) -> list[tuple[str, Tensor]]:
        config, weights, knobs = self.model.config, self.weights, draw.knobs
        *_, encoded = self.model.encoder.run(
            maps, knobs.depth, knobs.keep, knobs.width, draw.threshold
        )
        terms = []
        if encoded.tokens is not None:
            terms.append(("token", weights.token * token_loss(encoded.tokens, masks)))
        for prediction in self.model.decoder(lateral, encoded.maps, deep=True):
            terms += set_loss(
                prediction,
                masks,
                config.matching,
                weights.points,
                weights.pixel,
                weights.stride,
                emphasis,
            ).items()
        if weights.distill and (knobs != Knobs(config.exits) or draw.threshold is not None):
            with torch.no_grad():
                teacher = self.model.encoder(maps, config.exits)
            # A map that no layer has reached cannot be what it is at the end.
            scales = config.schedule[knobs.depth - 1]
            terms.append(("distill", weights.distill * distillation(encoded, teacher, scales)))
        return terms


def distillation(student: Encoded, teacher: list[Tensor], scales: int) -> Tensor:
    """Mean squared difference of the maps. The encoder's maps are normalised, so its unit is their
    variance."""
    pairs = zip(student.maps[:scales], teacher[:scales], strict=True)
    return torch.stack([F.mse_loss(ours, theirs) for ours, theirs in pairs]).mean()


def token_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy of a token head's logits (B, classes, h, w) against the labels at the tokens'
    centres."""
    labels = at_centres(masks, masks.shape[-1] // logits.shape[-1]).long()
    total = F.cross_entropy(logits, labels, ignore_index=VOID, reduction="sum")
    return total / (labels != VOID).sum().clamp(min=1)  # crops may be all void
