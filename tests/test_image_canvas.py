"""Bytes -> Frame: orientation, and the geometry of the canvas."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from service.core import Geometry
from tests.image_files import chunk, png, to_canvas
from tests.pictures import encoded
from tests.placed_images import PAD, canvas, exif, photo, read

# Every damaged EXIF block makes Pillow warn; the service ignores these warnings, pytest would raise
# them.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


# -- orientation -----------------------------------------------------------------------------------


# EXIF value -> what a viewer does to the stored (height, width, 3) array, in numpy's words
SHOWN: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", SHOWN)
def test_exif_orientation_is_applied_to_every_format(orientation: int, kind: str) -> None:
    stored = photo(60, 30)
    shown = SHOWN[orientation](np.asarray(stored))
    frame = read(
        encoded(stored, kind, exif=exif(orientation), quality=95, lossless=True),
        canvas(*shown.shape[:2]),
    )
    assert np.abs(frame.pixels.astype(int) - shown).max() <= (10 if kind == "JPEG" else 0)
    height, width = shown.shape[:2]
    assert frame.geometry == Geometry(
        width, height, width, height, (height, width), orientation != 1
    )


@pytest.mark.parametrize("orientation", SHOWN)
def test_orientation_and_scaling_give_what_scaling_the_turned_image_gives(orientation: int) -> None:
    stored = photo(301, 173)
    turned = Image.fromarray(np.ascontiguousarray(SHOWN[orientation](np.asarray(stored))))
    frame, expected = (
        to_canvas(stored, canvas(60, 80), orientation),
        to_canvas(turned, canvas(60, 80)),
    )
    assert np.abs(frame.pixels.astype(int) - expected.pixels).max() <= 2
    assert frame.geometry.scaled_width == expected.geometry.scaled_width
    assert frame.geometry.scaled_height == expected.geometry.scaled_height


def test_an_exif_chunk_behind_the_pixels_of_a_png_counts() -> None:
    rows = (b"\0" + bytes(3 * 8)) * 4
    block = exif(6).removeprefix(b"Exif\0\0")
    frame = read(png(8, 4, 8, 2, rows, after=chunk(b"eXIf", block)), canvas(48, 64))
    assert (frame.geometry.width, frame.geometry.height) == (4, 8)


def test_xmp_says_nothing_about_orientation() -> None:
    packet = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
        b"</rdf:RDF></x:xmpmeta>"
    )
    frame = read(encoded(photo(60, 30), "JPEG", xmp=packet), canvas(48, 64))
    assert frame.geometry.orientation_applied is False


HEAD = b"Exif\0\0"


@pytest.mark.parametrize(
    "block",
    [
        HEAD,
        HEAD + b"II*\0",
        HEAD + b"II*\0\xff\xff\xff\xff",  # the directory lies outside
        HEAD + b"XX*\0\x08\0\0\0\x01\0",
        HEAD + b"II*\0\x08\0\0\0\xff\xff" + bytes(30),  # more entries than there are
        HEAD
        + b"II*\0\x08\0\0\0\x01\0"
        + struct.pack("<HHIHxx", 0x0112, 3, 1, 9),  # no such orientation
        HEAD + b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHxx", 0x0112, 3, 1, 0),
        HEAD
        + b"II*\0\x08\0\0\0\x01\0"
        + struct.pack("<HHIHxx", 0x0112, 2, 1, 6),  # text, not a number
        HEAD + b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHxx", 0x0112, 3, 7, 6),
        b"garbage",
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_malformed_exif_is_ignored(block: bytes, kind: str) -> None:
    if kind == "PNG":
        rows = (b"\0" + bytes(3 * 60)) * 30
        data = png(60, 30, 8, 2, rows, chunk(b"eXIf", block.removeprefix(HEAD)))
    else:
        data = encoded(photo(60, 30), kind, exif=block)
    assert read(data, canvas(48, 64)).geometry == Geometry(60, 30, 64, 32, (48, 64))


def test_both_byte_orders_of_exif_are_read() -> None:
    for order, mark in (("<", b"II*\0"), (">", b"MM\0*")):
        block = HEAD + mark + struct.pack(order + "IHHHIHxx", 8, 1, 0x0112, 3, 1, 8)
        assert (
            read(encoded(photo(60, 30), "JPEG", exif=block), canvas(48, 64)).geometry.height == 60
        )


# -- canvas ----------------------------------------------------------------------------------------


def test_an_image_that_fits_stays_pixel_exact_and_the_rest_is_padding() -> None:
    rng = np.random.default_rng(1)
    stored = rng.integers(0, 255, (360, 480, 3), np.uint8)
    frame = read(encoded(Image.fromarray(stored)), canvas(384, 480))
    assert (frame.pixels[:360] == stored).all()
    assert (frame.pixels[360:] == PAD).all()
    assert frame.geometry == Geometry(480, 360, 480, 360, (384, 480))


@pytest.mark.parametrize(
    ("size", "scaled"),
    [
        ((960, 720), (480, 360)),
        ((720, 960), (288, 384)),
        ((48, 36), (480, 360)),  # a small image is scaled up by the same rule
        ((100, 100), (384, 384)),
        ((4000, 16), (480, 2)),
        ((8000, 3), (480, 1)),  # never less than a pixel
        ((3, 8000), (1, 384)),
        ((481, 360), (480, 359)),
    ],
)
def test_one_factor_scales_both_sides_to_fit(
    size: tuple[int, int], scaled: tuple[int, int]
) -> None:
    frame = to_canvas(Image.new("RGB", size, (1, 2, 3)), canvas(384, 480))
    assert (frame.geometry.scaled_width, frame.geometry.scaled_height) == scaled
    inside = frame.pixels[: scaled[1], : scaled[0]]
    assert (inside == (1, 2, 3)).all()
    assert (frame.pixels == (1, 2, 3)).all(axis=2).sum() == scaled[0] * scaled[1]


def test_scaling_down_averages_instead_of_picking() -> None:
    stripes = np.zeros((480, 640, 3), np.uint8)
    stripes[:, ::2] = 255
    frame = to_canvas(Image.fromarray(stripes), canvas(48, 64))
    assert np.abs(frame.pixels.astype(int) - 127).max() <= 16


@pytest.mark.parametrize("size", [(1600, 1200), (1603, 1201), (1999, 1501)])
def test_a_big_jpeg_decoded_small_shows_the_same_picture(size: tuple[int, int]) -> None:
    stored = photo(*size)
    small = read(encoded(stored, "JPEG", quality=95), canvas(96, 128)).pixels.astype(int)
    exact = to_canvas(stored, canvas(96, 128)).pixels.astype(int)
    assert np.abs(small - exact).max() <= 6
    assert np.abs(small - exact).mean() <= 1


def test_a_big_jpeg_is_not_decoded_at_full_size() -> None:
    image = Image.open(io.BytesIO(encoded(photo(1600, 1200), "JPEG")))
    to_canvas(image, canvas(96, 128))
    assert image.size == (400, 300)
