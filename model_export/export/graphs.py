"""What is exported: three stages with tensors in and tensors out. The network itself knows nothing of this."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_export.network.segmenter import Segmenter, semantic_probabilities

FEATURES = ("f8", "f16", "f32")
ENCODED = ("e8", "e16", "e32")


class Front(nn.Module):
    """image (B, H, W, 3) uint8 -> f4, f8, f16, f32 (B, C, H/s, W/s) and quality (B, plans), 0..1."""

    inputs, outputs = ("image",), ("f4", *FEATURES, "quality")

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        lateral, maps = self.model.features(image)
        quality = torch.sigmoid(self.model.gate(self.model.gate.pool(maps[0])))
        return lateral, *reversed(maps), quality


class Encode(nn.Module):
    """f8, f16, f32 -> e8, e16, e32 of the same shapes: the encoder's layers 1..depth."""

    inputs, outputs = FEATURES, ENCODED

    def __init__(self, model: Segmenter, depth: int) -> None:
        super().__init__()
        self.model, self.depth = model, depth

    def forward(self, f8: Tensor, f16: Tensor, f32: Tensor) -> tuple[Tensor, ...]:
        return tuple(reversed(self.model.encoder([f32, f16, f8], self.depth)))


class Decode(nn.Module):
    """f4, e8, e16, e32 -> probabilities (B, classes, H/4, W/4), 0..1."""

    inputs, outputs = ("f4", *ENCODED), ("probabilities",)

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, f4: Tensor, e8: Tensor, e16: Tensor, e32: Tensor) -> Tensor:
        return semantic_probabilities(self.model.decoder(f4, [e32, e16, e8])[-1])
