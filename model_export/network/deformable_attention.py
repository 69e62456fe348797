"""Multi-scale deformable attention (arXiv 2010.04159, section 4.1): the one definition in torch.

On the CPU it is grid_sample. On CUDA it is one operator, fathom::ms_deform_attn, that runs our
fused kernel (model_export/kernels); grid_sample remains where the kernel cannot be compiled. In
exported ONNX it is one node, to which the exporter gives a body
(model_export/export/attention.py).
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_export.kernels import launch, on_torch
from model_export.network.names import DOMAIN, OPERATOR


def deformable_attention(
    value: Tensor, offsets: Tensor, logits: Tensor, reference: Tensor, shapes: list[tuple[int, int]]
) -> Tensor:
    """Each query gathers `points` bilinear samples around its reference point on every level.

    value: (B, S, M, D) with S = sum of h*w over the levels, M heads of D channels. offsets: (B, Q,
    M, L, P, 2) in pixels of each level, (x, y). logits: (B, Q, M, L, P), softmax over L*P is
    inside. reference: (Q, 2), or (B, Q, 2) if each image has queries of its own, in 0..1, (x, y),
    float32 at least. shapes: [(h, w)] per level. Returns (B, Q, M*D).
    """
    if torch.onnx.is_in_onnx_export():
        return _one_node(value, offsets, logits, reference, shapes)
    if value.is_cuda:
        return ms_deform_attn(
            value, offsets, logits, reference, [side for shape in shapes for side in shape]
        )
    return by_grid_sample(value, offsets, logits, reference, shapes)


def _one_node(
    value: Tensor, offsets: Tensor, logits: Tensor, reference: Tensor, shapes: list[tuple[int, int]]
) -> Tensor:
    """For the exporter only: the result is empty. The inputs are those of the kernel, the
    attributes those of attention.Form."""
    batch, _, heads, width = value.shape
    sizes = [side for shape in shapes for side in shape]
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{OPERATOR}",
        (value, offsets, logits, reference),
        {
            "sizes": sizes,
            "heads": heads,
            "points": logits.shape[4],
            "width": width,
            "queries": logits.shape[1],
            "per_image": int(reference.ndim == 3),
        },
        dtype=value.dtype,
        shape=(batch, logits.shape[1], heads * width),
        version=1,
    )


def by_grid_sample(
    value: Tensor, offsets: Tensor, logits: Tensor, reference: Tensor, shapes: list[tuple[int, int]]
) -> Tensor:
    """`deformable_attention` in torch's own operators, for any device and dtype."""
    batch, _, heads, width = value.shape
    queries, levels, points = logits.shape[1], logits.shape[3], logits.shape[4]
    weights = _by_level(logits.flatten(3).softmax(-1), levels, points)
    parts = []
    for (plane, grid, _), weight in zip(
        _planes(value, offsets, reference, shapes), weights, strict=True
    ):
        sampled = F.grid_sample(
            plane, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        parts.append((sampled * weight.unsqueeze(1)).sum(2))  # (B*M, D, Q)
    out = reduce(torch.add, parts)
    return out.reshape(batch, heads * width, queries).transpose(1, 2)


def _by_level(weights: Tensor, levels: int, points: int) -> tuple[Tensor, ...]:
    """(B, Q, M, L*P) -> per level (B*M, P, Q). The queries come last, so that sums over points
    are sums of long rows."""
    return weights.permute(0, 2, 3, 1).flatten(0, 1).unflatten(1, (levels, points)).unbind(1)


def _planes(
    value: Tensor, offsets: Tensor, reference: Tensor, shapes: list[tuple[int, int]]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each level what grid_sample takes: plane (B*M, D, h, w), grid (B*M, P, Q, 2); and d grid
    / d offset, (2,)."""
    _, _, heads, width = value.shape
    levels, points = offsets.shape[3:5]
    # grid_sample takes -1..1: 2 * (reference + offset / size) - 1, computed on flat rows before the
    # axes are permuted
    pixels = [(2.0 / wide, 2.0 / height) for height, wide in shapes]
    steps = torch.tensor(pixels, dtype=value.dtype, device=value.device)  # (L, 2)
    step = steps[:, None].expand(-1, points, -1).flatten().tile(heads)
    # (B, Q, M*L*P*2)
    flat = offsets.flatten(2) * step + (2 * reference - 1).tile(heads * levels * points)
    grids = (
        flat.unflatten(2, (heads, levels, points, 2))
        .permute(0, 2, 3, 4, 1, 5)
        .flatten(0, 1)
        .unbind(1)
    )
    flat = value.flatten(2).mT.reshape(-1, width, value.shape[1])  # (B*M, D, S)
    start, planes = 0, []
    for (height, wide), grid, step in zip(shapes, grids, steps, strict=True):
        planes.append(
            (flat[:, :, start : start + height * wide].unflatten(2, (height, wide)), grid, step)
        )
        start += height * wide
    return planes


# --------------------------------------------------------------------------------------------------
# the operator


@torch.library.custom_op("fathom::ms_deform_attn", mutates_args=())
def ms_deform_attn(
    value: Tensor, offsets: Tensor, logits: Tensor, reference: Tensor, sizes: list[int]
) -> Tensor:
    """`deformable_attention` as one node of a graph; sizes: h, w of level after level.

    float16 and bfloat16 are storage only: it computes in float32, on every device.
    """
    return _by_grid_sample_wide(value, offsets, logits, reference, sizes)


def _by_grid_sample_wide(
    value: Tensor, offsets: Tensor, logits: Tensor, reference: Tensor, sizes: list[int]
) -> Tensor:
    wide = [t.to(_counting(value)) for t in (value, offsets, logits, reference)]
    return by_grid_sample(*wide, _pairs(sizes)).to(value.dtype).contiguous()


def _counting(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32


@ms_deform_attn.register_fake
def _(
    value: Tensor, offsets: Tensor, logits: Tensor, reference: Tensor, sizes: list[int]
) -> Tensor:
    batch, _, heads, width = value.shape
    return value.new_empty(batch, logits.shape[1], heads * width)


def _pairs(sizes: list[int]) -> list[tuple[int, int]]:
    return list(zip(sizes[::2], sizes[1::2], strict=True))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Written out, so that torch.compile can trace it. Recomputes the samples: they are twelve
    times the output."""
    saved = ctx.saved_tensors
    value, offsets, logits, reference = (t.to(_counting(saved[0])) for t in saved)
    batch, _, heads, width = value.shape
    levels, points = logits.shape[3:]
    grad = grad.to(value.dtype).unflatten(2, (heads, width)).permute(0, 2, 3, 1)
    grad = grad.flatten(0, 1).unsqueeze(2)  # (B*M, D, 1, Q)
    weights = logits.flatten(3).softmax(-1)  # (B, Q, M, L*P)
    per_level = _by_level(weights, levels, points)
    to_value, to_offsets, to_weights, to_reference = [], [], [], torch.zeros_like(reference)
    for level, (plane, grid, step) in enumerate(_planes(value, offsets, reference, ctx.shapes)):
        sampled = F.grid_sample(
            plane, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        to_weights.append((grad * sampled).sum(1))  # (B*M, P, Q)
        to_plane, to_grid = torch.ops.aten.grid_sampler_2d_backward(
            (grad * per_level[level].unsqueeze(1)).contiguous(),
            plane,
            grid,
            0,
            0,
            False,
            [True, True],
        )
        # (B, h*w, M, D)
        to_value.append(to_plane.flatten(2).unflatten(0, (batch, heads)).permute(0, 3, 1, 2))
        to_grid = to_grid.unflatten(0, (batch, heads))  # (B, M, P, Q, 2)
        to_offsets.append((to_grid * step).permute(0, 3, 1, 2, 4))  # (B, Q, M, P, 2)
        of_images = 2 * to_grid.sum((1, 2))  # (B, Q, 2)
        to_reference = to_reference + (of_images if reference.ndim == 3 else of_images.sum(0))
    # (B, Q, M, L*P)
    direct = torch.stack(to_weights).unflatten(1, (batch, heads)).permute(1, 4, 2, 0, 3).flatten(3)
    to_logits = weights * (direct - (weights * direct).sum(-1, keepdim=True))
    grads = (
        torch.cat(to_value, 1),
        torch.stack(to_offsets, 3),
        to_logits.view_as(logits),
        to_reference,
    )
    return (*(g.to(t.dtype) for g, t in zip(grads, saved, strict=True)), None)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, sizes = inputs
    ctx.save_for_backward(*tensors)
    ctx.shapes = _pairs(sizes)


ms_deform_attn.register_autograd(_backward, setup_context=_setup)


@ms_deform_attn.register_kernel("cuda")
def _(
    value: Tensor, offsets: Tensor, logits: Tensor, reference: Tensor, sizes: list[int]
) -> Tensor:
    heads, width = value.shape[2:]
    problem = launch.Problem(
        tuple(_pairs(sizes)),
        heads,
        logits.shape[4],
        width,
        str(value.dtype).removeprefix("torch."),
        dense=logits.shape[1] == value.shape[1],
        reference_per_image=reference.ndim == 3,
    )
    try:
        kernel = on_torch.compiled(problem, launch.tactics(problem)[0], value.device)
    except launch.LaunchError:
        # float64, more than four levels, or channels that are not whole 16-byte pieces
        return _by_grid_sample_wide(value, offsets, logits, reference, sizes)
    return on_torch.run(kernel, value, offsets, logits, reference.float())


class DeformableAttention(nn.Module):
    """Deformable self-attention over a prefix of the token sequence that spans `levels` scales."""

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = nn.Linear(channels, heads * levels * points * 2)
        self.logits = nn.Linear(channels, heads * levels * points)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Heads look in different directions, point p at distance p + 1; all points weigh the
        same."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        ring = torch.stack((angles.cos(), angles.sin()), -1)
        ring = ring / ring.abs().amax(-1, keepdim=True)  # (M, 2) on the unit square
        steps = torch.arange(1, self.points + 1)[:, None]
        bias = ring[:, None, None] * steps  # (M, 1, P, 2)
        with torch.no_grad():
            self.offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, query: Tensor, tokens: Tensor, reference: Tensor, shapes: list[tuple[int, int]]
    ) -> Tensor:
        """query, tokens: (B, N, C), reference: (N, 2), shapes of the levels that N covers. Returns
        (B, N, C)."""
        split = (self.heads, self.levels, self.points)
        value = self.value(tokens).unflatten(-1, (self.heads, -1))
        offsets = self.offsets(query).unflatten(-1, (*split, 2))
        logits = self.logits(query).unflatten(-1, split)
        return self.output(deformable_attention(value, offsets, logits, reference, shapes))
