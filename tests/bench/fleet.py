"""Replicas, their queues and a day of traffic, simulated request by request.

A replica is the service as it runs on a CPU: one engine, one image at a time, first come, first
served, a bounded queue. The plan of an image follows from how many wait when its turn comes, by the
service's own schedule and router.
"""

from __future__ import annotations

import math
import operator
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.bundle import Manifest
from service.core import Ask, Budget
from service.inference import policy as policies
from service.inference import schedule

DAY_S = 86_400.0
BESIDE_ENGINE_S = (
    0.010  # of a request; with the manifest's engine times it is what bench-latency measures
)
# share of its two cores that the process uses while its engine never rests (docs/autoscaling.md)
CPU_WHILE_BUSY = 0.8


@dataclass(frozen=True, slots=True)
class Policy:
    """What a replica does with an image when `waiting` others are queued behind it: index =
    waiting.

    seconds: that it takes; quality: predicted; given_up: the share of the wanted plan's compute
    that it does not spend; depth: layers that run.
    """

    name: str
    seconds: tuple[float, ...]
    quality: tuple[float, ...]
    given_up: tuple[float, ...]
    depth: tuple[int, ...]

    @property
    def queue_size(self) -> int:
        return len(self.seconds)


def policy(
    name: str,
    manifest: Manifest,
    *,
    queue_size: int,
    max_loss: float,
    target_s: float | None = None,
    depth: int | None = None,
) -> Policy:
    """A table of the service's policy. The gate is taken to predict what was calibrated: it hardly
    tells images apart there.

    depth: a ceiling, for plans that are fixed; with max_loss=0 the most expensive plan under it
    runs.
    target_s: the objective, for which load makes plans cheaper and, in the end, refuses images;
    None: load does neither.
    """
    scores = [plan.quality for plan in manifest.plans]
    engine_s = {row["plan"]: row["ms"] / 1000 for row in manifest.calibration["search"]}
    costs_ms = [1000 * engine_s[plan.name] for plan in manifest.plans]

    rules = policies.Policy(manifest.plans, manifest.margins, max_loss)
    if target_s is not None:
        cheapest_s = min(costs_ms) / 1000 + BESIDE_ENGINE_S
        queue_size = max(1, min(queue_size, math.floor(target_s / cheapest_s) - 1))

    def at(waiting: int) -> int:
        """The plan of an image that has come with as many others as wait behind it."""
        limit_ms = math.inf
        if target_s is not None:
            shares = schedule.share_ms([(0.0, target_s)] * (waiting + 1), 0.0)
            room = schedule.room_ms(min(costs_ms), queue_size, waiting + 1)
            limit_ms = min(shares, room) - 1000 * BESIDE_ENGINE_S
        closed = frozenset(plan for plan, ms in enumerate(costs_ms) if ms > limit_ms)
        ask = Ask(Budget(depth=depth))
        decision = rules.choose(scores, ask, Budget(), costs_ms, policies.Pressure(closed))
        return manifest.plans.index(decision.plan)

    wanted = manifest.plans[at(0)]
    chosen = [at(waiting) for waiting in range(queue_size)]
    plans = [manifest.plans[index] for index in chosen]
    return Policy(
        name,
        tuple(engine_s[plan.name] + BESIDE_ENGINE_S for plan in plans),
        tuple(plan.quality for plan in plans),
        tuple(max(0.0, 1 - plan.gflops / wanted.gflops) for plan in plans),
        tuple(plan.depth for plan in plans),
    )


@dataclass(frozen=True, slots=True)
class Look:
    """Of one replica, for some time: seconds in which its engine ran, and in which images waited;
    shares of compute, added up over the images; images."""

    busy_s: float = 0.0
    wait_s: float = 0.0
    given_up: float = 0.0
    images: int = 0


@dataclass(slots=True)
class Tally:
    """What a day came to. latency: of every answer, in s; ran: answers by how many waited behind
    them; shed, lost: requests that were refused, and those that died with a node."""

    ran: list[int]
    latency: list[float] = field(default_factory=list)
    shed: int = 0
    lost: int = 0


@dataclass(slots=True, eq=False)
class Replica:
    """One pod. ready: when it takes requests; lost: when its node dies; unlisted: when the Service
    notices that."""

    created: float
    ready: float
    node: int
    lost: float = math.inf
    unlisted: float = math.inf
    _free: float = 0.0  # when its engine has nothing to do
    _waiting: deque[float] = field(default_factory=deque)  # arrival times
    _wait_s: float = 0.0
    _ran: list[int] = field(default_factory=list)

    def listed(self, now: float) -> bool:
        """Whether the Service sends it requests."""
        return self.ready <= now < self.unlisted

    def serve(self, arrivals: Sequence[float], until: float, policy: Policy, tally: Tally) -> None:
        """Take arrivals (ascending, before `until`), and answer every image whose turn comes before
        `until`."""
        seconds, waiting, free, answered = (
            policy.seconds,
            self._waiting,
            self._free,
            tally.latency.append,
        )
        ran = self._ran = self._ran or [0] * len(seconds)
        for arrived in (*arrivals, until):
            while waiting and free <= arrived:
                first = waiting.popleft()
                behind = len(waiting)
                ran[behind] += 1
                self._wait_s += free - first
                answered(free - first + seconds[behind])
                free += seconds[behind]
            if arrived == until:
                break
            if free <= arrived:  # then nothing waits
                ran[0] += 1
                answered(seconds[0])
                free = arrived + seconds[0]
            elif len(waiting) < len(seconds):
                waiting.append(arrived)
            else:
                tally.shed += 1
        self._free = free

    def die(self, now: float, noticed: float, tally: Tally) -> None:
        """Its node is gone, and with it what waited; until `noticed` requests still come, and are
        lost."""
        self.lost, self.unlisted = now, noticed
        tally.lost += len(self._waiting)
        self._waiting.clear()

    def look(self, policy: Policy, tally: Tally) -> Look:
        """What happened since the last look; it goes into the tally, too."""
        ran, wait_s = self._ran or [0] * policy.queue_size, self._wait_s
        tally.ran = [before + now for before, now in zip(tally.ran, ran, strict=True)]
        self._ran, self._wait_s = [], 0.0
        return Look(
            sum(map(operator.mul, ran, policy.seconds)),
            wait_s,
            sum(map(operator.mul, ran, policy.given_up)),
            sum(ran),
        )


def traffic(rng: np.random.Generator, mean: float, seconds: float = DAY_S) -> NDArray[np.float64]:
    """Arrival times of a day, ascending: Poisson at a rate that swings by 60 % over the day, times
    2.5 in bursts.

    Bursts are the second state of a two-state Markov process: 20 minutes apart and 90 s long on
    average.
    """
    ends, burst = [0.0], [False]
    while ends[-1] < seconds:
        burst.append(not burst[-1])
        ends.append(ends[-1] + rng.exponential(90.0 if burst[-1] else 1200.0))
    grid = np.arange(0.0, seconds)
    factor = np.where(np.asarray(burst)[np.searchsorted(ends, grid, side="left")], 2.5, 1.0)
    rate = (1 - 0.6 * np.cos(2 * np.pi * grid / DAY_S)) * factor
    counts = rng.poisson(rate * mean / rate.mean())
    return np.sort(np.repeat(grid, counts) + rng.random(counts.sum()))
