"""Preferences: from what was measured of encoder plans and heads to the plan of an image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.ask import preference_of
from service.bundle import EncoderPlan, Head, HeadWorth, Manifest, complete_plans
from service.core import Ask, Budget, Decision, Plan, told
from service.errors import BadPreference, UnsatisfiableBudget
from service.inference.policies import Policies
from service.inference.policy import Policy, Pressure
from tests.several_heads import WORTH

HEADS = tuple(Head(name, name, (), (0.25, 0.5, 1.0)) for name in ("a", "b", "c"))
KEYS = [at.key for head in HEADS for at in head.at_widths()]


def names(plans: tuple[Plan, ...]) -> list[str]:
    return [plan.name for plan in plans]


# -- complete plans --------------------------------------------------------------------------------


def test_a_plan_is_an_encoder_and_a_width_per_asked_head(several_heads: Manifest) -> None:
    plans = several_heads.plans
    assert names(plans)[0] == "c32-d1+semantic-w50+depth-w25"
    full = plans[-1]
    assert (full.name, full.encoder) == ("c64-d4+semantic+depth", "c64-d4")
    assert full.gflops == pytest.approx(5.0 + 1.0 + 0.8)
    assert full.quality == pytest.approx((0.8 + 0.9) / 2)
    assert full.quality_quantiles == ()
    assert [(head.name, head.width) for head in plans[0].heads] == [
        ("semantic", 0.5),
        ("depth", 0.25),
    ]
    assert [plan.gflops for plan in plans] == sorted(plan.gflops for plan in plans)
    assert [plan.quality for plan in plans] == sorted(plan.quality for plan in plans)


@pytest.mark.parametrize(
    ("preference", "cheapest", "full", "gflops"),
    [
        ({"boxes": 3}, "c32-d1+boxes", "c64-d4+boxes", 5.3),
        ({"depth": 0.1, "boxes": 0}, "c32-d1+depth-w25", "c64-d4+depth", 5.8),
        ({"semantic": 1, "boxes": 1, "depth": 1}, None, "c64-d4+semantic+boxes+depth", 7.1),
    ],
)
def test_a_head_without_a_weight_is_in_no_plan(
    several_heads: Manifest,
    preference: Mapping[str, float],
    cheapest: str | None,
    full: str,
    gflops: float,
) -> None:
    plans = Policies(several_heads, 0.0).of(preference).plans
    assert cheapest in (None, plans[0].name)
    assert (plans[-1].name, plans[-1].gflops) == (full, gflops)
    asked = {name for name, weight in preference.items() if weight}
    assert {frozenset(head.name for head in plan.heads) for plan in plans} == {frozenset(asked)}


def test_a_single_head_keeps_its_quantiles_and_its_quality(several_heads: Manifest) -> None:
    plan = Policies(several_heads, 0.0).of({"boxes": 0.3}).plans[-1]
    assert (plan.quality, plan.quality_quantiles) == (0.6, (0.6,) * 5)


def test_a_bundle_with_one_head_of_one_width_keeps_all_plans_and_their_names(
    fake_manifest: Manifest,
) -> None:
    worse = replace(
        fake_manifest.encoder_plans[2], heads={"semantic": HeadWorth(0.0, 0.1, (0.1,) * 5)}
    )
    d1, d2, _, d4 = fake_manifest.encoder_plans
    manifest = replace(fake_manifest, encoder_plans=(d1, d2, worse, d4))
    assert names(manifest.plans) == ["d1", "d2", "d3", "d4"]
    assert [plan.gflops for plan in manifest.plans] == [2.0, 3.0, 4.0, 5.0]


def test_the_larger_preference_gets_the_larger_head(several_heads: Manifest) -> None:
    # Depth gains three times as much from its width as semantics do: 0.3 and 0.1.
    depth_first, semantic_first = "semantic-w50+depth", "semantic+depth-w25"
    for share, name in ((0.5, depth_first), (0.7, depth_first), (0.8, semantic_first)):
        policy = Policies(several_heads, 0.0).of({"semantic": share, "depth": 1 - share})
        assert best(policy, 6.3).name == f"c64-d4+{name}"


def best(policy: Policy, gflops: float) -> Plan:
    return [plan for plan in policy.plans if plan.gflops <= gflops][-1]


# -- properties ------------------------------------------------------------------------------------


def tables(draw: st.DrawFn) -> tuple[EncoderPlan, ...]:
    """Encoder plans whose heads cost more and are no worse the wider they are, and the further the
    encoder goes."""
    share = st.floats(0.2, 1)
    gains = {
        head.name: sorted(draw(st.lists(st.floats(0.1, 1), min_size=3, max_size=3)))
        for head in HEADS
    }
    costs = {
        head.name: sorted(draw(st.lists(st.floats(0.01, 3), min_size=3, max_size=3)))
        for head in HEADS
    }
    encoders = sorted(draw(st.lists(st.tuples(st.floats(0.5, 9), share), min_size=1, max_size=5)))
    reached = sorted(quality for _, quality in encoders)
    return tuple(
        EncoderPlan(
            f"c1-d{i}",
            i,
            1.0,
            1.0,
            round(gflops, 4),
            {
                at.key: HeadWorth(round(costs[head.name][k], 4), quality * gains[head.name][k], ())
                for head in HEADS
                for k, at in enumerate(head.at_widths())
            },
        )
        for i, ((gflops, _), quality) in enumerate(zip(encoders, reached, strict=True), 1)
    )


TABLES = st.composite(tables)()
WEIGHTS = st.dictionaries(
    st.sampled_from([head.name for head in HEADS]), st.floats(0, 1), min_size=1
).filter(lambda weights: any(weights.values()))


def policy_of(table: tuple[EncoderPlan, ...], weights: Mapping[str, float]) -> Policy:
    plans = complete_plans(table, HEADS, weights)
    rows = {plan.name: row for row, plan in enumerate(table)}
    total = sum(weights.values())
    columns = tuple(
        tuple(
            (rows[plan.encoder] * len(KEYS) + KEYS.index(head.key), weights[head.name] / total)
            for head in plan.heads
        )
        for plan in plans
    )
    return Policy(plans, (), 0.0, columns)


@settings(max_examples=250, deadline=None)
@given(
    table=TABLES,
    weights=WEIGHTS,
    budget=st.floats(0.01, 20),
    seed=st.randoms(use_true_random=False),
    max_loss=st.sampled_from([None, 0.0, 0.02, 0.5]),
)
def test_no_plan_is_over_the_budget_and_no_head_runs_unasked(
    table: tuple[EncoderPlan, ...],
    weights: dict[str, float],
    budget: float,
    seed: object,
    max_loss: float | None,
) -> None:
    policy = policy_of(table, weights)
    predicted = [seed.random() for _ in range(len(table) * len(KEYS))]  # type: ignore[attr-defined]
    ask = Ask(Budget(gflops=budget, max_loss=max_loss), preference=weights)
    scores = policy.scores(predicted)
    assert all(-1e-9 <= score <= 1 + 1e-9 for score in scores)
    try:
        decision = policy.choose(scores, ask, Budget(), [1.0] * len(policy.plans), Pressure())
    except UnsatisfiableBudget:
        assert all(plan.gflops > budget for plan in policy.plans)
        cheapest = table[0].gflops + sum(
            table[0].heads[f"{name}-w25"].gflops for name, weight in weights.items() if weight
        )
        assert policy.plans[0].gflops == pytest.approx(cheapest, abs=1e-3)
        return
    assert isinstance(decision, Decision)
    assert decision.plan.gflops <= budget
    asked = [head.name for head in HEADS if weights.get(head.name, 0) > 0]
    assert [head.name for head in decision.plan.heads] == asked


@settings(max_examples=150, deadline=None)
@given(table=TABLES, weights=WEIGHTS)
def test_plans_are_a_front_up_to_the_full_one(
    table: tuple[EncoderPlan, ...], weights: dict[str, float]
) -> None:
    plans = complete_plans(table, HEADS, weights)
    *front, full = plans
    assert all(a.price < b.price for a, b in pairwise(plans))  # each can be bought by its own
    assert all(a.quality < b.quality for a, b in pairwise(front))
    assert full.encoder == table[-1].name
    assert {head.width for head in full.heads} == {1.0}
    assert len(set(names(plans))) == len(plans)


@settings(max_examples=150, deadline=None)
@given(table=TABLES, weights=WEIGHTS, budget=st.floats(0.01, 20))
def test_the_larger_head_is_not_that_which_matters_less_if_that_costs_quality(
    table: tuple[EncoderPlan, ...], weights: dict[str, float], budget: float
) -> None:
    """No two heads could change their widths for a better answer at no more cost."""
    policy = policy_of(table, weights)
    if policy.plans[0].gflops > budget:
        return
    plan, total = best(policy, budget), sum(weights.values())
    row = next(row for row in table if row.name == plan.encoder)
    for one, other in combinations(range(len(plan.heads)), 2):
        widths = [head.width for head in plan.heads]
        widths[one], widths[other] = widths[other], widths[one]
        heads = [replace(head, width=w) for head, w in zip(plan.heads, widths, strict=True)]
        worth = [row.heads[head.key] for head in heads]
        quality = sum(
            weights[head.name] * own.quality for head, own in zip(heads, worth, strict=True)
        )
        if row.gflops + sum(own.gflops for own in worth) <= min(budget, plan.gflops) - 1e-3:
            assert quality / total <= plan.quality + 1e-9


@settings(max_examples=250, deadline=None)
@given(table=TABLES, high=st.floats(0.5, 1), budget=st.floats(0.01, 20).map(told))
def test_more_preference_never_gets_less_quality_at_the_same_budget(
    table: tuple[EncoderPlan, ...], high: float, budget: float
) -> None:
    """Of two heads, each when it is preferred against when it is not."""
    policies = {
        name: policy_of(table, {"a": share, "b": 1 - share})
        for name, share in (("a", high), ("b", 1 - high))
    }
    if high == 1 or policies["a"].plans[0].gflops > budget:
        return
    quality = {name: qualities(best(policy, budget), table) for name, policy in policies.items()}
    assert quality["a"]["a"] >= quality["b"]["a"] - 1e-9
    assert quality["b"]["b"] >= quality["a"]["b"] - 1e-9


def qualities(plan: Plan, table: tuple[EncoderPlan, ...]) -> dict[str, float]:
    worth = next(row for row in table if row.name == plan.encoder).heads
    return {head.name: worth[head.key].quality for head in plan.heads}


# -- policies --------------------------------------------------------------------------------------


def test_the_gates_scores_are_weighted_by_the_preference(several_heads: Manifest) -> None:
    predicted = [i / 100 for i in range(3 * len(WORTH))]
    policy = Policies(several_heads, 0.0).of({"semantic": 3, "depth": 1})
    scores = dict(zip(names(policy.plans), policy.scores(predicted), strict=True))
    # The columns of the third encoder plan begin at 10: semantic-w50, semantic, boxes, depth-w25.
    assert scores["c64-d4+semantic+depth"] == pytest.approx(0.75 * 0.11 + 0.25 * 0.14)
    assert scores["c32-d1+semantic-w50+depth-w25"] == pytest.approx(0.75 * 0.0 + 0.25 * 0.03)


def test_only_the_ratio_of_weights_matters_and_each_policy_is_made_once(
    several_heads: Manifest,
) -> None:
    policies = Policies(several_heads, 0.0)
    assert policies.of({"semantic": 1, "depth": 1}) is policies.default
    assert policies.of({"depth": 7e5, "boxes": 0.0, "semantic": 7e5}) is policies.default
    assert policies.of({"semantic": 2, "depth": 1}) is not policies.default
    assert policies.shares({"depth": 1e-300, "semantic": 1e-300}) == {"semantic": 0.5, "depth": 0.5}
    assert policies.shares(None) == {"semantic": 0.5, "depth": 0.5}


def test_a_tiny_weight_still_runs(several_heads: Manifest) -> None:
    shares = Policies(several_heads, 0.0).shares({"semantic": 1e6, "depth": 0.001})
    assert shares.keys() == {"semantic", "depth"}
    assert math.isclose(shares["depth"], 1e-9)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("semantics", "the key 'semantics' is no head of this bundle: did you mean 'semantic'?"),
        ("xyz", "the key 'xyz' is no head of this bundle: there is 'semantic', 'boxes', 'depth'"),
    ],
)
def test_a_head_that_the_bundle_does_not_have_is_named(
    several_heads: Manifest, name: str, words: str
) -> None:
    with pytest.raises(BadPreference) as caught:
        Policies(several_heads, 0.0).check(Ask(preference={"depth": 1.0, name: 0.0}))
    assert (caught.value.detail, caught.value.extra) == (words, {"key": name})


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [
        ({"depth": -0.1}, "depth", "must be from 0 to 1000000, but is -0.1"),
        ({"a": 1, "depth": math.nan}, "depth", "must be from 0 to 1000000, but is nan"),
        ({"depth": math.inf}, "depth", "must be from 0 to 1000000, but is inf"),
        ({"depth": True}, "depth", "must be a number"),
        ({"depth": "1"}, "depth", "must be a number"),
        ({"depth": None}, "depth", "must be a number"),
        ({"depth": 0, "boxes": 0.0}, "depth", "'depth' is 0, and so are all others"),
        ({}, "", "there is no head: at least one weight must be over 0"),
    ],
)
def test_weights_must_be_numbers_of_which_one_counts(
    values: dict[str, object], key: str, words: str
) -> None:
    with pytest.raises(BadPreference) as caught:
        preference_of(values)
    assert words in caught.value.detail
    assert caught.value.extra == {"key": key}
