"""What the compiled library does with pixels: the same as without it, to the last bit."""

from __future__ import annotations

import ctypes
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.bundle import Bundle
from service.core import Geometry
from service.errors import BackendError
from service.native import build
from service.native import library as opening
from service.native.library import instructions, opened
from service.pixels import compiled_labels, most_probable, scale
from service.pixels.compiled_labels import compiled_runs
from service.pixels.resample import axes
from service.pixels.runs import Runs
from service.segmenting import open_bundle
from tests.test_masks import Planes, blobs, noise, seconds

LEVELS = ("base", "v3", "v4")


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    build.build()
    found = opened()
    assert found is not None
    return found


@pytest.fixture(params=build.INSTRUCTIONS)
def level(request: pytest.FixtureRequest, library: ctypes.CDLL) -> str:
    """The name of a set of instructions that this processor has."""
    best = ("baseline", "AVX2", "AVX-512").index(instructions(library))
    if LEVELS.index(request.param) > best:
        pytest.skip(f"this processor has {instructions(library)}")
    return str(request.param)


GEOMETRIES = [
    (480, 360, (64, 48)),
    (481, 359, (64, 48)),  # no multiple of a tile
    (64, 48, (64, 48)),
    (131, 263, (24, 48)),
    (9, 7, (64, 48)),  # smaller than the cells
    (300, 2, (64, 1)),
    (1, 1, (48, 48)),
]


@pytest.mark.parametrize("make", [noise, blobs, seconds])
@pytest.mark.parametrize(("width", "height", "scaled"), GEOMETRIES)
def test_labels_are_those_without_it(
    library: ctypes.CDLL,
    level: str,
    make: Callable[..., Planes],
    width: int,
    height: int,
    scaled: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probabilities = make(height=24, width=32)
    geometry = Geometry(width, height, *scaled, (48, 64))
    rows, columns = axes(geometry, probabilities.shape[1:])
    wanted = Runs.joined((height, width), *most_probable._runs(probabilities, rows, columns))
    function = getattr(library, f"label_{level}")
    function.restype = ctypes.c_int64

    def label(call: ctypes.Structure) -> int:
        return int(function(ctypes.byref(call)))

    for pixels in (compiled_labels.BAND_PIXELS, 100 * height):  # several bands
        monkeypatch.setattr(compiled_labels, "BAND_PIXELS", pixels)
        found = compiled_runs(label, probabilities, rows, columns)
        runs = Runs.joined((height, width), *found)
        assert np.array_equal(runs.starts, wanted.starts)
        assert np.array_equal(runs.values, wanted.values)


def test_equal_probabilities_go_to_the_lower_class(library: ctypes.CDLL) -> None:
    even = np.full((3, 12, 16), 0.25, np.float32)
    even[2, 3:9, 4:12] = 0.25 + 2**-20
    geometry = Geometry(160, 120, 64, 48, (48, 64))
    rows, columns = axes(geometry, (12, 16))
    wanted = Runs.joined((120, 160), *most_probable._runs(even, rows, columns)).labels()
    assert np.array_equal(most_probable.most_probable(even, geometry).labels(), wanted)
    assert set(np.unique(wanted)) == {0, 2}


def test_no_memory_is_an_error(library: ctypes.CDLL) -> None:
    rows, columns = axes(Geometry(16, 12, 64, 48, (48, 64)), (12, 16))
    with pytest.raises(MemoryError):
        compiled_runs(lambda _call: -1, noise(), rows, columns)


def picture(width: int, height: int, seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


SIZES = [
    ((480, 360), (256, 192)),
    ((480, 360), (768, 576)),
    ((56, 268), (172, 41)),  # Pillow scales these down first, and then across
    ((51, 106), (54, 98)),
    ((104, 194), (49, 91)),
    ((300, 200), (300, 77)),
    ((300, 200), (91, 200)),
    ((7, 5), (1, 1)),
    ((1, 1), (5, 3)),
    ((1, 900), (3, 2)),
    ((900, 1), (2, 3)),
]


@pytest.mark.parametrize(("size", "scaled"), SIZES)
def test_scaling_is_pillows(
    library: ctypes.CDLL,
    level: str,
    size: tuple[int, int],
    scaled: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    function = getattr(library, f"resample_{level}")

    def resample(call: ctypes.Structure) -> int:
        return int(function(ctypes.byref(call)))

    monkeypatch.setattr(scale, "resampler", lambda: resample)
    white = Image.new("RGB", size, "white")
    for image in (picture(*size, seed=size[0]), white):
        canvas: NDArray[np.uint8] = np.full((scaled[1] + 2, scaled[0] + 3, 3), 7, np.uint8)
        scale.scaled_into(canvas[: scaled[1], : scaled[0]], image)
        wanted = np.asarray(image.resize(scaled, Image.Resampling.BILINEAR))
        assert np.array_equal(canvas[: scaled[1], : scaled[0]], wanted)
        assert (canvas[scaled[1] :] == 7).all()
        assert (canvas[:, scaled[0] :] == 7).all()


def test_random_sizes_are_pillows(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(1)
    for seed in range(150):
        width, height, *scaled = (int(size) for size in rng.integers(1, 200, 4))
        image = picture(width, height, seed)
        out = np.empty((scaled[1], scaled[0], 3), np.uint8)
        scale.scaled_into(out, image)
        wanted = np.asarray(image.resize((scaled[0], scaled[1]), Image.Resampling.BILINEAR))
        assert np.array_equal(out, wanted), (width, height, scaled)


def test_without_the_library_pillow_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "resampler", lambda: None)
    image, out = picture(48, 36, 0), np.empty((24, 32, 3), np.uint8)
    scale.scaled_into(out, image)
    assert np.array_equal(out, np.asarray(image.resize((32, 24), Image.Resampling.BILINEAR)))
    monkeypatch.setattr(scale, "resampler", lambda: lambda _call: 0)
    with pytest.raises(MemoryError):
        scale.scaled_into(out, image)


def test_without_the_library_labels_are_the_same(
    library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = Geometry(120, 90, 64, 48, (48, 64))
    with_it = most_probable.most_probable(noise(), geometry)
    monkeypatch.setattr(most_probable, "labeller", lambda: None)
    without = most_probable.most_probable(noise(), geometry)
    assert np.array_equal(with_it.labels(), without.labels())


def test_the_log_says_what_makes_masks_and_a_wrong_library_ends_the_start(
    library: ctypes.CDLL,
    onnx_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    open_bundle(onnx_bundle.root, backend="fake").close()
    assert f"images and masks compiled for {instructions(library)}" in caplog.text
    monkeypatch.setattr(opening, "LIBRARY", Path("none"))
    open_bundle(onnx_bundle.root, backend="fake").close()
    assert "images and masks without the compiled library; with a C compiler: pip" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr(opening, "digest", lambda: "0" * 64)
    with pytest.raises(BackendError, match="other sources"):
        open_bundle(onnx_bundle.root, backend="fake")
