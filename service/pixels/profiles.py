"""ICC profiles made from a few numbers, for files that describe their colours without one."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

MAX_PROFILE = 4 * 1024 * 1024  # bytes; presses' profiles have one or two million
# White x, y, then red, green and blue (CIE 1931): Rec. 709, as sRGB has them.
SRGB_POINTS = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
# ICC's parametric curves, sample -> light: (exponent,), or g, a, b, c, d of type 3.
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_D65 = (0.3127, 0.3290)
# H.273's numbers, as cICP has them. The curves of HDR (PQ, HLG) are not among them.
_POINTS = {
    1: SRGB_POINTS,
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
_CURVES: dict[int, tuple[float, ...]] = {
    # Rec. 709 says how cameras encode; screens show that by BT.1886, and so do browsers.
    **dict.fromkeys((1, 6, 14, 15), (2.4,)),
    4: (2.2,),
    5: (2.8,),
    8: (1.0,),
    13: SRGB_CURVE,
}
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
# For profiles of version 4 LittleCMS compensates the black point, whatever it is asked for.
# Browsers never do.
_VERSION = 0x02400000
_MAX_EXPONENT = 32_000  # ICC's numbers end there


def of_code_points(primaries: int, transfer: int) -> bytes | None:
    """A profile by H.273's numbers; None if they are not known here."""
    if primaries not in _POINTS or transfer not in _CURVES:
        return None
    return of_colours(_CURVES[transfer], _POINTS[primaries])


def of_colours(curve: Sequence[float], points: Sequence[float]) -> bytes | None:
    """A profile of RGB colours; None if they make no sense.

    curve: sample -> light, as above. points: x and y of white, red, green and blue.
    """
    matrix = _to_d50(points)
    if matrix is None or not curve[0] > 0:
        return None
    encoded = _curve([min(value, _MAX_EXPONENT) for value in curve])
    tags = [(b"wtpt", _xyz(_D50))]
    tags += [(name, _xyz(matrix[:, at])) for at, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))]
    tags += [(name, encoded) for name in (b"rTRC", b"gTRC", b"bTRC")]
    return _profile(tags)


def _to_d50(points: Sequence[float]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]] | None:
    """The matrix from RGB light to XYZ, adapted to D50; None if there is none."""
    xy = np.array(points, float).reshape(4, 2)
    if not (xy[:, 1] > 1e-6).all() or not (xy.sum(axis=1) <= 1.0001).all():
        return None
    xyz = np.stack([xy[:, 0], xy[:, 1], 1 - xy.sum(axis=1)]) / xy[:, 1]  # columns: white, R, G, B
    if abs(np.linalg.det(xyz[:, 1:])) < 1e-4:
        return None
    white = xyz[:, 0]
    matrix = xyz[:, 1:] * np.linalg.solve(xyz[:, 1:], white)
    gain = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    adapted = np.linalg.inv(_BRADFORD) @ (gain[:, None] * _BRADFORD) @ matrix
    return adapted if np.abs(adapted).max() < 100 else None


def _fixed(values: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]]) -> bytes:
    return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)


def _xyz(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(values)


def _curve(parameters: Sequence[float]) -> bytes:
    kind = {1: 0, 5: 3}[len(parameters)]
    return b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + _fixed(parameters)


def _profile(tags: Sequence[tuple[bytes, bytes]]) -> bytes:
    """ICC.1:2010: header, table of tags, tags."""
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags:
        table += struct.pack(">4sII", name, start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size = start + len(body)
    header = struct.pack(">I4xI4s4s4s12x4s", size, _VERSION, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    header += bytes(28) + _fixed(_D50)
    return header.ljust(128, b"\0") + table + body
