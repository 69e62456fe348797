"""WebP files: the chunks that make the pixels. The colour profile and EXIF are read here.

A file that ends too early is refused: libwebp gives no part of it, and browsers show none.
"""

from __future__ import annotations

import struct

from service.errors import UndecodableImage
from service.pixels.opened import Opened, Spliced, loader, pillow_open

MAX_CHUNKS = 100_000
_PIXELS = {b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"}
_ALPHA, _ANIMATION = 0x10, 0x02  # the flags of VP8X that concern what is kept


def open_webp(data: bytes) -> Opened:
    """Read the header of a WebP file. Raises UndecodableImage."""
    kept: list[bytes | memoryview] = []
    profile = exif = None
    position = 12
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            break
        name, length = struct.unpack_from("<4sI", data, position)
        start, end = position + 8, position + 8 + length
        following = end + length % 2  # chunks are padded to even lengths
        if name in _PIXELS:
            if end > len(data):
                raise UndecodableImage("The WebP file ends too early")
            kept.append(memoryview(data)[position:following])
            if following > len(data):
                kept.append(b"\0")
        elif name == b"VP8X" and not kept and length >= 10:
            flags = data[start] & (_ALPHA | _ANIMATION)
            if flags & _ANIMATION:
                # As in browsers, what the first frame does not cover is transparent.
                flags |= _ALPHA
            kept.append(struct.pack("<4sIB", name, 10, flags) + data[start + 1 : start + 10])
        elif name == b"ICCP" and profile is None:
            profile = data[start:end]
        elif name == b"EXIF" and exif is None:
            exif = data[start:end]
        position = following
    if not kept:
        raise UndecodableImage("The WebP file ends before its first pixels")
    size = 4 + sum(len(part) for part in kept)
    image = pillow_open(Spliced([struct.pack("<4sI4s", b"RIFF", size, b"WEBP"), *kept]), "WEBP")
    return Opened(image, "WebP", loader(image), profile=profile, exif=exif)
