"""Label maps and scaled images by the compiled library: the same as without it, to the last bit."""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.bundle import Bundle
from service.core import Geometry
from service.errors import BackendError
from service.native import build
from service.native import library as opening
from service.native.library import instructions, opened
from service.pixels import bilinear, compiled_labels, most_probable
from service.pixels.compiled_labels import compiled_map, compiled_runs
from service.pixels.resample import axes
from service.pixels.runs import Runs
from service.segmenting import open_bundle
from tests.needs import compiled_library
from tests.test_masks import Planes, blobs, noise, seconds

LEVELS = ("base", "v3", "v4")


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    compiled_library()
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
    assert np.array_equal(compiled_map(label, probabilities, rows, columns), wanted.labels())


def test_equal_probabilities_go_to_the_lower_class(library: ctypes.CDLL) -> None:
    even = np.full((3, 12, 16), 0.25, np.float32)
    even[2, 3:9, 4:12] = 0.25 + 2**-20
    geometry = Geometry(160, 120, 64, 48, (48, 64))
    rows, columns = axes(geometry, (12, 16))
    wanted = Runs.joined((120, 160), *most_probable._runs(even, rows, columns)).labels()
    assert np.array_equal(most_probable.most_probable(even, geometry).labels(), wanted)
    assert set(np.unique(wanted)) == {0, 2}


def test_no_memory_is_an_error(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = axes(Geometry(16, 12, 64, 48, (48, 64)), (12, 16))
    with pytest.raises(MemoryError):
        compiled_runs(lambda _call: -1, noise(), rows, columns)
    with pytest.raises(MemoryError):
        compiled_map(lambda _call: -1, noise(), rows, columns)
    monkeypatch.setattr(bilinear, "scaler", lambda: lambda _call: -1)
    with pytest.raises(MemoryError):
        bilinear.scale(np.zeros((2, 2, 3), np.uint8), np.zeros((3, 3, 3), np.uint8))


def test_without_the_library_labels_are_the_same(
    library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = Geometry(120, 90, 64, 48, (48, 64))
    with_it = most_probable.most_probable(noise(), geometry)
    monkeypatch.setattr(most_probable, "labeller", lambda: None)
    without = most_probable.most_probable(noise(), geometry)
    assert np.array_equal(with_it.labels(), without.labels())
    assert np.array_equal(most_probable.most_probable_map(noise(), geometry), without.labels())


SIZES = [
    ((360, 480), (576, 768)),
    ((360, 480), (192, 256)),
    ((576, 768), (384, 512)),
    ((577, 433), (255, 192)),
    ((37, 53), (36, 52)),
    ((300, 4), (77, 90)),  # Pillow would begin with the rows
    ((40, 40), (40, 41)),
    ((1, 1), (7, 5)),
    ((9, 400), (1, 3)),
]


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_scaled_pixels_are_those_without_it(
    library: ctypes.CDLL,
    level: str,
    old: tuple[int, int],
    new: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = np.random.default_rng(0).integers(0, 256, (*old, 3), np.uint8)
    source[: old[0] // 2] = np.where(source[: old[0] // 2] > 127, 255, 0)  # no sum overflows
    function = getattr(library, f"scale_{level}")
    function.restype = ctypes.c_int64
    made = []
    for compiled in (lambda call: int(function(ctypes.byref(call))), None):
        monkeypatch.setattr(bilinear, "scaler", lambda compiled=compiled: compiled)
        canvas = np.zeros((new[0] + 2, new[1] + 3, 3), np.uint8)
        bilinear.scale(source, canvas[: new[0], : new[1]])
        assert not canvas[new[0] :].any()
        assert not canvas[:, new[1] :].any()
        made.append(canvas)
    assert np.array_equal(*made)
    if old[0] * new[1] == old[1] * new[0]:
        pillow = Image.fromarray(source).resize(new[::-1], Image.Resampling.BILINEAR)
        assert np.array_equal(made[0][: new[0], : new[1]], np.asarray(pillow))


def test_the_weights_of_a_call_are_there_until_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache keeps only one's of threads that compute the same ones at once: the others' would
    be freed, and the service died of it."""
    made: list[weakref.ref[object]] = []
    computed = bilinear.taps.__wrapped__

    def alone(old: int, new: int) -> bilinear.Taps:
        found = computed(old, new)
        made.extend(weakref.ref(array) for array in found)
        return found

    def compiled(_call: ctypes.Structure) -> int:
        assert len(made) == 6
        assert all(array() is not None for array in made)
        return 0

    monkeypatch.setattr(bilinear, "scaler", lambda: compiled)
    monkeypatch.setattr(bilinear, "taps", alone)
    bilinear.scale(np.zeros((2, 2, 3), np.uint8), np.zeros((3, 3, 3), np.uint8))


def test_the_log_says_what_makes_masks_and_a_wrong_library_ends_the_start(
    library: ctypes.CDLL,
    onnx_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    open_bundle(onnx_bundle.root, backend="fake").close()
    assert f"scaling and label maps compiled for {instructions(library)}" in caplog.text
    monkeypatch.setattr(opening, "LIBRARY", Path("none"))
    open_bundle(onnx_bundle.root, backend="fake").close()
    assert (
        "scaling and label maps without the compiled library; with a C compiler: pip" in caplog.text
    )
    monkeypatch.undo()
    monkeypatch.setattr(opening, "digest", lambda: "0" * 64)
    with pytest.raises(BackendError, match="other sources"):
        open_bundle(onnx_bundle.root, backend="fake")
