"""Training crops, and the canvas on which the recipe evaluates: the one on which the service
serves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from model_export.data import augment
from model_export.data.augment import PAD, jitter, on_canvases, random_crop, weather
from model_export.data.datasets import VOID, Folder, Sample
from model_export.tasks.semantic import labels_at
from service.bundle import Canvas, Shape
from service.core import Frame
from service.pixels.decode import Limits, decode
from service.pixels.most_probable import most_probable
from tests.image_files import one_canvas, only, to_canvas

# Colours no two of which mix to a third, and none of which is the padding's.
PAINT = np.uint8([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]])


def _painted(height: int, width: int, seed: int) -> Sample:
    """A mask of blocks, and an image that shows each label in its colour."""
    blocks = np.random.default_rng(seed).integers(0, 5, (-(-height // 12), -(-width // 12)))
    mask = np.kron(blocks, np.ones((12, 12), int))[:height, :width].astype(np.uint8)
    return Sample("painted", PAINT[mask], mask)


@pytest.mark.parametrize("seed", range(12))
def test_random_crop_keeps_image_and_mask_aligned(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(augment, "jitter", lambda image, _: image)
    image, mask = random_crop(_painted(90, 130, seed), np.random.default_rng(seed), (64, 96))
    # The image's filter reaches two pixels; away from the borders between labels, it shows the
    # label's own colour.
    inside = minimum_filter(mask, 5, mode="constant", cval=254) == maximum_filter(
        mask, 5, mode="constant", cval=254
    )
    assert inside.mean() > 0.3
    wanted = np.concatenate([PAINT, np.zeros((250, 3), np.uint8), np.full((1, 3), PAD, np.uint8)])[
        mask
    ]
    assert np.array_equal(image[inside], wanted[inside])


def test_labels_that_lie_right_of_the_image_do_so_in_mirrored_crops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A post at columns 60 to 63 with labels two pixels right of it: so they must be seen,
    whichever way it faces."""
    monkeypatch.setattr(augment, "jitter", lambda image, _: image)
    image, mask = np.zeros((64, 128, 3), np.uint8), np.zeros((64, 128), np.uint8)
    image[:, 60:64], mask[:, 62:66] = 255, 1
    sample, sides = Sample("post", image, mask, labels_right=2), set()
    for seed in range(40):
        shown, labels = random_crop(
            sample, np.random.default_rng(seed), (64, 256), scale=(1.0, 1.0001)
        )
        known = labels != VOID
        place = np.average(np.nonzero((shown[..., 0] > 160) & known)[1])
        right = np.average(np.nonzero(labels == 1)[1]) - place
        assert right == pytest.approx(2, abs=0.6)
        sides.add(bool(place > np.average(np.nonzero(known)[1])))
    # The post is left of the middle as it is, right of it in the mirror.
    assert sides == {
        False,
        True,
    }


def test_random_crop_pads_with_void_where_the_source_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "jitter", lambda image, _: image)
    void = 0
    for seed in range(8):
        image, mask = random_crop(
            _painted(30, 40, 0), np.random.default_rng(seed), (64, 96), scale=(0.9, 1.1)
        )
        assert np.array_equal((image == PAD).all(-1), mask == VOID)
        rows, columns = np.nonzero(mask != VOID)
        # One rectangle, all of it known.
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert 0.7 * 30 * 40 < len(rows) < 1.4 * 30 * 40  # the whole source, at about its own size
        void += int((mask == VOID).sum())
    assert void > 0


def test_random_crop_zooms_against_the_size_that_the_image_has_on_the_canvas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Small images are enlarged for the canvas: what is trained on is what will be served."""
    monkeypatch.setattr(augment, "jitter", lambda image, _: image)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        _, mask = random_crop(
            _painted(30, 40, 0), rng, (256, 256), scale=(1.0, 1.0001), canvas=(120, 200)
        )
        rows, columns = np.nonzero(mask != VOID)
        assert abs(np.ptp(rows) + 1 - 120) <= 1
        assert abs(np.ptp(columns) + 1 - 160) <= 18  # a stretch of up to a tenth


def test_random_crop_turns_image_and_mask_together_and_only_when_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(augment, "jitter", lambda image, _: image)
    flat = np.zeros((60, 200), np.uint8)
    flat[:, :100] = 1
    sample, tall = Sample("halves", PAINT[flat], flat), {True: 0, False: 0}
    for turn in (True, False):
        for seed in range(20):
            image, mask = random_crop(
                sample, np.random.default_rng(seed), (256, 256), scale=(1.0, 1.0001), turn=turn
            )
            known = mask != VOID
            assert (image[known] == PAINT[mask[known]]).all(1).mean() > 0.95
            rows, columns = np.nonzero(known)
            tall[turn] += bool(np.ptp(rows) > np.ptp(columns))
    assert tall[False] == 0
    assert 4 <= tall[True] <= 16


@pytest.mark.parametrize(("height", "width"), [(5, 300), (90, 130), (700, 20)])
def test_random_crop_has_its_size_whatever_the_source(height: int, width: int) -> None:
    sample = _painted(height, width, 1)
    for seed in range(6):
        image, mask = random_crop(sample, np.random.default_rng(seed), (64, 96))
        again = random_crop(sample, np.random.default_rng(seed), (64, 96))
        assert (image.shape, image.dtype, mask.shape, mask.dtype) == (
            (64, 96, 3),
            np.uint8,
            (64, 96),
            np.uint8,
        )
        assert np.array_equal(image, again[0])
        assert np.array_equal(mask, again[1])


def test_jitter_changes_colours_and_moves_nothing() -> None:
    image = _painted(48, 72, 2).image
    changed = jitter(image, np.random.default_rng(3))
    assert not np.array_equal(changed, image)
    both = np.concatenate([changed, image], -1)
    # Each colour becomes one other colour, wherever it stands.
    for pixels in (
        image,
        changed,
        both,
    ):
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) == len(PAINT)


@pytest.mark.parametrize("seed", range(30))
def test_weather_changes_the_light_and_keeps_the_view(seed: int) -> None:
    """Bright things stay brighter than dark ones beside them: labels still fit."""
    image = np.full((64, 96, 3), 60, np.uint8)
    image[:, 40:44] = 180
    before = image.copy()
    shown = weather(image, np.random.default_rng(seed))
    assert (shown.shape, shown.dtype) == (image.shape, np.uint8)
    assert np.array_equal(image, before)
    assert not np.array_equal(shown, image)
    assert np.array_equal(shown, weather(image, np.random.default_rng(seed)))
    post = shown[:, 40:44].astype(float).mean((1, 2))
    beside = shown[:, [*range(34, 38), *range(46, 50)]].astype(float).mean((1, 2))
    assert (post > beside + 10).all()


def test_weather_has_many_kinds() -> None:
    """Brighter and darker views, sharp and blurred ones, and those that differ from place to
    place."""
    image = np.tile(np.uint8([40, 200]), (64, 48))[..., None].repeat(3, 2)
    shown = [weather(image, np.random.default_rng(seed)).astype(float) for seed in range(40)]
    means = [each.mean() - image.mean() for each in shown]
    assert min(means) < -30
    assert max(means) > 30
    steps = [np.abs(np.diff(each[..., 0], axis=1)).mean() for each in shown]
    assert min(steps) < 20
    assert max(steps) > 100
    rows = [np.ptp(each.mean((1, 2))) for each in shown]
    assert min(rows) < 1
    assert max(rows) > 20


SPEC = one_canvas(96, 128, (PAD,) * 3)
SIZES = [(96, 128), (90, 128), (50, 61), (300, 500), (720, 960), (2000, 9)]


def placed(sample: Sample) -> Frame:
    """On the only canvas of SPEC."""
    return only(on_canvases(sample, SPEC.canvases))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_trained_canvas_is_the_served_canvas(height: int, width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    ours = placed(Sample("noise", pixels, np.zeros((height, width), np.uint8)))
    frame = to_canvas(Image.fromarray(pixels), SPEC)
    assert ours.geometry == frame.geometry
    assert (frame.geometry.height, frame.geometry.width) == (height, width)
    assert np.array_equal(ours.pixels, frame.pixels)


def test_an_image_lies_on_every_canvas_in_the_shape_that_fits_it() -> None:
    small = Canvas.of([Shape(32, 64), Shape(64, 32)])
    large = Canvas.of([Shape(96, 128), Shape(128, 96)])
    for size, shapes in (((50, 90), ["32x64", "96x128"]), ((90, 50), ["64x32", "128x96"])):
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        frames = on_canvases(Sample("noise", image, np.zeros(size, np.uint8)), (small, large))
        assert list(frames) == ["c64", "c128"]
        assert [frame.geometry.shape for frame in frames.values()] == shapes


def test_trained_canvas_of_a_large_jpeg_is_about_the_served_one(tmp_path: Path) -> None:
    """The service lets the JPEG decoder shrink the image on the way; the recipe does not."""
    y, x = np.mgrid[0:600, 0:800] / 40
    pixels = np.uint8(
        127 + 60 * np.stack([np.sin(x) + np.cos(y), np.sin(x * y / 9), np.cos(x - y)], -1)
    )
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.jpg", quality=95)
    Image.new("L", (800, 600)).save(tmp_path / "masks" / "a.png")
    ours = placed(Folder(tmp_path, "semantic")[0]).pixels
    data = (tmp_path / "images" / "a.jpg").read_bytes()
    served = only(decode(data, "image/jpeg", Limits(10**7, 4096, 1), SPEC)).pixels
    gap = np.abs(ours.astype(int) - served.astype(int))
    assert gap.mean() < 1
    assert np.quantile(gap, 0.99) <= 8


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_evaluated_labels_are_the_served_labels(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(height)
    coarse = 3 * torch.randn(1, 11, 6, 8, generator=generator)
    smooth = F.interpolate(coarse, (24, 32), mode="bicubic").softmax(1)
    probabilities = smooth + 0.02 * torch.rand(smooth.shape, generator=generator)
    sample = Sample(
        "black", np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    )
    geometry = placed(sample).geometry
    inner = geometry.scaled_height, geometry.scaled_width
    frame = to_canvas(Image.fromarray(sample.image), SPEC)
    served = most_probable(probabilities[0].numpy(), frame.geometry).labels()
    ours = labels_at(probabilities, (96, 128), inner, (height, width))
    assert ours.shape == served.shape == (height, width)
    assert (ours == served).mean() >= 0.999
