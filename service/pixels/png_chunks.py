"""PNG files: the chunks that make the pixels, without those that say nothing about them.

Pillow gets IHDR, PLTE, tRNS and the IDATs of the default image, and IEND; so neither damaged nor
huge text, nor an animation's chunks, can refuse a file or take memory. The colour space and EXIF
are read here, within bounds; what is wrong with them is ignored, as in browsers.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from PIL import Image, ImageFile

from service.errors import UndecodableImage
from service.pixels.opened import Opened, Spliced, pillow_open
from service.pixels.png_format import (
    GRAY,
    GRAY_ALPHA,
    PALETTE,
    RGB_ALPHA,
    SIGNATURE,
    Header,
    chunk,
)
from service.pixels.png_key import for_pillow, pillow_compares, transparent_colour, without_colour
from service.pixels.png_rows import row_sizes, rows_decoded, salvage
from service.pixels.profiles import MAX_PROFILE, SRGB_POINTS, of_code_points, of_colours

MAX_CHUNKS = 100_000  # files of megabytes can hold millions of empty ones; encoders write thousands
_PATTERN = bytes(at * 37 % 251 for at in range(251))  # unlike any row of an image
_END = chunk(b"IEND", b"")
_SRGB_GAMMA = 45455  # what everybody writes who means sRGB
_SRGB_TOLERANCE = 0.05
_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"cICP", b"sRGB", b"gAMA", b"cHRM", b"eXIf"}


@dataclass(slots=True)
class Chunks:
    """Where the first chunk of each name that counts is, and all IDATs.

    found: name -> (start, end) of its content. pixels: (start, end) of each IDAT with its length,
    name and checksum. cut: the file ends inside of the last one.
    """

    found: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    pixels: list[tuple[int, int]] = field(default_factory=list)
    cut: bool = False


def open_png(data: bytes) -> Opened:
    """Read the header of a PNG file. Raises UndecodableImage."""
    chunks = _walk(data)
    content = _content(data, chunks, b"IHDR")
    if content is None or len(content) != 13:
        raise UndecodableImage("The PNG file is damaged: its header (IHDR) is missing or changed")
    if not chunks.pixels:
        raise UndecodableImage("The PNG file ends before its first pixels")
    header = Header.read(content)
    colour = transparent_colour(header, _content(data, chunks, b"tRNS") or b"")
    parts = _parts(data, chunks, header, colour)
    image = pillow_open(Spliced(parts), "PNG")

    def low_bytes() -> Image.Image:
        return _load_low_bytes(parts, data, chunks, header)

    def load() -> tuple[Image.Image, bool]:
        decoded, damaged = _load(image, data, chunks, header)
        if colour and not pillow_compares(header):
            decoded = without_colour(decoded, colour, low_bytes)
        return decoded, damaged

    return Opened(
        image,
        "PNG",
        profile=_profile(data, chunks),
        exif=_content(data, chunks, b"eXIf"),
        kind="gray" if header.colour_type in (GRAY, GRAY_ALPHA) else "rgb",
        deep=header.depth == 16,
        load=load,
        low_bytes=low_bytes if header.depth == 16 and header.colour_type != GRAY else None,
    )


def _parts(
    data: bytes, chunks: Chunks, header: Header, colour: tuple[int, ...]
) -> list[bytes | memoryview]:
    """The file that Pillow gets. colour: the transparent one."""
    start, end = chunks.found[b"IHDR"]
    parts: list[bytes | memoryview] = [SIGNATURE, chunk(b"IHDR", data[start:end])]
    if header.colour_type == PALETTE:
        palette, transparency = (_content(data, chunks, name) for name in (b"PLTE", b"tRNS"))
        if not palette:
            raise UndecodableImage("The PNG file is damaged: its palette is missing or changed")
        parts.append(chunk(b"PLTE", palette))
        if transparency:
            parts.append(chunk(b"tRNS", transparency))
    elif colour and pillow_compares(header):
        parts.append(chunk(b"tRNS", for_pillow(header, colour)))
    parts += [memoryview(data)[start:end] for start, end in _merged(chunks.pixels)]
    return [*parts, _END]


def _walk(data: bytes) -> Chunks:
    chunks, position = Chunks(), len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            break
        length, name = struct.unpack_from(">I4s", data, position)
        start, end = position + 8, position + 8 + length
        if name == b"IDAT":
            chunks.pixels.append((position, min(end + 4, len(data))))
            chunks.cut = end > len(data)
        elif name == b"IEND" or not name.isalpha():
            break
        elif name == b"eXIf" or (name in _KEPT and not chunks.pixels):
            chunks.found.setdefault(name, (start, end))
        position = end + 4
    else:
        raise UndecodableImage(f"The PNG has more than {MAX_CHUNKS} chunks")
    return chunks


def _content(data: bytes, chunks: Chunks, name: bytes) -> bytes | None:
    """A chunk's content; None if there is none, or its checksum does not fit."""
    if name not in chunks.found:
        return None
    start, end = chunks.found[name]
    content = data[start:end]
    checksum = data[end : end + 4]
    return content if checksum == zlib.crc32(name + content).to_bytes(4, "big") else None


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges that follow each other without a gap, as one."""
    merged: list[tuple[int, int]] = []
    for start, end in ranges:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


def _profile(data: bytes, chunks: Chunks) -> bytes | None:
    """The colour space by the chunk that has precedence: cICP, iCCP, sRGB, then gAMA with cHRM.

    As in browsers, cHRM alone says nothing.
    """
    points_by_number = _content(data, chunks, b"cICP")
    if points_by_number is not None and len(points_by_number) == 4:
        primaries, transfer, matrix, full_range = points_by_number
        known = of_code_points(primaries, transfer)
        if known is not None and (matrix, full_range) == (0, 1):
            return known
    embedded = _content(data, chunks, b"iCCP")
    if embedded is not None:
        _, _, compressed = embedded.partition(b"\0")
        profile = _inflated(compressed[1:]) if compressed[:1] == b"\0" else None
        if profile is not None:
            return profile
    if _content(data, chunks, b"sRGB"):
        return None
    content = _content(data, chunks, b"gAMA")
    gamma = int.from_bytes(content, "big") if content and len(content) == 4 else 0
    if gamma == 0:
        return None
    chromaticities = _content(data, chunks, b"cHRM")
    if chromaticities is not None and len(chromaticities) == 32:
        points = [value / 100_000 for value in struct.unpack(">8I", chromaticities)]
        return of_colours((100_000 / gamma,), points)
    if abs(gamma / _SRGB_GAMMA - 1) < _SRGB_TOLERANCE:
        return None
    return of_colours((100_000 / gamma,), SRGB_POINTS)


def _inflated(compressed: bytes) -> bytes | None:
    """A profile of at most MAX_PROFILE bytes; None if it is longer or cannot be read."""
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(compressed, 128)
        size = int.from_bytes(profile[:4], "big")
        if profile[36:40] != b"acsp" or not 128 < size <= MAX_PROFILE:
            return None
        return profile + inflate.decompress(inflate.unconsumed_tail, size - len(profile))
    except zlib.error:
        return None


def _load_low_bytes(
    parts: list[bytes | memoryview], data: bytes, chunks: Chunks, header: Header
) -> Image.Image:
    """The file once more, with the low byte of each big-endian sample in the place of the high
    one."""
    if header.colour_type == GRAY_ALPHA:
        # Pillow has no such mode; but two samples of 16 bits are four of 8, RGBA.
        four = header._replace(depth=8, colour_type=RGB_ALPHA)
        image = pillow_open(Spliced([parts[0], chunk(b"IHDR", four.written()), *parts[2:]]), "PNG")
        low = _load(image, data, chunks, four)[0].getchannel("G")
        return Image.merge("RGB", (low, low, low))
    image = pillow_open(Spliced(parts), "PNG")
    image.tile = [tile._replace(args=f"{image.mode};16L") for tile in image.tile]
    return _load(image, data, chunks, header)[0]


def _load(
    image: ImageFile.ImageFile, data: bytes, chunks: Chunks, header: Header
) -> tuple[Image.Image, bool]:
    """Decode the pixels. Rows that are missing become white, as in browsers.

    Pillow does not say when the data end in order but too early: the last row has a mark before,
    which is still there then.
    """
    width, height = image.size
    mark = Image.frombytes(image.mode, (width, 1), _PATTERN * (width // 31 + 1))
    image.im = Image.new(image.mode, image.size, None).im
    image.im.paste(mark.im, (0, height - 1, width, height))
    damaged = chunks.cut or not _checksums_fit(data, chunks)
    try:
        image.load()
    except (OSError, SyntaxError):
        image.tile = []
        return salvage(image, _pieces(data, chunks), header), True
    if image.crop((0, height - 1, width, height)).tobytes() != mark.tobytes():
        return image, damaged
    rows = [rows for rows, _ in row_sizes(header)]
    if rows_decoded(_pieces(data, chunks), header) == rows:
        return image, damaged
    return salvage(image, _pieces(data, chunks), header), True


def _checksums_fit(data: bytes, chunks: Chunks) -> bool:
    """Of the pixels and their transparency."""
    view = memoryview(data)
    for start, end in chunks.pixels:
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            return False
    return b"tRNS" not in chunks.found or _content(data, chunks, b"tRNS") is not None


def _pieces(data: bytes, chunks: Chunks) -> Iterator[memoryview]:
    """The compressed pixels, 64 KiB at most at a time."""
    for position, end in chunks.pixels:
        length = int.from_bytes(data[position : position + 4], "big")
        start, stop = position + 8, min(position + 8 + length, end)
        for at in range(start, stop, 65536):
            yield memoryview(data)[at : min(at + 65536, stop)]
