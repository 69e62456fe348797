"""What training sees of an image file is what the service sees; and how much of it is kept."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_export.data.augment import on_canvases
from model_export.data.cache import SampleCache
from model_export.data.datasets import open_dataset
from model_export.data.folders import Folder
from model_export.data.sample import Sample
from service.bundle import Canvas, Shape
from service.pixels.decode import Limits, decode
from tests import icc_profiles
from tests.image_files import one_canvas, only
from tests.labelled_folders import save_image, write_folder

LIMITS = Limits(max_pixels=25_000_000, max_side=8192, min_side=1)
HEIGHT, WIDTH = 32, 48
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-'
    b'syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
    b'tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)
_RNG = np.random.default_rng(3)
_SMOOTH = np.linspace(0, 255, WIDTH, dtype=np.uint8)[None, :, None].repeat(HEIGHT, 0).repeat(3, 2)
_RGB = Image.fromarray(_RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))


def _file(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def _with_alpha(mode: str) -> Image.Image:
    image = _RGB.convert(mode)
    image.putalpha(Image.fromarray(_RNG.integers(0, 256, (HEIGHT, WIDTH), np.uint8)))
    return image


def _palette_with_a_transparent_entry() -> bytes:
    return _file(_RGB.quantize(16), "PNG", transparency=3)


FILES = {
    "gray16.png": _file(
        Image.fromarray(_RNG.integers(0, 1 << 16, (HEIGHT, WIDTH), np.uint16)), "PNG"
    ),
    "gray8.jpg": _file(_RGB.convert("L"), "JPEG"),
    "bilevel.png": _file(_RGB.convert("1"), "PNG"),
    "rgba.png": _file(_with_alpha("RGB"), "PNG"),
    "la.png": _file(_with_alpha("L"), "PNG"),
    "rgba.webp": _file(_with_alpha("RGB"), "WEBP", lossless=True),
    "palette.png": _palette_with_a_transparent_entry(),
    "cmyk.jpg": _file(_RGB.convert("CMYK"), "JPEG"),
    "exif6.jpg": _file(_RGB, "JPEG", exif=_exif(6)),
    "exif6.png": _file(_RGB, "PNG", exif=_exif(6)),
    "exif5.webp": _file(_RGB, "WEBP", exif=_exif(5)),
    "xmp.jpg": _file(_RGB, "JPEG", xmp=XMP),
    "gray16.tif": _file(
        Image.fromarray(_RNG.integers(0, 1 << 16, (HEIGHT, WIDTH), np.uint16)), "TIFF"
    ),
    "profile.jpg": _file(_RGB.convert("L"), "JPEG", icc_profile=icc_profiles.gray(1.2)),
    "press.jpg": _file(_RGB.convert("CMYK"), "JPEG", icc_profile=icc_profiles.press(5)),
    "mpo.jpg": _file(_RGB, "MPO", save_all=True, append_images=[Image.fromarray(_SMOOTH)]),
    "animated.webp": _file(_RGB, "WEBP", save_all=True, append_images=[Image.fromarray(_SMOOTH)]),
}


SCALED_FIRST = {"rgba.png", "la.png", "rgba.webp", "palette.png", "profile.jpg", "press.jpg"}


@pytest.mark.parametrize("name", FILES)
def test_a_training_image_is_what_the_service_decodes(tmp_path: Path, name: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / name).write_bytes(FILES[name])
    turned = name.startswith("exif")
    height, width = (WIDTH, HEIGHT) if turned else (HEIGHT, WIDTH)
    save_image(tmp_path / "masks" / f"{Path(name).stem}.png", np.zeros((height, width), np.uint8))
    sample = Folder(tmp_path, "semantic")[0]
    assert sample.image.dtype == np.uint8
    for size in ((height, width), (64, 96)):
        served = only(decode(FILES[name], "", LIMITS, one_canvas(*size, (127,) * 3))).pixels
        placed = only(on_canvases(sample, [Canvas.of([Shape(*size)])])).pixels
        # The service blends and converts by a profile after scaling, for it has fewer pixels then;
        # of noise, the order shows.
        exact = size == (height, width)
        if exact or name not in SCALED_FIRST:
            assert np.abs(placed.astype(int) - served).max() <= (0 if exact else 2)


def _sample(name: str, size: int) -> Sample:
    """Of 4 * size bytes."""
    return Sample(name, np.zeros((size, 1, 3), np.uint8), np.zeros((size, 1), np.uint8))


def test_the_cache_is_bounded_by_bytes_and_forgets_what_was_used_least_recently() -> None:
    cache = SampleCache(1)
    made: list[str] = []

    def get(name: str, size: int) -> Sample:
        def make() -> Sample:
            made.append(name)
            return _sample(name, size)

        return cache.get(name, make)

    third = (1 << 18) // 3
    for name in "abcac":
        get(name, third)
    assert (made, len(cache)) == ([*"abc"], 3)
    get("d", third)  # b is the one that was not used for longest
    get("a", third)
    assert (made, len(cache)) == ([*"abcd"], 3)
    get("b", third)
    assert made == [*"abcdb"]
    assert cache.bytes == 3 * 4 * third <= cache.most
    get("large", 1 << 18)  # as much as there is
    assert (len(cache), cache.bytes) == (1, 1 << 20)
    for _ in range(2):
        get("larger", (1 << 18) + 1)
    assert made == [*"abcdb", "large", "larger", "larger"]
    assert (len(cache), cache.bytes) == (1, 1 << 20)


def test_data_sets_share_a_cache_and_none_keeps_more_than_it_allows(tmp_path: Path) -> None:
    one, two = write_folder(tmp_path / "one"), write_folder(tmp_path / "two")
    cache = SampleCache(4 * 8 * 12 * 4 / (1 << 20))  # four samples
    first, second = (open_dataset("folder", root, cache) for root in (one, two))
    for data in (first, second):
        for index in range(3):
            sample = data[index]
            assert np.array_equal(sample.image, data[index].image)
    assert len(cache) == 4
    assert second[2] is second[2]
    assert not np.array_equal(first[0].image, second[1].image)
    nothing = open_dataset("folder", one, SampleCache(0))
    assert nothing[0] is not nothing[0]
