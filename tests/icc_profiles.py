"""Colour profiles of the tests' own making."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
TO_XYZ = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7142]])


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def parametric(kind: int, *values: float) -> bytes:
    return b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + fixed(*values)


def profile(
    space: bytes,
    tags: Sequence[tuple[bytes, bytes]],
    *,
    pcs: bytes = b"Lab ",
    kind: bytes = b"mntr",
    version: int = 0x02400000,
) -> bytes:
    """ICC.1: header, table of tags, tags."""
    tags = [(b"wtpt", b"XYZ \0\0\0\0" + fixed(*D50)), *tags]
    table, body = struct.pack(">I", len(tags)), b""
    start = 132 + 12 * len(tags)
    for name, content in tags:
        table += struct.pack(">4sII", name, start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(">I4xI4s4s4s12x4s", start + len(body), version, kind, space, pcs, b"acsp")
    return (header + bytes(28) + fixed(*D50)).ljust(128, b"\0") + table + body


def gray(gamma: float) -> bytes:
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    return profile(b"GRAY", [(b"kTRC", curve)], pcs=b"XYZ ")


def press(grid: int = 9) -> bytes:
    """Four inks on paper, as a table (lut16, Lab)."""
    steps = np.linspace(0, 1, grid)
    inks = np.stack(np.meshgrid(steps, steps, steps, steps, indexing="ij"), axis=-1)
    passed = np.array([[0.05, 0.25, 0.55], [0.6, 0.03, 0.2], [0.9, 0.8, 0.02], [0.03] * 3])
    light = np.prod(1 - inks[..., None] * (1 - passed), axis=-2) * 0.96 + 0.04
    return profile(b"CMYK", [(b"A2B0", table16(4, grid, light @ TO_XYZ.T))], kind=b"prtr")


def table16(inputs: int, grid: int, xyz: np.ndarray) -> bytes:
    """(grid, ..., 3) XYZ -> lut16Type."""
    ratio = xyz / D50
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    lab = np.stack(
        [
            (116 * f[..., 1] - 16) * 652.8,
            (500 * (f[..., 0] - f[..., 1]) + 128) * 256,
            (200 * (f[..., 1] - f[..., 2]) + 128) * 256,
        ],
        axis=-1,
    )
    head = b"mft2\0\0\0\0" + bytes([inputs, 3, grid, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    line = struct.pack(">HH", 0, 65535)
    entries = lab.round().clip(0, 65535).astype(">u2").tobytes()
    return head + struct.pack(">HH", 2, 2) + line * inputs + entries + line * 3


def opponent() -> bytes:
    """RGB samples that are no RGB, as in XYB JPEGs: curves, a table and a matrix (mAB, version
    4)."""
    x, y, b = np.meshgrid([0, 1.0], [0, 1.0], [0, 1.0], indexing="ij")
    red, green = y * 0.8 + (x - 0.5) * 0.3 + 0.1, y * 0.8 - (x - 0.5) * 0.3 + 0.1
    samples = np.stack([red, green, b * 0.9 + 0.05], axis=-1).clip(0, 1)
    table = bytes([2, 2, 2] + [0] * 13) + bytes([2, 0, 0, 0])
    table += (samples * 65535).round().astype(">u2").tobytes()
    linear, cubic = parametric(0, 1.0) * 3, parametric(0, 3.0) * 3
    matrix = fixed(*(TO_XYZ * 32768 / 65535).ravel(), 0, 0, 0)
    parts = [linear, matrix, cubic, table + bytes(-len(table) % 4), linear]
    starts = [32 + sum(map(len, parts[:at])) for at in range(5)]
    tag = b"mAB \0\0\0\0" + bytes([3, 3, 0, 0]) + struct.pack(">5I", *starts) + b"".join(parts)
    return profile(b"RGB ", [(b"A2B0", tag)], pcs=b"XYZ ", kind=b"spac", version=0x04200000)
