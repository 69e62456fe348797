"""Label maps by the compiled library (native/labels.c), where this installation has it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.native.library import Compiled, function
from service.pixels.resample import Axis
from service.pixels.runs import Positions

BAND_PIXELS = 1 << 20  # labelled at a time: bounds the memory that a large image takes


class _Labelling(ctypes.Structure):
    """A call: `Labelling` in native/labels.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("planes", "top", "bottom", "down")),
        *((name, ctypes.c_void_p) for name in ("left", "right", "across")),
        *((name, ctypes.c_void_p) for name in ("labels", "starts", "values")),
        *((name, ctypes.c_int64) for name in ("height", "width")),
        *((name, ctypes.c_int32) for name in ("channels", "cell_rows", "cell_columns")),
    )


def labeller() -> Compiled | None:
    """What runs a call; None where nothing is compiled. Raises BackendError, see `opened`."""
    return function("fathom_label")


def compiled_runs(
    label: Compiled,
    probabilities: NDArray[np.float32],
    rows: Axis,
    columns: Axis,
) -> tuple[Positions, NDArray[np.uint8]]:
    """(starts, values) of the runs; neighbours may be the same. label: of `labeller`.

    probabilities: (C, h, w), C at most 256.
    """
    height, width = len(rows.first), len(columns.first)
    planes = np.ascontiguousarray(probabilities, np.float32)
    band = max(1, BAND_PIXELS // height)
    room = min(band, width) * height
    starts, values = np.empty(room, np.int64), np.empty(room, np.uint8)
    found: list[tuple[Positions, NDArray[np.uint8]]] = []
    for left in range(0, width, band):
        part = columns.at(slice(left, left + band))
        count = _run(label, planes, rows, part, starts=starts, values=values)
        found.append((starts[:count] + left * height, values[:count].copy()))
    return np.concatenate([each for each, _ in found]), np.concatenate([each for _, each in found])


def compiled_map(
    label: Compiled,
    probabilities: NDArray[np.float32],
    rows: Axis,
    columns: Axis,
) -> NDArray[np.uint8]:
    """(height, width): the same as a label map."""
    planes = np.ascontiguousarray(probabilities, np.float32)
    labels = np.empty((len(rows.first), len(columns.first)), np.uint8)
    _run(label, planes, rows, columns, labels=labels)
    return labels


def _run(
    label: Compiled,
    planes: NDArray[np.float32],
    rows: Axis,
    columns: Axis,
    **written: NDArray[Any],
) -> int:
    """A call; written: the arrays that it writes, by their names there. Returns what it counts."""
    call = _Labelling(
        *(array.ctypes.data for array in (planes, *rows[:3], *columns[:3])),
        height=len(rows.first),
        width=len(columns.first),
        **dict(zip(("channels", "cell_rows", "cell_columns"), planes.shape, strict=True)),
        **{name: array.ctypes.data for name, array in written.items()},
    )
    if (count := label(call)) < 0:
        raise MemoryError
    return count
