"""Images of any size on a canvas that the test chooses."""

from __future__ import annotations

import numpy as np
from PIL import Image

from service.bundle import InputSpec
from service.core import Frame
from service.pixels.decode import decode
from tests.image_files import LIMITS, one_canvas, only

PAD = (10, 20, 30)


def canvas(height: int, width: int) -> InputSpec:
    return one_canvas(height, width, PAD)


def read(data: bytes, spec: InputSpec, content_type: str = "") -> Frame:
    return only(decode(data, content_type, LIMITS, spec))


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth, without symmetry, so that every orientation of it is different."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 230 * x / max(width - 1, 1), 230 * y / max(height - 1, 1)
    blue = 120 + 100 * np.sin(x / max(width, 9) * 3 + seed) * np.cos(y / max(height, 9) * 2)
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()
