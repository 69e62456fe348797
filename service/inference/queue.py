"""The queue as a plain data structure: admission, order, batches, expiry.

It gets the time as an argument, in seconds of one clock, and knows neither threads nor asyncio: its
owner guards it with a lock, and a test drives it by hand.
"""

from __future__ import annotations

import math
import random
from bisect import bisect, insort
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

from service.errors import DeadlineExceeded, FathomError, Overloaded

# An image without a deadline queues as if it had this one, so that the others cannot starve it.
PATIENCE_S = 10.0
# A random factor for Retry-After: callers refused together must not come back together.
SPREAD = (1.0, 1.5)


@dataclass(slots=True, eq=False)
class Place:
    """One image's place. arrived: when its request began. deadline: None for an image without."""

    arrived: float
    deadline: float | None
    order: tuple[float, int] = field(default=(0.0, 0), init=False)  # due time, then admission
    started: bool = field(default=False, init=False)

    def slack_ms(self, now: float) -> float:
        """Milliseconds until the deadline; infinite without one."""
        return math.inf if self.deadline is None else (self.deadline - now) * 1000


P = TypeVar("P", bound=Place)


class Queue(Generic[P]):
    """See the module.

    waiting: the images that wait, the most urgent first.
    running: the batch that runs, since `began`.
    size: most images that wait.
    max_batch: most images that run together.
    mean_ms: mean engine time per image, kept current by the owner.
    spread: gives a factor for each Retry-After.
    """

    def __init__(
        self,
        *,
        size: int,
        max_batch: int,
        spread: Callable[[], float] = lambda: random.uniform(*SPREAD),
    ) -> None:
        self.size, self.max_batch, self._spread = size, max_batch, spread
        self.waiting: list[P] = []
        self.running: list[P] = []
        self.began = 0.0
        self.mean_ms = 0.0
        self._numbers = count()

    @property
    def fill(self) -> float:
        """The filled share of the queue, 0..1."""
        return len(self.waiting) / self.size

    @property
    def full(self) -> bool:
        """Whether enough images wait for a full batch."""
        return len(self.waiting) >= self.max_batch

    def admit(self, place: P, now: float, cheapest_ms: float) -> None:
        """Add an image. cheapest_ms: the least time that it needs.

        Raises Overloaded if the queue is full or the deadline cannot be met.
        """
        due = place.arrived + PATIENCE_S if place.deadline is None else place.deadline
        place.order = (due, next(self._numbers))
        if len(self.waiting) >= self.size:
            raise Overloaded(
                "The queue is full: send less at a time, or retry later.",
                shed="full",
                retry_after=self._retry_after(now),
            )
        if place.deadline is not None:
            ahead = bisect(self.waiting, place.order, key=_order)
            needed_ms = self._busy_ms(now) + ahead * self.mean_ms + cheapest_ms
            if needed_ms > place.slack_ms(now):
                raise Overloaded(
                    "The deadline cannot be met: "
                    f"waiting and the cheapest plan take about {needed_ms:.0f} ms.",
                    shed="predicted",
                    retry_after=self._retry_after(now),
                )
        insort(self.waiting, place, key=_order)

    def withdraw(self, place: P) -> None:
        """Remove an image whose caller left. Does nothing if it is no longer waiting."""
        if place in self.waiting:
            self.waiting.remove(place)

    def expire(self, place: P) -> FathomError:
        """Remove an image that missed its deadline. Returns the error for its caller."""
        if place.started:
            return missed()
        self.withdraw(place)
        return Overloaded(
            "The deadline passed in the queue.",
            shed="expired",
            retry_after=(len(self.waiting) + 1) * self.mean_ms / 1000,
        )

    def take(self, now: float, slowest_ms: float) -> list[P]:
        """Start the next batch; empty if no image waits.

        A larger batch must not force the most urgent image to a cheaper plan, so its slack limits
        the batch. slowest_ms: the time of the most expensive plan. Images past their deadlines are
        left out; their callers' own timers answer them.
        """
        self.waiting = [place for place in self.waiting if place.slack_ms(now) > 0]
        if not self.waiting:
            return []
        slack_ms = self.waiting[0].slack_ms(now)
        size = max(1, int(min(self.max_batch, slack_ms / slowest_ms)))
        self.running, self.waiting = self.waiting[:size], self.waiting[size:]
        self.began = now
        for place in self.running:
            place.started = True
        return self.running

    def clear(self) -> list[P]:
        """Give up all waiting and running images, and return them."""
        left = [*self.waiting, *self.running]
        self.waiting = []
        return left

    def _busy_ms(self, now: float) -> float:
        """The time until the running batch should be done."""
        return max(0.0, len(self.running) * self.mean_ms - (now - self.began) * 1000)

    def _retry_after(self, now: float) -> float:
        waiting_ms = self._busy_ms(now) + len(self.waiting) * self.mean_ms
        return self._spread() * waiting_ms / 1000


def missed() -> DeadlineExceeded:
    return DeadlineExceeded("The deadline passed while the image was running.")


def _order(place: Place) -> tuple[float, int]:
    return place.order
