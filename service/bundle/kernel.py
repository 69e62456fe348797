"""A compiled CUDA kernel as a bundle carries it: what it computes and how it is launched. The
standard library only.

Whoever compiles a kernel (model_export) and whoever runs one take these types from here, so that
there is one description of a launch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

ENTRY, SOURCE = "ms_deform_attn", "ms_deform_attn.cu"
# Outputs last and one 32-bit integer before them: TensorRT's ahead-of-time plugins can pass no
# other order.
ARGUMENTS = ("value", "offsets", "logits", "reference", "queries", "out")
MAX_SIDE = 65535


class LaunchError(ValueError):
    """The kernel cannot be built for this problem, or not be launched in this way; the message says
    which limit."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is computed, known when the kernel is compiled. Batch and number of queries are known at
    the launch.

    shapes: (h, w) of each level. width: channels of a head. dense: the queries are the tokens of
    all levels, in their order; otherwise they are any subset. reference_per_image: reference points
    (B, Q, 2), not (Q, 2).
    """

    shapes: tuple[tuple[int, int], ...]
    heads: int
    points: int
    width: int
    dtype: str
    dense: bool = True
    reference_per_image: bool = False

    @property
    def tokens(self) -> int:
        return sum(h * w for h, w in self.shapes)


@dataclass(frozen=True, slots=True)
class Launch:
    """One compiled kernel's needs. Dynamic shared memory: none."""

    defines: tuple[str, ...]  # "NAME" or "NAME=value", for -D
    block: int
    per_block: int  # queries
    tiles: int | None  # blocks along x; None: as many as the queries need
    tokens: int
    head_groups: int
    entry: str = ENTRY
    source: str = SOURCE
    arguments: tuple[str, ...] = ARGUMENTS

    def grid(self, batch: int, queries: int) -> tuple[int, int, int]:
        if self.tiles is not None and queries != self.tokens:
            raise LaunchError(
                f"compiled for the queries of all {self.tokens} tokens, not for {queries}"
            )
        if not 1 <= batch <= MAX_SIDE:
            raise LaunchError(f"batch {batch} is not in 1..{MAX_SIDE}")
        return self.tiles or max(1, -(-queries // self.per_block)), self.head_groups, batch

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class KernelFile:
    """One compiled kernel of a bundle: gzipped PTX, which every chip from the one that it was
    compiled for takes."""

    file: str
    sha256: str
    problem: Problem
    launch: Launch
