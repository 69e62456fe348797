"""Heads of a network with several tasks. Each can run at several widths (slimmable.py): fewer
channels in its convolutions, and fewer layers and queries of its decoder (arXiv 2308.11744).

All see the same: lateral features at stride 4, and the encoded maps at strides 32, 16 and 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_export.network.config import Config, Head
from model_export.network.decoder import (
    Attention,
    DecoderLayer,
    Prediction,
    blocked_by,
    fine_mask_logits,
    keys_and_values,
    mask_logits,
    merged,
    semantic_probabilities,
)
from model_export.network.position import reference_points
from model_export.network.slimmable import Branch, SlimConv, SlimLinear


def share_of(count: int, width: float) -> int:
    """How many of so many layers, queries or channels a width takes, at least one."""
    return max(1, round(count * width))


class SemanticHead(nn.Module):
    """A query for each class, as Decoder with class matching; its width is of the pixel embedding
    and of the number of layers. Every cell of stride 4 gets a value for each of its parts."""

    task: ClassVar[str] = "semantic"
    outputs: ClassVar[tuple[str, ...]] = ("probabilities",)

    def __init__(self, config: Config, head: Head) -> None:
        super().__init__()
        channels = config.channels
        self.branch = Branch(channels, head.channels)
        self.features = SlimConv(head.channels, head.channels, 1)
        self.queries = nn.Parameter(torch.randn(head.queries, channels))
        self.query_positions = nn.Parameter(torch.randn(head.queries, channels))
        self.level_embedding = nn.Parameter(torch.randn(3, channels))
        self.layers = nn.ModuleList(
            DecoderLayer(channels, config.heads, head.ffn) for _ in range(head.layers)
        )
        self.norm = nn.LayerNorm(channels)
        self.classify = nn.Linear(channels, head.classes + 1)
        self.embed = nn.Sequential(nn.Linear(channels, channels), nn.ReLU())
        self.parts = head.fine**2
        self.embed_mask = nn.Linear(channels, head.channels * self.parts)

    def forward(self, lateral: Tensor, maps: list[Tensor], width: float = 1.0) -> list[Prediction]:
        """One prediction, in a list as Decoder gives them. The masks between the layers are made
        at each layer's own scale, one value per cell, and are no predictions."""
        features = self.branch(merged(lateral, maps[-1]), width)
        x = self.queries.expand(maps[0].shape[0], -1, -1)
        for i, layer in enumerate(self.layers[: share_of(len(self.layers), width)]):
            shape = maps[i % 3].shape[-2:]
            small = F.interpolate(features, shape, mode="bilinear", align_corners=False).flatten(2)
            whole = self._embedded(x, features.shape[1]).mean(2)
            blocked = blocked_by(mask_logits(whole, small, self.features))
            memory = keys_and_values(maps[i % 3], self.level_embedding[i % 3])
            x = layer(x, self.query_positions, *memory, blocked)
        parts = self._embedded(x, features.shape[1])
        masks = fine_mask_logits(parts, features, self.features)
        return [Prediction(self.classify(self.norm(x)), masks)]

    def _embedded(self, x: Tensor, count: int) -> Tensor:
        """x: (B, Q, C) -> (B, Q, parts, count): by what the first features are multiplied."""
        every = self.embed_mask(self.embed(self.norm(x)))
        return every.unflatten(2, (self.parts, -1))[..., :count]

    @staticmethod
    def tensors(answer: Sequence[Prediction]) -> dict[str, Tensor]:
        return {"probabilities": semantic_probabilities(answer[-1])}


class DepthHead(nn.Module):
    """A value for every cell of stride 4: the logarithm lies between those of the range's ends.

    Rows and columns are told, since on level ground the distance follows from the row.
    """

    task: ClassVar[str] = "depth"
    outputs: ClassVar[tuple[str, ...]] = ("depth",)

    def __init__(self, config: Config, head: Head) -> None:
        super().__init__()
        self.branch = Branch(config.channels + 2, head.channels)
        self.output = SlimConv(head.channels, 1, 1)
        self.low, self.high = (torch.tensor(end).log().item() for end in head.range)

    def forward(self, lateral: Tensor, maps: list[Tensor], width: float = 1.0) -> Tensor:
        """(B, H/4, W/4): the natural logarithm of the depth."""
        x = merged(lateral, maps[-1])
        shape = (x.shape[-2], x.shape[-1])
        places = reference_points([shape], x.device).mT.unflatten(1, shape)
        x = torch.cat((x, (2 * places - 1).expand(x.shape[0], -1, -1, -1)), 1)
        share = self.output(self.branch(x, width))[:, 0].sigmoid()
        return self.low + (self.high - self.low) * share

    @staticmethod
    def tensors(answer: Tensor) -> dict[str, Tensor]:
        return {"depth": answer.exp()}


@dataclass
class Boxes:
    """classes: (B, Q, classes + 1) logits, the last is "no object". boxes: (B, Q, 4): centre x,
    centre y, width and height as shares of the canvas."""

    classes: Tensor
    boxes: Tensor


@dataclass
class Proposals:
    """Of every cell of stride 8: scores (B, N, classes), a logit for each class by itself; boxes
    (B, N, 4) as those of Boxes. reference: (N, 2), the cells' centres."""

    scores: Tensor
    boxes: Tensor
    reference: Tensor


def inverse_sigmoid(x: Tensor) -> Tensor:
    x = x.clamp(1e-4, 1 - 1e-4)
    return (x / (1 - x)).log()


def distances(boxes: Tensor, places: Tensor) -> Tensor:
    """(B, Q, K): the squared distance of each place, (K, 2), from the centre of each box, (B, Q,
    4), in sides of the box.

    Axis by axis: engines are slow with tensors whose last axis has two values.
    """
    gaps = [
        (boxes[..., axis : axis + 1] - places[:, axis])
        / boxes[..., axis + 2 : axis + 3].clamp(min=0.02)
        for axis in (0, 1)
    ]
    return gaps[0].square() + gaps[1].square()


class BoxLayer(nn.Module):
    """Attention looks around the boxes: a Gaussian of their size, added to the scores as its
    logarithm (spatially modulated co-attention, arXiv 2101.07448)."""

    def __init__(self, channels: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.self_attention = Attention(channels, heads)
        self.norm1 = nn.LayerNorm(channels)
        self.cross = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.linear1, self.linear2 = SlimLinear(channels, ffn), SlimLinear(ffn, channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(
        self, x: Tensor, position: Tensor, memory: tuple[Tensor, Tensor], bias: Tensor, width: float
    ) -> Tensor:
        """x, position: (B, Q, C), memory: keys and values, (B, K, C) each, bias: (B, Q, K), added
        to the scores. Returns (B, Q, C)."""
        placed = x + position
        x = self.norm1(x + self.self_attention(placed, placed, x))
        x = self.norm2(x + self.cross(x + position, *memory, bias))
        hidden = F.relu(self.linear1(x, share_of(self.linear1.out_features, width)))
        return self.norm3(x + self.linear2(hidden))


class DetectionHead(nn.Module):
    """Boxes and classes without masks, by a decoder of queries (DETR, arXiv 2005.12872).

    As in two-stage Deformable DETR (arXiv 2010.04159, section 4.2) every cell of stride 8 proposes
    a box, and the best proposals become the queries, whose boxes each layer refines. The width is
    of the convolutions before, of the queries, of the layers and of their FFN.
    """

    task: ClassVar[str] = "detection"
    outputs: ClassVar[tuple[str, ...]] = ("class_logits", "boxes")

    def __init__(self, config: Config, head: Head) -> None:
        super().__init__()
        channels = config.channels
        self.count = head.queries
        self.branch = Branch(channels, head.channels)
        self.propose_class = SlimConv(head.channels, head.classes, 1)
        self.propose_box = SlimConv(head.channels, 4, 1)
        nn.init.constant_(self.propose_class.bias, -4.0)  # hardly any cell is an object's
        nn.init.zeros_(self.propose_box.weight)
        nn.init.zeros_(self.propose_box.bias)
        self.content = SlimLinear(head.channels, channels)
        self.position = nn.Sequential(
            nn.Linear(4, channels), nn.ReLU(), nn.Linear(channels, channels)
        )
        self.level_embedding = nn.Parameter(torch.randn(3, channels))
        self.layers = nn.ModuleList(
            BoxLayer(channels, config.heads, head.ffn) for _ in range(head.layers)
        )
        self.classify = nn.Linear(channels, head.classes + 1)
        self.refine = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, 4)
        )
        nn.init.zeros_(self.refine[2].weight)
        nn.init.zeros_(self.refine[2].bias)

    def forward(
        self, lateral: Tensor, maps: list[Tensor], width: float = 1.0
    ) -> list[Boxes | Proposals]:
        """The proposals, then the boxes of each layer, the final ones last."""
        shapes = [(m.shape[-2], m.shape[-1]) for m in maps]
        x = self.branch(maps[-1], width)
        proposals = self._proposals(x, shapes[-1])
        best = proposals.scores.detach().amax(-1)
        most = min(share_of(self.count, width), best.shape[1])
        chosen = best.topk(most, 1).indices.unsqueeze(-1)  # (B, Q, 1)
        cells = x.flatten(2).mT
        x = self.content(cells.gather(1, chosen.expand(-1, -1, cells.shape[2])))
        boxes = proposals.boxes.detach().gather(1, chosen.expand(-1, -1, 4))
        memory, places = self._memory(maps, shapes)
        answers: list[Boxes | Proposals] = [proposals]
        for layer in self.layers[: share_of(len(self.layers), width)]:
            x = layer(x, self.position(boxes), memory, -2 * distances(boxes, places), width)
            boxes = (self.refine(x) + inverse_sigmoid(boxes)).sigmoid()
            answers.append(Boxes(self.classify(x), boxes))
            boxes = boxes.detach()
        return answers

    @staticmethod
    def tensors(answer: Sequence[Boxes | Proposals]) -> dict[str, Tensor]:
        last = answer[-1]
        assert isinstance(last, Boxes)
        return {"class_logits": last.classes, "boxes": last.boxes}

    def _proposals(self, x: Tensor, shape: tuple[int, int]) -> Proposals:
        """A cell's box starts at its centre, three cells wide and high."""
        reference = reference_points([shape], x.device)  # (N, 2)
        start = torch.cat((reference, torch.ones_like(reference)), 1)
        size = torch.tensor([1.0, 1.0, 3 / shape[1], 3 / shape[0]], device=x.device)
        offsets = self.propose_box(x).flatten(2).mT
        boxes = (offsets + inverse_sigmoid(start * size)).sigmoid()
        return Proposals(self.propose_class(x).flatten(2).mT, boxes, reference)

    def _memory(
        self, maps: list[Tensor], shapes: list[tuple[int, int]]
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Keys and values of all tokens, (B, K, C) each, and their centres, (K, 2)."""
        scales = map(keys_and_values, maps, self.level_embedding)
        keys, values = (torch.cat(parts, 1) for parts in zip(*scales, strict=True))
        return (keys, values), reference_points(shapes, maps[0].device)


# By task. outputs, tensors: what leaves the network, as service.tasks has it, from a head's answer.
HEADS: Mapping[str, type[SemanticHead | DetectionHead | DepthHead]] = {
    head.task: head for head in (SemanticHead, DetectionHead, DepthHead)
}
