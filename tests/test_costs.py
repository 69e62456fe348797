"""Costs: per stage and batch, and how they follow what runs, up and down."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.core import Decision, HeadWidth, Plan, Reason
from service.errors import DeadlineExceeded
from service.inference.costs import KEPT_TAIL, SAFE, STALE_S, Cost, Costs, Tail
from tests.known_costs import known_costs

PLANS = [Plan(f"d{depth}", depth, 1.0, 1.0, 2.0 * depth, 0.5, canvas="c1") for depth in (1, 2, 3)]
OTHER = Plan("c2-d1", 1, 1.0, 1.0, 9.0, 0.6, canvas="c2")


def fed(cost: Cost, *ms: float, images: int = 1) -> Cost:
    for each in ms:
        cost.add(each / 1000, images, 100.0)
    return cost


@pytest.mark.parametrize("actual", [200.0, 1977.0, 20.0])
def test_three_runs_that_agree_move_a_cost_to_where_they_are(actual: float) -> None:
    cost = Cost(1977.0 if actual < 1977 else 200.0)
    before = cost.ms()
    fed(cost, actual)
    assert cost.ms() == before
    assert fed(cost, actual, actual).ms() == pytest.approx(actual)


def test_an_outlier_moves_nothing() -> None:
    cost = fed(Cost(10.0), *[10.0] * 6)
    assert fed(cost, 5000.0).ms() == 10.0
    assert cost.high_ms() == 10.0
    assert fed(cost, 12.0, 12.0).high_ms() == 12.0


def test_a_high_time_has_a_margin_until_there_are_enough_runs() -> None:
    assert Cost(10.0).high_ms() == pytest.approx(SAFE * 10)


def test_a_wrong_first_measurement_is_out_of_a_full_window_too() -> None:
    cost = Cost(30_000.0)
    for _ in range(12):
        fed(cost, 10.0, 12.0)
        if cost.ms() < 100:
            assert 10.0 <= cost.ms() <= 12.0
    assert cost.ms() < 100


def test_a_high_time_of_before_is_forgotten_as_soon_as_the_median_is() -> None:
    cost = fed(Cost(60_000.0), 10.0, 10.0, 10.0)
    assert (cost.ms(), cost.high_ms()) == (10.0, 15.0)


def test_what_n_images_take_lies_between_the_sizes_that_are_known() -> None:
    linear, measured = Cost(10.0), Cost(10.0, most=4, most_ms=16.0)
    assert [linear.ms(n) for n in (1, 2, 4)] == [10.0, 20.0, 40.0]
    assert [measured.ms(n) for n in (1, 2, 3, 4, 8)] == [10.0, 12.0, 14.0, 16.0, 32.0]
    assert measured.high_ms(2) == pytest.approx(SAFE * 12)
    assert fed(measured, 30.0, 30.0, 30.0, images=2).ms(2) == pytest.approx(30.0)
    assert measured.ms() == 10.0


def test_more_images_never_take_less() -> None:
    assert Cost(10.0, most=4, most_ms=8.0).ms(2) == 10.0


def costs() -> Costs:
    rest_ms = dict(zip([*PLANS, OTHER], (1, 2, 3, 4), strict=True))
    return known_costs({"c1": 5.0, "c2": 30.0}, rest_ms)


def test_a_plan_takes_the_glance_its_front_the_rest_and_what_is_beside() -> None:
    known = costs()
    assert (known.total_ms(PLANS[1]), known.total_ms(OTHER)) == (7.0, 39.0)
    fed(known.beside, 2.0, 2.0, 2.0)
    assert (known.total_ms(PLANS[1]), known.total_ms(OTHER)) == (9.0, 41.0)
    assert (known.after_glance_ms(PLANS[1]), known.after_glance_ms(OTHER)) == (2.0, 34.0)
    assert known.plan_ms([*PLANS, OTHER]) == {"d1": 6.0, "d2": 7.0, "d3": 8.0, "c2-d1": 39.0}


def test_only_a_cost_that_was_not_measured_lately_is_doubted() -> None:
    known = costs()
    for cost in (*known.front.values(), *known.encoders.values()):
        fed(cost, 5.0)
    known.doubt(PLANS[0], 100.0 + STALE_S / 2)
    assert not known.doubted
    known.doubt(PLANS[0], 100.0 + STALE_S)
    assert list(known.doubted) == ["d1"]


def test_plans_that_a_deadline_ruled_out_are_doubted() -> None:
    known = costs()
    by_node = Decision(PLANS[0], Reason.NODE, 0.5, PLANS[2])
    for decision in (by_node, Decision(PLANS[0], Reason.GATE, 0.5)):
        known.doubt_of(PLANS, decision, 100.0)
    assert not known.doubted
    known.doubt_of(PLANS, Decision(PLANS[0], Reason.DEADLINE, 0.5, PLANS[2]), 100.0)
    assert list(known.doubted) == ["d2", "d3"]  # all that would have been better


def test_the_plan_that_a_deadline_left_no_time_for_is_doubted() -> None:
    known = costs()
    known.doubt_of(PLANS, DeadlineExceeded("It passed while it ran."), 100.0)
    assert not known.doubted
    known.doubt_of(PLANS, DeadlineExceeded("There is no time for d2.", plan="d2"), 100.0)
    assert list(known.doubted) == ["d2"]


def test_a_cost_that_measuring_again_confirms_is_trusted_for_longer_and_longer() -> None:
    known, now, waits = costs(), 0.0, []
    for ms in (1.0, 1.0, 1.0, 50.0, 50.0):
        since = now
        while not known.doubted:
            now += 1.0
            known.doubt(PLANS[0], now)
        waits.append(now - since)
        while known.doubted:
            for cost in (known.front["c1"], known.encoders["d1"]):
                cost.add((5.0 if cost is known.front["c1"] else ms) / 1000, 1, now)
            known.measured(PLANS[0])
    assert waits == [1.0, 20.0, 40.0, 80.0, 10.0]


def test_of_several_heads_each_is_a_cost_of_its_own_by_its_width_and_canvas() -> None:
    heads = (HeadWidth("semantic"), HeadWidth("depth", 0.5))
    plan = Plan("d1+semantic+depth-w50", 1, 1.0, 1.0, 2.0, 0.5, canvas="c1", heads=heads)
    other = replace(plan, name="c2-d1+semantic+depth-w50", canvas="c2")
    heads_ms = {"semantic": 2.0, "depth-w50": 3.0, "depth": 50.0}
    at = {
        (canvas, key): factor * ms
        for canvas, factor in (("c1", 1), ("c2", 10))
        for key, ms in heads_ms.items()
    }
    known = Costs({"c1": 5.0, "c2": 30.0}, {"d1": 1.0, "c2-d1": 4.0}, at)
    assert (known.total_ms(plan), known.after_glance_ms(plan)) == (11.0, 6.0)
    assert known.total_ms(other) == 5.0 + 30.0 + 4.0 + 50.0
    fed(known.heads["c1", "depth-w50"], 7.0, 7.0, 7.0)
    assert known.total_ms(plan) == 15.0
    known.doubt(plan, 1e6)  # also because of the heads, which were not measured lately
    assert list(known.doubted) == [plan.name]


def test_a_tail_is_what_hardly_any_of_the_last_times_exceeded() -> None:
    tail = Tail()
    for _ in range(2):
        tail.add(0.01)
        assert tail.s == 0
    tail.add(0.01)
    assert tail.s == 0.01
    for index in range(KEPT_TAIL - 3):
        tail.add(0.05 if index in (5, 18) else 0.01)
    assert tail.s == 0.05
    for _ in range(KEPT_TAIL - 21):  # one of the two is of another time now
        tail.add(0.01)
    assert tail.s == 0.01
