"""What PNG files are made of, for reading and for writing: signature, chunks, header."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # types of colour
CHANNELS = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGB_ALPHA: 4}


class Header(NamedTuple):
    """IHDR. depth: bits of a sample."""

    width: int
    height: int
    depth: int
    colour_type: int
    interlaced: bool = False

    @classmethod
    def read(cls, content: bytes) -> Header:
        width, height, depth, colour_type, interlaced = struct.unpack(">IIBBxxB", content)
        return cls(width, height, depth, colour_type, bool(interlaced))

    def written(self) -> bytes:
        """The content of the chunk."""
        return struct.pack(">IIBBxxB", *self)


def chunk(name: bytes, content: bytes) -> bytes:
    """A whole chunk, with its length and its checksum."""
    checksum = zlib.crc32(content, zlib.crc32(name))
    return struct.pack(">I4s", len(content), name) + content + struct.pack(">I", checksum)


def gray_step(bits: int) -> int:
    """Between grays of so many bits, once they fill 0..255; those of more stay as they are."""
    return 255 // ((1 << bits) - 1) if bits in (1, 2, 4) else 1
