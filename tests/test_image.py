"""Bytes -> Frame: limits before decoding, formats, files that are damaged."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import FathomError, TooLarge, UndecodableImage, UnsupportedMediaType
from service.pixels.decode import Limits, decode
from service.pixels.jpeg_markers import MAX_SCANS
from tests.image_files import only, png
from tests.pictures import encoded
from tests.placed_images import canvas, exif, photo, read

# Every damaged EXIF block makes Pillow warn; the service ignores these warnings, pytest would raise
# them.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def bomb(side: int = 13300) -> bytes:
    """One bit per pixel, all black: 22 KB for 177 megapixels."""
    return png(side, side, 1, 0, (b"\0" + bytes((side + 7) // 8)) * side)


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
