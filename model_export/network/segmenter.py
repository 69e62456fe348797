"""The whole network: backbone -> projections -> encoder up to an exit -> decoder. The gate is
fitted separately."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_export.network.backbone import BACKBONES
from model_export.network.config import Config
from model_export.network.decoder import Decoder, Prediction, semantic_probabilities
from model_export.network.encoder import Encoder
from model_export.network.gate import gate_input
from model_export.network.heads import HEADS
from model_export.network.knobs import Knobs
from model_export.network.pausing import TokenHead
from model_export.network.transformers_backbone import TransformersBackbone


class Segmenter(nn.Module):
    """front_head: a token head on the features before the encoder. How unsure it is tells the gate
    about difficulty. None where nobody has taught one.

    detail: adds the pixels themselves to the lateral features, for heads that tell parts of a cell
    of stride 4 apart. None where config.detail is false.

    decoder: the one head of a network of one task; None with several, which are in `heads`, by
    name.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.backbone: nn.Module
        if config.imported is None:
            self.backbone = BACKBONES[config.backbone]()
        else:
            self.backbone = TransformersBackbone(config.imported)
        self.register_buffer("mean", torch.tensor(self.backbone.mean), persistent=False)
        self.register_buffer("std", torch.tensor(self.backbone.std), persistent=False)
        self.lateral = self._projection(self.backbone.channels[0], config.channels, bias=False)
        self.detail = self._patches(config.channels) if config.detail else None
        self.project = nn.ModuleList(
            self._projection(c, config.channels) for c in reversed(self.backbone.channels[1:])
        )
        self.encoder = Encoder(config)
        self.heads = nn.ModuleDict(
            {head.name: HEADS[head.task](config, head) for head in config.tasks}
        )
        self.decoder = None if config.tasks else Decoder(config)
        self.front_head = TokenHead(config.channels, config.classes) if config.front_head else None

    @staticmethod
    def _projection(inputs: int, outputs: int, bias: bool = True) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=bias), nn.GroupNorm(32, outputs))

    @staticmethod
    def _patches(outputs: int) -> nn.Sequential:
        """A projection of the pixels of every cell of stride 4, which begins with zero."""
        norm = nn.GroupNorm(32, outputs)
        nn.init.zeros_(norm.weight)
        return nn.Sequential(nn.Conv2d(3, outputs, 4, stride=4, bias=False), norm)

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """images: (B, H, W, 3) uint8 RGB, H and W multiples of 32 -> lateral (B, C, H/4, W/4),
        [strides 32, 16, 8]."""
        x = self.normalised(images)
        res4, maps = self.scales(x)
        return self.lateral_features(x, res4), maps

    def normalised(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, 3, H, W)."""
        return (images.permute(0, 3, 1, 2).float() - self.mean) / self.std

    def scales(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x: normalised -> the backbone's map at stride 4, and [strides 32, 16, 8], projected."""
        res4, *rest = self.backbone(x)
        return res4, [project(m) for project, m in zip(self.project, reversed(rest), strict=True)]

    def lateral_features(self, x: Tensor, res4: Tensor) -> Tensor:
        """x: normalised, res4: the backbone's map at stride 4 -> (B, C, H/4, W/4)."""
        lateral: Tensor = self.lateral(res4)
        return lateral if self.detail is None else lateral + self.detail(x)

    def glance(self, maps: list[Tensor], size: Tensor) -> Tensor:
        """What the gate sees of the smallest canvas, (B, inputs). maps: from `features`; size: (B,
        2), the image's own height and width in pixels."""
        return gate_input(maps, None if self.front_head is None else self.front_head(maps), size)

    def forward(self, images: Tensor, knobs: Knobs, deep: bool = False) -> list[Prediction]:
        """Of the one decoder."""
        assert self.decoder is not None
        lateral, maps = self.features(images)
        return self.decoder(lateral, self.encoder(maps, knobs.depth, knobs.keep, knobs.width), deep)


def head_of(config: Config, prediction: Prediction) -> Tensor | Prediction:
    """What the network's head gives: the probabilities of its channels, or the queries' logits."""
    return prediction if config.head == "queries" else semantic_probabilities(prediction)
