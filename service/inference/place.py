"""One image's place in the queue, and the batch that runs next."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from service.errors import DeadlineExceeded, NotReady

URGENCY = 3  # of RFC 9218, if none is asked for: 0 is the most urgent, 7 the least


@dataclass(slots=True, eq=False)
class Place:
    """One image's place. arrived: when its request began. deadline: None for an image without.

    urgency: of RFC 9218. caller: who sent it, for fairness. least_ms: the least time that it needs;
    safe_ms: the same, as few runs exceed it.
    """

    arrived: float
    deadline: float | None
    urgency: int = URGENCY
    caller: str = ""
    least_ms: float = 0.0
    safe_ms: float = 0.0
    due: float = field(default=0.0, init=False)  # its deadline, or else the objective
    order: tuple[float, int] = field(default=(0.0, 0), init=False)
    leased: float = field(default=math.inf, init=False)  # until when its place is kept
    started: bool = field(default=False, init=False)

    def slack_ms(self, now: float) -> float:
        """Milliseconds until the deadline; infinite without one."""
        return math.inf if self.deadline is None else (self.deadline - now) * 1000


P = TypeVar("P", bound=Place)


@dataclass(frozen=True, slots=True)
class Batch(Generic[P]):
    """What runs next. limit_ms: the most that load lets each image take. hopeless: images that even
    the cheapest plan would answer too late; they are out of the queue, and must be told."""

    places: list[P]
    limit_ms: float = math.inf
    hopeless: list[P] = field(default_factory=list)


def missed() -> DeadlineExceeded:
    return DeadlineExceeded("The deadline passed while the image was running.")


def stopped() -> NotReady:
    """The service has ended before the image was answered."""
    return NotReady("The service stopped before it could answer: send this again.", retry_after=1)
