"""Policy: every rule of the choice as a row of a table, and what must hold for any input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core import Ask, Budget, Decision, Margin, Plan, Reason
from service.errors import BadBudget, DeadlineExceeded, UnsatisfiableBudget
from service.inference.policy import Policy, Pressure, margin_for

NONE = Budget()
# 2, 4, 6 and 8 GFLOPs; what is left after the front takes 10, 20, 30 and 40 ms
PLANS = [Plan(f"d{depth}", depth, 1.0, 1.0, 2.0 * depth, 0.5) for depth in (1, 2, 3, 4)]
COSTS = [10.0, 20.0, 30.0, 40.0]
RISING = [0.60, 0.66, 0.695, 0.70]  # losses against full depth: 0.10, 0.04, 0.005, 0
FLAT = [0.70, 0.70, 0.70, 0.70]
WORD = [Margin(asked, asked) for asked in (0.001, 0.01, 0.05, 0.2)]  # the gate is taken at its word


def policy(margins: Sequence[Margin]) -> Policy:
    return Policy(tuple(PLANS), tuple(margins), 0.01)


def choose(
    scores: list[float],
    request: Budget,
    node: Budget,
    plans: Sequence[Plan] = PLANS,
    *,
    margins: Sequence[Margin] = WORD,
    default_max_loss: float = 0.01,
    remaining_ms: float | None = None,
    costs_ms: Sequence[float] = COSTS,
    limit_ms: float = math.inf,
) -> Decision:
    """A row of the table below is what it changes of these defaults."""
    policy = Policy(tuple(plans), tuple(margins), default_max_loss)
    closed = frozenset(index for index, ms in enumerate(costs_ms) if ms > limit_ms)
    return policy.choose(scores, Ask(request), node, costs_ms, Pressure(closed, remaining_ms))


def pick(
    scores: list[float], request: Budget = NONE, node: Budget = NONE, **changes: Any
) -> Decision:
    return choose(scores, request, node, **changes)


CASES: list[tuple[str, dict[str, Any], str, Reason]] = [
    # the floor
    ("the cheapest plan within the default loss", {"scores": RISING}, "d3", Reason.GATE),
    ("an easy image takes the cheapest plan", {"scores": FLAT}, "d1", Reason.GATE),
    (
        "a looser floor of the request",
        {"scores": RISING, "request": Budget(max_loss=0.05)},
        "d2",
        Reason.GATE,
    ),
    (
        "a tighter floor of the request",
        {"scores": RISING, "request": Budget(max_loss=0.001)},
        "d4",
        Reason.GATE,
    ),
    (
        "the node's floor where the request has none",
        {"scores": RISING, "node": Budget(max_loss=0.05)},
        "d2",
        Reason.GATE,
    ),
    (
        "the request's floor before the node's",
        {"scores": RISING, "request": Budget(max_loss=0.2), "node": Budget(max_loss=0)},
        "d1",
        Reason.GATE,
    ),
    (
        "no loss at all is the full plan, though all are equal",
        {"scores": FLAT, "request": Budget(max_loss=0)},
        "d4",
        Reason.GATE,
    ),
    ("no loss by default", {"scores": FLAT, "default_max_loss": 0.0}, "d4", Reason.GATE),
    # the table of margins
    (
        "a floor between two rows takes the lower one",
        {"scores": RISING, "request": Budget(max_loss=0.049)},
        "d3",
        Reason.GATE,
    ),
    (
        "a floor above the last row takes that",
        {"scores": RISING, "request": Budget(max_loss=1), "margins": WORD[:3]},
        "d2",
        Reason.GATE,
    ),
    (
        "a floor below the first row is the full plan, though all are equal",
        {"scores": FLAT, "request": Budget(max_loss=0.0009)},
        "d4",
        Reason.GATE,
    ),
    ("no table is the full plan", {"scores": FLAT, "margins": []}, "d4", Reason.GATE),
    (
        "a row without a margin is the full plan",
        {"scores": FLAT, "margins": [Margin(0.01, None)]},
        "d4",
        Reason.GATE,
    ),
    (
        "an optimistic gate gets a tighter margin",
        {"scores": RISING, "margins": [Margin(0.01, 0.004)]},
        "d4",
        Reason.GATE,
    ),
    (
        "a pessimistic gate gets a looser one",
        {"scores": RISING, "margins": [Margin(0.01, 0.04)]},
        "d2",
        Reason.GATE,
    ),
    (
        "a negative margin asks for more than the full plan's score",
        {"scores": [0.70, 0.72, 0.75, 0.70], "margins": [Margin(0.01, -0.03)]},
        "d3",
        Reason.GATE,
    ),
    (
        "under a ceiling a floor that nothing is known of gives the best score",
        {"scores": [0.6, 0.65, 0.62, 0.7], "request": Budget(depth=3), "margins": []},
        "d2",
        Reason.REQUEST,
    ),
    ("a cheaper plan may be the better one", {"scores": [0.6, 0.8, 0.7, 0.7]}, "d2", Reason.GATE),
    # ceilings of the request and the node
    (
        "a ceiling that does not bind leaves the gate's choice",
        {"scores": RISING, "request": Budget(depth=3)},
        "d3",
        Reason.GATE,
    ),
    ("the request's depth", {"scores": RISING, "request": Budget(depth=2)}, "d2", Reason.REQUEST),
    (
        "the request's gflops",
        {"scores": RISING, "request": Budget(gflops=5.9)},
        "d2",
        Reason.REQUEST,
    ),
    (
        "a ceiling includes its own value",
        {"scores": RISING, "request": Budget(gflops=6.0)},
        "d3",
        Reason.GATE,
    ),
    (
        "the tighter of two keys",
        {"scores": RISING, "request": Budget(depth=2, gflops=2.5)},
        "d1",
        Reason.REQUEST,
    ),
    ("the node's depth", {"scores": RISING, "node": Budget(depth=2)}, "d2", Reason.NODE),
    ("the node's gflops", {"scores": RISING, "node": Budget(gflops=3)}, "d1", Reason.NODE),
    (
        "the tighter of request and node, node",
        {"scores": RISING, "request": Budget(depth=2), "node": Budget(depth=1)},
        "d1",
        Reason.NODE,
    ),
    (
        "the tighter of request and node, request",
        {"scores": RISING, "request": Budget(depth=1), "node": Budget(depth=2)},
        "d1",
        Reason.REQUEST,
    ),
    (
        "request before node when they are equal",
        {"scores": RISING, "request": Budget(gflops=4), "node": Budget(depth=2)},
        "d2",
        Reason.REQUEST,
    ),
    (
        "below a ceiling the best score counts, not the depth",
        {"scores": [0.6, 0.65, 0.62, 0.7], "request": Budget(depth=3)},
        "d2",
        Reason.REQUEST,
    ),
    (
        "equal scores below a ceiling: the cheaper",
        {"scores": [0.6, 0.65, 0.65, 0.7], "request": Budget(depth=3)},
        "d2",
        Reason.REQUEST,
    ),
    (
        "no loss at all under a ceiling: the most expensive allowed, whatever its score",
        {"scores": [0.6, 0.65, 0.62, 0.7], "request": Budget(depth=3, max_loss=0)},
        "d3",
        Reason.REQUEST,
    ),
    # deadline
    ("time for everything", {"scores": RISING, "remaining_ms": 30.0}, "d3", Reason.GATE),
    ("time for less than wanted", {"scores": RISING, "remaining_ms": 29.9}, "d2", Reason.DEADLINE),
    ("time for the cheapest only", {"scores": RISING, "remaining_ms": 10.0}, "d1", Reason.DEADLINE),
    (
        "request before deadline when they are equal",
        {"scores": RISING, "request": Budget(depth=2), "remaining_ms": 20.0},
        "d2",
        Reason.REQUEST,
    ),
    (
        "node before deadline when they are equal",
        {"scores": RISING, "node": Budget(depth=2), "remaining_ms": 20.0},
        "d2",
        Reason.NODE,
    ),
    (
        "the deadline when it is tighter",
        {"scores": RISING, "node": Budget(depth=2), "remaining_ms": 10.0},
        "d1",
        Reason.DEADLINE,
    ),
    # load
    (
        "load that leaves time for everything closes nothing",
        {"scores": RISING, "request": Budget(max_loss=0), "limit_ms": 40.0},
        "d4",
        Reason.GATE,
    ),
    (
        "load closes the most expensive plan",
        {"scores": RISING, "request": Budget(max_loss=0), "limit_ms": 39.9},
        "d3",
        Reason.LOAD,
    ),
    (
        "load closes plan by plan",
        {"scores": RISING, "request": Budget(max_loss=0), "limit_ms": 20.0},
        "d2",
        Reason.LOAD,
    ),
    ("load leaves the cheapest open", {"scores": RISING, "limit_ms": -7.0}, "d1", Reason.LOAD),
    ("load leaves an easy image alone", {"scores": FLAT, "limit_ms": 0.0}, "d1", Reason.GATE),
    (
        "deadline before load when they are equal",
        {"scores": RISING, "remaining_ms": 10.0, "limit_ms": 10.0},
        "d1",
        Reason.DEADLINE,
    ),
    # strict
    (
        "strict with a floor that is kept",
        {"scores": RISING, "request": Budget(strict=True, max_loss=0.05, depth=2)},
        "d2",
        Reason.GATE,
    ),
    (
        "strict is not made cheaper by load",
        {"scores": RISING, "request": Budget(strict=True), "limit_ms": 0.0},
        "d3",
        Reason.GATE,
    ),
]


@pytest.mark.parametrize(
    ("arguments", "plan", "reason"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_rule(arguments: dict[str, Any], plan: str, reason: Reason) -> None:
    decision = pick(**arguments)
    assert (decision.plan.name, decision.reason) == (plan, reason)
    assert decision.predicted_quality == arguments["scores"][PLANS.index(decision.plan)]


@pytest.mark.parametrize(
    ("max_loss", "expected"),
    [
        (0, None),
        (0.0024, None),
        (0.0025, None),
        (0.005, -0.1),
        (0.0099, -0.1),
        (0.01, 0.0),
        (0.02, 0.3),
        (1, 0.3),
    ],
)
def test_margin_is_that_of_the_largest_row_up_to_what_is_asked(
    max_loss: float, expected: float | None
) -> None:
    margins = [Margin(0.0025, None), Margin(0.005, -0.1), Margin(0.01, 0.0), Margin(0.02, 0.3)]
    assert margin_for(max_loss, margins) == expected
    assert margin_for(max_loss, []) is None


# A narrow plan of great depth can be the cheapest: then a ceiling of depth closes the cheap end.
NARROW = [replace(PLANS[3], name="narrow", width=0.25, gflops=1.0), *PLANS]


def test_a_ceiling_at_the_cheap_end_gives_the_cheapest_plan_that_keeps_the_floor() -> None:
    scores = [0.70, 0.60, 0.695, 0.70, 0.70]
    decision = pick(scores, Budget(depth=3), plans=NARROW, costs_ms=[5.0, *COSTS])
    assert (decision.plan.name, decision.reason) == ("d2", Reason.REQUEST)


def test_a_ceiling_at_the_cheap_end_that_leaves_no_good_plan_gives_the_best_left() -> None:
    scores = [0.70, 0.60, 0.65, 0.64, 0.70]
    decision = pick(scores, Budget(depth=3), plans=NARROW, costs_ms=[5.0, *COSTS])
    assert (decision.plan.name, decision.reason) == ("d2", Reason.REQUEST)


def test_full_load_keeps_the_cheapest_plan_that_other_ceilings_leave() -> None:
    decision = pick(
        [0.0, 0.1, 0.2, 0.3, 0.9],
        Budget(depth=3),
        plans=NARROW,
        costs_ms=[5.0, *COSTS],
        limit_ms=0.0,
    )
    assert (decision.plan.name, decision.reason) == ("d1", Reason.LOAD)


@pytest.mark.parametrize(
    ("changes", "plan", "reason"),
    [
        ({}, "large-d1", Reason.REQUEST),
        ({"limit_ms": 30.0}, "small-d1", Reason.LOAD),
        ({"remaining_ms": 30.0}, "small-d1", Reason.DEADLINE),
        ({"limit_ms": 45.0}, "large-d1", Reason.REQUEST),  # load closes what the request has closed
    ],
)
def test_what_took_more_than_the_requests_ceiling_decided(
    changes: dict[str, float], plan: str, reason: Reason
) -> None:
    """The ceiling leaves fewer plans than the other does, but the other made the plan cheaper."""
    layout = [("small", 1), ("small", 2), ("small", 3), ("large", 1), ("large", 2)]
    plans = [
        replace(PLANS[0], name=f"{canvas}-d{depth}", depth=depth, gflops=float(cost))
        for cost, (canvas, depth) in enumerate(layout, 1)
    ]
    scores, costs = [0.5, 0.55, 0.6, 0.65, 0.8], [10.0, 20.0, 30.0, 40.0, 50.0]
    decision = pick(scores, Budget(depth=1), plans=plans, costs_ms=costs, **changes)
    assert (decision.plan.name, decision.reason) == (plan, reason)


@pytest.mark.parametrize(
    ("request_", "node", "whose"),
    [
        (Budget(gflops=1.9), NONE, "the request's"),
        (NONE, Budget(gflops=1.9), "this node's"),
        (Budget(gflops=1.9), Budget(gflops=1.9), "the request's"),
    ],
)
def test_a_ceiling_under_the_cheapest_plan_is_refused_with_its_cost(
    request_: Budget, node: Budget, whose: str
) -> None:
    with pytest.raises(UnsatisfiableBudget, match=whose) as caught:
        pick(RISING, request_, node)
    assert caught.value.extra == {"cheapest": {"plan": "d1", "depth": 1, "gflops": 2.0}}
    assert "gflops=2" in caught.value.detail
    with pytest.raises(UnsatisfiableBudget):
        policy(WORD).affordable(request_, node)


@pytest.mark.parametrize(
    "ceiling", [{"request": Budget(depth=2, strict=True)}, {"node": Budget(depth=2)}]
)
def test_strict_refuses_a_missed_floor_and_names_the_plan_that_would_keep_it(
    ceiling: dict[str, Any],
) -> None:
    with pytest.raises(UnsatisfiableBudget, match="strict") as caught:
        pick(RISING, **({"request": Budget(strict=True)} | ceiling))
    assert caught.value.extra == {"cheapest": {"plan": "d3", "depth": 3, "gflops": 6.0}}


def test_strict_without_the_time_for_its_floor_misses_its_deadline_and_not_a_ceiling() -> None:
    strict = Budget(strict=True)
    with pytest.raises(DeadlineExceeded, match=r"no time for d3, .* strict: raise ms") as caught:
        pick(RISING, strict, remaining_ms=20.0)
    assert caught.value.plan == "d3"
    # With all the time there is, its ceiling would still be in the way.
    with pytest.raises(UnsatisfiableBudget, match="under the ceilings"):
        pick(RISING, replace(strict, depth=2), remaining_ms=20.0)


@pytest.mark.parametrize(
    ("request_", "node", "names"),
    [
        (NONE, NONE, ["d1", "d2", "d3", "d4"]),
        (Budget(depth=2), Budget(depth=3), ["d1", "d2"]),
        (Budget(max_loss=0), NONE, ["d1", "d2", "d3", "d4"]),  # load may make it cheaper
        (Budget(max_loss=0, strict=True), NONE, ["d4"]),
        (Budget(strict=True), Budget(max_loss=0), ["d4"]),
        (Budget(strict=True), NONE, ["d1", "d2", "d3", "d4"]),  # the scores decide
        (Budget(max_loss=0, strict=True), Budget(depth=2), ["d1", "d2"]),  # refused later
    ],
)
def test_what_an_image_may_get_whatever_its_scores(
    request_: Budget, node: Budget, names: list[str]
) -> None:
    assert [plan.name for plan in policy(WORD).possible(request_, node)] == names


@pytest.mark.parametrize("remaining_ms", [9.9, 0.0, -5.0])
def test_a_deadline_that_leaves_no_plan_is_an_error(remaining_ms: float) -> None:
    with pytest.raises(DeadlineExceeded) as caught:
        pick(RISING, remaining_ms=remaining_ms)
    assert caught.value.plan == "d1"


def test_a_deadline_that_leaves_only_plans_over_the_depth_is_an_error() -> None:
    with pytest.raises(DeadlineExceeded):
        pick([0.5] * 5, Budget(depth=3), plans=NARROW, costs_ms=[5.0, *COSTS], remaining_ms=7.0)


def test_scores_that_are_no_numbers_give_the_full_plan() -> None:
    assert pick([float("nan")] * 4).plan.name == "d4"


@pytest.mark.parametrize("depth", [0, -1, 5])
def test_a_depth_that_no_plan_has_is_refused_by_its_key(depth: int) -> None:
    with pytest.raises(BadBudget, match=f"'depth' must be from 1 to 4, but is {depth}"):
        policy(WORD).check(Budget(depth=depth))
    with pytest.raises(BadBudget, match="but is an integer of about 5001 digits"):
        policy(WORD).check(Budget(depth=10**5000))
    policy(WORD).check(Budget(depth=4))
    policy(WORD).check(NONE)


unit = st.floats(0, 1)
budgets = st.builds(
    Budget,
    depth=st.none() | st.integers(1, 8),
    gflops=st.none() | st.floats(0.001, 30),
    max_loss=st.none() | unit,
    strict=st.booleans(),
)


@st.composite
def situations(draw: st.DrawFn) -> dict[str, Any]:
    gflops = sorted(draw(st.lists(st.floats(0.5, 20), min_size=1, max_size=7)))
    plans = [
        Plan(f"p{i}", draw(st.integers(1, 8)), 1.0, 1.0, cost, 0.5) for i, cost in enumerate(gflops)
    ]
    return {
        "plans": plans,
        "scores": [draw(unit) for _ in plans],
        "margins": [
            Margin(asked, draw(st.none() | st.floats(-1, 1)))
            for asked in sorted(draw(st.sets(st.floats(0.001, 1), max_size=4)))
        ],
        "request": draw(budgets),
        "node": draw(budgets),
        "default_max_loss": draw(unit),
        "remaining_ms": draw(st.none() | st.floats(-10, 100)),
        "costs_ms": [draw(st.floats(0.1, 100)) for _ in plans],
        "limit_ms": draw(st.just(math.inf) | st.floats(0, 100)),
    }


def margin_of(situation: dict[str, Any]) -> float:
    """-inf where only the full plan is safe."""
    losses = [
        situation["request"].max_loss,
        situation["node"].max_loss,
        situation["default_max_loss"],
    ]
    limit = next(loss for loss in losses if loss is not None)
    rows = [row.margin for row in situation["margins"] if row.asked <= limit]
    return float("-inf") if not rows or rows[-1] is None else rows[-1]


@given(situations())
def test_the_chosen_plan_is_under_every_ceiling_and_refusals_are_true(
    situation: dict[str, Any],
) -> None:
    plans, limits = situation["plans"], (situation["request"], situation["node"])
    fitting = [
        i
        for i, plan in enumerate(plans)
        if all(b.depth is None or plan.depth <= b.depth for b in limits)
        and all(b.gflops is None or plan.gflops <= b.gflops for b in limits)
    ]
    in_time = [
        i
        for i in fitting
        if situation["remaining_ms"] is None
        or situation["costs_ms"][i] <= situation["remaining_ms"]
    ]
    scores, margin = situation["scores"], margin_of(situation)
    good_later = [i for i in fitting if plans[i] == plans[-1] or scores[-1] - scores[i] <= margin]
    good = [i for i in good_later if i in in_time]
    try:
        decision = choose(**situation)
    except UnsatisfiableBudget:
        assert not fitting or (situation["request"].strict and not good_later)
    except DeadlineExceeded:
        assert fitting
        assert not in_time or (situation["request"].strict and good_later and not good)
    else:
        chosen = plans.index(decision.plan)
        assert chosen in in_time
        assert decision.predicted_quality == scores[chosen]
        if situation["request"].strict:
            assert chosen in good


@given(situations())
def test_it_never_raises_when_the_cheapest_plan_fits_and_there_is_no_deadline(
    situation: dict[str, Any],
) -> None:
    cheapest = situation["plans"][0]
    for key in ("request", "node"):
        budget = situation[key]
        situation[key] = replace(
            budget,
            depth=budget.depth and max(budget.depth, cheapest.depth),
            gflops=budget.gflops and max(budget.gflops, cheapest.gflops),
            strict=False,
        )
    choose(**(situation | {"remaining_ms": None}))


@given(situations(), unit)
def test_more_load_never_gives_a_more_expensive_plan(
    situation: dict[str, Any], less: float
) -> None:
    situation |= {"request": replace(NONE, max_loss=0), "node": NONE, "remaining_ms": None}
    more = choose(**situation).plan
    more_ms = situation["limit_ms"] / max(less, 0.01)  # less load leaves more time
    assert more.gflops <= choose(**(situation | {"limit_ms": more_ms})).plan.gflops
