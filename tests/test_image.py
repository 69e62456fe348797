"""Bytes -> Frame: limits before decoding, formats, colours, orientation, and the geometry of the
canvas."""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.bundle import InputSpec
from service.core import Frame, Geometry
from service.errors import FathomError, TooLarge, UndecodableImage, UnsupportedMediaType
from service.pixels.decode import Limits, decode
from service.pixels.jpeg_markers import MAX_SCANS
from tests.image_files import chunk, one_canvas, only, png, to_canvas
from tests.pictures import encoded

LIMITS = Limits(max_pixels=25_000_000, max_side=8192, min_side=1)
PAD = (10, 20, 30)
# Every damaged EXIF block makes Pillow warn; the service ignores these warnings, pytest would raise
# them.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def canvas(height: int, width: int) -> InputSpec:
    return one_canvas(height, width, PAD)


def read(data: bytes, spec: InputSpec, content_type: str = "") -> Frame:
    return only(decode(data, content_type, LIMITS, spec))


def bomb(side: int = 13300) -> bytes:
    """One bit per pixel, all black: 22 KB for 177 megapixels."""
    return png(side, side, 1, 0, (b"\0" + bytes((side + 7) // 8)) * side)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth, without symmetry, so that every orientation of it is different."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 230 * x / max(width - 1, 1), 230 * y / max(height - 1, 1)
    blue = 120 + 100 * np.sin(x / max(width, 9) * 3 + seed) * np.cos(y / max(height, 9) * 2)
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))


# -- limits ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pixels_are_refused_from_the_header_before_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(self: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(TooLarge, match="13300 x 13300"):
        read(bomb(), canvas(48, 64))


def test_pillows_own_bomb_error_is_too_large() -> None:
    with pytest.raises(TooLarge):
        decode(
            bomb(13500), "", Limits(2**31, 2**16, 1), canvas(48, 64)
        )  # over twice Pillow's limit


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((100, 100), Limits(10_000, 100, 100), None),
        ((101, 100), Limits(10_000, 200, 1), TooLarge),
        ((101, 10), Limits(10_000, 100, 1), TooLarge),
        ((10, 101), Limits(10_000, 100, 1), TooLarge),
        ((15, 100), Limits(10_000, 100, 16), UndecodableImage),
        ((100, 15), Limits(10_000, 100, 16), UndecodableImage),
    ],
)
def test_pixels_and_sides_have_limits(
    size: tuple[int, int], limits: Limits, expected: type[FathomError] | None
) -> None:
    data = encoded(Image.new("L", size))
    if expected is None:
        frame = only(decode(data, "image/png", limits, canvas(48, 64)))
        assert frame.geometry.width == size[0]
    else:
        with pytest.raises(expected):
            decode(data, "image/png", limits, canvas(48, 64))


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    data = encoded(photo(64, 64), "JPEG", progressive=True)
    scan = data.index(b"\xff\xda")
    following = data.index(b"\xff\xda", scan + 2)
    read(data, canvas(48, 64))
    with pytest.raises(UndecodableImage, match="scans"):
        read(data[:following] + data[scan:following] * MAX_SCANS + data[following:], canvas(48, 64))


# -- formats ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_three_formats_are_read_by_their_type_and_without_one(kind: str) -> None:
    data = encoded(Image.new("RGB", (64, 48), (200, 100, 50)), kind)
    for content_type in (f"image/{kind.lower()}", ""):
        pixels = read(data, canvas(48, 64), content_type).pixels
        assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "BMP", "ICO", "PPM"])
def test_other_formats_are_never_tried(kind: str) -> None:
    with pytest.raises(UndecodableImage, match=r"The bytes are (a|an|no) .*Read are JPEG, PNG"):
        read(encoded(Image.new("RGB", (64, 48)), kind), canvas(48, 64), "image/png")


@pytest.mark.parametrize("content_type", ["image/png", "image/gif", "text/plain"])
def test_bytes_of_another_format_than_the_type_says_are_415_and_the_error_names_theirs(
    content_type: str,
) -> None:
    with pytest.raises(UnsupportedMediaType, match="JPEG"):
        read(encoded(photo(64, 48), "JPEG"), canvas(48, 64), content_type)


def test_a_jpeg_with_further_images_behind_it_counts_as_jpeg_by_its_first() -> None:
    data = encoded(
        Image.new("RGB", (64, 48), "red"),
        "MPO",
        save_all=True,
        append_images=[Image.new("RGB", (64, 48))],
    )
    assert (
        np.abs(read(data, canvas(48, 64), "image/jpeg").pixels.astype(int) - (254, 0, 0)).max() <= 3
    )


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("#c80000", "#00c800")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert (read(data, canvas(48, 64)).pixels == (200, 0, 0)).all()


def test_what_the_first_frame_of_an_animation_does_not_cover_is_white() -> None:
    """The flag of transparency speaks of the frames alone, and says no here."""

    def riff(name: bytes, content: bytes) -> bytes:
        return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)

    def threes(*numbers: int) -> bytes:
        return b"".join(number.to_bytes(3, "little") for number in numbers)

    pixels = encoded(Image.new("RGB", (32, 24), "#c80000"), "WEBP", lossless=True)[12:]
    frame = threes(16 // 2, 8 // 2, 32 - 1, 24 - 1, 100) + b"\0" + pixels
    head = riff(b"VP8X", b"\2\0\0\0" + threes(64 - 1, 48 - 1)) + riff(b"ANIM", bytes(6))
    shown = read(riff(b"RIFF", b"WEBP" + head + riff(b"ANMF", frame)), canvas(48, 64)).pixels
    expected = np.full((48, 64, 3), 255)
    expected[8:32, 16:48] = (200, 0, 0)
    assert (shown == expected).all()


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "TIFF"])
def test_a_file_that_ends_too_early_is_422_wherever_it_ends(kind: str) -> None:
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(rng.integers(0, 255, (96, 96, 3), np.uint8)), kind, quality=60)
    for length in [0, 1, 12, 30, *range(64, len(data) - 64, 1024)]:
        with pytest.raises(UndecodableImage):
            read(data[:length], canvas(48, 64))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_that_ends_too_early_is_422_or_damaged_wherever_it_ends(kind: str) -> None:
    """As browsers show it: see test_image_damage for the pixels."""
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(rng.integers(0, 255, (96, 96, 3), np.uint8)), kind, quality=60)
    for length in [0, 1, 12, 30, 64]:
        with pytest.raises(UndecodableImage):
            read(data[:length], canvas(48, 64))
    for length in range(len(data) // 2, len(data) - 64, 1024):
        assert read(data[:length], canvas(48, 64)).geometry.damaged


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP"]),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=12),
)
def test_damaged_files_raise_nothing_but_our_own_errors(
    kind: str, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(encoded(photo(40, 30), kind, exif=exif(6)))
    for position, value in changes:
        data[position % len(data)] = value
    try:
        frame = only(decode(bytes(data), "", Limits(1_000_000, 8192, 1), canvas(48, 64)))
    except (TooLarge, UndecodableImage):
        return
    assert frame.pixels.shape == (48, 64, 3)


@given(st.binary(max_size=200))
def test_random_bytes_are_422(data: bytes) -> None:
    with pytest.raises(UndecodableImage):
        read(data, canvas(48, 64))


def test_a_lack_of_memory_is_not_blamed_on_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(MemoryError):
        read(encoded(photo(60, 30)), canvas(48, 64))


# -- colours: each file shows the same three columns
# -------------------------------------------------------------------

GRAYS = (0, 100, 255)
COLOURS = ((200, 30, 60), (20, 180, 90), (255, 255, 255))


def columns(samples: tuple[object, ...], mode: str, dtype: type = np.uint8) -> Image.Image:
    """30 x 20 pixels, one third for each sample."""
    row = np.repeat(np.array(samples, dtype), 10, axis=0)
    return Image.fromarray(
        np.ascontiguousarray(np.broadcast_to(row, (20, *row.shape))), mode=None
    ).convert(mode)


def palette(with_alpha: bool) -> Image.Image:
    image = Image.fromarray(np.tile(np.repeat(np.array([0, 1, 2], np.uint8), 10), (20, 1)))
    image.putpalette(bytes(itertools.chain(*COLOURS)))
    if with_alpha:
        image.info["transparency"] = bytes([255, 0, 255])
    return image


def sixteen_bit(colour: int, samples: tuple[int, ...], *before: bytes) -> bytes:
    """samples: the values of a pixel, for each third in turn."""
    per = len(samples) // 3
    row = b"".join(
        struct.pack(f">{per}H", *samples[third * per : third * per + per]) * 10
        for third in range(3)
    )
    return png(30, 20, 16, colour, (b"\0" + row) * 20, *before)


def packed_gray(depth: int, samples: tuple[int, int, int], key: int) -> bytes:
    """samples: of each third. key: the transparent colour, as in the file."""
    bits = "".join(f"{sample:0{depth}b}" * 10 for sample in samples).ljust(240, "0")
    row = int(bits, 2).to_bytes(len(bits) // 8)[: (30 * depth + 7) // 8]
    return png(30, 20, depth, 0, (b"\0" + row) * 20, chunk(b"tRNS", struct.pack(">H", key)))


def cmyk() -> Image.Image:
    inks = [[*(255 - np.array(colour)).tolist(), 0] for colour in COLOURS]
    row = np.repeat(np.array(inks, np.uint8), 10, axis=0)
    return Image.frombytes("CMYK", (30, 20), np.broadcast_to(row, (20, 30, 4)).tobytes())


def gray(*values: int) -> tuple[tuple[int, int, int], ...]:
    return tuple((value, value, value) for value in values)


RGBA = tuple((*colour, alpha) for colour, alpha in zip(COLOURS, (255, 128, 0), strict=True))
OVER_WHITE = ((200, 30, 60), (137, 217, 172), (255, 255, 255))
WIDE = (0, 100 * 257, 65535)
CASES: dict[str, tuple[Callable[[], bytes], tuple[tuple[int, int, int], ...], int]] = {
    "gray": (lambda: encoded(columns(GRAYS, "L")), gray(*GRAYS), 0),
    "gray JPEG": (lambda: encoded(columns(GRAYS, "L"), "JPEG", quality=95), gray(*GRAYS), 3),
    "gray with transparent colour": (
        lambda: encoded(columns(GRAYS, "L"), transparency=100),
        gray(0, 255, 255),
        0,
    ),
    "1 bit": (lambda: encoded(columns((0, 255, 0), "1")), gray(0, 255, 0), 0),
    "gray and alpha": (
        lambda: encoded(columns(((0, 255), (100, 128), (9, 0)), "LA")),
        gray(0, 177, 255),
        1,
    ),
    "RGB": (lambda: encoded(columns(COLOURS, "RGB")), COLOURS, 0),
    "RGB with transparent colour": (
        lambda: encoded(columns(COLOURS, "RGB"), transparency=COLOURS[0]),
        ((255, 255, 255), *COLOURS[1:]),
        0,
    ),
    "RGBA": (lambda: encoded(columns(RGBA, "RGBA")), OVER_WHITE, 1),
    "RGBA WebP": (lambda: encoded(columns(RGBA, "RGBA"), "WEBP", lossless=True), OVER_WHITE, 1),
    "palette": (lambda: encoded(palette(False)), COLOURS, 0),
    "palette with alpha": (
        lambda: encoded(palette(True)),
        (COLOURS[0], (255, 255, 255), COLOURS[2]),
        0,
    ),
    "16 bit gray": (lambda: sixteen_bit(0, WIDE), gray(*GRAYS), 0),
    "16 bit gray with transparent colour": (
        lambda: sixteen_bit(0, WIDE, chunk(b"tRNS", struct.pack(">H", WIDE[1]))),
        gray(0, 255, 255),
        0,
    ),
    "16 bit RGB": (
        lambda: sixteen_bit(2, tuple(257 * v for colour in COLOURS for v in colour)),
        COLOURS,
        0,
    ),
    "16 bit RGB with transparent colour": (
        lambda: sixteen_bit(
            2,
            tuple(257 * v for colour in COLOURS for v in colour),
            chunk(b"tRNS", struct.pack(">HHH", *(257 * v for v in COLOURS[0]))),
        ),
        ((255, 255, 255), *COLOURS[1:]),
        0,
    ),
    "16 bit RGB whose low bytes are not the transparent colour's": (
        lambda: sixteen_bit(
            2,
            (0x12FF, 0, 0, 0x1200, 0, 0, 0x1200, 0, 1),
            chunk(b"tRNS", struct.pack(">HHH", 0x1200, 0, 0)),
        ),
        ((0x12, 0, 0), (255, 255, 255), (0x12, 0, 0)),
        0,
    ),
    "16 bit RGB whose transparent colour has low bytes alone": (
        lambda: sixteen_bit(
            2, (0x12, 0, 0, 0x55, 0, 0, 0x1200, 0, 0), chunk(b"tRNS", b"\0\x12" + bytes(4))
        ),
        ((255, 255, 255), (0, 0, 0), (0x12, 0, 0)),
        0,
    ),
    **{
        f"{depth} bit gray with transparent {name}": (
            lambda depth=depth, key=key: packed_gray(depth, (0, 1, 2), key),
            gray(0, 255 if key & 255 == 1 else 255 // (2**depth - 1), 2 * 255 // (2**depth - 1)),
            0,
        )
        for depth in (2, 4, 8)
        for name, key in (("colour", 1), ("byte", 0xFF01), ("colour beyond its range", 0x11))
        if depth < 8 or key != 0x11
    },
    "1 bit with transparent colour": (
        lambda: packed_gray(1, (0, 1, 0), 0xFF00),
        gray(*[255] * 3),
        0,
    ),
    "16 bit gray and alpha": (
        lambda: sixteen_bit(4, (0, 65535, 25700, 32896, 9, 0)),
        gray(0, 177, 255),
        1,
    ),
    "CMYK JPEG, inverted as Adobe writes it": (
        lambda: encoded(cmyk(), "JPEG", quality=95, subsampling=0),
        COLOURS,
        6,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_pixel_comes_out_in_its_colour(name: str) -> None:
    make, expected, tolerance = CASES[name]
    pixels = read(make(), canvas(20, 30)).pixels
    for third, colour in enumerate(expected):
        middle = pixels[2:18, third * 10 + 2 : third * 10 + 8].astype(
            int
        )  # away from what JPEG smears
        assert np.abs(middle - colour).max() <= tolerance, (third, middle[0, 0], colour)


def test_adobe_marker_is_in_the_cmyk_file_of_the_test() -> None:
    assert b"Adobe" in encoded(cmyk(), "JPEG")


# -- orientation -----------------------------------------------------------------------------------


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


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
