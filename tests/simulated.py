"""A discrete-event simulation of a node: the service's own queue, schedule and policy, with service
times that were recorded, and no thread, engine or real clock."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np

from service.core import Ask, Budget, Decision, Frames, Margin, Plan
from service.errors import DeadlineExceeded, FathomError, Overloaded
from service.inference.batches import Job
from service.inference.costs import Cost
from service.inference.decisions import decide
from service.inference.place import Batch, Place
from service.inference.policy import Policy
from service.inference.queue import Queue
from service.inference.schedule import Times, objective_s
from service.inference.turns import IDLE_S
from tests.known_costs import known_costs

NONE = Budget()
_RECORDED = json.loads((Path(__file__).parent / "data" / "service_times.json").read_text())
GLANCE_MS: Sequence[float] = _RECORDED["glance_ms"]
PLANS = tuple(
    Plan(row["name"], index + 1, 1.0, 1.0, row["gflops"], row["quality"])
    for index, row in enumerate(_RECORDED["plans"])
)
AFTER_GLANCE_MS: Sequence[Sequence[float]] = [row["after_glance_ms"] for row in _RECORDED["plans"]]
CHEAPEST = Budget(depth=1)  # a node that runs this plan alone


@dataclass(slots=True, eq=False)
class Image(Place):
    """asked: what its caller wants. ended: when it was answered. error: why it was not."""

    asked: Budget = field(kw_only=True, default=Budget())
    ended: float = field(init=False, default=math.nan)
    decision: Decision | None = field(init=False, default=None)
    error: str = field(init=False, default="")

    @property
    def in_time(self) -> bool:
        return self.deadline is None or self.ended <= self.deadline

    @property
    def latency_s(self) -> float:
        return self.ended - self.arrived


@dataclass(slots=True)
class Report:
    """What became of the images. batches: in the order in which they ran, each with its limit and
    the least that every plan takes."""

    images: list[Image]
    batches: list[Batch[Image]]
    events: list[tuple[float, str, Image]]

    @property
    def answered(self) -> list[Image]:
        return [image for image in self.images if not math.isnan(image.ended) and not image.error]

    @property
    def refused(self) -> list[Image]:
        return [image for image in self.images if image.error in ("full", "predicted", "expired")]

    @property
    def good(self) -> int:
        return sum(image.in_time for image in self.answered)

    @property
    def wasted(self) -> float:
        """Share of what ran that was answered too late, or not at all."""
        ran = [image for image in self.images if image.started]
        return sum(bool(image.error) or not image.in_time for image in ran) / max(1, len(ran))

    def quality(self) -> float:
        found = [image.decision.plan.quality for image in self.answered if image.decision]
        return float(np.mean(found)) if found else math.nan

    def p99_s(self) -> float:
        return float(np.percentile([image.latency_s for image in self.answered], 99))


class Node:
    """A node with the recorded plans. The gate predicts what was calibrated; a run takes one of the
    recorded times, at random.

    target_s: the objective that is promised; None: the default one. node: its ceilings. slow: what
    the start measured against what plans take. factor: by how much longer they take at some time.
    """

    def __init__(
        self,
        *,
        size: int = 32,
        target_s: float | None = None,
        max_loss: float = 0.0,
        node: Budget = NONE,
        slow: float = 1.0,
        seed: int = 0,
        factor: Callable[[float], float] = lambda now: 1.0,
    ) -> None:
        self.plans, self.node = PLANS, node
        self._factor, self._rng = factor, np.random.default_rng(seed)
        rest = {
            plan: Cost(slow * float(np.median(times)))
            for plan, times in zip(PLANS, AFTER_GLANCE_MS, strict=True)
        }
        self.costs = known_costs({"": Cost(slow * float(np.median(GLANCE_MS)))}, rest)
        self.policy = Policy(self.plans, (Margin(0.001, 0.001),), max_loss)
        full_ms = max(map(self.costs.total_ms, PLANS))
        self.queue = Queue[Image](
            size=size,
            max_batch=1,
            target_s=target_s or objective_s(full_ms),
            promised=target_s is not None,
            spread=lambda: 1.5,
        )

    def run(self, arriving: Iterable[Image]) -> Report:
        report, numbers = Report([], [], []), count()
        todo = [(image.arrived, next(numbers), image) for image in arriving]
        heapq.heapify(todo)
        free = -math.inf  # when the engine is done
        while todo or self.queue.waiting:
            starts = free if self.queue.waiting else math.inf
            if not self.queue.waiting and self.costs.doubted and todo[0][0] > free + IDLE_S:
                free = self._measure_again(free + IDLE_S)
            elif todo and todo[0][0] <= starts:
                now, _, image = heapq.heappop(todo)
                report.images.append(image)
                self._arrive(image, now, report)
                free = max(free, now)
            else:
                free = self._turn(free, report)
        return report

    def _arrive(self, image: Image, now: float, report: Report) -> None:
        try:
            possible = self.policy.possible(image.asked, self.node)
            fastest = min(possible, key=self.costs.total_ms)
            image.least_ms = self.costs.total_ms(fastest)
            image.safe_ms = self.costs.total_ms(fastest, high=True)
            self.queue.reserve(image, now, coming=False)
            self.queue.enter(image, now)
        except Overloaded as error:
            image.error = error.shed
            report.events.append((now, "refused", image))
            if self.queue.idle:
                self.costs.doubt(fastest, now)
        else:
            report.events.append((now, "admitted", image))

    def _measure_again(self, now: float) -> float:
        """As the engine does when it is idle. Returns when it is done."""
        plan = next(iter(self.costs.doubted.values())).plan
        self.costs.measured(plan)
        return now + (self._glanced(now) + self._ran(plan, now)) / 1000

    def _ran(self, plan: Plan, now: float) -> float:
        """Milliseconds of one run after the glance, which the costs follow."""
        times = AFTER_GLANCE_MS[self.plans.index(plan)]
        ms = float(self._rng.choice(times)) * self._factor(now)
        self.costs.encoders[plan.encoder].add(ms / 1000, 1, now)
        return ms

    def _glanced(self, now: float) -> float:
        """Milliseconds of one glance, which the costs follow."""
        ms = float(self._rng.choice(GLANCE_MS)) * self._factor(now)
        self.costs.front[""].add(ms / 1000, 1, now)
        return ms

    def _turn(self, now: float, report: Report) -> float:
        """Run what is next. Returns when the engine is free again."""
        self.queue.running, self.queue.free = [], -math.inf
        times = Times([[self.costs.total_ms(plan)] for plan in self.plans])
        batch = self.queue.take(now, times)
        for image in batch.hopeless:
            image.error = "expired"
            self.queue.leave(image)
        if not batch.places:
            return now
        report.batches.append(batch)
        (image,) = batch.places
        due = max(image.due, image.arrived + self.queue.target_s)
        frames: Frames = {}
        job = Job(frames, Ask(image.asked), image.deadline, due)
        scores = [[plan.quality for plan in self.plans]]
        glanced = now + self._glanced(now) / 1000
        (decision,) = decide(
            [self.policy], self.costs, [job], scores, self.node, batch.limit_ms, glanced
        )
        if isinstance(decision, FathomError):
            image.error, image.ended = decision.problem, glanced
            if isinstance(decision, DeadlineExceeded):
                self.costs.doubt_of(self.plans, decision, glanced)
            self.queue.leave(image)
            self.queue.free = glanced
            return glanced
        image.decision = decision
        image.ended = glanced + self._ran(decision.plan, now) / 1000
        self.costs.doubt_of(self.plans, decision, image.ended)
        self.queue.free = glanced + self.costs.after_glance_ms(decision.plan) / 1000
        report.events.append((now, "ran", image))
        self.queue.leave(image)
        return image.ended


def poisson(
    rate: float, seconds: float, seed: int, ms: float | None = None, **asked: str
) -> list[Image]:
    """Images that arrive at random, each with that deadline."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, int(rate * seconds * 1.5) + 50))
    budget = Budget(ms=ms)
    return [
        Image(float(at), None if ms is None else float(at) + ms / 1000, asked=budget, **asked)  # type: ignore[arg-type]
        for at in times[times < seconds]
    ]
