"""A small network for tests of its boxes: its sizes, random weights and maps."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from model_export.network.config import Config
from model_export.network.encoder import Encoder

SMALL = Config(
    name="small",
    task="semantic",
    classes=4,
    queries=4,
    channels=32,
    heads=4,
    encoder_ffn=16,
    decoder_layers=4,
    decoder_ffn=16,
)
M = TypeVar("M", bound=nn.Module)
SHAPES = [(2, 3), (4, 6), (8, 12)]  # strides 32, 16 and 8 of an image of 64 x 96
COARSER, FINEST = 6 + 24, 96  # tokens
# Three layers, one per scale that joins, then two that may pause.
KNOBBED = replace(
    SMALL, schedule=(1, 2, 3, 3, 3), top_down=True, pause_after=3, widths=(0.25, 0.5, 1.0)
)


def randomised(module: M) -> M:
    """No zeros are left, so that no part can be swapped for another unnoticed."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


def random_maps() -> list[Tensor]:
    return [torch.randn(2, SMALL.channels, *shape) for shape in SHAPES]


def every_exit(encoder: Encoder, maps: list[Tensor], last: int) -> list[list[Tensor]]:
    return [encoded.maps for encoded in encoder.run(maps, last)]


def worst(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()
