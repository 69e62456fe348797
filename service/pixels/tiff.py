"""TIFF files: the first page, as microscopes and scanners write it.

Pillow gets a directory of our own that has the tags of that page's pixels alone; the values stay
where they are. So no other tag, page or thumbnail is read, however large it says that it is.
Refused by name are other sample formats than unsigned 8 and 16 bits (and 1 bit), and all
compressions but LZW, Deflate and PackBits.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from PIL import Image, ImageFile

from service.errors import TooLarge, UndecodableImage
from service.pixels.opened import Opened, Spliced, kind_of, pillow_open

MAX_TAGS = 1000  # of the first directory
MAX_TAG_BYTES = 4 * 1024 * 1024  # of the values of all tags that are read
_LARGEST_TILE = 4096  # a side in pixels, of an image that is smaller
_COMPRESSIONS = {1: "none", 5: "LZW", 8: "Deflate", 32946: "Deflate", 32773: "PackBits"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES = 258, 259, 262, 274, 277
_TILE_WIDTH, _TILE_HEIGHT, _FORMAT, _PROFILE = 322, 323, 339, 34675
_WIDTH, _HEIGHT, _ROWS_PER_STRIP = 256, 257, 278
_NUMBERS = (_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, 266, 273, _SAMPLES)
_PIXELS = (*_NUMBERS, _ROWS_PER_STRIP, 279, 284, 317, 320, *range(322, 326), 338, _FORMAT)
_PLACES = ((273, 279), (324, 325))  # offsets and lengths of strips, and of tiles
_WHITE_IS_ZERO, _BLACK_IS_ZERO = 0, 1
_COLOURS = ("RGB", "RGBA")
_MODES = {"1", "L", "P", "LA", "RGB", "RGBA", "RGBX", "CMYK", "I;16", "I;16B"}


@dataclass(frozen=True, slots=True)
class _Directory:
    """order: < or >. entries: tag -> the 12 bytes of its entry."""

    data: bytes
    order: str
    entries: dict[int, bytes]

    def value(self, tag: int) -> bytes:
        """The bytes of a tag's values; empty if it is not there."""
        if tag not in self.entries:
            return b""
        kind, count = struct.unpack_from(self.order + "HI", self.entries[tag], 2)
        size = _SIZES.get(kind, 1) * count
        if size <= 4:
            return self.entries[tag][8 : 8 + size]
        (start,) = struct.unpack_from(self.order + "I", self.entries[tag], 8)
        return self.data[start : start + size]

    def size(self, tag: int) -> int:
        kind, count = struct.unpack_from(self.order + "HI", self.entries[tag], 2)
        return int(_SIZES.get(kind, 1) * count)

    def numbers(self, tag: int) -> list[int]:
        """The values of a tag of SHORTs or LONGs."""
        value = self.value(tag)
        if not value:
            return []
        kind = struct.unpack_from(self.order + "H", self.entries[tag], 2)[0]
        letter, size = {1: ("B", 1), 3: ("H", 2), 4: ("I", 4)}.get(kind, ("B", 1))
        count = len(value) // size
        return list(struct.unpack_from(f"{self.order}{count}{letter}", value))

    def first(self, tag: int, default: int = 0) -> int:
        """The first value of such a tag."""
        return (self.numbers(tag) or [default])[0]


def open_tiff(data: bytes) -> Opened:
    """Read the first directory of a TIFF file. Raises UndecodableImage, TooLarge."""
    directory = _read(data)
    _check(directory)
    image = _pillow(directory)
    if image.mode not in _MODES:
        raise UndecodableImage(f"The TIFF has pixels of a kind that is not read ({image.mode})")
    deep = directory.first(_BITS, 1) == 16
    orientation = directory.first(_ORIENTATION, 1)
    inverted = deep and directory.first(_PHOTOMETRIC, 1) == _WHITE_IS_ZERO
    profile = directory.value(_PROFILE) if _PROFILE in directory.entries else None
    return Opened(
        image,
        "TIFF",
        profile=profile,
        exif=_exif(orientation),
        kind=kind_of(image.mode),
        deep=deep,
        load=lambda: (_loaded(image, inverted), False),
        low_bytes=(lambda: _low_bytes(directory)) if deep and image.mode in _COLOURS else None,
    )


def _read(data: bytes) -> _Directory:
    order = "<" if data[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
    except struct.error as error:
        raise UndecodableImage("The TIFF file ends before its first directory") from error
    if count > MAX_TAGS:
        raise UndecodableImage(f"The TIFF's first directory has more than {MAX_TAGS} tags")
    table = data[start + 2 : start + 2 + 12 * count]
    if len(table) < 12 * count:
        raise UndecodableImage("The TIFF file ends inside of its first directory")
    entries: dict[int, bytes] = {}
    for at in range(0, len(table), 12):
        entries.setdefault(struct.unpack_from(order + "H", table, at)[0], table[at : at + 12])
    return _Directory(data, order, entries)


def _check(directory: _Directory) -> None:
    """Refuse what would take another decoder, or more memory than the pixels do."""
    if sum(directory.size(tag) for tag in _PIXELS if tag in directory.entries) > MAX_TAG_BYTES:
        raise UndecodableImage(f"The TIFF's tags have more than {MAX_TAG_BYTES} bytes")
    compression = directory.first(_COMPRESSION, 1)
    if compression not in _COMPRESSIONS:
        known = ", ".join(dict.fromkeys(_COMPRESSIONS.values()))
        raise UndecodableImage(
            f"The TIFF's compression ({compression}) is not read: save it with one of {known}"
        )
    formats, bits = directory.numbers(_FORMAT), directory.numbers(_BITS)
    if any(value != 1 for value in formats) or any(value > 16 for value in bits):
        raise UndecodableImage("The TIFF's samples must be unsigned integers of 8 or 16 bits")
    for offsets, counts in _PLACES:
        places = zip_longest(directory.numbers(offsets), directory.numbers(counts), fillvalue=1)
        if any(offset + count > len(directory.data) for offset, count in places):
            raise UndecodableImage("The TIFF file ends too early")
    size = [directory.first(tag) for tag in (_WIDTH, _HEIGHT)]
    tile = [directory.first(tag) for tag in (_TILE_WIDTH, _TILE_HEIGHT)]
    if any(t > s + _LARGEST_TILE for t, s in zip(tile, size, strict=True)):
        raise TooLarge(f"The TIFF has tiles of {tile[0]} x {tile[1]} pixels, larger than itself")


def _pillow(directory: _Directory) -> ImageFile.ImageFile:
    """Pillow's image of the file with a directory of its own behind everything else."""
    order, data = directory.order, directory.data
    kept = {tag: directory.entries[tag] for tag in sorted(_PIXELS) if tag in directory.entries}
    if directory.first(_BITS, 1) == 16 and directory.first(_PHOTOMETRIC, 1) == _WHITE_IS_ZERO:
        # Pillow knows this of 16 bits in one order of bytes alone: _loaded inverts.
        kept[_PHOTOMETRIC] = struct.pack(order + "HHIHxx", _PHOTOMETRIC, 3, 1, _BLACK_IS_ZERO)
    table = struct.pack(order + "H", len(kept)) + b"".join(kept.values())
    padding = bytes(len(data) % 2)
    header = data[:4] + struct.pack(order + "I", len(data) + len(padding))
    return pillow_open(Spliced([header, memoryview(data)[8:], padding, table, bytes(4)]), "TIFF")


def _exif(orientation: int) -> bytes:
    return b"II*\0" + struct.pack("<IHHHIHxxI", 8, 1, _ORIENTATION, 3, 1, orientation & 0xFFFF, 0)


def _low_bytes(directory: _Directory) -> Image.Image:
    """The file once more, with the low byte of each sample in the place of the high one."""
    image = _pillow(directory)
    image.tile = [tile._replace(args=_swapped(tile.args)) for tile in image.tile]
    image.load()
    return image


def _swapped(arguments: object) -> tuple[object, ...]:
    assert isinstance(arguments, tuple)  # Pillow's own
    mode = str(arguments[0])
    other = mode[:-1] + {"L": "B", "B": "L", "N": "B"}.get(mode[-1], mode[-1])
    return (other, *arguments[1:])


def _loaded(image: Image.Image, inverted: bool) -> Image.Image:
    image.load()
    if image.mode == "RGBX":
        image = image.convert("RGB")
    if image.mode in ("I;16", "I;16B"):
        # Pillow's own conversion of I;16B cuts off at 255, and it does not invert 16 bits.
        samples = np.asarray(image).astype(np.uint16)
        image = Image.fromarray(65535 - samples if inverted else samples)
    return image
