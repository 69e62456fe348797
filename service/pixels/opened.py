"""What every reader of a format gives: an image whose header has been read, and no pixel yet."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Literal, TypeAlias, cast

from PIL import Image, ImageFile

from service.errors import FathomError, TooLarge, UndecodableImage

ColourKind: TypeAlias = Literal["gray", "rgb", "cmyk"]
_KINDS: dict[str, ColourKind] = {
    **dict.fromkeys(("1", "L", "LA", "La", "I;16", "I;16B"), "gray"),
    "CMYK": "cmyk",
}


def kind_of(mode: str) -> ColourKind:
    """The kind of colours of a mode of Pillow's."""
    return _KINDS.get(mode, "rgb")


@dataclass(frozen=True, slots=True)
class Opened:
    """image: with the size and mode of its header. name: of the format, for messages.

    load: decodes the pixels, once, and gives the image with them and whether they are damaged.
    profile: the ICC profile that the file embeds or describes; None: sRGB. exif: the EXIF block,
    with or without its prefix. kind: of its colours, whatever Pillow's mode says. deep: more
    than eight bits per sample, whose range can be scaled: not inks. low_bytes: the image again,
    with the low bytes of its 16-bit samples, where Pillow keeps the high ones alone.
    """

    image: Image.Image
    name: str
    load: Callable[[], tuple[Image.Image, bool]]
    profile: bytes | None = None
    exif: bytes | None = None
    kind: ColourKind = "rgb"
    deep: bool = False
    low_bytes: Callable[[], Image.Image] | None = None


def loader(image: Image.Image) -> Callable[[], tuple[Image.Image, bool]]:
    """Opened.load of a format that cannot tell damage, or raises at it."""

    def load() -> tuple[Image.Image, bool]:
        image.load()
        return image, False

    return load


class Spliced(io.RawIOBase):
    """A read-only file made of parts of others, without copying them."""

    def __init__(self, parts: Sequence[bytes | memoryview]) -> None:
        super().__init__()
        self._parts = [memoryview(part) for part in parts]
        self._size = sum(len(part) for part in self._parts)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._position, self._size)[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            size = self._size
        wanted = min(size, max(0, self._size - self._position))
        start, pieces = self._position, []
        self._position += wanted
        for part in self._parts:
            if wanted == 0:
                break
            if start < len(part):
                pieces.append(part[start : start + wanted])
                wanted -= len(pieces[-1])
            start = max(0, start - len(part))
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)


def pillow_open(file: io.RawIOBase | io.BytesIO, plugin: str) -> ImageFile.ImageFile:
    """Pillow's image of a file, by one plugin alone."""
    return Image.open(cast(IO[bytes], file), formats=(plugin,))


@contextmanager
def pillow_errors(name: str) -> Iterator[None]:
    """Whatever the decoders raise on bytes that a stranger wrote becomes an error that the stranger
    can read.

    name: of the format. Pillow's messages are left out: they hold addresses of objects.
    """
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge("The image has too many pixels") from error
    except (MemoryError, FathomError):
        raise
    except Exception as error:
        cut = isinstance(error, OSError) and "truncated" in str(error)
        detail = "ends too early" if cut else "is damaged and cannot be decoded"
        raise UndecodableImage(f"The {name} file {detail}") from error
