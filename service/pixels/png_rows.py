"""What is left of a PNG whose pixels are damaged: the rows that can be decoded, on white.

Of an interlaced image (Adam7) the whole passes are left: a coarser picture.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from service.errors import UndecodableImage
from service.pixels.png_format import CHANNELS, Header

# Adam7: first column and row, and steps, of each pass.
_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
# Steps of the grid that all pixels up to a pass make.
_GRIDS = ((8, 8), (4, 8), (4, 4), (2, 4), (2, 2), (1, 2), (1, 1))
_WHITE: dict[str, Any] = {"I;16": 65535, "RGBA": (255, 255, 255, 0), "LA": (255, 0)}


def row_sizes(header: Header) -> Iterator[tuple[int, int]]:
    """(rows, bytes per row with its filter's type) of the image, or of each pass in turn."""
    passes = _PASSES if header.interlaced else ((0, 0, 1, 1),)
    for left, top, across, down in passes:
        columns = len(range(left, header.width, across))
        rows = len(range(top, header.height, down))
        if columns and rows:
            bits = columns * header.depth * CHANNELS[header.colour_type]
            yield rows, 1 + (bits + 7) // 8
        else:
            yield 0, 1


def salvage(image: Image.Image, pieces: Iterable[memoryview], header: Header) -> Image.Image:
    """A decoded image with what is missing in white, or, of an interlaced one, filled from the
    pixels around it.

    pieces: the compressed data. Raises UndecodableImage if there is nothing to show.
    """
    decoded = rows_decoded(pieces, header)
    passes = sum(have == rows for have, (rows, _) in zip(decoded, row_sizes(header), strict=True))
    if decoded[0] == 0 or (header.interlaced and passes == 0):
        raise UndecodableImage("The PNG file is damaged: no row of its pixels can be decoded")
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if header.interlaced:
        return _coarse(image, *_GRIDS[passes - 1])
    image.paste(_WHITE.get(image.mode, "white"), (0, decoded[0], image.width, image.height))
    return image


def rows_decoded(pieces: Iterable[memoryview], header: Header) -> list[int]:
    """How many rows can be decoded, of the image or of each pass; reads no more than they need."""
    stream = _Rows(pieces)
    counts = []
    for rows, size in row_sizes(header):
        count = 0
        while count < rows and stream.next_is_whole(size):
            count += 1
        counts.append(count)
    return counts


class _Rows:
    """Inflates row by row, so that no more than one is in memory."""

    def __init__(self, pieces: Iterable[memoryview]) -> None:
        self._pieces = iter(pieces)
        self._inflate = zlib.decompressobj()
        self._rest: bytes | memoryview = b""

    def next_is_whole(self, size: int) -> bool:
        row = b""
        while len(row) < size:
            if not self._rest:
                self._rest = next(self._pieces, b"")
            if not self._rest or self._inflate.eof:
                return False
            try:
                row += self._inflate.decompress(self._rest, size - len(row))
            except zlib.error:
                return False
            self._rest = self._inflate.unconsumed_tail
        return row[0] <= 4  # the types of filters


def _coarse(image: Image.Image, across: int, down: int) -> Image.Image:
    """Every pixel as that at the top left of its cell."""
    grid = np.asarray(image)[::down, ::across]
    full = np.repeat(np.repeat(grid, down, axis=0), across, axis=1)
    cropped = np.ascontiguousarray(full[: image.height, : image.width])
    filled = Image.fromarray(cropped)
    filled.info = image.info
    return filled
