"""The queue as a plain data structure: places, admission, order, batches, expiry.

A place is taken before anything of an image is read, and is given back on every way out: it is held
while the image comes and is decoded, then the image waits, runs, and is answered.

It gets the time as an argument, in seconds of one clock, and knows neither threads nor asyncio: its
owner guards it with a lock, and a test drives it by hand.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from itertools import count
from typing import Generic

from service.errors import FathomError, Overloaded
from service.inference import schedule
from service.inference.admission import made_late, room
from service.inference.place import URGENCY, Batch, P, Place, missed

# A random factor for Retry-After: callers refused together must not come back together.
SPREAD = (1.0, 2.0)
# How long a body that is still coming keeps its place: slow senders must not fill the queue.
LEASE_S = 1.0


class Queue(Generic[P]):
    """See the module.

    held: places whose images are on their way. waiting: the images that wait, the first one first.
    running: the batch that runs. free: about when the engine is done.
    answering: images that run, or whose answers are made.
    size: most places that are held or wait, and most answers that are made.
    max_batch: most images that run together.
    target_s: within which images without a deadline should be answered.
    promised: whether images are refused that would be answered later than that.
    pays: see `batch_size`. spread: gives a factor for each Retry-After.
    """

    def __init__(
        self,
        *,
        size: int,
        max_batch: int,
        target_s: float,
        promised: bool = False,
        pays: float = schedule.PAYS,
        spread: Callable[[], float] = lambda: random.uniform(*SPREAD),
    ) -> None:
        self.size, self.max_batch, self._spread = size, max_batch, spread
        self.target_s, self.promised, self._pays = target_s, promised, pays
        self.held: dict[P, None] = {}
        self.waiting: list[P] = []
        self.running: list[P] = []
        self.answering: dict[P, None] = {}
        self.free = -math.inf
        self._limit_ms, self._limited = math.inf, -math.inf
        self._numbers = count()

    @property
    def together(self) -> int:
        """How many images can run next."""
        return min(self.max_batch, len(self.waiting))

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self.waiting and not self.running

    def taken(self, now: float) -> int:
        """The places that are not free. Bodies that still come count for half of them at most, so
        that senders that do not go on keep nobody out."""
        coming = sum(now < place.leased < math.inf for place in tuple(self.held))
        return self._arrived + min(coming, (self.size + 1) // 2)

    @property
    def _arrived(self) -> int:
        """Images that wait, and those that are being decoded. Metrics read it without the lock."""
        return len(self.waiting) + sum(place.leased == math.inf for place in tuple(self.held))

    def wait_ms(self, now: float) -> float:
        """How long an image would wait behind all that wait, if those took the least time."""
        return self._busy_ms(now) + sum(place.least_ms for place in self.waiting)

    def pressure(self, now: float) -> float:
        """The predicted wait against the objective: above 1 it cannot be held."""
        return self.wait_ms(now) / (1000 * self.target_s)

    def reserve(self, place: P, now: float, *, coming: bool = True) -> None:
        """Take a place for an image. coming: its body is not read yet.

        Raises Overloaded if there is none, if the deadline of the image or of one behind it could
        not be met, or if the objective is promised and could not be held.
        """
        place.due = place.arrived + self.target_s if place.deadline is None else place.deadline
        # A step of urgency is worth one objective of waiting, so none is starved.
        due = place.due + (place.urgency - URGENCY) * self.target_s
        place.order = (due, next(self._numbers))
        self._check_places(place, now)
        self._check_times(place, now)
        place.leased = now + LEASE_S if coming else math.inf
        self.held[place] = None

    def received(self, place: P, now: float) -> None:
        """The body of an image is there. Raises Overloaded if its place was given away meanwhile:
        it came slowly, or many others did."""
        place.leased = math.inf
        self._check_places(place, now, arrived=True)

    def enter(self, place: P, now: float) -> None:
        """The image of a place is decoded, and waits for its turn. Raises Overloaded if its
        deadline can no longer be met."""
        del self.held[place]
        self._check_times(place, now)
        insort(self.waiting, place, key=_order)

    def leave(self, place: P) -> None:
        """Give a place back, wherever its image is. Does nothing if it was given back before.

        What runs is not stopped.
        """
        self.held.pop(place, None)
        self.answering.pop(place, None)
        index = bisect_left(self.waiting, place.order, key=_order)
        if self.waiting[index : index + 1] == [place]:
            del self.waiting[index]

    def expire(self, places: Sequence[P], now: float) -> list[FathomError]:
        """Remove images that missed their deadlines. Returns the error for each one's caller."""
        for place in places:
            if not place.started:
                self.leave(place)
        text, wait_ms = "The deadline passed in the queue.", self.wait_ms(now)
        return [
            missed()
            if place.started
            else Overloaded(text, shed="expired", retry_after=self._again(wait_ms))
            for place in places
        ]

    def take(self, now: float, times: schedule.Times) -> Batch[P]:
        """Start the next batch; no places if no image waits. times: of up to `together` images."""
        if hopeless := self._hopeless(now):
            gone = set(hopeless)
            self.waiting = [place for place in self.waiting if place not in gone]
        if not self.waiting:
            return Batch([], hopeless=hopeless)
        # Load is read before the batch is taken out, or the last places would never count.
        waits = [(place.arrived, place.due) for place in self.waiting]
        limit_ms, together = schedule.share_ms(waits, now), self.together
        if self.size > 1:
            cheapest_ms = times.each_ms(together)
            limit_ms = min(limit_ms, schedule.room_ms(cheapest_ms, self.size, self.taken(now)))
        limit_ms = schedule.eased(self._limit_ms, limit_ms, now - self._limited, times)
        self._limit_ms, self._limited = limit_ms, now
        slack_ms = 1000 * (self.waiting[0].due - now)
        row_ms = times.within(min(limit_ms, slack_ms), together)
        # Without a deadline, only working off the queue helps an image that is late.
        late = self.waiting[0].deadline is None and slack_ms < row_ms[0]
        size = schedule.batch_size(math.inf if late else slack_ms, together, row_ms, self._pays)
        self.running, self.waiting = self.waiting[:size], self.waiting[size:]
        self.free = now + row_ms[size - 1] / 1000
        for place in self.running:
            place.started = True
            self.answering[place] = None
        return Batch(self.running, limit_ms, hopeless)

    def patience_s(self, now: float, slowest_ms: float) -> float:
        """How long the next batch may still wait for others, without costing an image its plan.

        slowest_ms: of the most expensive plan.
        """
        if self.together in (0, self.max_batch):
            return 0.0
        latest = min(schedule.planned_s(place.arrived, place.due) for place in self.waiting)
        return latest - slowest_ms / 1000 - now

    def clear(self) -> list[P]:
        """Give up all waiting and running images, and return them; held places are gone."""
        left = [*self.waiting, *self.running]
        self.waiting, self.held = [], {}
        return left

    def _check_places(self, place: P, now: float, *, arrived: bool = False) -> None:
        # An image that is there goes before those that still come, and its caller had room for it.
        others = self._arrived - 1 if arrived else self.taken(now)
        room = self.size if arrived else self._room(place)
        answers = self.answering.keys() - set(self.running)
        if others >= room or len(answers) >= self.size:
            raise Overloaded(
                "The queue is full: send less at a time, or retry later.",
                shed="full",
                retry_after=self._again(self.wait_ms(now)),
            )

    def _check_times(self, place: P, now: float) -> None:
        """Whether all of the order still get their turn in time, if all take the least time."""
        first = bisect_left(self.waiting, place.order, key=_order)
        ahead, behind = self.waiting[:first], self.waiting[first:]
        if here := [other for other in self.held if other.leased > now and other is not place]:
            ahead += [other for other in here if other.order < place.order]
            behind += [other for other in here if other.order > place.order]
            behind.sort(key=_order)
        what, left_ms = "The deadline", place.slack_ms(now)
        if self.promised and place.deadline is None:
            share = schedule.PROMISED * self._room(place) / self.size
            what = "This node's objective"
            left_ms = 1000 * (place.arrived + share * self.target_s - now)
        ends_ms = self._busy_ms(now) + sum([other.least_ms for other in ahead]) + place.least_ms
        if ends_ms <= left_ms:
            late = made_late(place.least_ms, ends_ms, behind, now)
            if late is None:
                return
            what = "The deadline of an earlier image"
            ends_ms, left_ms = late
        raise Overloaded(
            f"{what} cannot be met: waiting and the cheapest plan take about "
            f"{ends_ms:.0f} ms, and {max(0, math.floor(left_ms))} ms are left for that.",
            shed="predicted",
            retry_after=self._again(self.wait_ms(now)),
        )

    def _room(self, place: P) -> int:
        """How many places may be taken for its caller to get another one."""
        others = (other for other in (*self.held, *self.waiting) if other is not place)
        return room(place.caller, others, self.size)

    def _hopeless(self, now: float) -> list[P]:
        """Images that would be answered too late. What is likely to be late does not run while
        others wait that are not; if all are, whatever can still be in time is tried."""
        bound = [(p, 1000 * (p.deadline - now)) for p in self.waiting if p.deadline is not None]
        likely = [p for p, left_ms in bound if left_ms < max(p.least_ms, p.safe_ms)]
        if len(likely) < len(self.waiting):
            return likely
        return [p for p, left_ms in bound if left_ms < p.least_ms]

    def _busy_ms(self, now: float) -> float:
        """The time until the running batch should be done."""
        return max(0.0, 1000 * (self.free - now))

    def _again(self, wait_ms: float) -> float:
        """When a retry has a chance, in seconds: the queue is worked off, and a random time."""
        return round(self._spread() * max(1, math.ceil(wait_ms / 1000)))


def _order(place: Place) -> tuple[float, int]:
    return place.order
