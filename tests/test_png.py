"""PNG files of label maps and values: Pillow reads back what went in, whatever the bands."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.pixels import png

COLORS = [(250, 0, 1), (0, 251, 2), (3, 4, 252)]


def read(file: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(file))
    image.load()
    return image


def blocks(height: int, width: int, most: int) -> NDArray[np.uint16]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, most + 1, (height // 7 + 1, width // 5 + 1), np.uint16)
    labels = np.kron(coarse, np.ones((7, 5), np.uint16))[:height, :width]
    return np.asfortranarray(labels)  # as what is turned has it


@pytest.fixture(params=[1 << 18, 40], ids=["one band", "several"])
def band_pixels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png, "_BAND_PIXELS", request.param)


@pytest.mark.usefixtures("band_pixels")
@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (37, 31)])
class TestWhatIsReadBack:
    def test_labels_with_their_colours(self, size: tuple[int, int]) -> None:
        labels = blocks(*size, 2).astype(np.uint8)
        image = read(png.palette(labels, COLORS))
        assert image.mode == "P"
        assert (np.asarray(image) == labels).all()
        assert (np.asarray(image.convert("RGB")) == np.array(COLORS)[labels]).all()

    @pytest.mark.parametrize("write", [png.gray, png.levels])
    def test_sixteen_bits(self, size: tuple[int, int], write: object) -> None:
        assert callable(write)
        labels = blocks(*size, 65535)
        image = read(write(labels))
        assert image.mode == "I;16"
        assert (np.asarray(image) == labels).all()

    def test_an_overlay_is_transparent_where_nothing_is(self, size: tuple[int, int]) -> None:
        labels = blocks(*size, 3).astype(np.uint8)
        shown = np.asarray(read(png.overlay(labels, COLORS)).convert("RGBA"))
        wanted = np.array([(0, 0, 0, 0), *((*color, 128) for color in COLORS)])[labels]
        assert (shown == wanted).all()

    def test_ids_in_three_bytes(self, size: tuple[int, int]) -> None:
        labels, table = blocks(*size, 2), np.array([0, 70_000, (1 << 24) - 1], np.uint32)
        red, green, blue = np.moveaxis(np.asarray(read(png.ids(labels, table)), np.uint32), -1, 0)
        assert (red + 256 * green + 65536 * blue == table[labels]).all()


def test_the_objects_of_a_photo_are_written_faster_than_by_pillow() -> None:
    labels = blocks(1024, 1280, 200)

    def pillow() -> None:
        Image.fromarray(labels).save(io.BytesIO(), "PNG", compress_level=1)

    taken = []
    for write in (lambda: png.gray(labels), pillow):
        spent = []
        for _ in range(3):
            began = time.thread_time()
            write()
            spent.append(time.thread_time() - began)
        taken.append(min(spent))
    assert taken[0] < taken[1]  # a third of it where this was written
