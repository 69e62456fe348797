"""Random problems for the deformable-attention kernels, and the exact results that they are
compared with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model_export.kernels.launch import Problem, Tactic
from model_export.network.deformable_attention import deformable_attention

# Relative to the norm of the exact result. The rounding of the output alone is 2e-4 for float16,
# 1.7e-3 for bfloat16.
LIMITS = {"float32": 1e-6, "float16": 3e-4, "packed": 6e-4, "bfloat16": 2e-3}
ODD = ((3, 5), (7, 6), (11, 13))


@dataclass
class Inputs:
    """value, offsets, logits as the problem stores them; reference in float32."""

    value: Tensor
    offsets: Tensor
    logits: Tensor
    reference: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.value, self.offsets, self.logits, self.reference))


def random_inputs(
    problem: Problem, batch: int, queries: int | None = None, spread: float = 2.5
) -> Inputs:
    """spread: standard deviation of the offsets, in pixels. Some lie on pixel centres, some far
    outside."""
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, problem.dtype)
    queries = problem.tokens if queries is None else queries
    split = (batch, queries, problem.heads, len(problem.shapes), problem.points)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    offsets = spread * normal(*split, 2)
    offsets[:, ::7] = offsets[
        :, ::7
    ].round()  # whole pixels: samples on pixel centres, where the patch changes
    offsets[:, 3::11, :, :, 0] *= 1e3  # far outside
    reference = torch.rand(
        *((batch,) if problem.reference_per_image else ()), queries, 2, generator=generator
    )
    if problem.dense:
        reference = centres(problem)
    value = normal(batch, problem.tokens, problem.heads, problem.width)
    return Inputs(value.to(dtype), offsets.to(dtype), (2 * normal(*split)).to(dtype), reference)


def centres(problem: Problem) -> Tensor:
    points = [
        ((x + 0.5) / w, (y + 0.5) / h)
        for h, w in problem.shapes
        for y in range(h)
        for x in range(w)
    ]
    return torch.tensor(points)


def exact(problem: Problem, inputs: Inputs) -> Tensor:
    """In float64, on the rounded inputs: what is left is the kernel's own error."""
    return deformable_attention(*(t.double() for t in inputs), list(problem.shapes))


def relative(got: Tensor, want: Tensor) -> float:
    """Norm of the difference, relative to that of the exact result."""
    assert got.shape == want.shape
    return ((got.double() - want).norm() / want.norm()).item()


def baseline_inputs(problem: Problem, inputs: Inputs) -> tuple[list[Tensor], Tensor]:
    """value, sizes, locations and weights as the operators before it would write them; and the
    exact result."""
    sizes = torch.tensor(problem.shapes, dtype=torch.int32, device=inputs.value.device)
    reference = inputs.reference if problem.reference_per_image else inputs.reference[None]
    locations = reference[:, :, None, None, None] + inputs.offsets / sizes.flip(1)[:, None]
    locations = locations.to(inputs.value.dtype)
    weights = (
        inputs.logits.float().flatten(3).softmax(-1).view_as(inputs.logits).to(inputs.value.dtype)
    )
    # The same as raw inputs of the exact form, around a reference of 0
    raw = (
        locations.double() * sizes.flip(1)[:, None],
        weights.double().log(),
        0 * inputs.reference.double(),
    )
    want = deformable_attention(inputs.value.double(), *raw, list(problem.shapes))
    # The softmax of log(weights) divides by their sum, which rounding moved from 1.
    total = weights.double().flatten(3).sum(-1)  # (B, Q, M)
    want = (want.unflatten(2, (problem.heads, -1)) * total[..., None]).flatten(2)
    return [t.contiguous() for t in (inputs.value, sizes, locations, weights)], want


def limit(problem: Problem, tactic: Tactic | None) -> float:
    """Of the kernel's difference from the exact result, whose positions are in float64.

    In float32 a position on a level of 60 pixels is rounded by up to 2e-6 of a pixel, and the
    values between two pixels with it.
    """
    side = max(side for shape in problem.shapes for side in shape)
    return max(LIMITS["packed" if tactic and tactic.packed else problem.dtype], side * 2.0**-24)
