"""TIFF files: the first page, as microscopes and scanners write it.

Pillow gets a directory of our own that has the tags of that page's pixels alone; the values stay
where they are. So no other tag, page or thumbnail is read, however large it says that it is.
Refused by name are other sample formats than unsigned integers of up to 8 bits and of 16, all
compressions but LZW, Deflate and PackBits, and layouts that Pillow does not know.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import zip_longest

import numpy as np
from PIL import Image, ImageFile, ImagePalette, UnidentifiedImageError

from service.errors import TooLarge, UndecodableImage
from service.pixels import tiff_directory as tags
from service.pixels.opened import Opened, Spliced, kind_of, pillow_open
from service.pixels.tiff_directory import Directory, read_directory

MAX_TAG_BYTES = 4 * 1024 * 1024  # of the values of all tags that are read
_LARGEST_TILE = 4096  # a side in pixels, of an image that is smaller
_MOST_SAMPLES = 6  # of a pixel, that Pillow knows
_COMPRESSIONS = {1: "none", 5: "LZW", 8: "Deflate", 32946: "Deflate", 32773: "PackBits"}
_BIT_DEPTHS = {1, 2, 4, 8, 16}
_TILE_WIDTH, _TILE_HEIGHT, _FORMAT, _PROFILE = 322, 323, 339, 34675
_SUBFILE, _SUB_DIRECTORIES = 254, 330
_REDUCED = 1  # of _SUBFILE: a small copy of another image in the file
_PIXELS = {
    *(tags.WIDTH, tags.HEIGHT, tags.BITS, tags.COMPRESSION, tags.PHOTOMETRIC, tags.SAMPLES),
    *(tags.STRIPS, tags.STRIP_BYTES, _TILE_WIDTH, _TILE_HEIGHT, tags.TILES, tags.TILE_BYTES),
    *(tags.PLANAR, tags.COLOUR_MAP, tags.EXTRA, _FORMAT),
    *(266, 278, 317),  # the order of bits, rows per strip, the predictor
    *(529, 530, 531, 532),  # of YCbCr: coefficients, subsampling, its position, black and white
}
_PLACES = ((tags.STRIPS, tags.STRIP_BYTES), (tags.TILES, tags.TILE_BYTES))
_KINDS = {0: "gray", 1: "gray", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELAB"}
_PREMULTIPLIED = 1
_EXTRAS = {0: "unspecified", _PREMULTIPLIED: "premultiplied alpha", 2: "alpha"}
_COLOURS = ("RGB", "RGBA")
_MODES = {"1", "L", "P", "LA", "La", "RGB", "RGBA", "CMYK", "I;16", "I;16B"}

# libtiff writes a line of text to stderr for each strip that is damaged, where the logs are JSON.
# It gives an error, too, and that is what is answered. Not every build of Pillow lets us reach it.
with suppress(AttributeError, OSError):
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)  # type: ignore[attr-defined]


def open_tiff(data: bytes) -> Opened:
    """Read the first directory of a TIFF file. Raises UndecodableImage, TooLarge."""
    directory = read_directory(data)
    _check(directory)
    image, planes = _pillow(directory.together()), list[Directory]()
    if directory.is_apart:
        # Pillow would take all for samples of 8 bits, and as they are.
        planes = [directory.plane(number) for number in range(len(image.getbands()))]
    if len(planes) == 1:
        directory, planes = planes[0], []
        image = _pillow(directory)
    wide = directory.first(tags.BITS, 1) == 16
    load: Callable[[], Image.Image] = partial(_loaded, image, wide and _is_inverted(directory))
    low_bytes: Callable[[], Image.Image] = partial(_low_bytes, directory)
    if planes:
        premultiplied = image.mode == "RGBA" and directory.first(tags.EXTRA) == _PREMULTIPLIED
        mode = "RGBa" if premultiplied else image.mode
        load, low_bytes = partial(_merged, planes, mode, 8), partial(_merged, planes, mode, 0)
    deep = wide and image.mode != "CMYK"
    return Opened(
        image,
        "TIFF",
        profile=directory.value(_PROFILE) if _PROFILE in directory.entries else None,
        exif=_exif(directory.first(tags.ORIENTATION, 1)),
        kind=kind_of(image.mode),
        deep=deep,
        load=lambda: (load(), False),
        low_bytes=low_bytes if deep and image.mode in _COLOURS else None,
    )


def _check(directory: Directory) -> None:
    """Refuse what would take another decoder, or more memory than the pixels do."""
    if directory.first(_SUBFILE) & _REDUCED and _SUB_DIRECTORIES in directory.entries:
        raise UndecodableImage(
            "The TIFF's first page is a small copy of another image in it, as in the raw files of "
            "cameras (DNG, NEF): develop that image, and send it as JPEG, PNG or TIFF"
        )
    if sum(directory.size(tag) for tag in _PIXELS if tag in directory.entries) > MAX_TAG_BYTES:
        raise UndecodableImage(f"The TIFF's tags have more than {MAX_TAG_BYTES} bytes")
    compression = directory.first(tags.COMPRESSION, 1)
    if compression not in _COMPRESSIONS:
        known = ", ".join(dict.fromkeys(_COMPRESSIONS.values()))
        raise UndecodableImage(
            f"The TIFF's compression ({compression}) is not read: save it with one of {known}"
        )
    formats, bits = directory.numbers(_FORMAT), directory.numbers(tags.BITS)
    if any(value != 1 for value in formats) or any(value > 16 for value in bits):
        raise UndecodableImage("The TIFF's samples must be unsigned integers of 8 or 16 bits")
    if directory.first(tags.SAMPLES) > _MOST_SAMPLES or not _BIT_DEPTHS.issuperset(bits):
        raise _not_read(directory)
    for offsets, counts in _PLACES:
        places = zip_longest(directory.numbers(offsets), directory.numbers(counts), fillvalue=1)
        if any(offset + count > len(directory.data) for offset, count in places):
            raise UndecodableImage("The TIFF file ends too early")
    size = [directory.first(tag) for tag in (tags.WIDTH, tags.HEIGHT)]
    tile = [directory.first(tag) for tag in (_TILE_WIDTH, _TILE_HEIGHT)]
    if any(t > s + _LARGEST_TILE for t, s in zip(tile, size, strict=True)):
        raise TooLarge(f"The TIFF has tiles of {tile[0]} x {tile[1]} pixels, larger than itself")


def _not_read(directory: Directory) -> UndecodableImage:
    """The error for pixels that are sound, but laid out in a way that is not read."""
    samples, bits = directory.first(tags.SAMPLES, 1), directory.numbers(tags.BITS) or [1]
    number = directory.first(tags.PHOTOMETRIC)
    layout = [
        _KINDS.get(number, f"photometric interpretation {number}"),
        f"{samples} x {bits[0]} bits" if len(set(bits)) == 1 else "unequal bits",
        f"compression {_COMPRESSIONS[directory.first(tags.COMPRESSION, 1)]}",
    ]
    extras = directory.numbers(tags.EXTRA)[:_MOST_SAMPLES]
    layout += [f"{_EXTRAS.get(extra, 'further')} samples" for extra in extras]
    return UndecodableImage(
        f"The TIFF's pixels are not read as they are laid out ({', '.join(layout)}): save it "
        "with 8 or 16 bits as RGB, RGBA or gray without alpha"
    )


def _pillow(directory: Directory) -> ImageFile.ImageFile:
    """Pillow's image of the file with a directory of its own behind everything else."""
    order, data = directory.order, directory.data
    kept = directory
    if directory.first(tags.BITS, 1) == 16 and _is_inverted(directory):
        # Pillow knows this of 16 bits in one order of bytes alone: _loaded inverts.
        kept = directory.with_number(tags.PHOTOMETRIC, tags.BLACK_IS_ZERO)
    entries = [kept.entries[tag] for tag in sorted(_PIXELS) if tag in kept.entries]
    table = struct.pack(order + "H", len(entries)) + b"".join(entries)
    padding = bytes(len(data) % 2)
    header = data[:4] + struct.pack(order + "I", len(data) + len(padding))
    file = Spliced([header, memoryview(data)[8:], padding, table, bytes(4)])
    try:
        image = pillow_open(file, "TIFF")
    except UnidentifiedImageError as error:
        if all(directory.first(tag) for tag in (tags.WIDTH, tags.HEIGHT)):
            raise _not_read(directory) from error
        raise
    if image.mode not in _MODES:
        raise _not_read(directory)
    colours = directory.numbers(tags.COLOUR_MAP)
    if image.mode == "P" and max(colours) < 256:
        # Colours have 16 bits, but some programs write 8; libtiff, too, knows them by this.
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))
    return image


def _is_inverted(directory: Directory) -> bool:
    return directory.first(tags.PHOTOMETRIC, tags.BLACK_IS_ZERO) == tags.WHITE_IS_ZERO


def _exif(orientation: int) -> bytes:
    head = struct.pack("<IHHHI", 8, 1, tags.ORIENTATION, 3, 1)
    return b"II*\0" + head + struct.pack("<HxxI", orientation & 0xFFFF, 0)


def _merged(planes: list[Directory], mode: str, shift: int) -> Image.Image:
    """One image of all planes. shift: of samples of 16 bits; 8 for the high bytes, 0 for the
    low ones."""
    bands = [_loaded(_pillow(plane), inverted=False) for plane in planes]
    for number, band in enumerate(bands):
        if band.mode != "L":
            bands[number] = Image.fromarray((np.asarray(band) >> shift).astype(np.uint8))
    return _straight(Image.merge(mode, bands))


def _low_bytes(directory: Directory) -> Image.Image:
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
    if image.mode in ("I;16", "I;16B"):
        # Pillow's own conversion of I;16B cuts off at 255, and it does not invert 16 bits.
        samples = np.asarray(image).astype(np.uint16)
        image = Image.fromarray(65535 - samples if inverted else samples)
    return _straight(image)


def _straight(image: Image.Image) -> Image.Image:
    """Colours that are multiplied by their alpha without that."""
    return image.convert(image.mode.upper()) if image.mode in ("La", "RGBa") else image
