"""Training batches: what is drawn, how often, and what its pixels count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_export.data.datasets import VOID, DataError, Dataset, Sample, Scenes
from model_export.tasks.core_and_border import core_and_border, gaps
from model_export.training.batches import Batches, chances, draw_batch
from tests.toy import CANVAS, Stripes


def _draw(
    train: Dataset,
    scenes: float = 0.0,
    seed: int = 0,
    often: NDArray[np.float64] | None = None,
    **changes: Any,
) -> tuple[torch.Tensor | None, ...]:
    batches = replace(Batches(4, scenes, CANVAS, (0.6, 1.6), False, 1.0), **changes)
    return draw_batch(
        train, Scenes(3, height=60, width=80), batches, CANVAS, np.random.default_rng(seed), often
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
    assert images.shape == (3, *CANVAS, 3)
    assert set(masks.unique().tolist()) <= {0, 1, VOID}


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
