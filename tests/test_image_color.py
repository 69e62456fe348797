"""Colour profiles and value ranges: what browsers show, and what microscopes mean."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from playwright.sync_api import Page

from service.core import Ask, Frame
from service.errors import BadBudget
from service.open_inference.parameters import ask_of
from service.pixels import color, profiles
from tests import icc_profiles
from tests.browser import chromium
from tests.image_files import (
    adam7,
    chunk,
    difference,
    one_canvas,
    photo,
    png,
    read,
    to_canvas,
    with_chunks,
)
from tests.pictures import encoded

P3 = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
ADOBE = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
ICC = {
    "Display P3": profiles.of_colours(profiles.SRGB_CURVE, P3),
    "Adobe RGB": profiles.of_colours((2.2,), ADOBE),
    "linear": profiles.of_colours((1.0,), profiles.SRGB_POINTS),
    "opponent": icc_profiles.opponent(),
}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY = icc_profiles.gray(1.0)
PHOTO = photo()
ALPHA = PHOTO.convert("RGBA")
ALPHA.putalpha(Image.fromarray(np.tile(np.linspace(20, 255, 160).astype(np.uint8), (120, 1))))


def gama(value: int) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", value))


def chrm(points: tuple[float, ...]) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in points)))


FILES: dict[str, bytes] = {}
for _name, _profile in ICC.items():
    FILES |= {
        f"{_name} PNG": encoded(PHOTO, icc_profile=_profile),
        f"{_name} JPEG": encoded(PHOTO, "JPEG", quality=95, subsampling=0, icc_profile=_profile),
        f"{_name} WebP": encoded(PHOTO, "WEBP", lossless=True, icc_profile=_profile),
        f"{_name} palette": encoded(PHOTO.quantize(99), icc_profile=_profile),
        f"{_name} alpha": encoded(ALPHA, icc_profile=_profile),
        f"{_name} gray": encoded(PHOTO.convert("L"), "JPEG", quality=95, icc_profile=_profile),
    }
FILES |= {
    "gray profile": encoded(PHOTO.convert("L"), icc_profile=GRAY),
    "gray profile JPEG": encoded(PHOTO.convert("L"), "JPEG", quality=95, icc_profile=GRAY),
    "gray profile, alpha": encoded(ALPHA.convert("LA"), icc_profile=GRAY),
    "gamma 1": with_chunks(encoded(PHOTO), gama(100_000)),
    "gamma 1, palette": with_chunks(encoded(PHOTO.quantize(99)), gama(100_000)),
    "gamma 1, gray": with_chunks(encoded(PHOTO.convert("L")), gama(100_000)),
    "gamma and chromaticities": with_chunks(encoded(PHOTO), gama(45455), chrm(ADOBE)),
    "cICP P3": with_chunks(encoded(PHOTO), chunk(b"cICP", bytes([12, 13, 0, 1]))),
    "cICP 2020": with_chunks(encoded(PHOTO), chunk(b"cICP", bytes([9, 14, 0, 1]))),
}
# What changes nothing.
IGNORED = {
    "sRGB": encoded(PHOTO, icc_profile=SRGB),
    "gray profile of a colour image": encoded(PHOTO, icc_profile=GRAY),
    "press profile of an RGB image": encoded(PHOTO, icc_profile=icc_profiles.press(3)),
    "RGB profile of an ink image": encoded(
        PHOTO.convert("CMYK"), "JPEG", quality=95, icc_profile=ICC["Display P3"]
    ),
    "cut profile": encoded(PHOTO, icc_profile=SRGB[:300]),
    "overwritten profile": encoded(PHOTO, icc_profile=SRGB[:140] + b"\xff" * 400),
    "gamma of sRGB": with_chunks(encoded(PHOTO), gama(45455)),
    "sRGB beats gamma": with_chunks(encoded(PHOTO), gama(100_000), chunk(b"sRGB", b"\0")),
    "chromaticities alone": with_chunks(encoded(PHOTO), chrm(P3)),
}

# One colour is transparent; of two, the second is no pixel's.
TRANSPARENT = {
    f"{depth} bits, {colour_type}, {key.hex()}": with_chunks(
        png(160, 120, depth, colour_type, (b"\0" + (bytes(range(96)) * 10)[:size]) * 120),
        chunk(b"tRNS", key),
    )
    for depth, colour_type, size, keys in (
        (4, 0, 80, (b"\0\3", b"\0\x13")),
        (16, 2, 960, (bytes(range(6)), bytes([0, 2, 2, 3, 4, 5]))),
    )
    for key in keys
}


def plain(name: str) -> Frame:
    image = PHOTO.convert("CMYK") if "ink" in name else PHOTO
    return read(encoded(image, "JPEG", quality=95) if "ink" in name else encoded(image))


@pytest.mark.parametrize("name", FILES)
def test_a_profile_changes_the_pixels(name: str) -> None:
    image = {"palette": PHOTO.quantize(99), "alpha": ALPHA}.get(name.rsplit(maxsplit=1)[-1], PHOTO)
    image = image.convert("L") if "gray" in name and "alpha" not in name else image
    unmanaged = read(encoded(image.convert("LA") if "gray profile, alpha" in name else image))
    expected = 0 if name in ("Display P3 gray",) else 1
    assert difference(read(FILES[name]), unmanaged) >= expected


@pytest.mark.parametrize("name", IGNORED)
def test_a_profile_that_is_srgb_broken_or_of_another_kind_changes_nothing(name: str) -> None:
    assert (read(IGNORED[name]).pixels == plain(name).pixels).all()


def test_wide_colours_come_out_as_their_srgb_values() -> None:
    """P3's (234, 51, 35) is sRGB's (255, 0, 0), by every colour calculator."""
    red = Image.new("RGB", (160, 120), (234, 51, 35))
    pixels = read(encoded(red, icc_profile=ICC["Display P3"])).pixels[60, 80]
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 2


def test_linear_gray_comes_out_by_srgbs_curve() -> None:
    ramp = Image.fromarray(np.tile(np.arange(160, dtype=np.uint8), (120, 1)))
    pixels = read(encoded(ramp, icc_profile=GRAY)).pixels[60, :, 0]
    light = np.arange(160) / 255
    expected = 255 * np.where(light < 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(pixels - expected).max() <= 1.5


def test_inks_come_out_by_their_press_profile() -> None:
    for inks, expected in {
        (0, 0, 0, 0): (255, 255, 255),
        (0, 0, 0, 255): (64, 64, 64),  # light of 3 % and the black's 4 %
        (255, 0, 0, 0): (77, 140, 198),
    }.items():
        image = Image.new("CMYK", (160, 120), inks)
        data = encoded(image, "JPEG", quality=100, icc_profile=icc_profiles.press())
        pixels = read(data).pixels[60, 80].astype(int)
        assert np.abs(pixels - expected).max() <= 12, (inks, pixels)


def test_transforms_are_built_once_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    build = color._build

    def counted(profile: bytes, mode: str) -> Any:
        built.append(mode)
        return build(profile, mode)

    monkeypatch.setattr(color, "_build", counted)
    cache = color.Transforms()
    for _ in range(3):
        assert cache.get(GRAY, "L") is not None
        assert cache.get(SRGB, "RGB") is None
        assert cache.get(b"broken" * 100, "RGB") is None
    assert built == ["L", "RGB", "RGB"]
    for number in range(3 * color.MAX_TRANSFORMS):
        cache.get(b"broken %d" % number, "RGB")
    assert len(cache._cached) == color.MAX_TRANSFORMS


def test_pillow_images_are_converted_by_their_profile() -> None:
    image = PHOTO.copy()
    image.info["icc_profile"] = ICC["Adobe RGB"]
    frame = to_canvas(image, one_canvas(120, 160, (9, 9, 9)))
    assert (frame.pixels == read(FILES["Adobe RGB PNG"]).pixels).all()


_SHOW = """async ([text, type, ground]) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const image = new Image();
    image.src = URL.createObjectURL(new Blob([bytes], {type}));
    await new Promise((resolve) => { image.onload = image.onerror = resolve; });
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.fillStyle = ground;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0);
    // As text: the browser hands over an array number by number, which takes seconds.
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    return btoa(Array.from(pixels, (value) => String.fromCharCode(value)).join(""));
}"""


def pixels_in(page: Page) -> Callable[..., np.ndarray]:
    """A function that gives Chromium's pixels (120, 160, 3) of a file, and of what is behind it."""

    def show(data: bytes, ground: str = "white") -> np.ndarray:
        kinds = {b"\xff\xd8": "image/jpeg", b"RI": "image/webp"}
        arguments = [base64.b64encode(data).decode(), kinds.get(data[:2], "image/png"), ground]
        flat = np.frombuffer(base64.b64decode(page.evaluate(_SHOW, arguments)), np.uint8)
        return flat.reshape(120, 160, 4)[..., :3].astype(int)

    return show


@pytest.mark.browser
@pytest.mark.slow
def test_chromium_shows_the_same() -> None:
    damaged = {
        "cut JPEG": encoded(PHOTO, "JPEG", quality=90)[:2500],
        "cut PNG": encoded(PHOTO)[:9000],
        "cut palette": encoded(PHOTO.quantize(99))[:3000],
        "white JPEG without an end": encoded(Image.new("RGB", (160, 120), "white"), "JPEG")[:-2],
    }
    with chromium() as browser:
        shown = pixels_in(browser.new_page())
        for name, data in {**FILES, **IGNORED, **TRANSPARENT, **damaged}.items():
            found = np.abs(read(data).pixels - shown(data)).mean()
            assert found <= 1, (name, found)
        # Chromium fills what later passes would have brought from their neighbours, as we do;
        # since it decodes PNG in Rust it leaves that transparent.
        data = adam7(PHOTO)[:12000]
        on_white, on_black = (shown(data, ground) for ground in ("white", "black"))
        there = (on_white == on_black).all(-1)
        assert there.mean() > 0.1
        assert np.abs(read(data).pixels - on_white)[there].mean() <= 3


# -- value range -----------------------------------------------------------------------------------

RAMP = np.tile(np.linspace(200, 4095, 160).astype(np.uint16), (120, 1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_auto_scales_twelve_of_sixteen_bits_to_the_whole_range(kind: str) -> None:
    data = encoded(Image.fromarray(RAMP), kind)
    full, auto = read(data), read(data, values="auto")
    assert full.pixels.max() == 16
    assert full.geometry.narrow_range
    assert not auto.geometry.narrow_range
    expected = (RAMP - 200.0) / 3895 * 255
    assert np.abs(auto.pixels - expected[..., None]).max() <= 3


def test_auto_cuts_off_what_lies_beyond_the_percentiles() -> None:
    hot = RAMP.copy()
    hot[5, 5:10] = 65535
    auto = read(encoded(Image.fromarray(hot)), values="auto")
    assert auto.pixels[60, 80, 0] in range(120, 136)
    assert not read(encoded(Image.fromarray(hot))).geometry.narrow_range


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("gray", [False, True])
def test_auto_keeps_all_bits_of_colours_and_their_ratio(gray: bool, alpha: bool) -> None:
    shares = (1,) if gray else (1, 2, 4)
    colours = np.stack([RAMP // share for share in shares], axis=2)
    darkest = 200 // shares[-1]
    expected = (colours - float(darkest)) / (4095 - darkest) * 255
    if alpha:
        colours = np.concatenate([colours, np.full((120, 160, 1), 65535)], axis=2)
    frame, auto = _both(colours, (0 if gray else 2) + (4 if alpha else 0))
    assert frame.geometry.narrow_range
    assert not auto.geometry.narrow_range
    assert np.abs(auto.pixels.astype(int) - expected).max() <= 3
    assert len(np.unique(auto.pixels[..., 0])) > 120


@pytest.mark.parametrize("colour_type", [2, 4, 6])
def test_auto_shows_as_much_of_a_file_that_is_cut(colour_type: int) -> None:
    channels = {2: 3, 4: 2, 6: 4}[colour_type]
    colours = np.random.default_rng(0).integers(0, 4096, (120, 160, channels), np.uint16)
    if colour_type > 2:
        colours[..., -1] = 65535
    frame, auto = _both(colours, colour_type, cut=2)
    assert frame.geometry.damaged
    assert auto.geometry.damaged
    missing = (frame.pixels == 255).all(axis=(1, 2))
    assert 10 < missing.sum() < 110
    assert ((auto.pixels == 255).all(axis=(1, 2)) == missing).all()


def _both(samples: np.ndarray, colour_type: int, cut: int = 1) -> tuple[Frame, Frame]:
    """A PNG of 16 bits over the full range, and by itself. cut: the share of it that is there."""
    data = png(
        160, 120, 16, colour_type, b"".join(b"\0" + row.tobytes() for row in samples.astype(">u2"))
    )
    return tuple(read(data[: len(data) // cut], values=values) for values in ("full", "auto"))


def test_auto_leaves_eight_bits_as_they_are() -> None:
    for data in (encoded(PHOTO), encoded(PHOTO, "JPEG"), encoded(PHOTO.convert("L"))):
        frame = read(data, values="auto")
        assert (frame.pixels == read(data).pixels).all()
        assert not frame.geometry.narrow_range


def test_a_constant_image_has_some_value() -> None:
    constant = Image.fromarray(np.full((120, 160), 777, np.uint16))
    assert len(np.unique(read(encoded(constant), values="auto").pixels)) == 1


def test_protocol_parameters_ask_for_a_value_range() -> None:
    assert ask_of({}, Ask()).value_range == "full"
    assert ask_of({"value_range": "auto"}, Ask()).value_range == "auto"
    with pytest.raises(BadBudget, match="'value_range' must be 'full' or 'auto'"):
        ask_of({"value_range": 1}, Ask())
