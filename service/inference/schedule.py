"""How many images run next, and how much time each of them may take. Pure functions on plain
numbers: no queue, clock or engine.

Images wait in the order in which they are due. If all of them took the same time, the most that
each could take is what the tightest leaves: whoever is k-th must be done, after k others, by the
time it is due. A part of that time is kept back for images that have not come yet. Plans that take
longer are closed; the cheapest one stays open. So quality falls, plan by plan, as images wait, and
at most the cheapest plan runs before anybody is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

# The share of an image's time that those ahead of it may plan with; the rest is for later ones.
PLANNED = 2 / 3
PROMISED = 0.9  # of a promised objective that admission plans with; predictions miss a little
RISE_S = 1.0  # from the cheapest plan to all of them, when the load has gone
PAYS = 0.95  # of its own time that an image may take in a batch, or it runs alone

Wait: TypeAlias = tuple[float, float]  # of an image: when it arrived, and when it is due


@dataclass(frozen=True, slots=True)
class Times:
    """What plans take. ms: per plan, the cheapest first: of 1, 2, ... images together, in ms."""

    ms: Sequence[Sequence[float]]

    @property
    def cheapest_ms(self) -> float:
        return min(row[0] for row in self.ms)

    @property
    def slowest_ms(self) -> float:
        return max(row[0] for row in self.ms)

    def each_ms(self, images: int) -> float:
        """What the cheapest plan takes per image, of so many together."""
        return min(row[images - 1] for row in self.ms) / images

    def within(self, limit_ms: float, images: int = 1) -> Sequence[float]:
        """The row of the slowest plan that takes at most limit_ms per image, of so many together;
        else of the fastest."""
        rows = [row for row in self.ms if row[images - 1] / images <= limit_ms]
        if rows:
            return max(rows, key=lambda row: row[0])
        return min(self.ms, key=lambda row: row[0])


def objective_s(slowest_ms: float) -> float:
    """The objective if the operator names none. slowest_ms: of the most expensive plan."""
    return max(3 * slowest_ms / 1000, 0.25)


def planned_s(arrived: float, due: float) -> float:
    """Until when an image's time may be planned with."""
    return arrived + PLANNED * (due - arrived)


def share_ms(waits: Sequence[Wait], now: float) -> float:
    """The most that each image may take so that all behind the first are done when they are due.

    waits: in order. The first one's own deadline is not in it: nobody else pays for that.
    """
    shares = [
        (planned_s(arrived, due) - now) / count
        for count, (arrived, due) in enumerate(waits[1:], start=2)
    ]
    return 1000 * min(shares, default=float("inf"))


def room_ms(cheapest_ms: float, size: int, taken: int) -> float:
    """The most that each image may take by the places that are left: a full queue leaves open the
    cheapest plan alone, however much time there is."""
    return cheapest_ms * size / taken if taken > 1 else float("inf")


def eased(previous_ms: float, limit_ms: float, elapsed_s: float, times: Times) -> float:
    """A limit that falls at once and rises by and by, so that plans do not swing with each image.

    previous_ms: the limit elapsed_s ago.
    """
    low, high = times.cheapest_ms, times.slowest_ms
    before = min(max(previous_ms, low), high)
    risen = before + (high - low) * min(elapsed_s, RISE_S) / RISE_S
    return max(low, limit_ms if risen >= high else min(limit_ms, risen))


def batch_size(slack_ms: float, most: int, row_ms: Sequence[float], pays: float = PAYS) -> int:
    """How many images run together: as many as the first one's slack allows, if that saves time.

    row_ms: what 1, 2, ... of them take. pays: the share of its own time that an image may take in a
    batch.
    """
    best = 1
    for count in range(2, min(most, len(row_ms)) + 1):
        if row_ms[count - 1] <= slack_ms and row_ms[count - 1] / count <= pays * row_ms[0]:
            best = count
    return best
