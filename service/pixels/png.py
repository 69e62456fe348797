"""Label maps and values as PNG files."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.core import Color
from service.pixels.png_format import GRAY, PALETTE, RGB, SIGNATURE, Header, chunk

SHADES = 255  # of an overlay, beside what is not covered
_OPACITY = 128  # of an overlay, out of 255
_BAND_PIXELS = 1 << 18  # written at a time
_N = TypeVar("_N", bound=np.generic)


def palette(labels: NDArray[np.uint8], colors: Sequence[Color]) -> bytes:
    """A palette PNG: the pixel values are the labels, shown in these colours."""
    return _indexed(labels, colors)


def gray(labels: NDArray[np.uint16]) -> bytes:
    """A 16-bit grayscale PNG: the pixel values are the labels."""
    return _sixteen_bits(labels, zlib.Z_RLE)


def levels(values: NDArray[np.uint16]) -> bytes:
    """The same for values that change from pixel to pixel."""
    return _sixteen_bits(values, zlib.Z_DEFAULT_STRATEGY)


def overlay(labels: NDArray[np.uint8], colors: Sequence[Color]) -> bytes:
    """A palette PNG to lay over an image: 0 is transparent, k half covered by colors[k - 1]."""
    opacity = bytes([0, *[_OPACITY] * len(colors)])
    return _indexed(labels, [(0, 0, 0), *colors], (b"tRNS", opacity))


def ids(labels: NDArray[np.unsignedinteger], table: NDArray[np.uint32]) -> bytes:
    """An RGB PNG whose pixels are R + 256 G + 65536 B = table[label], under 2 ** 24."""
    words = (np.ascontiguousarray(table[band], "<u4") for band in _bands(labels))
    rows = (each.view(np.uint8).reshape(*each.shape, 4)[..., :3] for each in words)
    data = _packed((each.reshape(len(each), -1) for each in rows), zlib.Z_RLE)
    return _file(labels, 8, RGB, (b"IDAT", data))


def object_color(number: int) -> Color:
    """One colour per object, as the page has it: by the golden angle, so that numbers in a row have
    hues far apart."""
    lightness = 0.48 + 0.1 * (number % 3)
    rgb = colorsys.hls_to_rgb(number * 137.508 % 360 / 360, lightness, _saturation(lightness))
    red, green, blue = (round(255 * value) for value in rgb)
    return red, green, blue


def _saturation(lightness: float) -> float:
    """Of a chroma of 0.6, whatever the lightness."""
    return 0.3 / min(lightness, 1 - lightness)


def _bands(labels: NDArray[_N]) -> Iterator[NDArray[_N]]:
    """Some rows at a time, which bounds the memory that a large image takes."""
    step = max(1, _BAND_PIXELS // labels.shape[1])
    return (labels[top : top + step] for top in range(0, len(labels), step))


def _indexed(
    labels: NDArray[np.uint8], colors: Sequence[Color], *chunks: tuple[bytes, bytes]
) -> bytes:
    shown = bytes(value for color in colors for value in color)
    data = _packed(_bands(labels), zlib.Z_RLE)
    return _file(labels, 8, PALETTE, (b"PLTE", shown), *chunks, (b"IDAT", data))


def _sixteen_bits(values: NDArray[np.uint16], strategy: int) -> bytes:
    rows = (np.ascontiguousarray(band, ">u2") for band in _bands(values))
    data = _packed((each.view(np.uint8).reshape(len(each), -1) for each in rows), strategy)
    return _file(values, 16, GRAY, (b"IDAT", data))


def _packed(bands: Iterable[NDArray[np.uint8]], strategy: int) -> bytes:
    """The data of rows of bytes, each less the row above it.

    Label maps are then long runs of zeros: to look for runs alone (Z_RLE) makes the files a quarter
    smaller. Pillow's encoder tries five filters on every row, which takes four times as long.
    """
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    parts, above = list[bytes](), np.zeros(1, np.uint8)
    for rows in bands:
        filtered = np.empty((len(rows), 1 + rows.shape[1]), np.uint8)
        filtered[:, 0] = 2  # less the row above
        np.subtract(rows[0], above, out=filtered[0, 1:])
        np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
        above = rows[-1]
        parts.append(packer.compress(filtered.data))
    return b"".join((*parts, packer.flush()))


def _file(pixels: NDArray[Any], bits: int, color: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """bits: of a sample. color: PNG's colour type."""
    height, width = pixels.shape
    head = (b"IHDR", Header(width, height, bits, color).written())
    parts = (chunk(name, content) for name, content in (head, *chunks, (b"IEND", b"")))
    return b"".join((SIGNATURE, *parts))
