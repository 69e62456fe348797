"""A TIFF file's first directory: where the values of its tags are, and which they are."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from service.errors import UndecodableImage

MAX_TAGS = 1000  # of the first directory
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIPS, STRIP_BYTES, TILES, TILE_BYTES = 273, 279, 324, 325
ORIENTATION, SAMPLES, PLANAR, COLOUR_MAP, EXTRA = 274, 277, 284, 320, 338
WHITE_IS_ZERO, BLACK_IS_ZERO, _RGB, _CMYK, _YCBCR = 0, 1, 2, 5, 6  # kinds of PHOTOMETRIC
_SEPARATE = 2  # of PLANAR
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}


@dataclass(frozen=True, slots=True)
class Directory:
    """data: the file. order: < or >. entries: tag -> the 12 bytes of its entry."""

    data: bytes
    order: str
    entries: dict[int, bytes]

    def value(self, tag: int) -> bytes:
        """The bytes of a tag's values; empty if it is not there."""
        if tag not in self.entries:
            return b""
        size = self.size(tag)
        if size <= 4:
            return self.entries[tag][8 : 8 + size]
        start = self._start(tag)
        return self.data[start : start + size]

    def size(self, tag: int) -> int:
        """How many bytes the values of a tag that is there have."""
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

    def with_number(self, tag: int, value: int) -> Directory:
        """A copy in which one tag has one SHORT."""
        entry = struct.pack(self.order + "HHIHxx", tag, 3, 1, value)
        return replace(self, entries=self.entries | {tag: entry})

    def without(self, *tags: int) -> Directory:
        """A copy that lacks some tags."""
        kept = {tag: entry for tag, entry in self.entries.items() if tag not in tags}
        return replace(self, entries=kept)

    @property
    def is_apart(self) -> bool:
        """Whether each sample of a pixel is in a plane of its own. YCbCr does not count: its planes
        may have several sizes."""
        return self.first(PLANAR, 1) == _SEPARATE and self.first(PHOTOMETRIC) != _YCBCR

    def together(self) -> Directory:
        """The same, as if it stored the samples of a pixel together; of planes that nothing is said
        of, none. It tells what the pixels are, not where."""
        if not self.is_apart:
            return self
        extra = self.numbers(EXTRA)
        if any(extra):
            return self.without(PLANAR)
        samples = self.first(SAMPLES, 1) - len(extra)
        return self.without(PLANAR, EXTRA).with_number(SAMPLES, samples)

    def plane(self, number: int) -> Directory:
        """One of the planes of a file that stores samples apart, as a gray image or a palette's.
        Raises UndecodableImage."""
        planes, kind = self.first(SAMPLES, 1), self.first(PHOTOMETRIC)
        plane = self.without(SAMPLES, PLANAR, EXTRA).with_number(BITS, self.first(BITS, 1))
        for tag in (STRIPS, STRIP_BYTES, TILES, TILE_BYTES):
            if tag in self.entries:
                plane.entries[tag] = self._part(tag, number, planes)
        return plane.with_number(PHOTOMETRIC, BLACK_IS_ZERO) if kind in (_RGB, _CMYK) else plane

    def _part(self, tag: int, number: int, parts: int) -> bytes:
        """The entry of a tag that has one of several equal parts of its values."""
        kind, count = struct.unpack_from(self.order + "HI", self.entries[tag], 2)
        size = self.size(tag) // max(count, 1) * (count // parts)
        if size == 0:
            raise UndecodableImage("The TIFF file is damaged: it has fewer strips than planes")
        if size <= 4:
            place = self.value(tag)[number * size : (number + 1) * size].ljust(4, b"\0")
        else:
            place = struct.pack(self.order + "I", self._start(tag) + number * size)
        return struct.pack(self.order + "HHI", tag, kind, count // parts) + place

    def _start(self, tag: int) -> int:
        return int(struct.unpack_from(self.order + "I", self.entries[tag], 8)[0])


def read_directory(data: bytes) -> Directory:
    """The first directory of a TIFF file. Raises UndecodableImage."""
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
    return Directory(data, order, entries)
