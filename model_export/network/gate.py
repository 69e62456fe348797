"""The gate: from what the front sees, a predicted quality for every plan.

ECO-M2F's gate (arXiv 2404.15244) is a linear classifier of the best exit for one trade-off beta, on
the mean of the coarsest features. This one regresses the quality itself, so that one gate serves
every trade-off at request time. Its input also has signs of difficulty: how much the features vary,
and how unsure a linear token head is, and where.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_export.network.pausing import entropy

EDGES = (0.05, 0.15, 0.3, 0.5, 0.7)


def gate_inputs(channels: int, classes: int) -> int:
    """The length of `gate_input`."""
    return 2 * channels + classes + 2 + len(EDGES)


def gate_input(maps: list[Tensor], logits: Tensor) -> Tensor:
    """maps: strides 32, 16, 8 before the encoder; logits: (B, classes, h, w) of the front head ->
    (B, inputs).

    Mean and standard deviation of each channel at stride 32; each class's share; mean and standard
    deviation of the entropy, and the share of tokens above some levels of it.
    """
    mean, spread = _moments(maps[0].flatten(2))
    unsure = entropy(logits).flatten(1).unsqueeze(1)  # (B, 1, h * w)
    of_unsure = _moments(unsure)
    above = [(unsure > edge).float().mean(-1) for edge in EDGES]
    return torch.cat((mean, spread, logits.softmax(1).mean((2, 3)), *of_unsure, *above), 1)


def _moments(flat: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, N) -> mean and standard deviation, (B, C) each."""
    mean = flat.mean(-1)
    return mean, ((flat - mean.unsqueeze(-1)).square().mean(-1) + 1e-6).sqrt()


class Gate(nn.Module):
    """Linear in the standardised inputs, since it is fitted on no more than some hundred images of
    known quality.

    mean, scale: of the inputs over those images.
    """

    def __init__(self, inputs: int, plans: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.output = nn.Linear(inputs, plans)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs) -> (B, plans): predicted quality, 0..1."""
        return self.output((x - self.mean) / self.scale).clamp(0, 1)
