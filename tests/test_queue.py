"""Queue: admission, order, batches and expiry, driven by hand with a clock of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from service.errors import DeadlineExceeded, Overloaded
from service.inference.queue import PATIENCE_S, Place, Queue


def queue(size: int = 4, max_batch: int = 2, mean_ms: float = 100.0) -> Queue[Place]:
    found = Queue[Place](size=size, max_batch=max_batch, spread=lambda: 1.0)
    found.mean_ms = mean_ms
    return found


def test_places_are_taken_in_order_of_their_deadlines_then_of_their_arrival() -> None:
    waiting = queue(size=8, max_batch=8, mean_ms=0.0)
    deadlines = [None, 9.0, 5.0, 7.0, None, 5.0]
    places = [Place(0.0, deadline) for deadline in deadlines]
    for place in places:
        waiting.admit(place, 0.0, 0.0)
    order = [places.index(place) for place in waiting.take(0.0, 1.0)]
    assert order == [2, 5, 3, 1, 0, 4]


def test_a_place_without_a_deadline_becomes_urgent_with_time() -> None:
    waiting = queue(size=8, max_batch=1)
    patient, urgent = Place(0.0, None), Place(5.0, 5.0 + PATIENCE_S)
    waiting.admit(urgent, 5.0, 0.0)
    waiting.admit(patient, 5.0, 0.0)
    assert waiting.take(5.0, 1.0) == [patient]


def test_a_full_queue_refuses_with_the_time_until_it_is_empty() -> None:
    full = queue(size=2)
    full.admit(Place(0.0, None), 0.0, 10.0)
    assert len(full.take(0.0, 10.0)) == 1
    for _ in range(2):
        full.admit(Place(0.0, None), 0.0, 10.0)
    with pytest.raises(Overloaded, match="full") as caught:
        full.admit(Place(0.0, None), 0.04, 10.0)
    # One image that has run for 40 of 100 ms, and two that wait.
    assert caught.value.retry_after == pytest.approx(0.26)
    assert (caught.value.shed, len(full.waiting), full.fill) == ("full", 2, 1.0)


@pytest.mark.parametrize(("deadline", "admitted"), [(0.199, False), (0.201, True)])
def test_a_deadline_counts_what_runs_what_is_ahead_and_the_cheapest_plan(
    deadline: float, admitted: bool
) -> None:
    busy = queue()
    busy.admit(Place(0.0, None), 0.0, 50.0)
    busy.take(0.0, 50.0)
    busy.admit(Place(0.0, 0.15), 0.0, 50.0)  # sooner, so it is ahead
    busy.admit(Place(0.0, None), 0.0, 50.0)  # later, so it does not count
    place = Place(0.0, deadline)
    if admitted:
        busy.admit(place, 0.05, 0.0)
        assert place in busy.waiting
    else:
        with pytest.raises(Overloaded, match="about 150 ms") as caught:
            busy.admit(place, 0.05, 0.0)
        assert caught.value.shed == "predicted"


def test_the_slack_of_the_most_urgent_image_limits_its_company() -> None:
    waiting = queue(max_batch=4, mean_ms=1.0)
    for deadline in (0.25, 1.0, 1.0, 1.0):
        waiting.admit(Place(0.0, deadline), 0.0, 1.0)
    assert len(waiting.take(0.0, 100.0)) == 2  # 250 ms are enough for two of 100 ms
    assert len(waiting.take(0.3, 1000.0)) == 1  # never none


def test_what_is_past_its_deadline_is_not_taken() -> None:
    late = queue(mean_ms=0.0)
    places = [Place(0.0, 0.1), Place(0.0, 0.3)]
    for place in places:
        late.admit(place, 0.0, 0.0)
    assert late.take(0.2, 1.0) == places[1:]
    assert (late.waiting, places[0].started) == ([], False)


def test_expiry_tells_whether_the_image_had_begun() -> None:
    waiting = queue(max_batch=1)
    running, patient = Place(0.0, 0.2), Place(0.0, 0.5)
    waiting.admit(running, 0.0, 0.0)
    waiting.admit(patient, 0.0, 0.0)
    waiting.take(0.0, 1.0)
    assert isinstance(waiting.expire(running), DeadlineExceeded)
    error = waiting.expire(patient)
    assert isinstance(error, Overloaded)
    assert (error.shed, error.retry_after) == ("expired", pytest.approx(0.1))
    assert (waiting.running, waiting.waiting) == ([running], [])


def test_withdrawing_twice_or_too_late_does_nothing() -> None:
    waiting = queue(max_batch=1)
    first, second = Place(0.0, None), Place(0.0, None)
    for place in (first, second):
        waiting.admit(place, 0.0, 0.0)
    waiting.take(0.0, 1.0)
    for place in (first, second, second):
        waiting.withdraw(place)
    assert (waiting.running, waiting.waiting) == ([first], [])


def test_refusals_are_spread() -> None:
    spread = Queue[Place](size=1, max_batch=1)
    spread.mean_ms = 1000.0
    spread.admit(Place(0.0, None), 0.0, 0.0)
    times = set()
    for _ in range(20):
        with pytest.raises(Overloaded) as caught:
            spread.admit(Place(0.0, None), 0.0, 0.0)
        assert caught.value.retry_after is not None
        assert 1.0 <= caught.value.retry_after <= 1.5
        times.add(caught.value.retry_after)
    assert len(times) > 10


class Life(RuleBasedStateMachine):
    """Any sequence of what can happen to a queue, against what must always hold."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.queue = queue(size=5, max_batch=3, mean_ms=20.0)
        self.waiting: list[Place] = []  # admitted, and in the end taken, withdrawn or expired

    @rule(slack_s=st.none() | st.floats(0.0, 2.0), cheapest_ms=st.floats(0.0, 50.0))
    def admit(self, slack_s: float | None, cheapest_ms: float) -> None:
        place = Place(self.now, None if slack_s is None else self.now + slack_s)
        refusal: Overloaded | None = None
        try:
            self.queue.admit(place, self.now, cheapest_ms)
        except Overloaded as error:
            refusal = error
        full = len(self.queue.waiting) == self.queue.size
        if refusal is None:
            self.waiting.append(place)
            return
        assert refusal.shed == ("full" if full else "predicted")
        assert full or slack_s is not None  # without a deadline only a full queue refuses
        assert (refusal.retry_after or 0.0) >= 0

    @rule(seconds=st.floats(0.0, 0.5))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(slowest_ms=st.floats(1.0, 100.0))
    def take(self, slowest_ms: float) -> None:
        batch = self.queue.take(self.now, slowest_ms)
        alive = [p for p in self.waiting if p.deadline is None or p.deadline > self.now]
        assert len(batch) <= self.queue.max_batch
        assert bool(batch) == bool(alive)  # nothing is starved while the engine is free
        due = [p.arrived + PATIENCE_S if p.deadline is None else p.deadline for p in batch]
        assert due == sorted(due)
        rest = [p for p in alive if p not in batch]
        assert all(p.order > batch[-1].order for p in rest)  # the most urgent ones were taken
        self.waiting = rest

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        if self.waiting:
            place = data.draw(st.sampled_from(self.waiting))
            self.queue.withdraw(place)
            self.waiting.remove(place)

    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        if self.waiting:
            place = data.draw(st.sampled_from(self.waiting))
            assert isinstance(self.queue.expire(place), Overloaded)
            self.waiting.remove(place)

    @rule()
    def give_up(self) -> None:
        left = self.queue.clear()
        assert set(left) == {*self.waiting, *self.queue.running}
        self.waiting = []

    @invariant()
    def nothing_is_lost_and_nothing_is_there_twice(self) -> None:
        inside = self.queue.waiting
        assert len(inside) == len(set(inside)) <= self.queue.size
        # What expired may have been dropped by `take`; its caller's own timer answers it.
        assert set(inside) <= set(self.waiting)
        assert all(p.deadline is not None for p in set(self.waiting) - set(inside))
        assert [p.order for p in inside] == sorted(p.order for p in inside)
        assert not set(inside) & set(self.queue.running)
        assert 0 <= self.queue.fill <= 1


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
