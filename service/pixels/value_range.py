"""Samples of 16 bits -> 8 bits: over the full range, or over the range that an image uses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Percentiles that become black and white; what lies beyond is cut off.
LOW, HIGH = 0.1, 99.9
_NARROW = 65536 // 4
_BAND = 256  # rows at a time: bounds the memory


def is_narrow(image: Image.Image) -> bool:
    """Whether 16-bit values use under a quarter of their range.

    image: of mode I;16, or the high bytes of others; alpha does not count.
    """
    extrema: Any = image.getextrema()
    channels, narrow = [extrema], _NARROW
    if image.mode != "I;16":
        channels, narrow = extrema[:3], _NARROW // 256
    return bool(max(high for _, high in channels) - min(low for low, _ in channels) < narrow)


def gray_auto(image: Image.Image) -> Image.Image:
    """I;16 -> L over the range that the image uses."""
    samples = np.asarray(image)
    table = _table(np.bincount(samples.ravel(), minlength=65536))
    return Image.fromarray(table[samples])


def colour_auto(high: Image.Image, low: Image.Image) -> Image.Image:
    """The high and the low bytes of 16-bit RGB or RGBA -> RGB or RGBA over the range that all
    colours of the image use together. Alpha keeps its high bytes."""
    counts = np.zeros(65536, np.int64)
    for top in range(0, high.height, _BAND):
        counts += np.bincount(_samples(high, low, top).ravel(), minlength=65536)
    table = _table(counts)
    result = high.copy()
    for top in range(0, high.height, _BAND):
        band = Image.fromarray(table[_samples(high, low, top)])
        if high.mode == "RGBA":
            band.putalpha(high.crop((0, top, high.width, top + band.height)).getchannel("A"))
        result.paste(band, (0, top))
    return result


def _samples(high: Image.Image, low: Image.Image, top: int) -> NDArray[np.uint16]:
    """(rows, width, 3): the colours of a band, 16 bits."""
    box = (0, top, high.width, min(top + _BAND, high.height))
    upper, lower = (np.asarray(image.crop(box))[..., :3] for image in (high, low))
    return np.asarray(upper.astype(np.uint16) << 8 | lower, np.uint16)


def _table(counts: NDArray[np.integer]) -> NDArray[np.uint8]:
    """(65536,): what becomes of each value. counts: how often each is there."""
    shares = np.cumsum(counts) / counts.sum() * 100
    low, high = (int(np.searchsorted(shares, percentile)) for percentile in (LOW, HIGH))
    values = (np.arange(65536) - low) * (255 / max(high - low, 1))
    return values.round().clip(0, 255).astype(np.uint8)
