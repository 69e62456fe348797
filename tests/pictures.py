"""Images that tests send."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

LEVELS = (0, 96, 160, 250)  # brightness of the four quarters: classes 0 to 3 of the fake backend


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The file's bytes. options: as Pillow's writer of that kind has them."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def flat(
    colour: tuple[int, int, int] = (200, 200, 200), width: int = 64, height: int = 48
) -> bytes:
    """A PNG of one colour."""
    return encoded(Image.new("RGB", (width, height), colour))


def quarters(width: int = 64, height: int = 48, kind: str = "PNG", **options: Any) -> bytes:
    """Four quarters of different brightness, row by row: LEVELS."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, width // 2 :] = LEVELS[1]
    pixels[height // 2 :, : width // 2] = LEVELS[2]
    pixels[height // 2 :, width // 2 :] = LEVELS[3]
    return encoded(Image.fromarray(pixels), kind, **options)
