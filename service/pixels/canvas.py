"""A Pillow image of any mode -> Frames: turned, scaled and padded to fill each canvas, in sRGB.

What is transparent lies on white. 16 bits become 8 by scaling. CMYK without a profile follows
Adobe's polarity, as in browsers. The image is scaled by one factor, up or down, to fit the canvas,
and anchored at its top left. A larger image is first scaled to the largest canvas, which has few
pixels for its colour profile to be applied to, and from there to the smaller ones. Scaling down
takes the mean over the area of a pixel, weighted by a triangle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image

from service.bundle import InputSpec, Shape
from service.core import Color, Frame, Geometry, ValueRange
from service.pixels import bilinear, color, value_range
from service.pixels.opened import Opened, kind_of, loader, pillow_errors

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_THE_SIDE = (5, 6, 7, 8)  # orientations whose stored rows are columns of what is shown


def to_canvases(
    image: Image.Image,
    spec: InputSpec,
    orientation: int = 1,
    values: ValueRange = "full",
) -> Scaled:
    """Turn a decoded Pillow image of any mode, convert it by its own profile, and scale it.

    orientation: EXIF's 1..8; others count as 1. values: how 16 bits become 8.
    """
    profile = image.info.get("icc_profile")
    opened = Opened(
        image,
        image.format or "image",
        loader(image),
        profile=profile if isinstance(profile, bytes) else None,
        kind=kind_of(image.mode),
        deep=image.mode == "I;16",
    )
    return opened_to_canvases(opened, spec, orientation, values)


class Scaled(Mapping[str, Frame]):
    """An image on each canvas, by name. All but the first, the glance, are made when they are first
    asked for: most images need one more at most. Not for several threads at once."""

    def __init__(self, source: Image.Image, placed: Mapping[str, Geometry], pad: Color) -> None:
        """source: in sRGB, as large as on the largest canvas, or at its own size if it is smaller.
        placed: where it lies on each canvas."""
        # `convert` would copy an image that is RGB already.
        self._source = np.asarray(source if source.mode == "RGB" else source.convert("RGB"))
        self._placed, self._pad = placed, pad
        self._frames: dict[str, Frame] = {}
        self[next(iter(placed))]

    def __getitem__(self, name: str) -> Frame:
        if name not in self._frames:
            self._frames[name] = self._frame(self._placed[name])
        return self._frames[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._placed)

    def __len__(self) -> int:
        return len(self._placed)

    def _frame(self, geometry: Geometry) -> Frame:
        height, width = geometry.scaled_height, geometry.scaled_width
        pixels = np.empty((*geometry.canvas, 3), np.uint8)
        bilinear.scale(self._source, pixels[:height, :width])
        pixels[height:] = pixels[:height, width:] = self._pad
        return Frame(pixels, geometry)


def opened_to_canvases(
    opened: Opened, spec: InputSpec, orientation: int, values: ValueRange
) -> Scaled:
    """Decode an image file, turn, scale and convert it. Raises UndecodableImage."""
    turn = TURNS.get(orientation)
    width, height = shown_size(opened.image, orientation)
    shapes = [canvas.fitting(width, height) for canvas in spec.canvases]
    sizes = [_scaled(width, height, shape) for shape in shapes]
    # No larger than it is, and as large as any canvas takes it.
    size = min(max(sizes), (width, height))
    if orientation in _ON_THE_SIDE:
        size = size[::-1]
    # JPEG can be decoded at 1/2, 1/4 or 1/8 for a fraction of the time; twice the size leaves the
    # filter its work.
    with pillow_errors(opened.name):
        drafted = opened.image.draft(None, (2 * size[0], 2 * size[1]))
        image, damaged = opened.load()
        narrow = opened.deep and value_range.is_narrow(image)
        transform = color.transform_of(opened.profile, opened.kind)
        if image.mode != "CMYK" or transform is None:
            image = _eight_bits(image, opened, values)
    if image.size != size:
        # The stored image's exact extent: sides may not divide by 8.
        box = drafted[1] if drafted else None
        image = image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
    image = color.to_srgb(image, transform)
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    placed = {
        canvas.name: Geometry(
            width,
            height,
            *scaled,
            canvas=(shape.height, shape.width),
            orientation_applied=turn is not None,
            damaged=damaged,
            narrow_range=narrow and values == "full",
        )
        for canvas, shape, scaled in zip(spec.canvases, shapes, sizes, strict=True)
    }
    return Scaled(image, placed, spec.pad)


def shown_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """The (width, height) of a stored image once it is turned as EXIF's orientation asks."""
    return image.size[::-1] if orientation in _ON_THE_SIDE else image.size


def _scaled(width: int, height: int, shape: Shape) -> tuple[int, int]:
    """The (width, height) of an image that is scaled by one factor to fit."""
    scale = shape.scale(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _eight_bits(image: Image.Image, opened: Opened, values: ValueRange) -> Image.Image:
    """Any mode -> L, RGB or RGBA. The mode "I;16" holds 0..65535, which convert() would cut off at
    255."""
    key = image.info.get("transparency")
    if image.mode == "I;16":
        if values == "auto":
            gray = value_range.gray_auto(image)
        else:
            gray = image.point(lambda value: value * (1 / 257) + 0.5).convert("L")
        if isinstance(key, int):
            # The value that stands for transparent.
            gray.paste(255, mask=Image.fromarray(np.asarray(image) == key))
        return gray
    if image.has_transparency_data:
        if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
            # 16 bits, of which Pillow's own reader of PNG dropped the low ones of the pixels.
            image.info["transparency"] = tuple(value >> 8 for value in key)
        image = image.convert("RGBA")
    if values == "auto" and opened.low_bytes is not None:
        image = value_range.colour_auto(image, opened.low_bytes())
    if image.mode in ("L", "RGB", "RGBA"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")
