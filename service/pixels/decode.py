"""Bytes of an image file -> Frames: limits, decoding, orientation.

Rules, for all formats alike; those of `canvas` come after them:
- Pixels and sides are checked from the header, before any pixel is decoded. Of an animation or of
  several pages, the first counts.
- Orientation comes from the tag 0x0112 of the EXIF block (JPEG APP1, PNG eXIf, WebP EXIF, TIFF's
  own tag) and from nowhere else, not from XMP or text chunks; HEIF and AVIF have properties of
  their own for it. EXIF that cannot be understood is ignored: it says nothing about the pixels.
- Colour profiles are applied, see `color`; a broken one is ignored.
- What says nothing about the pixels cannot refuse a file. Pixels that are damaged are decoded as
  far as browsers do, and the frame says so.
"""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.bundle import Canvas, InputSpec, Shape
from service.core import Frame, ValueRange
from service.errors import TooLarge, UndecodableImage, UnsupportedMediaType
from service.pixels.canvas import TURNS, Scaled, opened_to_canvases, shown_size, to_canvases
from service.pixels.formats import FORMATS, sniff
from service.pixels.opened import Opened, pillow_errors
from service.pixels.readers import READERS

# Complaints about metadata carry the caller's values: each would be printed and remembered for
# good.
warnings.filterwarnings("ignore", module=r"PIL\.")

Picture: TypeAlias = Image.Image | NDArray[np.uint8 | np.uint16]


@dataclass(frozen=True, slots=True)
class Limits:
    """In pixels, for the image as stored. max_side and min_side hold for both sides."""

    max_pixels: int
    max_side: int
    min_side: int


def decode(
    data: bytes,
    content_type: str,
    limits: Limits,
    spec: InputSpec,
    values: ValueRange = "full",
) -> Scaled:
    """The first frame of an image file on each canvas.

    content_type: one of FORMATS, or "" to go by the bytes alone. values: how 16 bits become 8.
    Raises UnsupportedMediaType (415) for another type or when the bytes are of another format than
    it says, TooLarge (413), UndecodableImage (422).
    """
    opened = _opened(data, content_type, limits)
    return opened_to_canvases(opened, spec, _orientation(opened.exif), values)


def decode_full(data: bytes, limits: Limits) -> Frame:
    """An image file as shown, at its own size.

    It is what `decode` gives on a canvas of that size, so training sees what is served. Raises
    UnsupportedMediaType, TooLarge and UndecodableImage.
    """
    opened = _opened(data, "", limits)
    orientation = _orientation(opened.exif)
    width, height = shown_size(opened.image, orientation)
    own = Canvas.of([Shape(height, width)])
    spec = InputSpec.of([own], (0, 0, 0))  # nothing is left to pad
    return opened_to_canvases(opened, spec, orientation, "full")[own.name]


def _opened(data: bytes, content_type: str, limits: Limits) -> Opened:
    name = sniff(data)
    if content_type and FORMATS.get(content_type) != name:
        raise UnsupportedMediaType(
            f"The content type says {content_type}, but the bytes are {name}"
        )
    with pillow_errors(name):
        opened = READERS[name](data)
    _check_sides(opened.image, limits)
    return opened


def from_memory(
    picture: Picture, limits: Limits, spec: InputSpec, values: ValueRange = "full"
) -> Scaled:
    """A decoded picture on each canvas.

    picture: a Pillow image of any mode but I and F, whose EXIF orientation and colour profile are
    applied; or an array: (height, width, 3) RGB, (height, width, 4) RGBA or (height, width) gray
    uint8, or (height, width) gray uint16. values: how 16 bits become 8. Raises UndecodableImage for
    anything else, TooLarge.
    """
    if isinstance(picture, Image.Image):
        if picture.mode in ("I", "F"):
            raise UndecodableImage(
                f"The Pillow image is of mode {picture.mode}, whose samples have no range that is "
                "known: give a uint16 array, or scale it to 8 bits (mode L)"
            )
        _check_sides(picture, limits)  # before its pixels are read from its file
        with pillow_errors(picture.format or "Pillow"):
            # A copy: scaling may use the file's own reduced sizes, which changes an open image.
            image, exif = _in_known_order(picture.copy()), picture.info.get("exif")
    elif isinstance(picture, np.ndarray):
        image, exif = _from_array(picture), None
        _check_sides(image, limits)
    else:
        raise UndecodableImage(
            f"The picture is of type {type(picture).__name__}: give the bytes of an image file, "
            "its path, a Pillow image or a NumPy array"
        )
    return to_canvases(image, spec, _orientation(exif), values)


def _in_known_order(image: Image.Image) -> Image.Image:
    """An image of 16 bits in any order of bytes as I;16, one with multiplied alpha as LA: the
    modes that Pillow can convert without cutting them off, or at all."""
    if image.mode == "La":
        return image.convert("LA")
    if not image.mode.startswith("I;16"):
        return image
    native = Image.fromarray(np.asarray(image).astype(np.uint16))
    native.info = image.info
    return native


def _from_array(array: NDArray[np.uint8 | np.uint16]) -> Image.Image:
    if array.dtype.kind == "u":  # readers of TIFF give arrays in the file's order of bytes
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
    gray = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
    color = array.ndim == 3 and array.dtype == np.uint8 and array.shape[2] in (3, 4)
    if (not gray and not color) or array.size == 0:
        raise UndecodableImage(
            f"The array is {array.dtype} {array.shape}: it must be uint8 (height, width, 3 or 4) "
            "or uint8 or uint16 (height, width)"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _check_sides(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise TooLarge(f"The image has {width} x {height} pixels, more than {limits.max_pixels}")
    if max(width, height) > limits.max_side:
        raise TooLarge(
            f"The image is {width} x {height} pixels, and no side may be over {limits.max_side}"
        )
    if min(width, height) < limits.min_side:
        raise UndecodableImage(
            f"The image is {width} x {height} pixels, and no side may be under {limits.min_side}"
        )


def _orientation(exif: object) -> int:
    """EXIF's tag 0x0112 in the first directory, 1..8; 1 if it is absent or the block is
    malformed."""
    if not isinstance(exif, bytes):
        return 1
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(count):
            tag, kind, values, value = struct.unpack_from(
                order + "HHIH", tiff, start + 2 + 12 * entry
            )
            if (tag, kind, values) == (0x0112, 3, 1):  # 3: SHORT
                return value if value in TURNS else 1
    except struct.error:
        return 1
    return 1
