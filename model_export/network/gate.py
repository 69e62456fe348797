"""The gate: from pooled coarsest features, a predicted quality for every plan.

ECO-M2F's gate (arXiv 2404.15244) is a linear classifier of the best exit for one trade-off beta. This one regresses
the quality itself, so that one gate serves every trade-off at request time. Its input adds the spread of each channel
to the mean: how much an image varies tells more of its difficulty than what it shows on average.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    def __init__(self, channels: int, hidden: int, plans: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * channels)
        self.hidden = nn.Linear(2 * channels, hidden)
        self.output = nn.Linear(hidden, plans)

    @staticmethod
    def pool(coarsest: Tensor) -> Tensor:
        """coarsest: (B, C, h, w) projected stride-32 features -> (B, 2 C): mean and standard deviation per channel."""
        flat = coarsest.flatten(2)
        mean = flat.mean(-1)
        spread = ((flat - mean.unsqueeze(-1)).square().mean(-1) + 1e-6).sqrt()
        return torch.cat((mean, spread), -1)

    def forward(self, pooled: Tensor) -> Tensor:
        """pooled: (B, 2 C) -> (B, plans) quality logits; their sigmoid is the predicted quality, 0..1."""
        return self.output(torch.relu(self.hidden(self.norm(pooled))))
