"""Which encoders serve a grid of preferences, and what a budget buys."""

from __future__ import annotations

import numpy as np
import pytest

from model_export.gating.preferences import (
    preference_grid,
    shares_of,
    under,
    weighted,
    worth_having,
)
from service.bundle import EncoderPlan, Head, HeadWorth, complete_plans

HEADS = (Head("boxes", "detection", (), (0.5, 1.0)), Head("depth", "depth", (), (0.5, 1.0)))
KEYS = ["boxes-w50", "boxes", "depth-w50", "depth"]


def plan(name: str, gflops: float, *qualities: float) -> EncoderPlan:
    costs = (0.1, 0.4, 0.1, 0.4)
    heads = {
        key: HeadWorth(cost, quality, (quality,) * 5)
        for key, cost, quality in zip(KEYS, costs, qualities, strict=True)
    }
    return EncoderPlan(name, 1, 1.0, 1.0, gflops, heads, "c96")


CHEAP = plan("cheap", 1.0, 0.2, 0.3, 0.5, 0.6)
USELESS = plan("useless", 1.5, 0.1, 0.2, 0.4, 0.5)
GOOD = plan("good", 2.0, 0.4, 0.5, 0.6, 0.7)
FULL = plan("full", 3.0, 0.5, 0.6, 0.7, 0.8)


def test_the_grid_has_each_head_alone_all_alike_and_pairs() -> None:
    grid = preference_grid(["a", "b", "c"])
    assert grid[:4] == [{"a": 1.0}, {"b": 1.0}, {"c": 1.0}, dict.fromkeys("abc", 0.3333)]
    assert len(grid) == 4 + 6
    assert {"b": 0.9, "a": 0.1} in grid
    assert preference_grid(["a"]) == [{"a": 1.0}]


def test_weights_are_shares() -> None:
    assert shares_of({"a": 3.0, "b": 1.0, "c": 0.0}) == {"a": 0.75, "b": 0.25}


def test_an_encoder_that_serves_nobody_goes_first() -> None:
    every = [CHEAP, USELESS, GOOD, FULL]
    assert worth_having(every, HEADS, 3) == [CHEAP, GOOD, FULL]
    assert worth_having(every, HEADS, 9) == every
    assert worth_having(every, HEADS, 1) == [FULL], "the full one always stays"


@pytest.mark.parametrize(
    ("preference", "gflops", "name"),
    [
        ({"boxes": 1.0}, 2.2, "good+boxes-w50"),
        ({"boxes": 1.0}, 2.4, "good+boxes"),
        ({"boxes": 0.9, "depth": 0.1}, 2.5, "good+boxes+depth-w50"),
        ({"boxes": 0.1, "depth": 0.9}, 2.5, "good+boxes-w50+depth"),
        ({"boxes": 0.5, "depth": 0.5}, 0.1, "cheap+boxes-w50+depth-w50"),
    ],
)
def test_a_budget_buys_the_preferred_head(
    preference: dict[str, float], gflops: float, name: str
) -> None:
    plans = complete_plans([CHEAP, GOOD, FULL], HEADS, preference)
    assert under(plans, gflops).name == name


def test_scores_are_weighted_as_qualities_are() -> None:
    every = [CHEAP, GOOD, FULL]
    table = np.array([[[each.heads[key].quality for key in KEYS] for each in every]])
    preference = {"boxes": 0.9, "depth": 0.1}
    plans = complete_plans(every, HEADS, preference)
    ours = weighted(table, plans, preference, [each.name for each in every], KEYS)
    np.testing.assert_allclose(ours[0], [each.quality for each in plans])
