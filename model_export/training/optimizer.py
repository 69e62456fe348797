"""Which parameters learn how fast, and how the rate changes over a training."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from model_export.network.segmenter import Segmenter


def parameter_groups(
    model: Segmenter, lr: float, backbone: float, decay: float
) -> list[dict[str, Any]]:
    """AdamW's groups of all that learns: without weight decay on norms, biases, embeddings
    and learned queries. backbone: factor of `lr` for it.

    "base" of a group is the rate that `rate` scales.
    """
    groups = []
    for factor, inside in ((1.0, False), (backbone, True)):
        learning = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        named = [(n, p) for n, p in learning if n.startswith("backbone.") == inside]
        matrices = [p for n, p in named if _decays(n, p)]
        plain = [p for n, p in named if not _decays(n, p)]
        groups += [
            {"params": matrices, "lr": lr * factor, "base": lr * factor, "weight_decay": decay},
            {"params": plain, "lr": lr * factor, "base": lr * factor, "weight_decay": 0.0},
        ]
    return groups


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is the matrix of a layer. Learned queries and embeddings are no layer's "weight",
    but have names of their own."""
    return parameter.ndim > 1 and name.rpartition(".")[2] == "weight"


def rate(step: int, steps: int, warmup: int = 200) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
