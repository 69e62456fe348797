"""Colour profiles: pixels of an image's own colour space -> sRGB, by LittleCMS.

As in browsers: the profile's perceptual table or its matrix, no compensation of the black point. A
profile that is broken, or of another kind of colours than the image, is ignored. Press profiles are
applied to all four inks, relative colorimetrically, as libvips does; Chromium folds black into the
other inks first, which is not what these profiles say.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from service.pixels.opened import ColourKind
from service.pixels.profiles import MAX_PROFILE, SRGB_CURVE, SRGB_POINTS, of_colours

MAX_TRANSFORMS = 32  # in the cache; one takes up to 2 MiB
_CLASSES = (b"scnr", b"mntr", b"prtr", b"spac")  # an input, a display, an output, a colour space
_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
_FITTING: dict[ColourKind, tuple[str, ...]] = {
    "gray": ("L", "RGB"),
    "rgb": ("RGB",),
    "cmyk": ("CMYK",),
}
# Of several tables, browsers take the perceptual one.
_INTENTS = {
    "L": ImageCms.Intent.PERCEPTUAL,
    "RGB": ImageCms.Intent.PERCEPTUAL,
    "CMYK": ImageCms.Intent.RELATIVE_COLORIMETRIC,
}
_TOLERANCE = 1  # levels: a profile whose colours are all so near to sRGB's is sRGB


@dataclass(frozen=True, slots=True)
class Transform:
    """apply: an image of `mode` (L, RGB or CMYK) -> sRGB."""

    mode: str
    apply: Callable[[Image.Image], Image.Image]


class Transforms:
    """A bounded cache of transforms to sRGB by (digest of the profile, mode), for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cached: OrderedDict[tuple[bytes, str], Transform | None] = OrderedDict()

    def get(self, profile: bytes, mode: str) -> Transform | None:
        """The transform from `mode` to RGB; None if the profile is broken, or is sRGB."""
        key = (hashlib.sha256(profile).digest(), mode)
        with self._lock:
            if key in self._cached:
                self._cached.move_to_end(key)
                return self._cached[key]
        transform = _build(profile, mode)
        with self._lock:
            self._cached[key] = transform
            while len(self._cached) > MAX_TRANSFORMS:
                self._cached.popitem(last=False)
        return transform


_TRANSFORMS = Transforms()


def mode_of(profile: bytes | None) -> str:
    """The mode of the pixels that a profile is for: L, RGB or CMYK; "" if there is no such."""
    if profile is None or not 128 < len(profile) <= MAX_PROFILE or profile[36:40] != b"acsp":
        return ""
    return _MODES.get(profile[16:20], "") if profile[12:16] in _CLASSES else ""


def transform_of(profile: bytes | None, kind: ColourKind) -> Transform | None:
    """What makes sRGB of an image's colours; None if they are sRGB, or the profile does not apply.

    kind: of the image as stored. A profile for RGB fits gray, too.
    """
    mode = mode_of(profile)
    if profile is None or mode not in _FITTING[kind]:
        return None
    return _TRANSFORMS.get(profile, mode)


def to_srgb(image: Image.Image, transform: Transform | None) -> Image.Image:
    """An image of mode L, RGB, RGBA or CMYK as sRGB."""
    if transform is None:
        return image
    gray = transform.mode == "L"
    colours = image.getchannel(0) if gray else image.convert(transform.mode)
    converted = transform.apply(colours)
    if image.mode == "RGBA":
        converted.putalpha(image.getchannel("A"))
    return converted


def _build(profile: bytes, mode: str) -> Transform | None:
    try:
        transform = ImageCms.ImageCmsTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            _srgb(),
            mode,
            "RGB",
            _INTENTS[mode],
            # Else LittleCMS interpolates the curve of gray, which is too coarse for dark tones.
            flags=ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE,
        )
        probe = _probe(mode)
        converted = transform.apply(probe)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if mode == "CMYK":
        return Transform(mode, transform.apply)
    difference = np.asarray(converted).astype(int) - np.asarray(probe.convert("RGB"))
    if np.abs(difference).max() <= _TOLERANCE:
        return None
    return Transform(mode, _table(converted) if mode == "L" else transform.apply)


def _table(converted: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """What makes of gray what a transform made of each of its 256 levels."""
    tables = [np.asarray(channel).ravel().tolist() for channel in converted.split()]
    return lambda gray: Image.merge("RGB", [gray.point(table) for table in tables])


def _srgb() -> ImageCms.ImageCmsProfile:
    profile = of_colours(SRGB_CURVE, SRGB_POINTS)
    assert profile is not None  # sRGB has a matrix
    return ImageCms.ImageCmsProfile(io.BytesIO(profile))


def _probe(mode: str) -> Image.Image:
    """Every 17th level of each channel, and of gray all."""
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    if mode == "RGB":
        grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
        return Image.fromarray(np.ascontiguousarray(grid.reshape(len(levels), -1, 3)))
    gray = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    return gray.convert(mode)
