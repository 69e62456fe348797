"""Bytes of an image file -> Frame: limits, decoding, orientation, canvas.

Rules, for all three formats alike:
- Pixels and sides are checked from the header, before any pixel is decoded. Of an animation, the
  first frame counts.
- Orientation comes from the tag 0x0112 of the EXIF block (JPEG APP1, PNG eXIf, WebP EXIF) and from
  nowhere else, not from XMP or text chunks. EXIF that cannot be understood is ignored: it says
  nothing about the pixels.
- What is transparent lies on white. 16 bits become 8 by scaling. CMYK follows Adobe's polarity, as
  in browsers. Colour profiles are not applied.
- The image is scaled by one factor, up or down, to fit the canvas, and anchored at its top left.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from service.bundle import InputSpec
from service.core import Frame, Geometry
from service.errors import TooLarge, UndecodableImage, UnsupportedMediaType

# Importing a plugin registers its format; Pillow would import all of them in the middle of the
# first request.
_PLUGINS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
)
FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}
# A progressive JPEG of 25 MP can spend milliseconds on a scan of 64 bytes; encoders write about ten
# scans.
MAX_SCANS = 200
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Complaints about metadata carry the caller's values: each would be printed and remembered for
# good.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True, slots=True)
class Limits:
    """In pixels, for the image as stored. max_side and min_side hold for both sides."""

    max_pixels: int
    max_side: int
    min_side: int


def decode(data: bytes, content_type: str, limits: Limits, spec: InputSpec) -> Frame:
    """The first frame of an image file on the canvas.

    content_type: one of FORMATS, or "" to go by the bytes alone. Raises UnsupportedMediaType (415)
    for another type or when the bytes are of another format than it says, TooLarge (413),
    UndecodableImage (422).
    """
    with _pillow():
        image = Image.open(io.BytesIO(data), formats=tuple(FORMATS.values()))
    _check_type(image, content_type)
    _check_size(image, data, limits)
    with _pillow():
        if image.format == "PNG":
            image.load()  # first of all, since an eXIf chunk may stand after the pixels
    return to_canvas(image, spec, _orientation(image.info.get("exif")))


def to_canvas(image: Image.Image, spec: InputSpec, orientation: int = 1) -> Frame:
    """Turn, scale and pad a Pillow image of any mode. orientation: EXIF's 1..8; others count as 1.

    Raises UndecodableImage: Pillow decodes only now, if it has not yet.
    """
    turn = _TURN.get(orientation)
    turned = orientation in (5, 6, 7, 8)
    width, height = image.size[::-1] if turned else image.size
    scale = min(spec.width / width, spec.height / height)
    scaled_width, scaled_height = max(1, round(width * scale)), max(1, round(height * scale))
    size = (scaled_height, scaled_width) if turned else (scaled_width, scaled_height)
    # JPEG can be decoded at 1/2, 1/4 or 1/8 for a fraction of the time; twice the size leaves the
    # filter its work.
    with _pillow():
        drafted = image.draft(None, (2 * size[0], 2 * size[1]))
        image.load()
        image = _eight_bits(image)
    if image.size != size:
        box = (
            drafted[1] if drafted else None
        )  # the stored image's exact extent: sides may not divide by 8
        image = image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.empty((spec.height, spec.width, 3), np.uint8)
    pixels[:] = spec.pad
    pixels[:scaled_height, :scaled_width] = np.asarray(image.convert("RGB"))
    return Frame(pixels, Geometry(width, height, scaled_width, scaled_height, turn is not None))


@contextmanager
def _pillow() -> Iterator[None]:
    """Whatever the decoders raise on bytes that a stranger wrote becomes an error that the stranger
    can read.

    Pillow's messages are left out: they hold addresses of objects.
    """
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge("The image has too many pixels") from error
    except MemoryError:
        raise
    except Exception as error:
        cut = isinstance(error, OSError) and "truncated" in str(error)
        detail = (
            "The file ends too early"
            if cut
            else "The bytes are no JPEG, PNG or WebP image that can be read"
        )
        raise UndecodableImage(detail) from error


def _check_type(image: Image.Image, content_type: str) -> None:
    found = (
        "JPEG" if image.format == "MPO" else image.format
    )  # MPO: a JPEG with further images behind it
    if content_type and FORMATS.get(content_type) != found:
        raise UnsupportedMediaType(
            f"The content type says {content_type}, but the bytes are {found}"
        )


def _check_size(image: Image.Image, data: bytes, limits: Limits) -> None:
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
    if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > MAX_SCANS:
        raise UndecodableImage(f"The JPEG has more than {MAX_SCANS} scans")


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
                return value if value in _TURN else 1
    except struct.error:
        return 1
    return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Any mode -> L, RGB or RGBA. The mode "I;16" holds 0..65535, which convert() would cut off at
    255."""
    key = image.info.get("transparency")
    if image.mode == "I;16":
        gray = image.point(lambda value: value * (1 / 257) + 0.5).convert("L")
        if isinstance(key, int):
            gray.paste(
                255, mask=Image.fromarray(np.asarray(image) == key)
            )  # the value that stands for transparent
        return gray
    if image.has_transparency_data:
        if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
            image.info["transparency"] = tuple(
                value >> 8 for value in key
            )  # 16 bits, as the pixels were
        return image.convert("RGBA")
    return (
        image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")
    )
