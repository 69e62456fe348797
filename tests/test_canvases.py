"""Canvases and their shapes, and an image on each of them: made when it is wanted, from one source,
as if it had been scaled for that canvas alone."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.bundle import Canvas, InputSpec, Shape
from service.core import Frame, Geometry
from service.pixels import color
from service.pixels.canvas import Scaled, to_canvases
from service.pixels.decode import decode, from_memory
from tests import icc_profiles
from tests.image_files import LIMITS, one_canvas, only, to_canvas
from tests.pictures import encoded

PAD = (127, 9, 200)
WIDE, TALL, EVEN = Shape(48, 64), Shape(64, 48), Shape(56, 56)
SPEC = InputSpec.of(
    [
        Canvas.of([Shape(24, 32)]),
        Canvas.of([WIDE, TALL]),
        Canvas.of([Shape(96, 128), Shape(128, 96), Shape(112, 112)]),
    ],
    PAD,
)
QUARTER = 6  # EXIF: turned by a quarter
FLAGS = ("damaged", "narrow_range", "orientation_applied")


def smooth(width: int, height: int) -> Image.Image:
    """Without symmetry, and without detail that the smallest canvas could not hold."""
    y, x = np.mgrid[0:height, 0:width]
    blue = 120 + 100 * np.sin(3 * x / width) * np.cos(2 * y / height)
    stacked = np.stack([230 * x / width, 230 * y / height, blue], axis=2)
    return Image.fromarray(stacked.astype(np.uint8))


# -- shapes ----------------------------------------------------------------------------------------


def test_a_canvas_is_named_after_the_longest_side_of_its_first_shape() -> None:
    assert Canvas.of([Shape(480, 640), Shape(640, 480)]).name == "c640"
    assert Canvas.of([TALL, Shape(9, 99)]).name == "c64"
    assert Canvas.of([EVEN]) == Canvas("c56", (EVEN,))
    assert Shape(480, 640).name == "480x640"  # height, width, as in the names of graphs


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((4000, 3000), WIDE),
        ((3000, 4000), TALL),
        ((1000, 1000), EVEN),
        ((1000, 1010), EVEN),
        ((8, 6), WIDE),  # small ones are treated alike
        ((6, 8), TALL),
        ((8192, 1), WIDE),
        ((1, 8192), TALL),
        ((64, 48), WIDE),
        ((1200, 1000), WIDE),  # nine tenths of it; five sixths of the square
        ((1100, 1000), EVEN),
    ],
)
def test_an_image_lies_on_the_shape_that_it_fills_best(
    size: tuple[int, int], expected: Shape
) -> None:
    assert Canvas.of([WIDE, TALL, EVEN]).fitting(*size) == expected


def test_of_shapes_that_fit_equally_the_first_counts() -> None:
    assert Canvas.of([WIDE, TALL]).fitting(100, 100) == WIDE
    assert Canvas.of([TALL, WIDE]).fitting(100, 100) == TALL
    assert Canvas.of([TALL]).fitting(900, 100) == TALL


SIDES = st.integers(1, 8192)


@given(
    width=SIDES,
    height=SIDES,
    shapes=st.lists(st.builds(Shape, SIDES, SIDES), min_size=1, max_size=4),
)
def test_no_other_shape_leaves_less_empty(width: int, height: int, shapes: list[Shape]) -> None:
    def empty(shape: Shape) -> float:
        """The empty share: the image touches both long sides of the shape, or both short ones."""
        ratio = (width * shape.height) / (height * shape.width)
        return 1 - min(ratio, 1 / ratio)

    chosen = Canvas.of(shapes).fitting(width, height)
    assert empty(chosen) <= min(map(empty, shapes)) + 1e-9


# -- geometry --------------------------------------------------------------------------------------


def area(shape: Shape) -> int:
    return shape.height * shape.width


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)).filter(
        lambda sides: sides[0] * sides[1] <= 60_000
    ),
    shapes=st.lists(
        st.builds(Shape, st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=4
    ),
    turned=st.booleans(),
)
def test_an_image_of_any_size_fits_on_every_canvas(
    size: tuple[int, int], shapes: list[Shape], turned: bool
) -> None:
    canvases = [Canvas(str(row), (shape,)) for row, shape in enumerate(sorted(shapes, key=area))]
    image = Image.new("RGB", size, (1, 2, 3))
    frames = to_canvases(image, InputSpec.of(canvases, PAD), QUARTER if turned else 1)
    width, height = size[::-1] if turned else size
    for canvas in canvases:
        (shape,), frame = canvas.shapes, frames[canvas.name]
        geometry = frame.geometry
        assert (geometry.width, geometry.height) == (width, height)
        assert geometry.canvas == (shape.height, shape.width)
        scaled = geometry.scaled_width, geometry.scaled_height
        assert 1 <= scaled[0] <= shape.width
        assert 1 <= scaled[1] <= shape.height
        assert scaled[0] == shape.width or scaled[1] == shape.height
        # One factor for both sides, and never less than a pixel.
        factor = min(shape.width / width, shape.height / height)
        assert abs(scaled[0] - max(1, width * factor)) <= 0.5
        assert abs(scaled[1] - max(1, height * factor)) <= 0.5
        assert frame.pixels.shape == (shape.height, shape.width, 3)
        assert (frame.pixels[: scaled[1], : scaled[0]] == (1, 2, 3)).all()
        assert (frame.pixels[scaled[1] :] == PAD).all()
        assert (frame.pixels[:, scaled[0] :] == PAD).all()


# -- frames ----------------------------------------------------------------------------------------


def test_an_image_has_a_frame_for_each_canvas_by_name_from_small_to_large() -> None:
    frames = to_canvases(smooth(200, 150), SPEC)
    assert isinstance(frames, Scaled)
    assert (list(frames), len(frames)) == (["c32", "c64", "c128"], 3)
    assert "c64" in frames
    assert "c63" not in frames
    with pytest.raises(KeyError):
        frames["c63"]
    assert {name: frame.geometry.shape for name, frame in frames.items()} == {
        "c32": "24x32",
        "c64": "48x64",
        "c128": "96x128",
    }


def test_a_frame_is_made_when_it_is_first_asked_for_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[str] = []
    make = Scaled._frame

    def noting(self: Scaled, geometry: Geometry) -> Frame:
        made.append(geometry.shape)
        return make(self, geometry)

    monkeypatch.setattr(Scaled, "_frame", noting)
    frames = to_canvases(smooth(200, 150), SPEC)
    assert made == ["24x32"]  # every image is looked at on the first one
    large = frames["c128"]
    assert made == ["24x32", "96x128"]
    assert frames["c128"] is large
    assert frames["c32"] is frames["c32"]
    assert made == ["24x32", "96x128"]
    assert list(frames) == ["c32", "c64", "c128"]  # which makes none
    assert len(made) == 2


@pytest.mark.parametrize("order", [["c64", "c128"], ["c128", "c64"]])
def test_frames_do_not_depend_on_which_was_asked_for_before(order: list[str]) -> None:
    image, expected = smooth(333, 250), to_canvases(smooth(333, 250), SPEC)
    frames = to_canvases(image, SPEC)
    for name in order:
        frames[name].pixels[:] = 0  # nor on what became of it
        assert frames[name].pixels.sum() == 0
    again = to_canvases(image, SPEC)
    for name in reversed(order):
        assert (again[name].pixels == expected[name].pixels).all()


def turned(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.ROTATE_270)


SMOOTH: dict[str, tuple[Callable[[], Image.Image], int]] = {
    "larger than all": (lambda: smooth(1000, 750), 1),
    "portrait": (lambda: smooth(750, 1000), 1),
    "turned": (lambda: smooth(1000, 750), QUARTER),
    "square": (lambda: smooth(700, 700), 1),
    "as large as one": (lambda: smooth(64, 48), 1),
    "between two": (lambda: smooth(100, 75), 1),
    "a panorama": (lambda: smooth(1200, 400), 1),
    "smaller than all": (lambda: smooth(20, 15), 1),
    "gray": (lambda: smooth(1000, 750).convert("L"), 1),
    "with ink": (lambda: smooth(1000, 750).convert("CMYK"), 1),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_each_frame_shows_what_scaling_for_its_canvas_alone_shows(name: str) -> None:
    make, orientation = SMOOTH[name]
    image = make()
    frames = to_canvases(image, SPEC, orientation)
    for canvas in SPEC.canvases:
        alone = to_canvas(image, replace(SPEC, canvases=(canvas,)), orientation)
        frame = frames[canvas.name]
        assert frame.geometry == alone.geometry
        assert np.abs(frame.pixels.astype(int) - alone.pixels).max() <= 2


def test_a_portrait_lies_on_the_portrait_shape_where_there_is_one() -> None:
    image = smooth(300, 400)
    for picture, orientation in ((image, 1), (turned(turned(turned(image))), QUARTER)):
        frames = to_canvases(picture, SPEC, orientation)
        sizes = {name: frame.geometry.canvas for name, frame in frames.items()}
        assert sizes == {"c32": (24, 32), "c64": (64, 48), "c128": (128, 96)}
        # It fills the shape that is made for it, and little of the other.
        assert (frames["c64"].geometry.scaled_width, frames["c64"].geometry.scaled_height) == (
            48,
            64,
        )
        assert frames["c32"].geometry.scaled_width == 18
        assert (frames["c32"].pixels[:, 18:] == PAD).all()
        upright = to_canvas(image, one_canvas(64, 48, PAD)).pixels.astype(int)
        assert np.abs(frames["c64"].pixels - upright).max() <= 2


def test_a_file_that_asks_to_be_turned_is_turned_on_every_canvas() -> None:
    exif = Image.Exif()
    exif[0x0112] = QUARTER
    stored = smooth(400, 300)
    data = encoded(stored, exif=exif.tobytes())
    expected = to_canvases(turned(stored), SPEC)
    opened = Image.open(io.BytesIO(data))
    for frames in (decode(data, "image/png", LIMITS, SPEC), from_memory(opened, LIMITS, SPEC)):
        for name, frame in frames.items():
            geometry = frame.geometry
            assert (geometry.width, geometry.height) == (300, 400)
            assert geometry == replace(expected[name].geometry, orientation_applied=True)
            assert np.abs(frame.pixels.astype(int) - expected[name].pixels).max() <= 2


@pytest.mark.parametrize(
    ("size", "converted"),
    [
        ((20, 15), (20, 15)),  # scaled up only afterwards
        ((128, 96), (128, 96)),
        ((1280, 960), (128, 96)),
        ((960, 1280), (96, 128)),
        ((100, 75), (100, 75)),
        ((4000, 10), (128, 1)),
    ],
)
def test_a_colour_profile_is_applied_once_to_no_more_pixels_than_are_needed(
    size: tuple[int, int], converted: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, int]] = []
    apply = color.to_srgb

    def noting(image: Image.Image, transform: object) -> Image.Image:
        assert transform is not None
        sizes.append(image.size)
        return apply(image, transform)  # type: ignore[arg-type]

    monkeypatch.setattr(color, "to_srgb", noting)
    image = smooth(*size).convert("L")
    image.info["icc_profile"] = icc_profiles.gray(1.0)
    frames = to_canvases(image, SPEC)
    assert all(frame.pixels.any() for frame in frames.values())
    assert sizes == [converted]


def test_the_largest_canvas_decides_how_small_a_jpeg_is_decoded() -> None:
    data = encoded(smooth(1600, 1200), "JPEG", quality=95)
    for spec, size in (
        (SPEC, (400, 300)),
        (replace(SPEC, canvases=SPEC.canvases[:2]), (200, 150)),
        (InputSpec.of([SPEC.canvases[0], Canvas.of([Shape(480, 640)])], PAD), (1600, 1200)),
    ):
        image = Image.open(io.BytesIO(data))
        to_canvases(image, spec)
        assert image.size == size


def test_what_is_transparent_is_white_on_every_canvas() -> None:
    image = Image.new("RGBA", (256, 192), (200, 0, 0, 255))
    image.paste((0, 0, 0, 0), (128, 0, 256, 192))
    for name, frame in to_canvases(image, SPEC).items():
        width = frame.geometry.scaled_width
        assert (frame.pixels[:, : width // 2 - 2] == (200, 0, 0)).all(), name
        assert (frame.pixels[:, width // 2 + 2 : width] == (255, 255, 255)).all(), name


def test_what_is_said_of_an_image_is_said_on_every_canvas() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    cut = encoded(Image.fromarray(noise), "JPEG")[:-20_000]
    dark = Image.fromarray(np.linspace(0, 4000, 400 * 300).reshape(300, 400).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = QUARTER
    flipped = encoded(smooth(160, 120), exif=exif.tobytes())
    for data, flag in (
        (cut, "damaged"),
        (encoded(dark), "narrow_range"),
        (flipped, "orientation_applied"),
    ):
        for frame in decode(data, "", LIMITS, SPEC).values():
            assert [name for name in FLAGS if getattr(frame.geometry, name)] == [flag]
    for frame in decode(encoded(smooth(160, 120)), "", LIMITS, SPEC).values():
        assert not any(getattr(frame.geometry, name) for name in FLAGS)


def test_every_canvas_shows_the_range_that_sixteen_bits_use() -> None:
    dark = Image.fromarray(np.linspace(0, 4000, 400 * 300).reshape(300, 400).astype(np.uint16))
    for values, brightest in (("full", 16), ("auto", 250)):
        frames = decode(encoded(dark), "", LIMITS, SPEC, values)
        for frame in frames.values():
            shown = frame.pixels[: frame.geometry.scaled_height, : frame.geometry.scaled_width]
            assert abs(int(shown.max()) - brightest) <= 8
            assert frame.geometry.narrow_range == (values == "full")


def test_a_larger_canvas_shows_more() -> None:
    stripes = np.zeros((480, 640), np.uint8)
    stripes[:, ::10] = stripes[:, 1::10] = stripes[:, 2::10] = 255  # of three pixels each
    frames = to_canvases(Image.fromarray(stripes), SPEC)
    contrast = [float(frame.pixels[..., 0].std()) for frame in frames.values()]
    assert all(small < large for small, large in pairwise(contrast))


def test_a_single_canvas_is_what_it_always_was() -> None:
    frame = only(to_canvases(smooth(160, 120), one_canvas(120, 160)))
    assert (frame.pixels == np.asarray(smooth(160, 120))).all()
