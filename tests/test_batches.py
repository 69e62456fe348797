"""Training batches: what is drawn, how often, and what its pixels count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from model_export.data.datasets import VOID, DataError, Dataset, Sample, Scenes
from model_export.tasks.core_and_border import core_and_border, gaps
from model_export.training import batches as drawing
from model_export.training.batches import Batches, StepBatches, chances, draw_batch
from service.bundle import Canvas, Shape
from tests.toy import CANVASES, Stripes

CROP = (64, 96)


def _draw(
    train: Dataset,
    scenes: float = 0.0,
    seed: int = 0,
    often: NDArray[np.float64] | None = None,
    canvases: Sequence[Canvas] = CANVASES,
    **changes: Any,
) -> tuple[torch.Tensor | None, ...]:
    batches = replace(Batches(4, scenes, CROP, (0.6, 1.6), False, 0.0, 1.0), **changes)
    return draw_batch(
        train, Scenes(3, height=60, width=80), batches, canvases, np.random.default_rng(seed), often
    )


def test_batches_are_a_function_of_the_generator_and_mix_in_scenes() -> None:
    draws = [_draw(Stripes(), 0.5, seed)[:2] for seed in (1, 1, 2)]
    for first, again, other in zip(*draws, strict=True):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    assert _draw(Stripes(), 1.0)[1].unique().numel() > 3  # of the scenes' classes


class Squares(Stripes):
    """Four objects that touch."""

    task, channels = "instance", 3

    def __getitem__(self, index: int) -> Sample:
        objects = (np.arange(40)[:, None] // 20 * 2 + np.arange(60) // 30 + 1).astype(np.uint16)
        return Sample("squares", np.zeros((40, 60, 3), np.uint8), core_and_border(objects), objects)


def test_emphasis_is_on_the_gaps_of_the_crops() -> None:
    assert _draw(Stripes())[2] is None
    _, masks, emphasis = _draw(Squares(), gap_weight=5.0)
    assert set(emphasis.unique().tolist()) == {1.0, 5.0}
    assert torch.equal(
        emphasis == 5, torch.from_numpy(np.stack([gaps(mask) for mask in masks.numpy()]))
    )


def test_batches_take_the_sizes_and_labels_of_the_data() -> None:
    images, masks, _ = _draw(Stripes(), size=3)
    assert images.shape == (3, *CROP, 3)
    assert masks.shape == (3, *CROP)
    assert set(masks.unique().tolist()) <= {0, 1, VOID}


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Grows with every crop by the (height, width) of the canvas that its scale is relative to."""
    seen: list[tuple[int, int]] = []
    right = drawing.random_crop

    def spy(sample: Sample, rng: Any, size: Any, scale: Any, canvas: Any, turn: bool) -> Any:
        seen.append(canvas)
        return right(sample, rng, size, scale, canvas, turn)

    monkeypatch.setattr(drawing, "random_crop", spy)
    return seen


def test_half_of_the_crops_are_of_the_largest_canvas_and_the_others_of_each_alike(
    shapes: list[tuple[int, int]],
) -> None:
    canvases = [Canvas.of([Shape(side, side)]) for side in (32, 64, 96, 128)]
    images, _, _ = _draw(Stripes(), canvases=canvases, size=600)
    assert images.shape == (600, *CROP, 3), "whatever the canvas"
    counts = {side: shapes.count((side, side)) / 600 for side in (32, 64, 96, 128)}
    assert counts == pytest.approx({32: 1 / 6, 64: 1 / 6, 96: 1 / 6, 128: 1 / 2}, abs=0.05)


def test_crops_of_one_canvas_are_all_of_its_scale(shapes: list[tuple[int, int]]) -> None:
    _draw(Stripes(), canvases=CANVASES[1:], size=20)
    assert shapes == [(64, 96)] * 20


class Upright(Stripes):
    """Portraits."""

    def __getitem__(self, index: int) -> Sample:
        return Sample("upright", np.zeros((90, 40, 3), np.uint8), np.zeros((90, 40), np.uint8))


def test_a_crop_s_scale_is_that_of_the_shape_that_fits_the_image(
    shapes: list[tuple[int, int]],
) -> None:
    both = [Canvas.of([Shape(64, 96), Shape(96, 64)])]
    for data, shape in ((Stripes(), (64, 96)), (Upright(), (96, 64))):
        shapes.clear()
        _draw(data, canvases=both, size=5)
        assert shapes == [shape] * 5


def test_weather_is_for_a_share_of_the_crops_and_changes_no_label(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, masks, _ = _draw(Stripes(), size=1)
    rainy, same, _ = _draw(Stripes(), size=1, weather=1.0)
    again, _, _ = _draw(Stripes(), size=1, weather=1.0)
    assert torch.equal(rainy, again)
    assert torch.equal(masks, same)
    assert (rainy.shape, rainy.dtype) == (plain.shape, plain.dtype)
    assert not torch.equal(rainy, plain)
    monkeypatch.setattr(drawing, "weather", lambda image, rng: np.full_like(image, 9))
    images, _, _ = _draw(Stripes(), size=300, weather=0.25)
    assert (images == 9).flatten(1).all(1).float().mean().item() == pytest.approx(0.25, abs=0.06)
    images, _, _ = _draw(Stripes(), size=20)
    assert not (images == 9).flatten(1).all(1).any()


class Kinds(Stripes):
    """Nine images of one kind, each all of class 0, and one of another, all of class 1."""

    def __len__(self) -> int:
        return 10

    def group_of(self, index: int) -> str:
        return "rare" if index == 9 else "common"

    def __getitem__(self, index: int) -> Sample:
        return Sample(
            f"{index}", np.zeros((64, 96, 3), np.uint8), np.full((64, 96), index // 9, np.uint8)
        )


@pytest.mark.parametrize(("power", "rare"), [(0.0, 0.1), (0.5, 0.25), (1.0, 0.5)])
def test_balance_gives_a_group_a_share_between_its_own_and_that_of_every_other(
    power: float, rare: float
) -> None:
    often = chances(Kinds(), power)
    assert often.sum() == pytest.approx(1)
    assert often[9] == pytest.approx(rare)
    assert np.allclose(often[:9], often[0])
    _, masks, _ = _draw(Kinds(), often=often, size=400, zoom=(1.0, 1.0))
    assert (masks.flatten(1) == 1).any(1).float().mean().item() == pytest.approx(rare, abs=0.06)


def test_balance_refuses_data_without_groups_and_powers_out_of_range() -> None:
    with pytest.raises(DataError, match="needs a data set with groups"):
        chances(Stripes(), 0.5)
    with pytest.raises(DataError, match="--balance 2 must be between 0"):
        chances(Kinds(), 2)


def test_workers_draw_the_batches_that_the_process_itself_draws() -> None:
    batches = Batches(2, 0.5, CROP, (0.6, 1.6), False, 0.0, 1.0)
    steps = StepBatches(Stripes(), Scenes(3, height=60, width=80), batches, CANVASES, None, (7, 2))
    here, there = (
        list(DataLoader(steps, batch_size=None, sampler=range(3, 6), num_workers=workers))
        for workers in (0, 2)
    )
    for ours, theirs in zip(here, there, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
    assert not torch.equal(here[0][0], here[1][0])
