"""Label maps as PNG files."""

from __future__ import annotations

import colorsys
import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.core import Color

SHADES = 255  # of an overlay, beside what is not covered
_OPACITY = 128  # of an overlay, out of 255
_BAND_PIXELS = 1 << 18  # written at a time, where Pillow would hold four bytes of every pixel


def palette(labels: NDArray[np.uint8], colors: Sequence[Color]) -> bytes:
    """A palette PNG: the pixel values are the labels, shown in these colours."""
    shown = bytes(value for color in colors for value in color)
    # Label maps are long runs of zeros once the row above is taken away: to look for runs alone is
    # half the time of Pillow's encoder, and the files are a quarter smaller.
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    height, width = labels.shape
    filtered = np.empty((height, 1 + width), np.uint8)
    filtered[:, 0] = 2  # less the row above
    filtered[0, 1:] = labels[0]
    np.subtract(labels[1:], labels[:-1], out=filtered[1:, 1:])
    data = packer.compress(filtered.tobytes()) + packer.flush()
    return _file((width, height), 3, (b"PLTE", shown), (b"IDAT", data))


def gray(labels: NDArray[np.uint16]) -> bytes:
    """A 16-bit grayscale PNG: the pixel values are the labels."""
    return _written(Image.fromarray(labels))


def overlay(labels: NDArray[np.uint8], colors: Sequence[Color]) -> bytes:
    """A palette PNG to lay over an image: 0 is transparent, k half covered by colors[k - 1]."""
    image = Image.fromarray(labels)
    image.putpalette(bytes(3) + bytes(value for color in colors for value in color))
    return _written(image, transparency=bytes([0, *[_OPACITY] * len(colors)]))


def ids(labels: NDArray[np.unsignedinteger], table: NDArray[np.uint32]) -> bytes:
    """An RGB PNG whose pixels are R + 256 G + 65536 B = table[label], under 2 ** 24."""
    height, width = labels.shape
    packer, parts = zlib.compressobj(1), list[bytes]()
    above = np.zeros((1, 3 * width), np.uint8)
    step = max(1, _BAND_PIXELS // width)
    for top in range(0, height, step):
        words = table[labels[top : top + step]].astype("<u4")  # (rows, width)
        rows = words.view(np.uint8).reshape(*words.shape, 4)[..., :3].reshape(len(words), -1)
        filtered = np.full((len(rows), 1 + 3 * width), 2, np.uint8)  # 2: less the row above
        np.subtract(rows, np.concatenate((above, rows[:-1])), out=filtered[:, 1:])
        above = rows[-1:]
        parts.append(packer.compress(filtered.tobytes()))
    parts.append(packer.flush())
    return _file((width, height), 2, (b"IDAT", b"".join(parts)))


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


def _file(size: tuple[int, int], color: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """size: (width, height). color: PNG's colour type, of 8 bits."""
    head = b"IHDR", struct.pack(">IIBBBBB", *size, 8, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(name, data) for name, data in (head, *chunks, (b"IEND", b""))
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _written(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1, **options)
    return file.getvalue()
