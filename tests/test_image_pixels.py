"""Bytes -> Frame: every kind of pixel that a file can have, in its colour."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tests.image_files import chunk, png
from tests.pictures import encoded
from tests.placed_images import canvas, read

GRAYS = (0, 100, 255)
COLOURS = ((200, 30, 60), (20, 180, 90), (255, 255, 255))


def columns(samples: tuple[object, ...], mode: str, dtype: type = np.uint8) -> Image.Image:
    """30 x 20 pixels, one third for each sample."""
    row = np.repeat(np.array(samples, dtype), 10, axis=0)
    return Image.fromarray(
        np.ascontiguousarray(np.broadcast_to(row, (20, *row.shape))), mode=None
    ).convert(mode)


def palette(with_alpha: bool) -> Image.Image:
    image = Image.fromarray(np.tile(np.repeat(np.array([0, 1, 2], np.uint8), 10), (20, 1)))
    image.putpalette(bytes(itertools.chain(*COLOURS)))
    if with_alpha:
        image.info["transparency"] = bytes([255, 0, 255])
    return image


def sixteen_bit(colour: int, samples: tuple[int, ...], *before: bytes) -> bytes:
    """samples: the values of a pixel, for each third in turn."""
    per = len(samples) // 3
    row = b"".join(
        struct.pack(f">{per}H", *samples[third * per : third * per + per]) * 10
        for third in range(3)
    )
    return png(30, 20, 16, colour, (b"\0" + row) * 20, *before)


def packed_gray(depth: int, samples: tuple[int, int, int], key: int) -> bytes:
    """samples: of each third. key: the transparent colour, as in the file."""
    bits = "".join(f"{sample:0{depth}b}" * 10 for sample in samples).ljust(240, "0")
    row = int(bits, 2).to_bytes(len(bits) // 8)[: (30 * depth + 7) // 8]
    return png(30, 20, depth, 0, (b"\0" + row) * 20, chunk(b"tRNS", struct.pack(">H", key)))


def cmyk() -> Image.Image:
    inks = [[*(255 - np.array(colour)).tolist(), 0] for colour in COLOURS]
    row = np.repeat(np.array(inks, np.uint8), 10, axis=0)
    return Image.frombytes("CMYK", (30, 20), np.broadcast_to(row, (20, 30, 4)).tobytes())


def gray(*values: int) -> tuple[tuple[int, int, int], ...]:
    return tuple((value, value, value) for value in values)


RGBA = tuple((*colour, alpha) for colour, alpha in zip(COLOURS, (255, 128, 0), strict=True))
OVER_WHITE = ((200, 30, 60), (137, 217, 172), (255, 255, 255))
WIDE = (0, 100 * 257, 65535)
CASES: dict[str, tuple[Callable[[], bytes], tuple[tuple[int, int, int], ...], int]] = {
    "gray": (lambda: encoded(columns(GRAYS, "L")), gray(*GRAYS), 0),
    "gray JPEG": (lambda: encoded(columns(GRAYS, "L"), "JPEG", quality=95), gray(*GRAYS), 3),
    "gray with transparent colour": (
        lambda: encoded(columns(GRAYS, "L"), transparency=100),
        gray(0, 255, 255),
        0,
    ),
    "1 bit": (lambda: encoded(columns((0, 255, 0), "1")), gray(0, 255, 0), 0),
    "gray and alpha": (
        lambda: encoded(columns(((0, 255), (100, 128), (9, 0)), "LA")),
        gray(0, 177, 255),
        1,
    ),
    "RGB": (lambda: encoded(columns(COLOURS, "RGB")), COLOURS, 0),
    "RGB with transparent colour": (
        lambda: encoded(columns(COLOURS, "RGB"), transparency=COLOURS[0]),
        ((255, 255, 255), *COLOURS[1:]),
        0,
    ),
    "RGBA": (lambda: encoded(columns(RGBA, "RGBA")), OVER_WHITE, 1),
    "RGBA WebP": (lambda: encoded(columns(RGBA, "RGBA"), "WEBP", lossless=True), OVER_WHITE, 1),
    "palette": (lambda: encoded(palette(False)), COLOURS, 0),
    "palette with alpha": (
        lambda: encoded(palette(True)),
        (COLOURS[0], (255, 255, 255), COLOURS[2]),
        0,
    ),
    "16 bit gray": (lambda: sixteen_bit(0, WIDE), gray(*GRAYS), 0),
    "16 bit gray with transparent colour": (
        lambda: sixteen_bit(0, WIDE, chunk(b"tRNS", struct.pack(">H", WIDE[1]))),
        gray(0, 255, 255),
        0,
    ),
    "16 bit RGB": (
        lambda: sixteen_bit(2, tuple(257 * v for colour in COLOURS for v in colour)),
        COLOURS,
        0,
    ),
    "16 bit RGB with transparent colour": (
        lambda: sixteen_bit(
            2,
            tuple(257 * v for colour in COLOURS for v in colour),
            chunk(b"tRNS", struct.pack(">HHH", *(257 * v for v in COLOURS[0]))),
        ),
        ((255, 255, 255), *COLOURS[1:]),
        0,
    ),
    "16 bit RGB whose low bytes are not the transparent colour's": (
        lambda: sixteen_bit(
            2,
            (0x12FF, 0, 0, 0x1200, 0, 0, 0x1200, 0, 1),
            chunk(b"tRNS", struct.pack(">HHH", 0x1200, 0, 0)),
        ),
        ((0x12, 0, 0), (255, 255, 255), (0x12, 0, 0)),
        0,
    ),
    "16 bit RGB whose transparent colour has low bytes alone": (
        lambda: sixteen_bit(
            2, (0x12, 0, 0, 0x55, 0, 0, 0x1200, 0, 0), chunk(b"tRNS", b"\0\x12" + bytes(4))
        ),
        ((255, 255, 255), (0, 0, 0), (0x12, 0, 0)),
        0,
    ),
    **{
        f"{depth} bit gray with transparent {name}": (
            lambda depth=depth, key=key: packed_gray(depth, (0, 1, 2), key),
            gray(0, 255 if key & 255 == 1 else 255 // (2**depth - 1), 2 * 255 // (2**depth - 1)),
            0,
        )
        for depth in (2, 4, 8)
        for name, key in (("colour", 1), ("byte", 0xFF01), ("colour beyond its range", 0x11))
        if depth < 8 or key != 0x11
    },
    "1 bit with transparent colour": (
        lambda: packed_gray(1, (0, 1, 0), 0xFF00),
        gray(*[255] * 3),
        0,
    ),
    "16 bit gray and alpha": (
        lambda: sixteen_bit(4, (0, 65535, 25700, 32896, 9, 0)),
        gray(0, 177, 255),
        1,
    ),
    "CMYK JPEG, inverted as Adobe writes it": (
        lambda: encoded(cmyk(), "JPEG", quality=95, subsampling=0),
        COLOURS,
        6,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_pixel_comes_out_in_its_colour(name: str) -> None:
    make, expected, tolerance = CASES[name]
    pixels = read(make(), canvas(20, 30)).pixels
    for third, colour in enumerate(expected):
        middle = pixels[2:18, third * 10 + 2 : third * 10 + 8].astype(
            int
        )  # away from what JPEG smears
        assert np.abs(middle - colour).max() <= tolerance, (third, middle[0, 0], colour)


def test_adobe_marker_is_in_the_cmyk_file_of_the_test() -> None:
    assert b"Adobe" in encoded(cmyk(), "JPEG")
