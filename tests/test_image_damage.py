"""Damaged files: what is beside the pixels refuses nothing, and what is wrong with them is said."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import FathomError, TooLarge, UndecodableImage
from service.pixels.decode import Limits
from service.pixels.jpeg_markers import MAX_SCANS
from tests.image_files import (
    adam7,
    chunk,
    difference,
    photo,
    png,
    read,
    segment,
    stored,
    with_chunks,
    with_segments,
)
from tests.pictures import encoded

PNG = encoded(photo())
JPEG = encoded(photo(), "JPEG", quality=90)
FRAME = b"\xff\xc0\0\x11\x08"  # of that: its marker, its length, and the bits of a sample
PROGRESSIVE = encoded(photo(), "JPEG", quality=90, progressive=True)
BOMB = zlib.compress(bytes(3_000_000))

# -- beside the pixels -----------------------------------------------------------------------------

ANCILLARY = {
    "iCCP with a wrong checksum": chunk(b"iCCP", b"x\0\0" + zlib.compress(b"profile"), damage=1),
    "iCCP of no profile": chunk(b"iCCP", b"x\0\0" + zlib.compress(b"profile")),
    "iCCP without an end": chunk(b"iCCP", b"x" * 300),
    "iCCP by another method": chunk(b"iCCP", b"x\0\7abc"),
    "iCCP that unpacks to 3 MB": chunk(b"iCCP", b"x\0\0" + BOMB),
    "empty iCCP": chunk(b"iCCP", b""),
    "sRGB with a wrong checksum": chunk(b"sRGB", b"\0", damage=1),
    "empty sRGB": chunk(b"sRGB", b""),
    "short pHYs": chunk(b"pHYs", b"\0\0"),
    "short gAMA": chunk(b"gAMA", b"\0\1"),
    "gAMA of 0": chunk(b"gAMA", bytes(4)),
    "short cHRM": chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"cHRM", bytes(7)),
    "cHRM of zeros": chunk(b"gAMA", struct.pack(">I", 90000)) + chunk(b"cHRM", bytes(32)),
    "cICP of HDR": chunk(b"cICP", bytes([9, 16, 0, 1])),
    "tEXt without a key": chunk(b"tEXt", b""),
    "zTXt that unpacks to 3 MB": chunk(b"zTXt", b"k\0\0" + BOMB),
    "zTXt by another method": chunk(b"zTXt", b"k\0\7" + BOMB),
    "iTXt that unpacks to 3 MB": chunk(b"iTXt", b"k\0\1\0\0\0" + BOMB),
    "eXIf with a wrong checksum": chunk(b"eXIf", b"II*\0", damage=5),
    "short acTL": chunk(b"acTL", b"\0"),
    "acTL without fcTL": chunk(b"acTL", struct.pack(">II", 1, 0)),
    "short fcTL": chunk(b"fcTL", b"\0"),
    "fcTL out of order": chunk(b"fcTL", struct.pack(">I", 7) + bytes(22)),
    "unknown chunk with a wrong checksum": chunk(b"teSt", b"abc", damage=1),
}


@pytest.mark.parametrize("name", ANCILLARY)
def test_no_chunk_beside_the_pixels_of_a_png_refuses_it(name: str) -> None:
    data = with_chunks(PNG, ANCILLARY[name])
    frame, sound = read(data, "image/png"), read(PNG)
    assert not frame.geometry.damaged
    assert name == "cHRM of zeros" or (frame.pixels == sound.pixels).all()


def test_text_of_a_png_takes_no_memory() -> None:
    chunks = [chunk(b"zTXt", b"k%d\0\0" % number + BOMB) for number in range(50)]
    data = with_chunks(PNG, *chunks)
    read(data)
    tracemalloc.start()
    try:
        read(data)
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()


SEGMENTS = {
    "short JFIF": segment(0xE0, b"JFIF\0\1"),
    "JFIF of its name": segment(0xE0, b"JFIF"),
    "short ICC": segment(0xE2, b"ICC_PROFILE\0"),
    "ICC 2 of 1": segment(0xE2, b"ICC_PROFILE\0\2\1abc"),
    "short EXIF": segment(0xE1, b"Exif\0\0II"),
    "EXIF of its name": segment(0xE1, b"Exif"),
    "short Adobe": segment(0xEE, b"Adobe\0"),
    "short Photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\4"),
    "short MPF": segment(0xE2, b"MPF\0MM"),
    "XMP without text": segment(0xE1, b"http://ns.adobe.com/xap/1.0/"),
    "empty": b"".join(segment(marker, b"") for marker in range(0xE0, 0xF0)),
    "length 0": b"\xff\xe5\0\0",
    "no marker": segment(0xE5, b"") + b"\0\1\2\3",
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_no_application_segment_of_a_jpeg_refuses_it(name: str) -> None:
    frame = read(with_segments(JPEG, SEGMENTS[name]), "image/jpeg")
    assert (frame.pixels == read(JPEG).pixels).all()
    assert not frame.geometry.damaged


@pytest.mark.parametrize("name", [b"ICCP", b"EXIF", b"XMP ", b"JUNK"])
@pytest.mark.parametrize("content", [b"", b"abc", bytes(5000)])
def test_no_chunk_beside_the_pixels_of_a_webp_refuses_it(name: bytes, content: bytes) -> None:
    sound = encoded(photo(), "WEBP", lossless=True)
    extended = struct.pack("<4sIBxxx", b"VP8X", 10, 0x2C)
    extended += (159).to_bytes(3, "little") + (119).to_bytes(3, "little")
    odd = bytes(len(content) % 2)
    further = struct.pack("<4sI", name, len(content)) + content + odd
    body = b"WEBP" + extended + further + sound[12:]
    data = b"RIFF" + struct.pack("<I", len(body)) + body
    assert (read(data, "image/webp").pixels == read(sound).pixels).all()
    wrong_size = data[:4] + struct.pack("<I", 7) + data[8:]
    assert (read(wrong_size).pixels == read(sound).pixels).all()


def test_scans_are_counted_in_the_picture_alone() -> None:
    scans = b"\xff\xda" * (MAX_SCANS + 50)
    for data in (with_segments(JPEG, segment(0xE3, scans)), JPEG + b"video" + scans):
        frame = read(data)
        assert (frame.pixels == read(JPEG).pixels).all()
        assert not frame.geometry.damaged


@pytest.mark.parametrize("kind", ["segments", "chunks"])
def test_millions_of_empty_parts_are_refused_soon(kind: str) -> None:
    many = {
        "segments": with_segments(JPEG, b"\xff\xe5\0\2" * 2_000_000),
        "chunks": with_chunks(PNG, chunk(b"tEXt", b"") * 700_000),
    }
    with pytest.raises(UndecodableImage, match=kind):
        read(many[kind])


# -- the pixels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 0.8, 0.97])
@pytest.mark.parametrize("name", ["JPEG", "PNG", "palette"])
def test_of_a_file_that_is_cut_the_rows_that_are_there_are_shown_on_white(
    name: str, share: float
) -> None:
    data = {"JPEG": JPEG, "PNG": PNG, "palette": encoded(photo().quantize(64))}[name]
    frame, sound = read(data[: int(len(data) * share)]), read(data)
    assert frame.geometry.damaged
    same = (frame.pixels == sound.pixels).all(axis=(1, 2))
    white = (frame.pixels == 255).all(axis=(1, 2))
    rows = int(same.argmin())
    assert rows > 120 * share - 50
    assert white[rows + 1 :].all()


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_a_progressive_or_interlaced_file_that_is_cut_is_shown_coarser(share: float) -> None:
    for data in (PROGRESSIVE, adam7(photo())):
        frame = read(data[: int(len(data) * share)])
        assert frame.geometry.damaged
        assert difference(frame, read(data)) < 12


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE], ids=["sequential", "progressive"])
@pytest.mark.parametrize("share", [0.4, 0.6, 0.9])
def test_a_jpeg_that_is_cut_but_has_an_end_is_damaged(data: bytes, share: float) -> None:
    assert read(data[: int(len(data) * share)] + b"\xff\xd9").geometry.damaged


def test_entropy_coded_data_that_are_too_many_are_damage() -> None:
    further = JPEG[-300:-2].replace(b"\xff", b"\x11")
    assert read(JPEG[:-2] + further + JPEG[-2:]).geometry.damaged
    padded = JPEG[:-2] + b"\xff" * 9 + JPEG[-2:]
    assert not read(padded).geometry.damaged


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["sequential", "progressive"])
def test_most_overwritten_jpegs_are_found(options: dict[str, object]) -> None:
    rng = np.random.default_rng(3)
    noise = Image.fromarray(rng.integers(0, 256, (120, 160, 3), np.uint8))
    data = encoded(noise, "JPEG", quality=80, **options)
    found = 0
    for _ in range(40):
        at = int(rng.integers(len(data) // 3, len(data) - 60))
        found += read(
            data[:at] + rng.bytes(30).replace(b"\xff", b"\0") + data[at + 30 :]
        ).geometry.damaged
    assert found >= 30


@pytest.mark.parametrize("quality", [5, 50, 95])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": 0},
        {"optimize": True},
        {"restart_marker_blocks": 3},
        {"progressive": True, "restart_marker_rows": 2},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_no_sound_jpeg_is_damaged(mode: str, options: dict[str, object], quality: int) -> None:
    rng = np.random.default_rng(quality)
    noise = Image.fromarray(rng.integers(0, 256, (57, 83, 3), np.uint8))
    for image in (photo(), noise, Image.new("RGB", (40, 30), "white"), photo(1600, 1200)):
        data = encoded(image.convert(mode), "JPEG", quality=quality, **options)
        assert not read(data).geometry.damaged


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_white_is_not_taken_for_nothing(mode: str) -> None:
    image = Image.new("RGB", (160, 120), "white")
    white = encoded(image.convert(mode), "JPEG")
    image.paste(photo(160, 40), (0, 80))
    below = encoded(image.convert(mode), "JPEG")
    scan = below.index(b"\xff\xda") + 2
    pixels = scan + int.from_bytes(below[scan : scan + 2], "big")
    for damaged in (white[:-2], white[:-2] + bytes(20) + white[-2:], below[: pixels + 100]):
        frame = read(damaged)
        assert frame.geometry.damaged
        assert (frame.pixels == 255).all()
    with pytest.raises(UndecodableImage, match="no pixel of it"):
        read(below[: pixels + 2])


def test_restart_markers_that_are_missing_are_damage() -> None:
    data = encoded(photo(), "JPEG", quality=90, restart_marker_rows=1)
    first, second = data.index(b"\xff\xd1"), data.index(b"\xff\xd2")
    assert read(data[:first] + data[second:]).geometry.damaged


def test_wrong_checksums_of_pixels_are_damage() -> None:
    at = PNG.index(b"IDAT")
    length = int.from_bytes(PNG[at - 4 : at], "big")
    end = at + 4 + length
    data = PNG[:end] + bytes(4) + PNG[end + 4 :]
    frame = read(data)
    assert frame.geometry.damaged
    assert (frame.pixels == read(PNG).pixels).all()
    assert read(
        with_chunks(encoded(photo().convert("L")), chunk(b"tRNS", b"\0\0", 1))
    ).geometry.damaged


@pytest.mark.parametrize("interlaced", [False, True])
def test_pixels_that_end_in_order_but_too_early_are_damage(interlaced: bool) -> None:
    sound = adam7(photo()) if interlaced else png(160, 120, 8, 2, _rows(120))
    assert not read(sound).geometry.damaged
    if not interlaced:
        frame = read(png(160, 120, 8, 2, _rows(70)))
        assert frame.geometry.damaged
        assert (frame.pixels[70:] == 255).all()


def _rows(count: int) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in np.asarray(photo())[:count])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no bytes"),
        (b"GIF89a" + bytes(50), "a GIF image"),
        (b"%PDF-1.7", "a PDF"),
        (b"\0\0\0\x18ftypisom" + bytes(20), "a video"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "markup"),
        (b"/9j/4AAQSkZJRg", "base64"),
        (PNG[:20], "PNG file is damaged: its header"),
        (PNG[:12] + b"x" + PNG[13:], "PNG file is damaged: its header"),
        (PNG[:29] + bytes(4) + PNG[33:], "PNG file is damaged: its header"),
        (PNG[:40], "PNG file ends before its first pixels"),
        (JPEG[:300], "JPEG file ends before its first pixels"),
        (JPEG[: JPEG.index(b"\xff\xda") + 20], "JPEG file is damaged: no pixel"),
        (encoded(photo(), "WEBP")[:-400], "WebP file ends too early"),
        (JPEG.replace(FRAME, b"\xff\xc1\0\x11\x0c"), "JPEG is of 12 bits"),
        (JPEG.replace(FRAME, b"\xff\xc5\0\x11\x08"), "JPEG is hierarchical"),
        (JPEG.replace(FRAME, b"\xff\xf7\0\x11\x08"), "JPEG is a JPEG-LS"),
    ],
)
def test_messages_tell_damaged_files_from_foreign_ones(data: bytes, message: str) -> None:
    with pytest.raises(UndecodableImage, match=message):
        read(data)


SEEDS = {
    "JPEG": JPEG,
    "progressive JPEG": PROGRESSIVE,
    "CMYK JPEG": encoded(photo().convert("CMYK"), "JPEG"),
    "JPEG with restarts": encoded(photo(), "JPEG", restart_marker_blocks=2),
    "PNG": PNG,
    "palette PNG": with_chunks(encoded(photo().quantize(50)), chunk(b"gAMA", b"\0\0\1\0")),
    "interlaced PNG": adam7(photo(33, 27)),
    "WebP": encoded(photo(), "WEBP"),
    "lossless WebP": encoded(photo().convert("RGBA"), "WEBP", lossless=True, exif=b"II*\0\0\0\0\0"),
    "TIFF": encoded(photo(), "TIFF"),
    "packed TIFF": encoded(photo(), "TIFF", compression="tiff_lzw"),
    "TIFF of planes": stored(np.zeros((120, 160, 3), np.uint16), {262: (3, [2])}, apart=True),
    "YCbCr TIFF": stored(
        np.zeros((120, 160, 3), np.uint8), {262: (3, [6]), 530: (3, [1, 1])}, deflate=True
    ),
    "16-bit PNG with a transparent colour": with_chunks(
        png(160, 120, 16, 2, (b"\0" + bytes(960)) * 120), chunk(b"tRNS", bytes(6))
    ),
    "16-bit TIFF": encoded(
        Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)), "TIFF"
    ),
    "AVIF": encoded(photo(64, 48), "AVIF"),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(SEEDS)),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12),
    header_only=st.booleans(),
    cut=st.one_of(st.none(), st.floats(0, 1)),
    auto=st.booleans(),
)
def test_damaged_files_of_every_format_raise_nothing_but_our_own_errors(
    name: str,
    changes: list[tuple[float, int]],
    header_only: bool,
    cut: float | None,
    auto: bool,
) -> None:
    data = bytearray(SEEDS[name])
    for place, value in changes:
        data[int(place * (min(len(data), 400 if header_only else len(data)) - 1))] = value
    if cut is not None:
        data = data[: int(cut * len(data))]
    values = "auto" if auto else "full"
    try:
        frame = read(bytes(data), "", values, Limits(1_000_000, 8192, 1))
    except FathomError as error:
        assert isinstance(error, (TooLarge, UndecodableImage)) or error.status == 415  # noqa: PT017
        return
    assert frame.pixels.shape == (120, 160, 3)
