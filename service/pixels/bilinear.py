"""An image at another size: scaled across, then down, with 8 bits in between, by Pillow's weights.

The compiled library (native/scale.c) does it where this installation has it, else Pillow: the same
pixels, to the last bit.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.native.library import Compiled, function

FRACTION = 22  # bits of a weight, see native/scale.h


class Taps(NamedTuple):
    """Along one axis, the old pixels that each new one is made of: (size,), (size,), and (size,
    most) weights that sum to 1 << FRACTION, about; 0 beyond a pixel's own."""

    first: NDArray[np.int32]
    number: NDArray[np.int32]
    weights: NDArray[np.int32]


class _Taps(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in Taps._fields),
        *((name, ctypes.c_int64) for name in ("size", "most")),
    )


class _Scaling(ctypes.Structure):
    """A call: `Scaling` in native/scale.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("source", "target")),
        *((name, ctypes.c_int64) for name in ("height", "width", "stride")),
        *((name, _Taps) for name in ("down", "across")),
    )


def scale(source: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
    """Fill the target, (H, W, 3), with the source, (h, w, 3) and dense. The target's rows may lie
    apart."""
    if source.shape == target.shape:
        target[:] = source
        return
    height, width = target.shape[:2]
    if (compiled := scaler()) is None:
        # In two steps, or Pillow would now and then begin with the other one.
        image = Image.fromarray(source).resize((width, len(source)), Image.Resampling.BILINEAR)
        target[:] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        return
    # Held until the call is done: of threads that compute the same taps at once, one's are kept.
    down, across = taps(len(source), height), taps(source.shape[1], width)
    call = _Scaling(
        source.ctypes.data,
        target.ctypes.data,
        *source.shape[:2],
        target.strides[0],
        _addressed(down),
        _addressed(across),
    )
    if compiled(call):
        raise MemoryError


def scaler() -> Compiled | None:
    """What runs a call; None where nothing is compiled. Raises BackendError, see `opened`."""
    return function("fathom_scale")


@lru_cache(maxsize=64)
def taps(old: int, new: int) -> Taps:
    """Of Pillow's BILINEAR: a triangle as wide as two old pixels, or as two new ones where those
    are larger."""
    ratio = old / new
    reach = max(ratio, 1.0)
    centers = (np.arange(new) + 0.5) * ratio
    first = np.maximum((centers - reach + 0.5).astype(np.int32), 0)
    end = np.minimum((centers + reach + 0.5).astype(np.int32), old)
    places = first[:, None] + np.arange((end - first).max())
    distances = np.abs(places - centers[:, None] + 0.5) * (1 / reach)
    weights = np.where(places < end[:, None], np.maximum(1 - distances, 0), 0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # added one after the other, as Pillow does
    return Taps(first, end - first, (0.5 + weights * (1 << FRACTION)).astype(np.int32))


def _addressed(each: Taps) -> _Taps:
    return _Taps(*(array.ctypes.data for array in each), *each.weights.shape)
