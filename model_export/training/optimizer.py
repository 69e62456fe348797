"""Which parameters learn how fast, and how the rate changes over a training."""

from __future__ import annotations

import math
from typing import Any

from model_export.network.segmenter import Segmenter


def parameter_groups(
    model: Segmenter, lr: float, backbone: float, decay: float
) -> list[dict[str, Any]]:
    """AdamW's groups of all that learns: without weight decay on norms, biases and embeddings.
    backbone: factor of `lr` for it.

    "base" of a group is the rate that `rate` scales.
    """
    groups = []
    for factor, inside in ((1.0, False), (backbone, True)):
        learning = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        named = [(n, p) for n, p in learning if n.startswith("backbone.") == inside]
        plain = [
            p
            for n, p in named
            if p.ndim < 2 or ("embedding" in n and "pixel" not in n) or "quer" in n.split(".")[1]
        ]
        matrices = [p for n, p in named if not any(p is q for q in plain)]
        groups += [
            {"params": matrices, "lr": lr * factor, "base": lr * factor, "weight_decay": decay},
            {"params": plain, "lr": lr * factor, "base": lr * factor, "weight_decay": 0.0},
        ]
    return groups


def rate(step: int, steps: int, warmup: int = 200) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
