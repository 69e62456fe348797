"""Label maps as PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.core import Color


def palette(labels: NDArray[np.uint8], colors: Sequence[Color]) -> bytes:
    """A palette PNG: the pixel values are the labels, shown in these colours."""
    image = Image.fromarray(labels)
    image.putpalette(bytes(value for color in colors for value in color))
    return _written(image)


def gray(labels: NDArray[np.uint16]) -> bytes:
    """A 16-bit grayscale PNG: the pixel values are the labels."""
    return _written(Image.fromarray(labels))


def _written(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
