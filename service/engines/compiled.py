"""The compiled deformable attention for CPUs, if this installation has it.

It computes what the body of the graphs' node fathom.MsDeformAttn does, without storing the samples.
ONNX Runtime takes the library itself as a custom operator; others call `attend`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.native.build import LIBRARY
from service.native.library import instructions, opened

_POINTERS = ("value", "offsets", "logits", "reference", "out", "sizes")
_COUNTS = ("batch", "tokens", "queries")
_SMALL = ("heads", "width", "levels", "points", "per_image")


class Attention(ctypes.Structure):
    """A call: `Attention` in native/sampling.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _COUNTS),
        *((name, ctypes.c_int32) for name in _SMALL),
    )

    @classmethod
    def of(
        cls,
        value: NDArray[np.float32],
        offsets: NDArray[np.float32],
        logits: NDArray[np.float32],
        reference: NDArray[np.float32],
        sizes: NDArray[np.int32],
        out: NDArray[np.float32],
    ) -> Attention:
        """The call that writes the attention to `out`, (B, Q, M*D). It keeps no array alive.

        value: (B, S, M, D), offsets: (B, Q, M, L, P, 2) in pixels, logits: (B, Q, M, L, P),
        reference: (Q, 2) or (B, Q, 2), sizes: (L, 2), as the graphs' node has them. Raises
        ValueError for other shapes, types or layouts.
        """
        batch, tokens, heads, width = value.shape
        queries, levels, points = logits.shape[1], *logits.shape[3:]
        shapes: dict[str, tuple[NDArray[Any], tuple[int, ...]]] = {
            "value": (value, (batch, int(sizes.prod(1).sum()), heads, width)),
            "offsets": (offsets, (batch, queries, heads, levels, points, 2)),
            "logits": (logits, (batch, queries, heads, levels, points)),
            "reference": (reference, ((batch,) if reference.ndim == 3 else ()) + (queries, 2)),
            "out": (out, (batch, queries, heads * width)),
            "sizes": (sizes, (levels, 2)),
        }
        for name, (array, shape) in shapes.items():
            kind = np.int32 if name == "sizes" else np.float32
            if array.shape != shape or array.dtype != kind or not array.flags.c_contiguous:
                raise ValueError(
                    f"{name} is {array.dtype} {array.shape}, not a dense {kind.__name__} {shape}"
                )
        pointers = (shapes[name][0].ctypes.data for name in _POINTERS)
        small = (heads, width, levels, points, reference.ndim == 3)
        return cls(*pointers, batch, tokens, queries, *small)


@dataclass(frozen=True, slots=True)
class Compiled:
    """The opened library.

    path: its file. instructions: what of this processor it uses. bfloat16: whether the processor
    multiplies in that type.
    """

    library: ctypes.CDLL
    path: str
    instructions: str
    bfloat16: bool

    def use_threads(self, threads: int) -> None:
        """Threads for ONNX Runtime's operator, in this process."""
        self.library.fathom_threads(threads)

    def attend(self, call: Attention, threads: int) -> None:
        """Compute it. Raises ValueError for more than 1024 points in a query or 2^31 values."""
        if not self.library.fathom_attend(ctypes.byref(call), threads):
            points = call.heads * call.levels * call.points
            raise ValueError(f"{points} points in a query and {call.tokens} tokens are too large")


def compiled() -> Compiled | None:
    """The library, or None if this installation was made without a C compiler.

    Raises BackendError, see `opened`.
    """
    library = opened()
    if library is None:
        return None
    return Compiled(library, str(LIBRARY), instructions(library), bool(library.fathom_bfloat16()))
