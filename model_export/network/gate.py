"""The gate: from what the front sees on the smallest canvas, a predicted quality for every plan.

ECO-M2F's gate (arXiv 2404.15244) is a linear classifier of the best exit for one trade-off beta, on
the mean of the coarsest features. This one regresses the quality itself, so that one gate serves
every trade-off at request time. Its input also has signs of difficulty: how much the features vary,
how unsure a linear token head is, and how large the things are that it sees, on the canvas and in
the image's own pixels.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from model_export.network.pausing import entropy

EDGES = (0.05, 0.15, 0.3, 0.5, 0.7)
OPENINGS = 4  # of squares of 3, 5, 9 and 17 tokens
SIDES = (7.0, 8.0, 8.5, 9.0, 9.5, 10.0, 11.0)  # log2 of the image's mean side, in pixels


def gate_inputs(channels: int, classes: int | None) -> int:
    """The length of `gate_input`. classes: of the front head; None: the network has none."""
    of_head = 0 if classes is None else (1 + OPENINGS) * classes + 2 + len(EDGES)
    return 2 * channels + of_head + len(SIDES)


def gate_input(maps: list[Tensor], logits: Tensor | None, size: Tensor) -> Tensor:
    """maps: strides 32, 16, 8 before the encoder; logits: (B, classes, h, w) of the front head, if
    there is one; size: (B, 2), the image's own height and width in pixels -> (B, inputs).

    Mean and standard deviation of each channel at stride 32; each class's share, and what openings
    leave of it; mean and standard deviation of the entropy, and the share of tokens above some
    levels of it; the image's mean side, as hat functions of its logarithm.
    """
    mean, spread = _moments(maps[0].flatten(2))
    if logits is None:
        return torch.cat((mean, spread, _hats(size)), 1)
    unsure = entropy(logits).flatten(1).unsqueeze(1)  # (B, 1, h * w)
    of_unsure = _moments(unsure)
    above = [(unsure > edge).float().mean(-1) for edge in EDGES]
    classes = logits.softmax(1)
    shares = (classes.mean((2, 3)), *_openings(classes))
    return torch.cat((mean, spread, *shares, *of_unsure, *above, _hats(size)), 1)


def _openings(classes: Tensor) -> list[Tensor]:
    """(B, C, h, w) -> OPENINGS times (B, C): what is left of each class after a morphological
    opening with a growing square. It falls where the parts are smaller (granulometry, Matheron
    1975)."""
    left = []
    for reach in (2**i for i in range(OPENINGS)):
        eroded = -nn.functional.max_pool2d(-classes, 2 * reach + 1, 1, reach)
        left.append(nn.functional.max_pool2d(eroded, 2 * reach + 1, 1, reach).mean((2, 3)))
    return left


def _hats(size: Tensor) -> Tensor:
    """(B, 2) -> (B, len(SIDES)): at each of SIDES 1, falling to 0 at its neighbours; those at the
    ends hold on."""
    side = size.log2().mean(1, keepdim=True).clamp(SIDES[0], SIDES[-1])
    # (B, len(SIDES) - 1): how far it is from each to the next. Without a tensor of them, which a
    # CUDA graph cannot copy to the GPU.
    rising = torch.cat(
        [((side - low) / (high - low)).clamp(0, 1) for low, high in pairwise(SIDES)], 1
    )
    ends = torch.ones_like(side)
    return torch.minimum(torch.cat((ends, rising), 1), torch.cat((1 - rising, ends), 1))


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
