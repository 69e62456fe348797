"""Decodes the bytes of an image file into a Frame: limits, decoding, orientation.

The rules are the same for all three formats; those of `canvas` follow them:
- Pixels and sides are checked from the header, before any pixel is decoded. Of an animation, the
  first frame counts.
- Orientation comes from the tag 0x0112 of the EXIF block (JPEG APP1, PNG eXIf, WebP EXIF) and from
  nowhere else, not from XMP or text chunks. Malformed EXIF is ignored: it says nothing about the
  pixels.
- Colour profiles are not applied.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from service.bundle import InputSpec
from service.core import Frame
from service.errors import TooLarge, UndecodableImage, UnsupportedMediaType
from service.pixels.canvas import TURNS, pillow_errors, to_canvas

# Importing a plugin registers its format. Otherwise Pillow would import all plugins during the
# first request.
_PLUGINS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
)
FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}
# A scan of 64 bytes can cost milliseconds in a progressive JPEG of 25 MP. Encoders write about ten
# scans.
MAX_SCANS = 200
# Warnings about metadata contain the caller's values: each would be printed and remembered forever.
warnings.filterwarnings("ignore", module=r"PIL\.")

Picture: TypeAlias = Image.Image | NDArray[np.uint8 | np.uint16]


@dataclass(frozen=True, slots=True)
class Limits:
    """In pixels, for the image as stored. max_side and min_side apply to both sides."""

    max_pixels: int
    max_side: int
    min_side: int


def decode(data: bytes, content_type: str, limits: Limits, spec: InputSpec) -> Frame:
    """The first frame of an image file on the canvas.

    content_type: one of FORMATS, or "" to detect the format from the bytes alone. Raises TooLarge,
    UndecodableImage, and UnsupportedMediaType for another type or bytes of another format.
    """
    with pillow_errors():
        image = Image.open(io.BytesIO(data), formats=tuple(FORMATS.values()))
    _check_type(image, content_type)
    _check_size(image, data, limits)
    with pillow_errors():
        if image.format == "PNG":
            image.load()  # before EXIF is read: an eXIf chunk may follow the pixels
    return to_canvas(image, spec, _orientation(image.info.get("exif")))


def from_memory(picture: Picture, limits: Limits, spec: InputSpec) -> Frame:
    """A decoded picture on the canvas.

    picture: a Pillow image (its EXIF orientation is applied) or an array: (height, width, 3) RGB,
    (height, width, 4) RGBA or (height, width) gray uint8, or (height, width) gray uint16. Raises
    TooLarge, and UndecodableImage for another array.
    """
    if isinstance(picture, Image.Image):
        # A copy, since decoding at a reduced size changes the caller's image.
        image, exif = picture.copy(), picture.info.get("exif")
    else:
        image, exif = _from_array(picture), None
    _check_sides(image, limits)
    return to_canvas(image, spec, _orientation(exif))


def _from_array(array: NDArray[np.uint8 | np.uint16]) -> Image.Image:
    gray = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
    color = array.ndim == 3 and array.dtype == np.uint8 and array.shape[2] in (3, 4)
    if (not gray and not color) or array.size == 0:
        raise UndecodableImage(
            f"The array is {array.dtype} {array.shape}: it must be uint8 (height, width, 3 or 4) "
            "or uint8 or uint16 (height, width)"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _check_type(image: Image.Image, content_type: str) -> None:
    # MPO is a JPEG with further images behind it.
    actual = "JPEG" if image.format == "MPO" else image.format
    if content_type and FORMATS.get(content_type) != actual:
        raise UnsupportedMediaType(
            f"The content type says {content_type}, but the bytes are {actual}"
        )


def _check_size(image: Image.Image, data: bytes, limits: Limits) -> None:
    _check_sides(image, limits)
    if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > MAX_SCANS:
        raise UndecodableImage(f"The JPEG has more than {MAX_SCANS} scans")


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
    """EXIF's tag 0x0112 in the first directory, 1..8; 1 if it is absent or the block malformed."""
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
