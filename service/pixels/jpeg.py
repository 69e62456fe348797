"""JPEG files: libjpeg decodes them, through Pillow, and what it only warns of is found out.

Files that are cut or damaged are decoded as far as browsers do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from PIL import Image, ImageFile

from service.errors import UndecodableImage
from service.pixels.jpeg_markers import Picture, take_apart
from service.pixels.opened import Opened, Spliced, kind_of, pillow_open

_HUFFMAN_DCT = {0xC0, 0xC1, 0xC2}
_LOSSLESS = 0xC3
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
# libjpeg's Huffman decoder reads up to eight bytes ahead; see _is_sound.
_AHEAD = 8
_TAIL = 3 * _AHEAD
_SPARE = 4  # bytes behind the last pixel that are taken for padding
_Fill: TypeAlias = Mapping[str, tuple[int, ...]]  # by mode
_WHITE: _Fill = {"L": (255,), "RGB": (255, 255, 255), "CMYK": (0, 0, 0, 0)}
_BLACK: _Fill = {"L": (0,), "RGB": (0, 0, 0), "CMYK": (255, 255, 255, 255)}


def open_jpeg(data: bytes) -> Opened:
    """Read the header of a JPEG file. Raises UndecodableImage."""
    picture = take_apart(data)
    image = pillow_open(Spliced([picture.head, picture.body, b"\xff\xd9"]), "JPEG")
    if picture.frame == _LOSSLESS:
        # libjpeg has it at full size alone; so configured, Pillow asks for no other.
        image.decoderconfig = (1, 0)
    return Opened(
        image,
        "JPEG",
        profile=picture.profile,
        exif=picture.exif,
        kind=kind_of(image.mode),
        load=lambda: _load(image, picture),
    )


class _Decoder:
    """libjpeg through Pillow, fed piece by piece, so that its progress can be watched."""

    def __init__(self, image: ImageFile.ImageFile, fill: _Fill | None = None) -> None:
        """fill: the colour of what is not decoded."""
        tile = image.tile[0]
        arguments: tuple[Any, ...] = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        image.im = Image.new(image.mode, image.size, fill[image.mode] if fill else None).im
        self._decoder = Image.core.jpeg_decoder(  # type: ignore[attr-defined]
            image.mode, *arguments, *image.decoderconfig
        )
        self._decoder.setimage(image.im, tile.extents)
        self._rest = b""
        self.ended = self.failed = False

    def feed(self, piece: bytes | memoryview) -> bool:
        """Decode as far as it goes. Returns whether libjpeg took all that it has been given."""
        if self.ended:
            return False
        buffer = self._rest + bytes(piece) if self._rest else piece
        taken, error = self._decoder.decode(buffer)
        self.ended, self.failed = taken < 0, error < 0
        self._rest = b"" if self.ended else bytes(buffer[taken:])
        return not self._rest


def _load(image: ImageFile.ImageFile, picture: Picture) -> tuple[Image.Image, bool]:
    """Decode the pixels. What is missing stays white if the file just ends, as in browsers."""
    sound = picture.complete and _restarts_in_order(picture) and _is_sound(image, picture)
    if not sound:
        _show_what_is_there(image, picture, _WHITE)
        if _is_all(255, image) and _is_nothing_there(image, picture):
            raise UndecodableImage("The JPEG file is damaged: no pixel of it can be decoded")
    image.tile = []
    return image, not sound


def _is_nothing_there(image: ImageFile.ImageFile, picture: Picture) -> bool:
    """Whether an image that is all white is what was there before: then on black it is black."""
    white = image.im
    _show_what_is_there(image, picture, _BLACK)
    nothing = _is_all(0, image)
    image.im = white
    return nothing


def _is_all(level: int, image: ImageFile.ImageFile) -> bool:
    """Whether all of an image's channels have one level, as RGB."""
    shown = image.im.convert("RGB", 0)
    return all(shown.getband(band).getextrema() == (level, level) for band in range(3))


def _show_what_is_there(image: ImageFile.ImageFile, picture: Picture, fill: _Fill) -> None:
    """Decode as far as the first error; of several scans, all before it."""
    usable = len(picture.body)
    for _ in range(2):
        decoder, position = _Decoder(image, fill), 0
        decoder.feed(picture.head)
        for _, end in [*picture.scans, (0, len(picture.body))]:
            decoder.feed(picture.body[position : min(end, usable)])
            if decoder.failed and not picture.one_pass:
                usable = position
                break
            position = max(position, min(end, usable))
        else:
            if not (picture.cut and picture.one_pass):
                decoder.feed(b"\xff\xd9")
            return


def _restarts_in_order(picture: Picture) -> bool:
    """Restart markers count from 0 to 7 and over again; a gap shows that data are missing."""
    if not picture.restarts:
        return True
    for start, end in picture.scans:
        found = _RESTART.findall(picture.body[start:end])
        if any(marker[0] != 0xD0 + number % 8 for number, marker in enumerate(found)):
            return False
    return True


def _is_sound(image: ImageFile.ImageFile, picture: Picture) -> bool:
    """Decode, and see whether every scan needs just the data that it has.

    libjpeg only warns of damage, and Pillow drops that. But the Huffman decoder stops when it
    cannot read eight bytes ahead, which shows from outside: before its scan's last bytes it must
    not be through, and with eight more, which no pixel depends on, it must be.
    """
    decoder = _Decoder(image)
    decoder.feed(picture.head)
    if picture.frame not in _HUFFMAN_DCT:
        decoder.feed(bytes(picture.body) + b"\xff\xd9")
        return decoder.ended and not decoder.failed
    position = 0
    for start, end in picture.scans:
        tail = max(start, end - (_SPARE if picture.one_pass else _TAIL))
        decoder.feed(picture.body[position:tail])
        position = end
        if picture.one_pass:
            early = decoder.ended
            decoder.feed(bytes(picture.body[tail:end]) + bytes(_AHEAD))
            return decoder.ended and not early and not decoder.failed
        # It takes each byte at once only while it looks for the next marker.
        taken = [decoder.feed(picture.body[at : at + 1]) for at in range(tail, end)]
        early = len(taken) > _AHEAD and all(taken[: 2 * _AHEAD])
        decoder.feed(bytes(_AHEAD))
        taken = [decoder.feed(b"\0") for _ in range(_AHEAD)]
        if early or not all(taken):
            return False
    decoder.feed(b"\xff\xd9")
    return decoder.ended and not decoder.failed
