"""Turns, scales and pads a Pillow image of any mode to fill the canvas.

Transparent pixels are blended with white. 16 bits become 8 by scaling. CMYK follows Adobe's
polarity, as in browsers. The image is scaled by one factor, up or down, to fit the canvas, and lies
at its top left.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from service.bundle import InputSpec
from service.core import Frame, Geometry
from service.errors import TooLarge, UndecodableImage

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_canvas(image: Image.Image, spec: InputSpec, orientation: int = 1) -> Frame:
    """Turn, scale and pad a Pillow image of any mode. orientation: EXIF's 1..8; others count as 1.

    Raises UndecodableImage: Pillow may decode only now.
    """
    turn = TURNS.get(orientation)
    turned = orientation in (5, 6, 7, 8)
    width, height = image.size[::-1] if turned else image.size
    scale = min(spec.width / width, spec.height / height)
    scaled_width, scaled_height = max(1, round(width * scale)), max(1, round(height * scale))
    size = (scaled_height, scaled_width) if turned else (scaled_width, scaled_height)
    # A JPEG can be decoded at 1/2, 1/4 or 1/8 in a fraction of the time. Twice the final size
    # leaves enough detail for the filter.
    with pillow_errors():
        drafted = image.draft(None, (2 * size[0], 2 * size[1]))
        image.load()
        image = _eight_bits(image)
    if image.size != size:
        # The exact extent of the stored image: its sides may not be divisible by 8.
        box = drafted[1] if drafted else None
        image = image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.empty((spec.height, spec.width, 3), np.uint8)
    pixels[:] = spec.pad
    pixels[:scaled_height, :scaled_width] = np.asarray(image.convert("RGB"))
    geometry = Geometry(
        width,
        height,
        scaled_width,
        scaled_height,
        canvas=(spec.height, spec.width),
        orientation_applied=turn is not None,
    )
    return Frame(pixels, geometry)


@contextmanager
def pillow_errors() -> Iterator[None]:
    """Turn whatever the decoders raise on a caller's bytes into an error for that caller.

    Pillow's messages are left out: they contain addresses of objects.
    """
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge("The image has too many pixels") from error
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and "truncated" in str(error):
            raise UndecodableImage("The file ends too early") from error
        raise UndecodableImage("The bytes are not a readable JPEG, PNG or WebP image") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Any mode -> L, RGB or RGBA. "I;16" holds 0..65535, which convert() would cut off at 255."""
    key = image.info.get("transparency")
    if image.mode == "I;16":
        gray = image.point(lambda value: value * (1 / 257) + 0.5).convert("L")
        if isinstance(key, int):
            # The key is the value of transparent pixels.
            gray.paste(255, mask=Image.fromarray(np.asarray(image) == key))
        return gray
    if image.has_transparency_data:
        if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
            # The key has 16 bits, as the pixels had.
            image.info["transparency"] = tuple(value >> 8 for value in key)
        return image.convert("RGBA")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")
