"""The one colour of a PNG without alpha that counts as transparent (tRNS), in all bits of the
samples as they are stored."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from functools import reduce

from PIL import Image, ImageChops

from service.pixels.png_format import CHANNELS, GRAY, RGB, Header, gray_step


def transparent_colour(header: Header, content: bytes) -> tuple[int, ...]:
    """The samples of the colour that tRNS names; empty if it is too short, the colour type has
    none, or no pixel can have it. As in browsers, of up to 8 bits the lower byte counts."""
    count = CHANNELS[header.colour_type] if header.colour_type in (GRAY, RGB) else 0
    if len(content) < 2 * count:
        return ()
    mask = 0xFFFF if header.depth == 16 else 0xFF
    colour = tuple(sample & mask for sample in struct.unpack_from(f">{count}H", content))
    return colour if max(colour, default=0) < 1 << header.depth else ()


def pillow_compares(header: Header) -> bool:
    """Whether Pillow finds the colour; of RGB of 16 bits it would compare the high bytes alone."""
    return (header.depth, header.colour_type) != (16, RGB)


def for_pillow(header: Header, colour: Iterable[int]) -> bytes:
    """The content of the tRNS that Pillow gets: it compares when gray has 8 bits already."""
    step = gray_step(header.depth)
    return b"".join(struct.pack(">H", sample * step) for sample in colour)


def without_colour(
    image: Image.Image, colour: Iterable[int], low_bytes: Callable[[], Image.Image]
) -> Image.Image:
    """RGB with the high bytes of 16-bit samples -> RGBA, in which one colour is transparent; RGB if
    no pixel has it. low_bytes: see Opened; asked for if all high bytes of a pixel fit."""
    mask = _where(image, [sample >> 8 for sample in colour])
    if mask.getbbox() is not None:
        low = [sample & 255 for sample in colour]
        mask = ImageChops.darker(mask, _where(low_bytes(), low))
    if mask.getbbox() is not None:
        image.putalpha(ImageChops.invert(mask))
    return image


def _where(image: Image.Image, colour: Iterable[int]) -> Image.Image:
    """255 where an image has a colour."""
    fitting = [
        channel.point([255 * (value == sample) for value in range(256)])
        for channel, sample in zip(image.split(), colour, strict=True)
    ]
    return reduce(ImageChops.darker, fitting)
