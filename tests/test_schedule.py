"""Schedule: how much time images may take, and how many run together, by tables."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.inference.schedule import (
    PLANNED,
    RISE_S,
    Times,
    Wait,
    batch_size,
    eased,
    objective_s,
    room_ms,
    share_ms,
)

THREE = Times([[10.0], [30.0], [20.0]])  # more GFLOPs need not take longer


@pytest.mark.parametrize(
    ("waits", "expected"),
    [
        ([], math.inf),
        ([(0.0, 0.3)], math.inf),  # nobody is behind
        ([(0.0, 0.3), (0.0, 0.3)], 100.0),  # two thirds of 300 ms for two
        ([(0.0, 9.0), (0.0, 0.3), (0.0, 0.9)], 100.0),  # the tightest counts
        ([(0.0, 9.0), (0.0, 9.0), (0.0, 0.225)], 50.0),
        ([(0.0, 9.0), (-0.3, 0.3)], 50.0),  # of its 600 ms, 400 may be planned, and 300 are over
        ([(0.0, 9.0), (-1.0, 0.1)], -400 / 3),  # too late to plan
    ],
)
def test_a_share_is_what_those_behind_leave(waits: list[Wait], expected: float) -> None:
    assert share_ms(waits, 0.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("size", "taken", "expected"), [(5, 1, math.inf), (5, 2, 25.0), (5, 5, 10.0), (5, 6, 50 / 6)]
)
def test_a_full_queue_leaves_the_cheapest_plan(size: int, taken: int, expected: float) -> None:
    assert room_ms(10.0, size, taken) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("limit_ms", "row"), [(5.0, 10.0), (10.0, 10.0), (29.0, 20.0), (30.0, 30.0), (math.inf, 30.0)]
)
def test_the_slowest_plan_within_a_limit_counts(limit_ms: float, row: float) -> None:
    assert THREE.within(limit_ms) == [row]
    assert (THREE.cheapest_ms, THREE.slowest_ms) == (10.0, 30.0)


@pytest.mark.parametrize(
    ("before", "limit", "elapsed_s", "expected"),
    [
        (math.inf, 15.0, 0.0, 15.0),  # it falls at once
        (15.0, math.inf, RISE_S / 4, 20.0),  # and rises by and by
        (15.0, 17.0, RISE_S / 4, 17.0),
        (10.0, math.inf, RISE_S, math.inf),
        (10.0, math.inf, math.inf, math.inf),
        (20.0, -50.0, 1.0, 10.0),  # the cheapest plan stays
    ],
)
def test_a_limit_falls_at_once_and_rises_slowly(
    before: float, limit: float, elapsed_s: float, expected: float
) -> None:
    assert eased(before, limit, elapsed_s, THREE) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("slack_ms", "most", "row", "expected"),
    [
        (100.0, 4, [10.0, 12.0, 14.0, 16.0], 4),
        (13.0, 4, [10.0, 12.0, 14.0, 16.0], 2),
        (5.0, 4, [10.0, 12.0, 14.0, 16.0], 1),  # never none
        (100.0, 2, [10.0, 12.0, 14.0, 16.0], 2),
        (100.0, 4, [10.0, 20.0, 30.0, 40.0], 1),  # it saves no time
        (100.0, 4, [10.0, 19.6, 29.0, 37.0], 4),
    ],
)
def test_images_run_together_where_that_pays_and_the_first_has_time(
    slack_ms: float, most: int, row: list[float], expected: int
) -> None:
    assert batch_size(slack_ms, most, row) == expected


def test_the_objective_follows_the_full_plan() -> None:
    assert (objective_s(20.0), objective_s(200.0)) == (0.25, pytest.approx(0.6))


waits = st.lists(st.tuples(st.floats(-5, 0), st.floats(0.01, 5)), min_size=1, max_size=20)


@given(waits)
def test_if_all_take_their_share_nobody_behind_the_first_is_late(found: list[Wait]) -> None:
    each = share_ms(found, 0.0) / 1000
    for index, (_, due) in enumerate(found):
        if index and each > 0:
            assert (index + 1) * each <= due


@given(waits, st.tuples(st.floats(-5, 0), st.floats(0.01, 5)))
def test_one_more_that_waits_never_leaves_more_time(found: list[Wait], one: Wait) -> None:
    assert share_ms([*found, one], 0.0) <= share_ms(found, 0.0)


def test_a_part_of_the_time_is_kept_for_images_that_have_not_come() -> None:
    assert 0.5 <= PLANNED < 1
