"""Image files for tests, made by hand where Pillow does not write them."""

from __future__ import annotations

import itertools
import struct
import zlib

import numpy as np
from PIL import Image

from service.bundle import Canvas, InputSpec, Shape
from service.core import Color, Frame, Frames, ValueRange
from service.pixels.canvas import to_canvases
from service.pixels.decode import Limits, decode

LIMITS = Limits(max_pixels=25_000_000, max_side=8192, min_side=1)
Tags = dict[int, tuple[int, list[int] | None]]  # of a TIFF: tag -> (type, values)
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def photo(width: int = 160, height: int = 120) -> Image.Image:
    """Smooth and colourful, dark at the left and light at the right."""
    y, x = np.mgrid[0:height, 0:width]
    blue = 128 + 110 * np.sin(x / 19) * np.cos(y / 17)
    stacked = np.stack([x * 255 / width, y * 255 / height, blue], axis=2)
    return Image.fromarray(stacked.astype(np.uint8))


def read(
    data: bytes, content_type: str = "", values: ValueRange = "full", limits: Limits = LIMITS
) -> Frame:
    """On a canvas that shows pixels of a photo() as they are."""
    spec = one_canvas(120, 160, (9, 9, 9))
    return only(decode(data, content_type, limits, spec, values))


def one_canvas(height: int, width: int, pad: Color = (0, 0, 0)) -> InputSpec:
    """A single canvas of one shape."""
    return InputSpec.of([Canvas.of([Shape(height, width)])], pad)


def only(frames: Frames) -> Frame:
    """The image on the only canvas."""
    (frame,) = frames.values()
    return frame


def to_canvas(image: Image.Image, spec: InputSpec, orientation: int = 1) -> Frame:
    """A Pillow image on the only canvas. orientation: EXIF's."""
    return only(to_canvases(image, spec, orientation))


def difference(first: Frame, second: Frame) -> float:
    """Mean difference in levels."""
    return float(np.abs(first.pixels.astype(int) - second.pixels).mean())


def chunk(name: bytes, content: bytes, damage: int = 0) -> bytes:
    """A PNG's chunk. damage: added to its checksum."""
    checksum = (zlib.crc32(name + content) + damage) & 0xFFFFFFFF
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def with_chunks(data: bytes, *chunks: bytes) -> bytes:
    """A PNG with chunks behind its IHDR."""
    return data[:33] + b"".join(chunks) + data[33:]


def png(
    width: int,
    height: int,
    depth: int,
    colour: int,
    rows: bytes,
    *before: bytes,
    after: bytes = b"",
    interlace: int = 0,
) -> bytes:
    """rows: filter byte and samples of every row. before, after: chunks around the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    parts = (chunk(b"IHDR", header), *before, pixels, after, chunk(b"IEND", b""))
    return SIGNATURE + b"".join(parts)


def adam7(image: Image.Image) -> bytes:
    """An interlaced PNG of an RGB image."""
    pixels, rows = np.asarray(image), b""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    for left, top, across, down in [*passes, (0, 1, 1, 2)]:
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[top::down, left::across])
    return png(image.width, image.height, 8, 2, rows, interlace=1)


def segment(marker: int, content: bytes) -> bytes:
    """A JPEG's segment."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_segments(data: bytes, *segments: bytes) -> bytes:
    """A JPEG with segments behind its SOI."""
    return data[:2] + b"".join(segments) + data[2:]


def tiff(
    order: str,
    further: Tags,
    pixels: bytes,
    claimed: int = 0,
) -> bytes:
    """A TIFF of 160 x 120 gray 16-bit pixels by hand. further: tag -> (type, values); None: a
    `claimed` number of values that begin at the file's start."""
    tags: Tags = {
        256: (4, [160]),
        257: (4, [120]),
        258: (3, [16]),
        259: (3, [1]),
        262: (3, [1]),
        273: (4, [8]),
        277: (3, [1]),
        278: (4, [120]),
        279: (4, [len(pixels)]),
    }
    tags |= further
    tags = {tag: value for tag, value in tags.items() if value != (0, [])}
    start = 8 + len(pixels)
    tail = start + 2 + 12 * len(tags) + 4
    directory, values = struct.pack(order + "H", len(tags)), b""
    for tag, (kind, entries) in sorted(tags.items()):
        letter, words = {3: ("H", 1), 4: ("I", 1), 5: ("I", 2), 7: ("B", 1)}[kind]
        if entries is None:
            directory += struct.pack(order + "HHII", tag, kind, claimed, 0)
            continue
        packed = struct.pack(f"{order}{len(entries)}{letter}", *entries)
        head = struct.pack(order + "HHI", tag, kind, len(entries) // words)
        if len(packed) <= 4:
            directory += head + packed.ljust(4, b"\0")
        else:
            directory += head + struct.pack(order + "I", tail + len(values))
            values += packed
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "I", start) + pixels + directory + bytes(4) + values


def stored(
    samples: np.ndarray, further: Tags, order: str = "<", deflate: bool = False, apart: bool = False
) -> bytes:
    """A TIFF of (120, 160, channels) samples in strips of 50 rows, or in the tiles that `further`
    says. apart: each channel for itself."""
    channels, bits = samples.shape[2], 8 * samples.itemsize
    height, width = (
        dict(further).get(tag, (4, [size]))[1][0] for tag, size in ((323, 50), (322, 160))
    )
    planes = np.split(samples, channels, axis=2) if apart else [samples]
    blocks = []
    for plane in planes:
        for top, left in itertools.product(range(0, 120, height), range(0, 160, width)):
            block = plane[top : top + height, left : left + width]
            if 322 in further:
                missing = height - block.shape[0], width - block.shape[1]
                block = np.pad(block, ((0, missing[0]), (0, missing[1]), (0, 0)))
            raw = block.astype(f"{order}u{samples.itemsize}").tobytes()
            blocks.append(zlib.compress(raw) if deflate else raw)
    starts = [8, *(8 + sum(map(len, blocks[:number])) for number in range(1, len(blocks)))]
    places = (324, 325) if 322 in further else (273, 279)
    tags: Tags = {
        258: (3, [bits] * channels),
        259: (3, [8 if deflate else 1]),
        277: (3, [channels]),
        278: (4, [50]),
        284: (3, [2 if apart else 1]),
        places[0]: (4, starts),
        places[1]: (4, [len(block) for block in blocks]),
    }
    return tiff(order, tags | further, b"".join(blocks))
