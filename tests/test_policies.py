"""Policies by hand, and the mix and the oracle against a linear program that knows nothing of
hulls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linprog

from model_export.gating.policies import (
    all_to_one,
    best_mix,
    by_beta,
    by_margin,
    compare,
    dealt_at_random,
    fixed,
    interval,
    mix_parts,
    oracle_value,
    resample,
)

Floats = NDArray[np.float64]
SCORES = np.array([[0.50, 0.58, 0.60], [0.60, 0.55, 0.60], [0.70, 0.50, 0.60]])


def chosen(shares: Floats) -> list[int]:
    assert (shares.sum(1) == 1).all()
    assert ((shares == 0) | (shares == 1)).all()
    found: list[int] = shares.argmax(1).tolist()
    return found


def test_margin_takes_the_cheapest_plan_near_the_full_one() -> None:
    assert chosen(by_margin(SCORES, None)) == [2, 2, 2]
    assert chosen(by_margin(SCORES, -0.05)) == [2, 2, 0]
    assert chosen(by_margin(SCORES, 0.0)) == [2, 0, 0]
    assert chosen(by_margin(SCORES, 0.03)) == [1, 0, 0]
    assert chosen(by_margin(SCORES, 0.2)) == [0, 0, 0]


def test_beta_is_the_price_of_the_full_plan() -> None:
    cost = np.array([2.0, 5.0, 10.0])
    assert chosen(by_beta(SCORES, cost, 0.0)) == [2, 0, 0]  # of equals the cheaper
    assert chosen(by_beta(SCORES, cost, 0.06)) == [1, 0, 0]
    assert chosen(by_beta(SCORES, cost, 0.3)) == [0, 0, 0]
    assert chosen(by_beta(SCORES, cost * 7, 0.06)) == [1, 0, 0]


def test_fixed_plans_and_random_ones() -> None:
    assert chosen(fixed(2, 3, -1)) == [2, 2]
    dealt = dealt_at_random(all_to_one(np.array([0, 0, 1, 2]), 3))
    assert dealt.tolist() == [[0.5, 0.25, 0.25]] * 4


def by_program(gain: Floats, cost: Floats, budget: float) -> float:
    """Largest sum of shares * gain, rows of shares sum to 1, sum of shares * cost <= budget. gain,
    cost: (N, plans)."""
    rows = np.kron(np.eye(len(gain)), np.ones(gain.shape[1]))
    found = linprog(
        -gain.ravel(),
        A_ub=cost.reshape(1, -1),
        b_ub=[budget],
        A_eq=rows,
        b_eq=np.ones(len(gain)),
        bounds=(0, 1),
    )
    assert found.success
    return -float(found.fun)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), plans=st.integers(1, 6), level=st.floats(0, 1))
def test_mix_is_the_best_convex_combination_within_the_budget(
    seed: int, plans: int, level: float
) -> None:
    rng = np.random.default_rng(seed)
    cost, means = np.sort(rng.uniform(1, 10, plans)), rng.uniform(0.5, 0.7, plans)
    budget = float(cost[0] + level * (cost[-1] - cost[0]))
    pair = best_mix(means, cost, budget)
    parts = mix_parts(cost, pair, np.array([budget]))[0]
    assert parts.sum() == pytest.approx(1)
    assert (parts >= 0).all()
    assert parts @ cost[[*pair]] <= budget + 1e-9
    assert parts @ means[[*pair]] == pytest.approx(
        by_program(means[None], cost[None], budget), abs=1e-7
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), plans=st.integers(1, 5), level=st.floats(0, 1))
def test_oracle_is_the_optimum_of_the_linear_program(seed: int, plans: int, level: float) -> None:
    rng = np.random.default_rng(seed)
    quality, cost = rng.uniform(0.5, 0.7, (7, plans)), np.sort(rng.uniform(1, 10, plans))
    weights = rng.integers(0, 3, (2, 7)).astype(float)
    weights[:, 0] += 1
    budget = np.full(2, cost[0] + level * (cost[-1] - cost[0]))
    found = oracle_value(quality, cost, budget, weights)
    for case, row in enumerate(weights):
        best = by_program(quality * row[:, None], np.outer(row, cost), budget[case] * row.sum())
        assert found[case] == pytest.approx(best / row.sum(), abs=1e-7)


def test_bootstrap_samples_have_the_size_of_the_set_and_keep_twins_together() -> None:
    weights = resample(np.arange(50), 400)
    assert (weights.sum(1) == 50).all()
    assert weights.mean() == 1
    assert weights.var() == pytest.approx(49 / 50, abs=0.05)
    assert (weights == resample(np.arange(50), 400)).all()
    assert (weights != resample(np.arange(50), 400, seed=1)).any()
    twins = resample(np.array([7, 7, 3, 3, 3]), 20)
    assert (twins[:, 0] == twins[:, 1]).all()
    assert (twins[:, 2:] == twins[:, 2:3]).all()


def test_interval_covers_the_true_mean_at_the_stated_rate() -> None:
    rng, held = np.random.default_rng(0), 0
    for trial in range(600):
        values = rng.normal(0.3, 0.1, 60)
        low, high = interval(resample(np.arange(60), 400, trial) @ values / 60)
        held += low <= 0.3 <= high
    assert 0.91 <= held / 600 <= 0.97  # percentile intervals of 60 values are a little narrow


def test_interval_is_of_the_known_values() -> None:
    assert interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)
    assert np.isnan(interval(np.array([np.nan]))).all()


def world(skill: float, images: int = 200) -> tuple[Floats, Floats, Floats]:
    """scores, quality, cost: half of the images gain by expensive plans, the other half lose."""
    rng = np.random.default_rng(0)
    cost = np.array([1.0, 2.0, 4.0])
    gain = rng.normal(0.005, 0.03, (images, 1)) * np.array([0, 1, 1.5])
    quality = rng.normal(0.6, 0.05, (images, 1)) + gain
    return skill * quality + (1 - skill) * rng.permutation(quality), quality, cost


def test_gate_that_knows_reaches_the_oracle_and_a_blind_one_nothing() -> None:
    scores, quality, cost = world(skill=1.0)
    weights = resample(np.arange(len(quality)), 500)
    knows = compare(by_beta(scores, cost, 0.01), quality, cost, weights)
    assert knows.share == pytest.approx(1, abs=1e-9)
    assert knows.share_interval == pytest.approx((1, 1), abs=1e-9)
    assert knows.won_interval[0] > 0
    assert knows.oracle >= knows.quality > knows.mix >= knows.random
    scores, quality, cost = world(skill=0.0)
    blind = compare(by_beta(scores, cost, 0.01), quality, cost, weights)
    assert blind.won_interval[0] < 0
    assert blind.share < 0.1
    assert blind.quality == pytest.approx(blind.random, abs=0.005)


def test_fixed_plan_on_the_hull_wins_nothing_and_a_dealt_one_is_as_good_as_random() -> None:
    _, quality, cost = world(skill=1.0)
    weights = resample(np.arange(len(quality)), 100)
    first = compare(fixed(len(quality), 3, 0), quality, cost, weights)
    assert first.won == pytest.approx(0, abs=1e-12)
    # At the lowest cost there is no choice, so nothing for the oracle either.
    assert np.isnan(first.share)
    dealt = compare(dealt_at_random(by_beta(quality, cost, 0.01)), quality, cost, weights)
    assert dealt.quality == pytest.approx(dealt.random)
    assert dealt.quality == pytest.approx(quality.mean(0) @ by_beta(quality, cost, 0.01).mean(0))
