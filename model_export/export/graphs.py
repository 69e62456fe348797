"""What is exported: three kinds of stages, tensors in and tensors out, for each shape of each
canvas. The network itself knows nothing about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from model_export.network.config import Config, Head
from model_export.network.encoder import Encoded
from model_export.network.gate import Gate
from model_export.network.heads import DetectionHead
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter, semantic_probabilities
from service.bundle import Canvas, Graphs, plain_of
from service.core import Frame, HeadWidth

FEATURES = ("f8", "f16", "f32")
ENCODED = ("e8", "e16", "e32")


class Front(nn.Module):
    """image (B, H, W, 3) uint8 -> f4, f8, f16, f32 (B, C, H/s, W/s)."""

    inputs: tuple[str, ...] = ("image",)
    outputs: tuple[str, ...] = ("f4", *FEATURES)

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        lateral, maps = self.model.features(image)
        return lateral, *reversed(maps)


class Glance(nn.Module):
    """The front of the smallest canvas, with the gate.

    image (B, H, W, 3) uint8; size (B, 2), the image's own height and width in pixels -> as `Front`,
    and quality (B, plans), 0..1, and gate_input (B, inputs), what the gate saw: no stage needs it,
    but another gate can be fitted to it.
    """

    inputs, outputs = ("image", "size"), (*Front.outputs, "quality", "gate_input")

    def __init__(self, model: Segmenter, gate: Gate) -> None:
        super().__init__()
        self.model, self.gate = model, gate

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        lateral, maps = self.model.features(image)
        seen = self.model.glance(maps, size)
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

    Outputs are those of every plan, prefixed with the encoder's name and a dot.
    """

    inputs = FEATURES

    def __init__(self, model: Segmenter, plans: Sequence[Knobs]) -> None:
        super().__init__()
        self.model = model
        self.plans = {plan.depth: plan for plan in plans}
        self.outputs = tuple(
            f"{plan.encoder}.{name}" for plan in plans for name in Encode(model, plan).outputs
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


class DecodeQueries(nn.Module):
    """f4, e8, e16, e32 -> class_logits (B, Q, classes + 1), the last is "no object", and
    mask_logits (B, Q, H/4, W/4)."""

    inputs, outputs = ("f4", *ENCODED), ("class_logits", "mask_logits")

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, f4: Tensor, e8: Tensor, e16: Tensor, e32: Tensor) -> tuple[Tensor, ...]:
        prediction = self.model.decoder(f4, [e32, e16, e8])[-1]
        return prediction.classes, prediction.masks


class DecodeTask(nn.Module):
    """f4, e8, e16, e32 -> the tensor that one of several heads answers by, at one of its widths:
    probabilities as `Decode`, finer if the head is, or depth (B, H/4, W/4) in its unit."""

    inputs: tuple[str, ...] = ("f4", *ENCODED)

    def __init__(self, model: Segmenter, head: Head, width: float) -> None:
        super().__init__()
        self.model, self.head, self.width = model, head, width
        self.outputs: tuple[str, ...] = model.heads[head.name].outputs

    def forward(self, f4: Tensor, e8: Tensor, e16: Tensor, e32: Tensor) -> Tensor:
        head = self.model.heads[self.head.name]
        (answer,) = head.tensors(head(f4, [e32, e16, e8], self.width)).values()
        return answer


class DecodeBoxes(nn.Module):
    """e8, e16, e32 -> class_logits (B, Q, classes + 1), the last is "no object", and boxes (B, Q,
    4): centre x, centre y, width and height as shares of the canvas."""

    inputs, outputs = ENCODED, DetectionHead.outputs

    def __init__(self, model: Segmenter, head: Head, width: float) -> None:
        super().__init__()
        self.model, self.head, self.width = model, head, width

    def forward(self, e8: Tensor, e16: Tensor, e32: Tensor) -> tuple[Tensor, ...]:
        head = self.model.heads[self.head.name]
        return tuple(head.tensors(head(None, [e32, e16, e8], self.width)).values())


def decode_task(model: Segmenter, head: Head, width: float) -> DecodeTask | DecodeBoxes:
    boxes = isinstance(model.heads[head.name], DetectionHead)
    return (DecodeBoxes if boxes else DecodeTask)(model, head, width)


Stage = Front | Glance | Encode | Decode | DecodeQueries | DecodeTask | DecodeBoxes
# Key of a head at one of its widths -> what the names of its stages begin with.
Heads = Mapping[str, str]
ONE_HEAD: Heads = {"head": "decoder"}


def at_widths(config: Config) -> dict[str, tuple[Head, float]]:
    """Key -> head and width, of each of several heads at each of its widths."""
    return {
        HeadWidth(head.name, width).key: (head, width)
        for head in config.tasks
        for width in head.widths
    }


def heads_of(config: Config) -> Heads:
    """Of a network: of its one head, or of each of several at each width, in the gate's order."""
    return {key: key for key in at_widths(config)} or {config.task: "decoder"}


def graphs_of(
    canvases: Sequence[Canvas], plans: Sequence[Knobs], heads: Heads = ONE_HEAD
) -> dict[str, Graphs]:
    """Shape's name -> the names of its stages, also of those that plans on tiled canvases run."""
    plain, own = plain_of(canvases), {canvas.name: [canvas.name] for canvas in canvases}
    for canvas in canvases:
        if canvas.tiles is not None:
            own[canvas.tiles.of].append(canvas.name)
    return {
        shape.name: Graphs(
            f"front-{shape.name}",
            {
                plan.name: f"encoder-{shape.name}-{plan.encoder}"
                for plan in plans
                if plan.canvas in own[canvas.name]
            },
            {key: f"{prefix}-{shape.name}" for key, prefix in heads.items()},
        )
        for canvas in plain
        for shape in canvas.shapes
    }


def stages_of(
    model: Segmenter, gate: Gate, canvases: Sequence[Canvas], plans: Sequence[Knobs]
) -> dict[str, Stage]:
    """Name -> stage. Of each shape the front comes first, the heads last, between them an encoder
    for each plan."""
    settings = {plan.name: plan for plan in plans}
    glances = {shape.name for shape in canvases[0].shapes}
    stages: dict[str, Stage] = {}
    several = at_widths(model.config)
    head = DecodeQueries if model.config.head == "queries" else Decode
    for shape, graphs in graphs_of(canvases, plans, heads_of(model.config)).items():
        stages[graphs.front] = Glance(model, gate) if shape in glances else Front(model)
        for plan, name in graphs.encoders.items():
            stages[name] = Encode(model, settings[plan])
        for key, name in graphs.heads.items():
            stages[name] = decode_task(model, *several[key]) if several else head(model)
    return stages


def sizes_of(frames: Sequence[Frame]) -> Tensor:
    """(B, 2): the own height and width of each image, in pixels."""
    sizes = [(frame.geometry.height, frame.geometry.width) for frame in frames]
    return torch.tensor(sizes, dtype=torch.float32)


def front_inputs(front: Stage, frames: Sequence[Frame]) -> tuple[Tensor, ...]:
    """What a front takes. frames: on its shape."""
    images = torch.from_numpy(np.stack([frame.pixels for frame in frames]))
    return (images, sizes_of(frames)) if isinstance(front, Glance) else (images,)


@torch.no_grad()  # not inference_mode: the exporter fails on its tensors, and tries another way
def examples(front: Stage, frames: Sequence[Frame]) -> dict[str, tuple[Tensor, ...]]:
    """Inputs of the front, of any encoder and of a head (`Decode.inputs`) for images on one
    shape."""
    inputs = front_inputs(front, frames)
    f4, *features = front(*inputs)[: 1 + len(FEATURES)]
    # An encoder keeps the shapes, so its inputs can stand for its outputs.
    return {"front": inputs, "encoders": tuple(features), "decoder": (f4, *features)}
