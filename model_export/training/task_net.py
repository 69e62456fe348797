"""What a step of train_tasks.py trains: parts of a network with several heads, and their losses.

A batch is divided among the full network, the smallest one and a random one between: a depth and
width of the encoder, and a width of each head (the sandwich rule, arXiv 1903.05134). The smaller
ones also learn from the full configuration's features and answers: configuration-invariant
distillation (arXiv 2308.11744).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from model_export.data.several_tasks import TaskBatch
from model_export.network.config import Config
from model_export.network.heads import DetectionHead
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from model_export.training.head_losses import LOSSES, agreement
from model_export.training.supernet import distillation, token_loss


@dataclass(frozen=True, slots=True)
class Draw:
    """rows: the images of the batch that go through this network. widths: of each head."""

    rows: slice
    knobs: Knobs
    widths: dict[str, float]


def sandwich(config: Config, batch: int, rng: np.random.Generator) -> list[Draw]:
    """Half of the batch for the full network, a quarter each for a random and the smallest one."""
    quarter = batch // 4
    half = batch - 2 * quarter
    knobs = Knobs(int(rng.integers(1, config.exits + 1)), 1.0, float(rng.choice(config.widths)))
    widths = {head.name: float(rng.choice(head.widths)) for head in config.tasks}
    return [
        *full(config, half, rng),
        Draw(slice(half, half + quarter), knobs, widths),
        Draw(
            slice(half + quarter, batch),
            Knobs(1, 1.0, min(config.widths)),
            {head.name: head.widths[0] for head in config.tasks},
        ),
    ]


def full(config: Config, batch: int, rng: np.random.Generator) -> list[Draw]:
    widths = {head.name: 1.0 for head in config.tasks}
    return [Draw(slice(0, batch), Knobs(config.exits), widths)]


SAMPLING = {"sandwich": sandwich, "full": full}


def are_all_that_see_lateral(config: Config, names: Sequence[str]) -> bool:
    """Whether no other head sees the lateral features, which can then learn with these heads."""
    seeing = {head.name for head in config.tasks if head.task != DetectionHead.task}
    return bool(seeing) and seeing.issubset(names)


class TaskNet(nn.Module):
    """The network with its losses. balance: of each head the logarithm of its loss's variance,
    learned (arXiv 1705.07115, section 3.2); None: all weights are 1. alone: the heads that learn,
    with the lateral features where no other head sees them; None: everything does."""

    def __init__(
        self, model: Segmenter, distill: float, balance: str, alone: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        self.model, self.distill, self.alone = model, distill, alone
        self._kept: dict[tuple[int, str, bool], list[Tensor]] = {}  # by the key of an image
        self.learning = [h for h in model.config.tasks if alone is None or h.name in alone]
        if alone is not None:
            model.requires_grad_(False)
            for name in alone:
                model.heads[name].requires_grad_(True)
            if are_all_that_see_lateral(model.config, alone):
                for part in (model.lateral, model.detail):
                    if part is not None:
                        part.requires_grad_(True)
        names = [head.name for head in self.learning]
        self.balance = (
            nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in names})
            if balance == "uncertainty"
            else None
        )

    def forward(self, batch: TaskBatch, draws: list[Draw]) -> dict[str, Tensor]:
        """Weighted terms, scalars; their sum is the loss."""
        lateral, maps = self._features(batch)
        terms = {}
        if self.alone is None:
            terms["token"] = token_loss(self.model.front_head(maps), batch.masks)
        for draw in draws:
            share = (draw.rows.stop - draw.rows.start) / len(batch.images)
            own = [m[draw.rows] for m in maps]
            for name, value in self._terms(lateral[draw.rows], own, batch[draw.rows], draw):
                terms[name] = terms.get(name, 0.0) + share * value
        return terms

    def _features(self, batch: TaskBatch) -> tuple[Tensor, list[Tensor]]:
        """As the network's. Where heads learn alone an image's maps are computed once, and kept as
        fp16."""
        if self.alone is None:
            return self.model.features(batch.images)
        x = self.model.normalised(batch.images)
        new = [row for row, key in enumerate(batch.keys) if key not in self._kept]
        if new:
            res4, maps = self.model.scales(x[new])  # which do not learn
            for place, row in enumerate(new):
                self._kept[batch.keys[row]] = [m[place].half().clone() for m in (res4, *maps)]
        each = [self._kept[key] for key in batch.keys]
        res4, *maps = [torch.stack(scale).float() for scale in zip(*each, strict=True)]
        return self.model.lateral_features(x, res4), maps

    def _terms(
        self, lateral: Tensor, maps: list[Tensor], batch: TaskBatch, draw: Draw
    ) -> list[tuple[str, Tensor]]:
        config, knobs, model = self.model.config, draw.knobs, self.model
        *_, encoded = model.encoder.run(maps, knobs.depth, 1.0, knobs.width)
        smaller = knobs != Knobs(config.exits) or any(w < 1 for w in draw.widths.values())
        teacher = None
        if self.distill and smaller:
            with torch.no_grad():
                teacher = model.encoder(maps, config.exits)
        terms = []
        for head in self.learning:
            answer = model.heads[head.name](lateral, encoded.maps, draw.widths[head.name])
            loss = LOSSES[head.task](answer, batch)
            if teacher is not None:
                with torch.no_grad():
                    wanted = model.heads[head.name](lateral, teacher)
                loss = loss + self.distill * agreement(head.task, answer, wanted)
            if self.balance is not None:
                spread = self.balance[head.name]
                loss = (-spread).exp() * loss + spread
            terms.append((head.name, loss))
        if teacher is not None and self.alone is None:
            scales = config.schedule[knobs.depth - 1]
            terms.append(("features", self.distill * distillation(encoded, teacher, scales)))
        return terms
