"""A compiled CUDA kernel in a bundle: what it computes and how it is launched.

The compiling side (model_export) and the running side share these types, so that a launch has one
description. Uses the standard library only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

ENTRY, SOURCE = "ms_deform_attn", "ms_deform_attn.cu"
# The outputs come last, with one 32-bit integer before them: the only order that TensorRT's
# ahead-of-time plugins can pass.
ARGUMENTS = ("value", "offsets", "logits", "reference", "queries", "out")
MAX_SIDE = 65535


class LaunchError(ValueError):
    """The kernel cannot be built or launched like this; the message names the limit."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is known when the kernel is compiled. The launch adds batch and number of queries.

    shapes: (h, w) of each level.
    width: channels of a head.
    dense: whether the queries are all levels' tokens, in their order, or any subset of them.
    reference_per_image: whether the reference points are (B, Q, 2) or (Q, 2).
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
    """How one compiled kernel is launched. It uses no dynamic shared memory."""

    defines: tuple[str, ...]  # "NAME" or "NAME=value", for -D
    block: int
    per_block: int  # queries per block
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
    """One compiled kernel of a bundle: gzipped PTX, for its target chip and all later ones."""

    file: str
    sha256: str
    problem: Problem
    launch: Launch
