"""Deformable attention against a loop over single samples, and where it starts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model_export.network.deformable_attention import DeformableAttention, deformable_attention
from tests.small_network import worst

pytestmark = pytest.mark.usefixtures("one_thread", "seed")


def pixel(value: Tensor, start: int, shape: tuple[int, int], y: int, x: int) -> Tensor:
    """value: (S, D) of one image and head. Zeros outside of the level."""
    if 0 <= y < shape[0] and 0 <= x < shape[1]:
        return value[start + y * shape[1] + x]
    return torch.zeros(value.shape[1])


def slow_deformable_attention(
    value: Tensor, offsets: Tensor, logits: Tensor, reference: Tensor, shapes: list[tuple[int, int]]
) -> tuple[Tensor, int]:
    """One sample at a time, after the paper's formula. Also counts the samples without any pixel
    beneath them."""
    batch, queries, heads, _, points = logits.shape
    out, outside = torch.zeros(batch, queries, heads, value.shape[-1]), 0
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                weights = logits[b, q, m].exp() / logits[b, q, m].exp().sum()
                start = 0
                for level, (height, width) in enumerate(shapes):
                    for p in range(points):
                        x = (
                            reference[q, 0] * width + offsets[b, q, m, level, p, 0] - 0.5
                        ).item()  # pixel centres
                        y = (reference[q, 1] * height + offsets[b, q, m, level, p, 1] - 0.5).item()
                        left, top = math.floor(x), math.floor(y)
                        fx, fy = x - left, y - top
                        outside += not (-1 < x < width and -1 < y < height)
                        plane, shape = value[b, :, m], (height, width)
                        sample = (
                            (1 - fy) * (1 - fx) * pixel(plane, start, shape, top, left)
                            + (1 - fy) * fx * pixel(plane, start, shape, top, left + 1)
                            + fy * (1 - fx) * pixel(plane, start, shape, top + 1, left)
                            + fy * fx * pixel(plane, start, shape, top + 1, left + 1)
                        )
                        out[b, q, m] += weights[level, p] * sample
                    start += height * width
    return out.flatten(2), outside


@pytest.mark.parametrize(
    "shapes", [[(3, 5)], [(1, 3), (5, 2)], [(1, 1), (3, 2), (5, 7)]], ids=["1", "2", "3"]
)
def test_deformable_attention_equals_a_loop_over_single_samples(
    shapes: list[tuple[int, int]],
) -> None:
    batch, queries, heads, width, levels, points = 2, 5, 2, 3, len(shapes), 3
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, width)
    offsets = 2.5 * torch.randn(batch, queries, heads, levels, points, 2)
    logits = torch.randn(batch, queries, heads, levels, points)
    reference = torch.rand(queries, 2)
    want, outside = slow_deformable_attention(value, offsets, logits, reference, shapes)
    assert 5 < outside < 0.9 * logits.numel()  # some samples see nothing, some see pixels
    assert worst(deformable_attention(value, offsets, logits, reference, shapes), want) < 1e-5


def test_deformable_attention_of_an_unmoved_point_is_the_pixel_itself() -> None:
    value = torch.randn(1, 12, 1, 4)
    reference = torch.tensor([((i % 4 + 0.5) / 4, (i // 4 + 0.5) / 3) for i in range(12)])
    got = deformable_attention(
        value, torch.zeros(1, 12, 1, 1, 2, 2), torch.randn(1, 12, 1, 1, 2), reference, [(3, 4)]
    )
    assert worst(got, value[:, :, 0]) < 1e-6


def test_deformable_attention_has_the_gradients_of_its_finite_differences() -> None:
    shapes, kind = [(2, 3), (1, 2)], {"dtype": torch.float64, "requires_grad": True}
    value, offsets = torch.randn(1, 8, 2, 2, **kind), torch.randn(1, 2, 2, 2, 2, 2, **kind)
    logits, reference = torch.randn(1, 2, 2, 2, 2, **kind), torch.rand(2, 2, **kind)

    def attend(*inputs: Tensor) -> Tensor:
        return deformable_attention(*inputs, shapes)

    assert torch.autograd.gradcheck(attend, (value, offsets, logits, reference))


def test_deformable_attention_starts_with_equal_weights_on_rings_around_the_reference() -> None:
    layer = DeformableAttention(channels=32, heads=4, levels=2, points=3)
    query = torch.randn(1, 5, 32)
    offsets = layer.offsets(query).reshape(5, 4, 2, 3, 2)
    right, down = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for point in range(3):
        for head, direction in enumerate((right, down, -right, -down)):
            expected = (direction * (point + 1)).expand(5, 2, 2)
            assert worst(offsets[:, head, :, point], expected) < 1e-6
    assert not layer.logits(query).any()
