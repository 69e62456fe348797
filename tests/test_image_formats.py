"""AVIF, HEIF and TIFF: each behind its own media type, within the same limits."""

from __future__ import annotations

import contextlib
import logging
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import FathomError, TooLarge, UndecodableImage, UnsupportedMediaType
from service.pixels import formats
from service.pixels.decode import Limits
from service.pixels.formats import FORMATS, sniff, unsupported
from service.pixels.readers import READERS
from tests.image_files import Tags, difference, photo, read, segment, stored, tiff
from tests.pictures import encoded

TYPES = {"TIFF": "image/tiff", "AVIF": "image/avif", "HEIF": "image/heic"}
PHOTO = read(encoded(photo()))


def heif(image: Image.Image, **options: object) -> bytes:
    pytest.importorskip("pillow_heif", reason="the extra 'heif' is not installed")
    return encoded(image, "HEIF", **options)


def of(kind: str, image: Image.Image, **options: object) -> bytes:
    return heif(image, **options) if kind == "HEIF" else encoded(image, kind, **options)


def test_every_format_has_a_reader() -> None:
    assert set(FORMATS.values()) <= set(READERS)
    assert list(FORMATS)[:3] == ["image/jpeg", "image/png", "image/webp"]


@pytest.mark.parametrize("kind", TYPES)
def test_each_is_read_by_its_type_and_without_one(kind: str) -> None:
    data = of(kind, photo(), quality=90)
    for content_type in (TYPES[kind], ""):
        assert difference(read(data, content_type), PHOTO) < 2
    with pytest.raises(UnsupportedMediaType, match=f"the bytes are {kind}"):
        read(data, "image/png")


@pytest.mark.parametrize("kind", TYPES)
def test_limits_come_from_the_header(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = of(kind, photo(640, 480))

    def load(self: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    for limits in (Limits(300_000, 8192, 1), Limits(10**7, 600, 1)):
        with pytest.raises(TooLarge, match="640 x 480"):
            read(data, "", limits=limits)
    with pytest.raises(UndecodableImage, match="under 500"):
        read(data, "", limits=Limits(10**7, 8192, 500))


@pytest.mark.parametrize("kind", TYPES)
def test_orientation_is_applied_once(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    geometry = read(of(kind, photo(), exif=exif.tobytes())).geometry
    assert (geometry.width, geometry.height) == (120, 160)


def test_a_type_whose_extra_is_missing_is_415_and_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_MISSING", {"HEIF": "the extra heif"})
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    with pytest.raises(UnsupportedMediaType, match="the extra heif"):
        sniff(data)
    assert "the extra heif" in unsupported("image/heic").detail
    assert "image/jpeg" in unsupported("image/gif", "multipart/form-data").detail


@pytest.mark.skipif("image/heic" in FORMATS, reason="the extra 'heif' is installed")
def test_without_the_extra_heic_is_not_offered() -> None:
    said = unsupported("image/heic").detail
    assert said == "image/heic is not read by this service: it lacks the extra heif"
    with pytest.raises(UnsupportedMediaType, match="heif"):
        read(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


@pytest.mark.parametrize(
    ("brand", "compatible", "name"),
    [(b"avif", b"mif1", "AVIF"), (b"mif1", b"avif", "AVIF"), (b"avis", b"msf1", "AVIF")],
)
def test_brands_tell_avif_from_heif(brand: bytes, compatible: bytes, name: str) -> None:
    assert sniff(b"\0\0\0\x18ftyp" + brand + bytes(4) + compatible * 2) == name


# -- TIFF ------------------------------------------------------------------------------------------

GRAY16 = Image.fromarray((np.asarray(photo())[..., 2].astype(np.uint16) << 8) + 7)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_modes_and_compressions_of_tiff(mode: str, compression: str | None) -> None:
    image = GRAY16 if mode == "I;16" else photo().convert(mode)
    frame = read(encoded(image, "TIFF", compression=compression), "image/tiff")
    png_image = photo().convert("RGB") if mode == "CMYK" else image
    assert difference(frame, read(encoded(png_image))) <= (1 if mode in ("CMYK", "LA") else 0)


@pytest.mark.parametrize("compression", ["jpeg", "tiff_ccitt", "group4", "zstd", "webp", "lzma"])
def test_other_compressions_are_refused_by_name(compression: str) -> None:
    image = photo().convert("1" if "ccitt" in compression or compression == "group4" else "RGB")
    try:
        data = encoded(image, "TIFF", compression=compression)
    except (OSError, RuntimeError):
        pytest.skip(f"this Pillow writes no {compression}")
    with pytest.raises(UndecodableImage, match=r"compression .* LZW, Deflate, PackBits"):
        read(data)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_other_samples_are_refused_by_name(mode: str) -> None:
    with pytest.raises(UndecodableImage, match="unsigned integers of 8 or 16 bits"):
        read(encoded(photo().convert("L").convert(mode), "TIFF"))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
def test_gray_of_16_bits_in_both_orders_and_polarities(order: str, photometric: int) -> None:
    samples = np.tile(np.linspace(0, 65535, 160).astype(np.uint16), (120, 1))
    stored = 65535 - samples if photometric == 0 else samples
    data = tiff(order, {262: (3, [photometric])}, stored.astype(order + "u2").tobytes())
    pixels = read(data).pixels[..., 0].astype(int)
    assert np.abs(pixels - samples / 257).max() <= 1


@pytest.mark.parametrize("order", ["<", ">"])
def test_auto_keeps_all_bits_of_colours_in_tiff(order: str) -> None:
    ramp = np.tile(np.linspace(100, 4095, 160).astype(np.uint16), (120, 1))
    colours = np.stack([ramp, ramp, ramp], axis=2)
    further = {258: (3, [16, 16, 16]), 262: (3, [2]), 277: (3, [3])}
    data = tiff(order, further, colours.astype(order + "u2").tobytes())
    assert read(data).geometry.narrow_range
    pixels = read(data, values="auto").pixels.astype(int)
    assert np.abs(pixels - ((colours - 100.0) / 3995 * 255)).max() <= 2


# What Pillow reads of several samples: photometric interpretation, samples, kinds of extra ones.
COLOURS = {
    "RGB": (2, 3, []),
    "RGBA": (2, 4, [2]),
    "premultiplied": (2, 4, [1]),
    "unspecified": (2, 4, [0]),
    "CMYK": (5, 4, []),
}


def random_samples(channels: int, bits: int) -> np.ndarray:
    """(120, 160, channels): under a sixteenth of the range; but the last channel is over all."""
    rng = np.random.default_rng(channels)
    samples = rng.integers(0, 2 ** (bits - 4), (120, 160, channels), f"u{bits // 8}")
    samples[..., 3:] = rng.integers(0, 2**bits, samples[..., 3:].shape, samples.dtype)
    return samples


@pytest.mark.parametrize("name", COLOURS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True], ids=["none", "Deflate"])
def test_samples_stored_apart_are_read_as_those_that_lie_together(
    name: str, bits: int, order: str, deflate: bool
) -> None:
    photometric, channels, extras = COLOURS[name]
    samples = random_samples(channels, bits)
    further: Tags = {262: (3, [photometric])} | ({338: (3, extras)} if extras else {})
    apart = stored(samples, further, order, deflate, apart=True)
    together = stored(samples, further, order, deflate)
    full = read(apart)
    if name in ("RGB", "unspecified"):
        assert (full.pixels == samples[..., :3] >> (bits - 8)).all()
    rounding = 1 if name == "premultiplied" else 0
    for values in ("full", "auto"):
        frame, expected = read(apart, values=values), read(together, values=values)
        assert np.abs(frame.pixels.astype(int) - expected.pixels).max() <= rounding
        assert frame.geometry == expected.geometry


@pytest.mark.parametrize("bits", [8, 16])
def test_tiles_of_samples_stored_apart_are_put_in_their_places(bits: int) -> None:
    samples = random_samples(3, bits)
    tiles: Tags = {262: (3, [2]), 322: (4, [64]), 323: (4, [48]), 273: (0, []), 279: (0, [])}
    frame = read(stored(samples, tiles, apart=True))
    assert (frame.pixels == samples >> (bits - 8)).all()


@pytest.mark.parametrize(("bits", "photometric"), [(8, 0), (8, 1), (16, 0), (16, 1)])
@pytest.mark.parametrize("beside", [0, 1], ids=["alone", "with a further one"])
def test_gray_in_a_plane_of_its_own_is_read_as_gray(
    bits: int, photometric: int, beside: int
) -> None:
    samples = np.repeat(random_samples(4, bits)[..., 3:], 1 + beside, axis=2)
    further: Tags = {262: (3, [photometric])} | ({338: (3, [0])} if beside else {})
    pixels = read(stored(samples, further, apart=True)).pixels[..., 0]
    gray = samples[..., 0] if photometric else ~samples[..., 0]
    assert np.abs(pixels - gray / (2**bits - 1) * 255).max() <= 0.5


def test_more_planes_than_strips_are_damage() -> None:
    further: Tags = {258: (3, [8] * 3), 262: (3, [2]), 277: (3, [3]), 284: (3, [2])}
    with pytest.raises(UndecodableImage, match="fewer strips than planes"):
        read(tiff("<", further, bytes(3 * 160 * 120)))


@pytest.mark.parametrize("apart", [False, True])
def test_gray_with_premultiplied_alpha_lies_on_white(apart: bool) -> None:
    gray, alpha = np.full((120, 160), 60, np.uint8), np.full((120, 160), 128, np.uint8)
    samples = np.stack([gray, alpha], axis=2)
    further: Tags = {262: (3, [1]), 338: (3, [1])}
    pixels = read(stored(samples, further, apart=apart)).pixels
    assert np.abs(pixels.astype(int) - (60 + 255 - 128)).max() <= 1


@pytest.mark.parametrize(
    ("further", "sample", "expected"),
    [
        ({530: (3, [1, 1])}, (150, 90, 200), (251, 112, 83)),
        # Levels of video: 16 is black, 235 is white.
        ({530: (3, [1, 1]), 532: (5, [16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1])},
         (235, 128, 128), (255, 255, 255)),
        # Coefficients of Rec. 709.
        ({530: (3, [1, 1]), 529: (5, [2126, 10000, 7152, 10000, 722, 10000])},
         (150, 90, 200), (255, 123, 79)),
    ],
    ids=["not subsampled", "reference black and white", "coefficients"],
)  # fmt: skip
def test_ycbcr_goes_by_the_tags_that_describe_it(
    further: Tags, sample: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    samples = np.tile(np.array(sample, np.uint8), (120, 160, 1))
    pixels = read(stored(samples, {262: (3, [6])} | further, deflate=True)).pixels
    assert np.abs(pixels.astype(int) - expected).max() <= 2


LAYOUTS: dict[str, Tags] = {
    "gray, 1 x 12 bits": {258: (3, [12])},
    "gray, 2 x 16 bits, compression none, alpha samples": {
        258: (3, [16, 16]), 277: (3, [2]), 338: (3, [2]),
    },
    "CMYK, 5 x 8 bits, compression none, alpha samples": {
        258: (3, [8] * 5), 262: (3, [5]), 277: (3, [5]), 338: (3, [2]),
    },
    "YCbCr, 3 x 8 bits, compression none": {258: (3, [8] * 3), 262: (3, [6]), 277: (3, [3])},
    "CIELAB, 3 x 8 bits, compression none": {258: (3, [8] * 3), 262: (3, [8]), 277: (3, [3])},
    "RGB, unequal bits": {258: (3, [8, 16, 8]), 262: (3, [2]), 277: (3, [3])},
    "gray, 40000 x 16 bits": {277: (3, [40000])},
    "photometric interpretation 32803": {262: (3, [32803])},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_layouts_that_are_not_read_are_refused_by_name(
    layout: str, order: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(UndecodableImage, match=rf"laid out \({layout}.*\): save it with 8 or 16"),
    ):
        read(tiff(order, LAYOUTS[layout], bytes(160 * 120 * 5)))
    assert caplog.records == []


@pytest.mark.parametrize("unit", [1, 257])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_palette_of_8_bits_is_known_by_its_values(order: str, unit: int) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (256, 3))
    labels = np.arange(160 * 120, dtype=np.uint32).astype(np.uint8).reshape(120, 160, 1)
    palette = (colours.T.ravel() * unit).tolist()
    further: Tags = {262: (3, [3]), 320: (3, palette)}
    assert (read(stored(labels, further, order)).pixels == colours[labels[..., 0]]).all()


def test_inks_have_no_range_to_scale() -> None:
    paper = np.zeros((120, 160, 4), np.uint16)
    paper[:, :80] = 3000
    data = stored(paper, {262: (3, [5])})
    assert not read(data).geometry.narrow_range
    assert (read(data, values="auto").pixels == read(data).pixels).all()


def test_libtiff_writes_nothing_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """The lines there are JSON, and one for each strip would be many."""
    data = stored(random_samples(3, 8), {262: (3, [2])}, deflate=True)
    with pytest.raises(UndecodableImage, match="damaged"):
        read(data[:40] + bytes(400) + data[440:])
    assert capfd.readouterr().err == ""


def test_of_several_pages_the_first_counts() -> None:
    data = encoded(photo(), "TIFF", save_all=True, append_images=[Image.new("RGB", (999, 9))])
    assert (read(data).pixels == PHOTO.pixels).all()


def test_a_preview_is_not_taken_for_the_raw_photo_in_the_same_file() -> None:
    pixels, preview = bytes(160 * 120 * 2), {254: (4, [1])}
    assert not read(tiff("<", preview, pixels)).pixels.any()  # alone, as a level of a pyramid
    with pytest.raises(UndecodableImage, match="a small copy of another image"):
        read(tiff("<", preview | {330: (4, [8])}, pixels))


@pytest.mark.parametrize("size", [(160, 120), (640, 480)])
def test_a_lossless_jpeg_is_read_as_it_is_and_smaller(size: tuple[int, int]) -> None:
    """libjpeg has no halves of it. One gray: the first sample is 72 over the middle, which has the
    bits 10 and 1001000, and each of the others differs by nothing from the one before, 0."""
    width, height = size
    bits = "101001000" + "0" * (width * height - 1)
    bits += "1" * (-len(bits) % 8)
    data = b"\xff\xd8" + b"".join(
        (
            segment(0xC3, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0"),
            segment(0xC4, b"\0" + b"\1\1" + bytes(14) + b"\0\7"),
            segment(0xDA, b"\1\1\0\1\0\0"),
            int(bits, 2).to_bytes(len(bits) // 8, "big"),
            b"\xff\xd9",
        )
    )
    frame = read(data)
    assert (frame.pixels == 200).all()
    assert not frame.geometry.damaged


def test_tags_that_claim_the_whole_file_take_no_memory() -> None:
    """A directory of tags that each point to all bytes of the file."""
    further = dict.fromkeys(range(40000, 40900), (7, None))
    pixels = bytes(160 * 120 * 2)
    data = tiff("<", further, pixels + bytes(1_000_000), claimed=900_000)
    assert read(data).geometry.width == 160
    many = tiff("<", {tag: (3, [1]) for tag in range(40_000, 42_000)}, pixels)
    with pytest.raises(UndecodableImage, match="more than 1000 tags"):
        read(many)


@pytest.mark.parametrize(
    "further",
    [
        {322: (4, [2**31 - 1]), 323: (4, [2**31 - 1]), 324: (4, [8]), 325: (4, [9])},
        {273: (4, [2**32 - 1])},
        {279: (4, [2**32 - 1])},
        {256: (4, [2**31 - 1])},
        {256: (4, [0])},
        {258: (3, [64])},
        {277: (3, [65535])},
        {278: (4, [0])},
        {258: (3, None)},
        {320: (3, None)},
    ],
)
def test_hostile_directories_raise_our_own_errors(
    further: Tags,
) -> None:
    with contextlib.suppress(TooLarge, UndecodableImage):
        read(tiff("<", further, bytes(160 * 120 * 2), claimed=2**31))


@settings(max_examples=100, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8))
def test_damaged_heif_raises_nothing_but_our_own_errors(changes: list[tuple[int, int]]) -> None:
    data = bytearray(heif(photo(64, 48)))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        read(bytes(data), "", limits=Limits(1_000_000, 8192, 1))
    except FathomError as error:
        assert error.status in (413, 415, 422)  # noqa: PT017


def test_the_formats_are_loaded_at_start_and_no_others() -> None:
    code = "import service.pixels.decode, PIL.Image as I; print(sorted(I.ID))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = set(re.findall("[A-Z0-9]+", run.stdout))
    assert {"JPEG", "PNG", "WEBP", "TIFF", "AVIF"} <= names <= {*names} - {"PSD", "EPS", "ICO"}


def test_the_first_image_needs_no_file() -> None:
    """Where as many connections are open as may be, it must not count as damaged."""
    code = """if True:
        import os, resource, sys
        from service.pixels.decode import Limits, decode
        from service.bundle import Canvas, InputSpec, Shape
        data = sys.stdin.buffer.read()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
        spec = InputSpec.of([Canvas.of([Shape(64, 64)])], (0, 0, 0))
        decode(data, "", Limits(10**6, 8192, 1), spec)
    """
    for picture in (encoded(Image.new("RGB", (64, 48)), kind) for kind in ("JPEG", "PNG", "WEBP")):
        subprocess.run([sys.executable, "-c", code], input=picture, check=True)
