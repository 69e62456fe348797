"""What is exported: three stages, tensors in and tensors out. The network itself knows nothing
about it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model_export.network.encoder import Encoded
from model_export.network.gate import Gate, gate_input
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter, semantic_probabilities

FEATURES = ("f8", "f16", "f32")
ENCODED = ("e8", "e16", "e32")


class Front(nn.Module):
    """image (B, H, W, 3) uint8 -> f4, f8, f16, f32 (B, C, H/s, W/s), quality (B, plans), 0..1, and
    gate_input (B, inputs), what the gate saw: no stage needs it, but another gate can be fitted to
    it."""

    inputs, outputs = ("image",), ("f4", *FEATURES, "quality", "gate_input")

    def __init__(self, model: Segmenter, gate: Gate) -> None:
        super().__init__()
        self.model, self.gate = model, gate

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        lateral, maps = self.model.features(image)
        seen = gate_input(maps, self.model.front_head(maps))
        return lateral, *reversed(maps), self.gate(seen), seen


class Encode(nn.Module):
    """f8, f16, f32 -> e8, e16, e32 of the same shapes, by the knobs' encoder; and, if it pauses
    tokens, which ones: paused (B, H/8, W/8) uint8, 1 = not updated to the end."""

    inputs = FEATURES

    def __init__(self, model: Segmenter, knobs: Knobs) -> None:
        super().__init__()
        self.model, self.knobs = model, knobs
        self.outputs = ENCODED if knobs.keep == 1 else (*ENCODED, "paused")

    def forward(self, f8: Tensor, f16: Tensor, f32: Tensor) -> tuple[Tensor, ...]:
        knobs = self.knobs
        *_, encoded = self.model.encoder.run([f32, f16, f8], knobs.depth, knobs.keep, knobs.width)
        return outputs_of(encoded, f8)


def outputs_of(encoded: Encoded, f8: Tensor) -> tuple[Tensor, ...]:
    paused = () if encoded.active is None else (encoded.active.paused((f8.shape[2], f8.shape[3])),)
    return (*reversed(encoded.maps), *paused)


class Encoders(nn.Module):
    """Encoders of plans that differ in depth alone, traced together: the deepest one contains all
    the others.

    Outputs are those of every plan, prefixed with its name and a dot.
    """

    inputs = FEATURES

    def __init__(self, model: Segmenter, plans: Sequence[Knobs]) -> None:
        super().__init__()
        self.model = model
        self.plans = {plan.depth: plan for plan in plans}
        self.outputs = tuple(
            f"{plan.name}.{name}" for plan in plans for name in Encode(model, plan).outputs
        )

    def forward(self, f8: Tensor, f16: Tensor, f32: Tensor) -> tuple[Tensor, ...]:
        deepest = self.plans[max(self.plans)]
        every = self.model.encoder.run([f32, f16, f8], deepest.depth, deepest.keep, deepest.width)
        outputs = [outputs_of(encoded, f8) for encoded in every]
        return tuple(output for depth in self.plans for output in outputs[depth - 1])


class Decode(nn.Module):
    """f4, e8, e16, e32 -> probabilities (B, channels, H/4, W/4), 0..1."""

    inputs, outputs = ("f4", *ENCODED), ("probabilities",)

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, f4: Tensor, e8: Tensor, e16: Tensor, e32: Tensor) -> Tensor:
        return semantic_probabilities(self.model.decoder(f4, [e32, e16, e8])[-1])


Stage = Front | Encode | Decode


def stages_of(model: Segmenter, gate: Gate, plans: Sequence[Knobs]) -> dict[str, Stage]:
    """Name -> stage. The front comes first, the decoder last, between them an encoder for each
    plan."""
    encoders = {f"encoder-{plan.name}": Encode(model, plan) for plan in plans}
    return {"front": Front(model, gate), **encoders, "decoder": Decode(model)}


@torch.inference_mode()
def examples(stages: dict[str, Stage], images: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """Inputs of the front, of any encoder and of the decoder for images (B, H, W, 3) uint8."""
    f4, *features = stages["front"](images)[: 1 + len(FEATURES)]
    # An encoder keeps the shapes, so its inputs can stand for its outputs.
    return {"front": (images,), "encoders": tuple(features), "decoder": (f4, *features)}
