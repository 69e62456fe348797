"""Queue: places, admission, order, batches and expiry, driven by hand with a clock of the test's
own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from service.errors import DeadlineExceeded, Overloaded
from service.inference.place import Batch, Place
from service.inference.queue import LEASE_S, Queue
from service.inference.schedule import RISE_S, Times

FOUR = Times(
    [[10.0 * plan * n for n in (1, 2, 3, 4)] for plan in (1, 2, 3, 4)]
)  # plans of 10 to 40 ms; batches do not pay


def queue(
    size: int = 8, max_batch: int = 2, target_s: float = 10.0, promised: bool = False
) -> Queue[Place]:
    return Queue[Place](
        size=size, max_batch=max_batch, target_s=target_s, promised=promised, spread=lambda: 1.0
    )


def pays(*plans_ms: float, most: int = 4) -> Times:
    """Plans whose batches take as long as one image and a tenth for each further one."""
    return Times([[ms * (1 + 0.1 * n) for n in range(most)] for ms in plans_ms])


def enter(into: Queue[Place], place: Place, now: float = 0.0) -> Place:
    into.reserve(place, now)
    into.received(place, now)
    into.enter(place, now)
    return place


def image(
    arrived: float = 0.0,
    deadline: float | None = None,
    least_ms: float = 10.0,
    *,
    urgency: int = 3,
    caller: str = "",
) -> Place:
    return Place(arrived, deadline, urgency, caller, least_ms)


def refused(by: Queue[Place], place: Place, now: float = 0.0) -> Overloaded:
    with pytest.raises(Overloaded) as caught:
        by.reserve(place, now)
    return caught.value


def one_by_one(from_: Queue[Place], now: float = 0.0, times: Times = FOUR) -> list[Place]:
    taken: list[Place] = []
    while batch := from_.take(now, times).places:
        taken += batch
    return taken


def test_places_are_taken_in_order_of_their_deadlines_then_of_their_arrival() -> None:
    waiting = queue()
    deadlines = [None, 9.0, 5.0, 7.0, None, 5.0]
    places = [enter(waiting, image(deadline=deadline)) for deadline in deadlines]
    assert [places.index(place) for place in one_by_one(waiting)] == [2, 5, 3, 1, 0, 4]


def test_an_image_without_a_deadline_has_the_objective_as_one() -> None:
    waiting = queue()
    urgent = enter(waiting, image(5.0, 15.5), 5.0)
    patient = enter(waiting, image(5.0), 5.0)
    assert one_by_one(waiting, 5.0) == [patient, urgent]


def test_a_step_of_urgency_is_worth_one_objective_of_waiting() -> None:
    waiting = queue(target_s=1.0)
    usual = enter(waiting, image(3.0), 3.0)
    background = enter(waiting, image(0.0, urgency=7), 3.0)  # due 4 objectives later
    urgent = enter(waiting, image(3.0, urgency=0), 3.0)
    old = enter(waiting, image(-1.0, urgency=7), 3.0)  # due as `usual`, admitted later
    assert one_by_one(waiting, 3.0) == [urgent, usual, old, background]


def test_a_place_is_taken_before_the_image_comes_and_given_back_on_every_way_out() -> None:
    places = queue(size=2)
    coming, decoding = image(), image()
    places.reserve(coming, 0.0)
    places.reserve(decoding, 0.0)
    places.received(decoding, 0.0)
    assert refused(places, image()).shed == "full"
    assert (places.taken(0.0), places.waiting) == (2, [])
    places.leave(coming)  # the caller left, or its body was refused
    places.leave(coming)
    waits = enter(places, image())
    assert refused(places, image()).shed == "full"
    places.leave(waits)
    places.enter(decoding, 0.0)
    (running,) = places.take(0.0, FOUR).places
    assert (running, places.taken(0.0), places.answering) == (decoding, 0, {decoding: None})
    places.leave(running)
    assert places.answering == {}


def test_a_body_that_comes_slowly_keeps_its_place_only_for_a_while() -> None:
    places = queue(size=1)
    slow, other = image(), image()
    places.reserve(slow, 0.0)
    assert refused(places, image(), LEASE_S - 0.01).shed == "full"
    places.reserve(other, LEASE_S)
    places.received(other, LEASE_S)
    with pytest.raises(Overloaded, match="full"):
        places.received(slow, LEASE_S)
    places.leave(other)
    places.received(slow, LEASE_S + 1)  # its place is free again
    assert places.taken(1e9) == 1


def test_bodies_that_come_take_half_of_the_places_at_most() -> None:
    places = queue(size=4)
    coming = [image() for _ in range(6)]
    for place in coming:
        places.reserve(place, 0.0)
    assert places.taken(0.0) == 2
    for _ in range(2):
        enter(places, image())
    assert refused(places, image()).shed == "full"
    places.leave(places.waiting[0])
    places.received(coming[0], 0.1)  # it finds a place: another's that still comes
    places.received(coming[1], 0.1)
    places.received(coming[2], 0.1)
    with pytest.raises(Overloaded, match="full"):
        places.received(coming[3], 0.1)


def test_answers_that_are_being_made_are_bounded_as_places_are() -> None:
    places = queue(size=2, max_batch=1)
    done = []
    for _ in range(2):
        enter(places, image())
        done += places.take(0.0, FOUR).places
    places.running = []  # both are answered, and nobody has taken the answers
    assert refused(places, image()).shed == "full"
    places.leave(done[0])
    places.reserve(image(), 0.0)


def test_a_full_queue_refuses_with_the_time_until_it_is_empty() -> None:
    full = queue(size=2, max_batch=1)
    enter(full, image())
    full.take(0.0, Times([[2000.0] * 2]))
    for _ in range(2):
        enter(full, image(least_ms=900.0))
    error = refused(full, image(), 0.4)
    # One image that has run for 400 of 2000 ms, and two that wait: 3.4 s, in whole seconds.
    assert (error.retry_after, error.retry_after_s) == (4.0, 4)
    assert error.shed == "full"


def test_refusals_are_spread_and_never_early() -> None:
    full = Queue[Place](size=1, max_batch=1, target_s=10.0)
    enter(full, image(least_ms=3600.0))
    told = [refused(full, image()).retry_after_s for _ in range(60)]
    assert min(filter(None, told)) >= 4
    assert max(filter(None, told)) <= 8
    assert len(set(told)) >= 4


@pytest.mark.parametrize(("deadline", "admitted"), [(0.169, False), (0.171, True)])
def test_a_deadline_counts_what_runs_what_is_ahead_and_its_own_cheapest_plan(
    deadline: float, admitted: bool
) -> None:
    busy = queue(max_batch=1)
    enter(busy, image())
    busy.take(0.0, Times([[100.0] * 2]))
    enter(busy, image(deadline=0.165, least_ms=50.0))  # sooner, so it is ahead
    enter(busy, image(least_ms=50.0))  # later, so it does not count
    place = image(deadline=deadline, least_ms=20.0)
    if admitted:
        busy.reserve(place, 0.05)
    else:
        error = refused(busy, place, 0.05)
        assert error.shed == "predicted"
        assert error.detail.startswith("The deadline cannot be met")
        assert "about 120 ms, and 119 ms are left" in error.detail


def test_a_newcomer_may_not_cost_an_earlier_image_its_deadline() -> None:
    waiting = queue()
    enter(waiting, image(deadline=0.1, least_ms=60.0))
    error = refused(waiting, image(deadline=0.09, least_ms=50.0))
    assert (error.shed, "earlier image" in error.detail) == ("predicted", True)
    enter(waiting, image(deadline=0.09, least_ms=30.0))
    assert [place.deadline for place in one_by_one(waiting)] == [0.09, 0.1]


def test_an_image_that_would_be_late_anyway_refuses_nobody_before_it() -> None:
    waiting = queue(target_s=1.0)
    slow = image(deadline=0.3, urgency=7)  # behind all others, and still being decoded
    waiting.reserve(slow, 0.0)
    waiting.received(slow, 0.0)
    waiting.reserve(image(0.2, least_ms=80.0), 0.2)
    assert "earlier image" in refused(waiting, image(0.2, least_ms=30.0), 0.2).detail
    enter(waiting, image(0.295), 0.295)
    enter(waiting, image(0.5), 0.5)


def test_an_objective_that_is_promised_refuses_what_it_would_not_hold() -> None:
    for promised in (True, False):
        waiting = queue(target_s=0.1, promised=promised)
        for _ in range(2):
            enter(waiting, image(least_ms=40.0))
        if promised:
            error = refused(waiting, image(least_ms=40.0))
            assert error.shed == "predicted"
            assert error.detail.startswith("This node's objective cannot be met")
            assert "about 120 ms, and 90 ms are left" in error.detail
        else:
            waiting.reserve(image(least_ms=40.0), 0.0)


def test_the_last_quarter_is_for_callers_with_less_than_an_equal_share() -> None:
    shared = queue(size=8)
    for _ in range(6):
        enter(shared, image(caller="flood"))
    assert refused(shared, image(caller="flood")).shed == "full"
    for _ in range(2):
        enter(shared, image(caller="other"))
    assert refused(shared, image(caller="other")).shed == "full"
    open_ = queue(size=8)
    for _ in range(8):
        enter(open_, image())  # without keys, nobody is told apart


def test_who_comes_costs_nobody_a_place_that_was_given() -> None:
    shared = queue(size=8)
    early = [image(caller="early") for _ in range(6)]
    for place in early:
        shared.reserve(place, 0.0)
    enter(shared, image(caller="late"))
    assert refused(shared, image(caller="early")).shed == "full"  # it has its share, and more
    for place in early:
        shared.received(place, 0.5)
        shared.enter(place, 0.5)
    enter(shared, image(caller="late"))


def test_a_promised_objective_has_room_for_callers_with_less_than_an_equal_share() -> None:
    shared = queue(size=4, target_s=0.1, promised=True)
    for _ in range(3):
        enter(shared, image(caller="flood", least_ms=22.0))
    assert refused(shared, image(caller="flood", least_ms=22.0)).shed == "full"
    enter(shared, image(caller="other", least_ms=22.0))


def limits(from_: Queue[Place], times: Times, *, every_s: float = 0.0) -> list[float]:
    now, found = 0.0, []
    while (batch := from_.take(now, times)).places:
        found.append(batch.limit_ms)
        now += every_s
    return found


def test_as_places_fill_plans_are_closed_down_to_the_cheapest() -> None:
    chosen = []
    for taken in range(1, 6):
        filling = queue(size=5, max_batch=1)
        for _ in range(taken):
            enter(filling, image())
        chosen.append(FOUR.within(filling.take(0.0, FOUR).limit_ms)[0])
    assert chosen == [40.0, 20.0, 10.0, 10.0, 10.0]
    full = queue(size=5, max_batch=1)
    for _ in range(5):
        enter(full, image())
    assert refused(full, image()).shed == "full"


def test_what_runs_leaves_those_behind_their_deadlines() -> None:
    waiting = queue(size=100, max_batch=1)
    enter(waiting, image(deadline=1.0))
    enter(waiting, image(deadline=0.09))
    enter(waiting, image(deadline=0.0899))
    # The second is due after 90 ms, of which two thirds may be planned with: 30 ms each.
    batch = waiting.take(0.0, FOUR)
    assert batch.limit_ms == pytest.approx(30.0, abs=0.1)
    assert [place.deadline for place in batch.places] == [0.0899]


def test_the_limit_falls_at_once_and_rises_within_its_time() -> None:
    waiting = queue(size=100, max_batch=1, target_s=0.06)
    for _ in range(4):
        enter(waiting, image())
    first = limits(waiting, FOUR, every_s=RISE_S / 10)
    assert first[0] == 10.0  # 40 ms for four
    assert first[1:] == sorted(first[1:])
    enter(waiting, image(9.0), 9.0)
    assert waiting.take(9.0, FOUR).limit_ms > 40.0


def test_the_slack_of_the_most_urgent_image_limits_its_company() -> None:
    waiting = queue(max_batch=4)
    for deadline in (0.115, 1.0, 1.0, 1.0):
        enter(waiting, image(deadline=deadline))
    assert len(waiting.take(0.0, pays(100.0)).places) == 2  # two take 110 ms, three 120
    assert len(waiting.take(0.3, pays(1000.0)).places) == 1  # never none


def test_a_batch_that_saves_no_time_is_not_made() -> None:
    waiting = queue(max_batch=4)
    for _ in range(4):
        enter(waiting, image())
    assert len(waiting.take(0.0, Times([[10.0, 20.0, 30.0, 40.0]])).places) == 1
    assert len(waiting.take(0.0, pays(10.0)).places) == 3


def test_the_engine_is_busy_for_those_that_run_and_not_for_a_full_batch() -> None:
    waiting = queue(max_batch=4)
    enter(waiting, image())
    assert len(waiting.take(1.0, pays(100.0)).places) == 1
    assert waiting.free == pytest.approx(1.1)


def test_images_that_are_late_run_together_to_work_off_the_queue() -> None:
    late = queue(max_batch=4, target_s=0.1)
    for _ in range(4):
        enter(late, image())
    assert len(late.take(5.0, pays(10.0, 50.0)).places) == 4


def test_what_even_the_cheapest_plan_would_answer_too_late_never_runs() -> None:
    late = queue()
    places = [enter(late, image(deadline=deadline)) for deadline in (0.205, 0.3)]
    batch = late.take(0.2, FOUR)
    assert (batch.places, batch.hopeless) == (places[1:], places[:1])
    assert late.take(0.2, FOUR) == Batch([])
    assert not places[0].started


@pytest.mark.parametrize(
    ("deadlines", "ran", "given_up"),
    [
        ((0.212, 0.3), [1], [0]),  # it might still be in time, but the other one surely is
        ((0.212, 0.213), [0], []),  # then one of them is tried
        ((0.212,), [0], []),
        ((0.205, 0.212), [1], [0]),
        ((0.216, 0.3), [0], []),
    ],
)
def test_what_is_likely_to_be_late_runs_only_if_nothing_better_waits(
    deadlines: tuple[float, ...], ran: list[int], given_up: list[int]
) -> None:
    waiting = queue(max_batch=1)
    places = [enter(waiting, image(deadline=deadline)) for deadline in deadlines]
    for place in places:
        place.safe_ms = 15.0
    batch = waiting.take(0.2, FOUR)
    assert [places.index(place) for place in batch.places] == ran
    assert [places.index(place) for place in batch.hopeless] == given_up


def test_an_image_that_was_decoded_too_late_does_not_wait() -> None:
    waiting = queue()
    place = image(deadline=0.1)
    waiting.reserve(place, 0.0)
    with pytest.raises(Overloaded, match="deadline"):
        waiting.enter(place, 0.095)
    assert (waiting.taken(0.095), waiting.waiting) == (0, [])


def test_expiry_tells_whether_the_image_had_begun() -> None:
    waiting = queue(max_batch=1)
    running = enter(waiting, image(deadline=0.2))
    patient = enter(waiting, image(deadline=0.5))
    waiting.take(0.0, FOUR)
    assert isinstance(waiting.expire([running], 0.2)[0], DeadlineExceeded)
    (error,) = waiting.expire([patient], 0.5)
    assert isinstance(error, Overloaded)
    assert (error.shed, error.retry_after) == ("expired", 1.0)
    assert (waiting.running, waiting.waiting) == ([running], [])


def test_a_batch_waits_for_company_only_while_nobody_pays_for_it() -> None:
    waiting = queue(max_batch=2, target_s=0.5)
    assert waiting.patience_s(0.0, 40.0) == 0.0  # nothing waits
    enter(waiting, image())
    assert waiting.patience_s(0.1, 40.0) == pytest.approx(2 / 3 * 0.5 - 0.14)
    enter(waiting, image(deadline=0.1))
    assert waiting.patience_s(0.1, 40.0) == 0.0  # the batch is full
    urgent = queue(max_batch=2)
    enter(urgent, image(deadline=0.1))
    assert urgent.patience_s(0.0, 40.0) == pytest.approx(2 / 3 * 0.1 - 0.04)
    assert urgent.patience_s(0.08, 40.0) < 0


def test_pressure_is_the_predicted_wait_against_the_objective() -> None:
    waiting = queue(target_s=0.1, max_batch=1)
    assert waiting.pressure(0.0) == 0.0
    for _ in range(3):
        enter(waiting, image(least_ms=20.0))
    waiting.take(0.0, Times([[30.0] * 2]))
    assert waiting.pressure(0.01) == pytest.approx(0.6)


class Life(RuleBasedStateMachine):
    """Any sequence of what can happen to a queue, against what must always hold."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.queue = queue(size=5, max_batch=3, target_s=1.0)
        self.held: list[Place] = []
        self.waiting: list[Place] = []  # in the end they are taken, leave or are hopeless
        self.taken: list[Place] = []

    @rule(
        slack_s=st.none() | st.floats(0.0, 2.0),
        least_ms=st.floats(1.0, 50.0),
        urgency=st.integers(0, 7),
        caller=st.sampled_from(["", "a", "b"]),
    )
    def reserve(self, slack_s: float | None, least_ms: float, urgency: int, caller: str) -> None:
        deadline = None if slack_s is None else self.now + slack_s
        place = Place(self.now, deadline, urgency, caller, least_ms)
        refusal: Overloaded | None = None
        try:
            self.queue.reserve(place, self.now)
        except Overloaded as error:
            refusal = error
        if refusal is None:
            self.held.append(place)
            return
        assert refusal.shed in ("full", "predicted")
        assert (refusal.retry_after_s or 0) >= 1
        if refusal.shed == "full" and not caller:
            answers = [p for p in self.taken if p not in self.queue.running]
            assert self.queue.taken(self.now) >= 5 or len(answers) >= 5

    @rule(seconds=st.floats(0.0, 0.5))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(data=st.data())
    def enter(self, data: st.DataObject) -> None:
        if not self.held:
            return
        place = data.draw(st.sampled_from(self.held))
        self.held.remove(place)
        try:
            self.queue.received(place, self.now)
            self.queue.enter(place, self.now)
        except Overloaded:
            self.queue.leave(place)
        else:
            self.waiting.append(place)

    @rule(most=st.floats(1.0, 100.0))
    def take(self, most: float) -> None:
        batch = self.queue.take(self.now, pays(most / 2, most, most=3))
        hopeless = [p for p in self.waiting if p.slack_ms(self.now) < p.least_ms]
        assert set(batch.hopeless) == set(hopeless)
        alive = [p for p in self.waiting if p not in hopeless]
        assert len(batch.places) <= self.queue.max_batch
        assert bool(batch.places) == bool(alive)  # nothing is starved while the engine is free
        orders = [place.order for place in batch.places]
        assert orders == sorted(orders)
        rest = [p for p in alive if p not in batch.places]
        assert all(p.order > orders[-1] for p in rest)  # the first ones were taken
        self.waiting = rest
        self.taken += batch.places

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if inside := [*self.held, *self.waiting, *self.taken]:
            place = data.draw(st.sampled_from(inside))
            self.queue.leave(place)
            for places in (self.held, self.waiting, self.taken):
                if place in places:
                    places.remove(place)

    @rule()
    def give_up(self) -> None:
        left = self.queue.clear()
        assert set(left) == {*self.waiting, *self.queue.running}
        self.waiting, self.held = [], []

    @invariant()
    def nothing_is_lost_and_nothing_is_there_twice(self) -> None:
        inside = self.queue.waiting
        assert set(inside) == set(self.waiting)
        assert len(inside) == len(set(inside))
        assert [p.order for p in inside] == sorted(p.order for p in inside)
        assert set(self.queue.held) == set(self.held)
        assert set(self.queue.answering) == set(self.taken)  # no place leaks
        assert 0 <= self.queue.pressure(self.now) < math.inf


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_thousands_that_wait_cost_little_at_each_step() -> None:
    """They run under the lock that all wait for. Compared with a look at each that waits, since a
    busy machine is several times slower."""
    number = 5000
    full = queue(size=number + 1, target_s=1e6)
    for index in range(number):
        late = image(0.0, 1e5 + index * 7919 % number, 0.01, caller="a")
        late.due, late.order = 1e5, (1e5 + index, index)
        full.waiting.append(late)
    place = image(0.0, 2e5, 0.01, caller="b")

    def looks() -> None:
        for other in full.waiting:
            other.slack_ms(0.0)

    def arrival() -> None:
        enter(full, place)
        full.leave(place)

    assert processor_ms(arrival) < 3 * processor_ms(looks)
    assert processor_ms(lambda: full.leave(place)) < 0.2 * processor_ms(looks)
    for hopeless in full.waiting[::2]:
        hopeless.least_ms = 1e12
    everybody = list(full.waiting)

    def turn() -> None:
        full.waiting = list(everybody)
        full.expire(full.take(0.0, FOUR).hopeless, 0.0)

    assert processor_ms(turn) < 150 * processor_ms(looks)


def processor_ms(step: Callable[[], None]) -> float:
    """What it takes at its best."""
    times = []
    for _ in range(5):
        began = time.thread_time()
        step()
        times.append(time.thread_time() - began)
    return 1000 * min(times)
