"""Scaling RGB images: Pillow's bilinear `resize`, by the compiled library where it is installed.

Both give the same pixels; the library takes a fraction of the time. Scaling down takes the mean
over the area of a pixel, weighted by a triangle.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.native.library import opened

_UNIT = 1 << 22  # of weights
_KEPT = 64  # filters that are remembered: images of a service have few sizes


class _Filter(ctypes.Structure):
    """`Filter` in native/resample.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("first", "count", "weights")),
        *((name, ctypes.c_int32) for name in ("size", "taps")),
    )


class _Resampling(ctypes.Structure):
    """A call: `Resampling` in native/resample.h."""

    _fields_ = (
        *(("pixels", ctypes.c_void_p), ("out", ctypes.c_void_p), ("out_row", ctypes.c_int64)),
        *(("columns", _Filter), ("rows", _Filter)),
        *((name, ctypes.c_int32) for name in ("height", "width", "down_first")),
    )


def scaled_into(out: NDArray[np.uint8], image: Image.Image) -> None:
    """Scale an RGB image to fill `out`, (height, width, 3), whose rows may lie apart."""
    height, width, _ = out.shape
    if image.size == (width, height):
        out[...] = np.asarray(image)
        return
    resample = resampler()
    if resample is None:
        out[...] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        return
    pixels = np.ascontiguousarray(np.asarray(image))
    columns, rows = filters(pixels.shape[1], width), filters(pixels.shape[0], height)
    call = _Resampling(
        *(pixels.ctypes.data, out.ctypes.data, out.strides[0]),
        *(_filter(columns), _filter(rows)),
        *pixels.shape[:2],
        # As Pillow 13 has it; the order moves the rounding.
        pixels.shape[0] - height > max(0, 2 * (pixels.shape[1] - width)),
    )
    if not resample(call):
        raise MemoryError


@cache
def resampler() -> Callable[[ctypes.Structure], int] | None:
    """What runs a call; None where nothing is compiled. Raises BackendError, see `opened`."""
    library = opened()
    if library is None:
        return None
    resample = library.fathom_resample
    return lambda call: int(resample(ctypes.byref(call)))


@lru_cache(_KEPT)
def filters(size: int, scaled: int) -> tuple[NDArray[np.int32], ...]:
    """Pillow's weights along an axis: (first, count, weights), as native/resample.h has them."""
    scale = size / scaled
    support = max(scale, 1.0)
    centre = (np.arange(scaled) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int32), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int32), size) - first
    at = np.arange(count.max())
    distance = ((first[:, None] + at) - centre[:, None] + 0.5) * (1 / support)
    weights = np.where(at < count[:, None], (1 - np.abs(distance)).clip(0), 0.0)
    total = np.zeros(scaled)
    for tap in weights.T:  # added up one after the other, as Pillow does: each sum is rounded
        total += tap
    whole = (weights / total[:, None] * _UNIT + 0.5).astype(np.int32)
    return first, count, whole


def _filter(parts: tuple[NDArray[np.int32], ...]) -> _Filter:
    first, count, weights = parts
    return _Filter(first.ctypes.data, count.ctypes.data, weights.ctypes.data, *weights.shape)
