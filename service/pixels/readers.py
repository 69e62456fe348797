"""Format -> its reader: bytes of a file -> Opened. One row per format of FORMATS.

Importing a plugin registers its format. All that Pillow would import in the middle of the first
request is imported here: where no file can be opened any more, that image would count as damaged.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.util import find_spec

from PIL import (
    AvifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from service.pixels.jpeg import open_jpeg
from service.pixels.opened import Opened, kind_of, loader, pillow_open
from service.pixels.png_chunks import open_png
from service.pixels.tiff import open_tiff
from service.pixels.webp import open_webp

_PLUGINS = (
    AvifImagePlugin.AvifImageFile,
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    TiffImagePlugin.TiffImageFile,
    WebPImagePlugin.WebPImageFile,
)
Image.preinit()
if find_spec("pillow_heif"):
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)


def _open(data: bytes, name: str) -> Opened:
    """A file of a format whose decoder has bounds of its own on everything but the pixels."""
    image = pillow_open(io.BytesIO(data), name)
    profile, exif = (image.info.get(key) for key in ("icc_profile", "exif"))
    kind = kind_of(image.mode)
    return Opened(image, name, loader(image), profile=profile, exif=exif, kind=kind)


READERS: dict[str, Callable[[bytes], Opened]] = {
    "JPEG": open_jpeg,
    "PNG": open_png,
    "WebP": open_webp,
    "TIFF": open_tiff,
    "AVIF": lambda data: _open(data, "AVIF"),
    "HEIF": lambda data: _open(data, "HEIF"),
}
