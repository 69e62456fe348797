"""What a plan costs on this node, in milliseconds: per stage, by how many images run together.

Costs are measured at the start (warm_up.py) and then by every batch that runs. They decide which
deadlines can be met and which plans load leaves open, and `/plans` shows them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from service.core import Decision, Plan, Reason
from service.errors import DeadlineExceeded

KEPT = 9  # measurements of which the median counts
AGAIN = 3  # measurements that move a cost, whatever it was
_BY_TIME = (Reason.DEADLINE, Reason.LOAD)  # what costs decide
STALE_S = 10.0  # a cost that was not measured for so long may be wrong
LONGEST_S = 600.0  # until it is measured again, if that changes it by less than the factor SAME
SAME = 1.25
ENOUGH = 5  # measurements of which the second highest is a time that few runs exceed
SAFE = 1.15  # until then: times the median
MOST = 1.5  # a higher one, in medians, is of another time
KEPT_TAIL = 64  # times of answers: few images of a node that is full have any to spare


class Cost:
    """What a stage takes, by the number of images that run together.

    Of the last KEPT measurements the median counts, or once there are so many, the mean without the
    two highest and the two lowest. The first one counts twice, so that a single outlier moves
    nothing, while three that agree move everything, up or down.
    """

    def __init__(self, first_ms: float, *, most: int = 1, most_ms: float | None = None) -> None:
        """first_ms: for one image, at the start. most_ms: for `most` images; None: not known."""
        self._seen: dict[int, deque[float]] = {}
        self._ms: dict[int, float] = {}  # the medians
        self._high_ms: dict[int, float] = {}
        self.measured = -math.inf  # when, in seconds of time.perf_counter
        self._note(1, first_ms, first_ms)
        if most_ms is not None and most > 1:
            self._note(most, most_ms, most_ms)

    def ms(self, images: int = 1) -> float:
        """For all of the images together."""
        return self._ms[images] if images in self._ms else self._between(images)

    def high_ms(self, images: int = 1) -> float:
        """A time that few runs exceed."""
        return self._high_ms[images] if images in self._ms else SAFE * self._between(images)

    @property
    def least_ms(self) -> float:
        """The least that one image took, of the last runs."""
        return min(self._seen[1])

    def add(self, seconds: float, images: int, now: float) -> None:
        """Note how long a batch took."""
        if images not in self._seen:
            known_ms = self._between(images)
            self._note(images, known_ms, known_ms)
        self._note(images, 1000 * seconds)
        self.measured = now

    def _note(self, images: int, *measured_ms: float) -> None:
        seen = self._seen.setdefault(images, deque(maxlen=KEPT))
        seen.extend(measured_ms)
        # For sums, the mean of most of a full window is better than its median. Both copies of the
        # first measurement, if it was wrong, are among those that are left out.
        full = len(seen) == KEPT
        middle = self._ms[images] = fmean(sorted(seen)[2:-2]) if full else median(seen)
        enough = len(seen) >= ENOUGH
        high = min(sorted(seen)[-2], MOST * middle)
        self._high_ms[images] = high if enough else SAFE * middle

    def _between(self, images: int) -> float:
        """On the line through the sizes that are known; with one alone, n take n times as long."""
        low = max(size for size in self._ms if size < images)
        higher = [size for size in self._ms if size > images]
        if not higher:
            return self._ms[low] * images / low
        slope = (self._ms[min(higher)] - self._ms[low]) / (min(higher) - low)
        return self._ms[low] + max(0.0, slope) * (images - low)


class Tail:
    """A time that hardly any of the last ones exceeded: of KEPT_TAIL, the second highest; 0 until
    there are AGAIN."""

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=KEPT_TAIL)
        self.s = 0.0

    def add(self, seconds: float) -> None:
        self._seen.append(seconds)
        self.s = sorted(self._seen)[-2] if len(self._seen) >= AGAIN else 0.0


class Costs:
    """The costs of all stages.

    front: of each canvas; that of the first, the glance, has the gate in it.
    encoders: by the encoder plan's name. heads: by canvas and `HeadWidth.key`.
    beside: what a batch takes beside its stages. answer: what an
        image takes beside the engine after that knows its result.
    doubted: plans that an estimate ruled out which was not measured lately, by name.
    """

    def __init__(
        self,
        front_ms: Mapping[str, float | Cost],
        encoder_ms: Mapping[str, float | Cost],
        head_ms: Mapping[tuple[str, str], float | Cost],
    ) -> None:
        """front_ms: by canvas, the glance first."""
        self.front = {canvas: _cost(ms) for canvas, ms in front_ms.items()}
        self.encoders = {name: _cost(ms) for name, ms in encoder_ms.items()}
        self.heads = {place: _cost(ms) for place, ms in head_ms.items()}
        self.beside, self.answer = Cost(0.0), Tail()
        self.doubted: dict[str, Doubt] = {}
        self._stages: dict[str, tuple[Cost, ...]] = {}  # by the plan's name: see `_after_glance`
        self._trusted_s: dict[str, float] = {}  # for how long, if more than STALE_S

    def after_glance_ms(self, plan: Plan, images: int = 1, *, high: bool = False) -> float:
        """What a plan still needs for some images once the gate has seen them.

        high: a time that few runs exceed.
        """
        stages = self._after_glance(plan)
        return sum([cost.high_ms(images) if high else cost.ms(images) for cost in stages])

    def total_ms(self, plan: Plan, images: int = 1, *, high: bool = False) -> float:
        """All that runs for images of one plan, and what a batch takes beside its stages."""
        glance = self._glance.high_ms(images) if high else self._glance.ms(images)
        return glance + self.after_glance_ms(plan, images, high=high) + self.beside.ms()

    def plan_ms(self, plans: Iterable[Plan]) -> dict[str, float]:
        """Engine time of one image per plan (name -> ms): glance, front, encoder and heads; empty
        before anything was measured."""
        if not self.front:
            return {}
        return {plan.name: self.total_ms(plan) - self.beside.ms() for plan in plans}

    def doubt(self, plan: Plan, now: float) -> None:
        """Note that the cost of a plan ruled it out; it counts if it was not measured lately, or
        for longer if measuring it again changed nothing the last times."""
        stages = (self._glance, *self._after_glance(plan))
        age_s = now - min(cost.measured for cost in stages)
        if plan.name not in self.doubted and age_s >= self._trusted_s.get(plan.name, STALE_S):
            self.doubted[plan.name] = Doubt(plan, self.total_ms(plan))

    def doubt_of(
        self, plans: Sequence[Plan], decided: Decision | DeadlineExceeded, now: float
    ) -> None:
        """The same for the plans that a deadline or load ruled out. plans: all that were open to
        the image."""
        ruled_out: Sequence[Plan] = ()
        if isinstance(decided, DeadlineExceeded):
            ruled_out = [plan for plan in plans if plan.name == decided.plan]
        elif decided.wanted is not None and decided.reason in _BY_TIME:
            ran, wanted = plans.index(decided.plan), plans.index(decided.wanted)
            ruled_out = plans[ran + 1 : wanted + 1]
        for plan in ruled_out:
            self.doubt(plan, now)

    def measured(self, plan: Plan) -> None:
        """A plan that is in doubt was measured once more."""
        doubt = self.doubted[plan.name]
        doubt.times, doubt.stages = doubt.times - 1, 0
        if doubt.times:
            return
        del self.doubted[plan.name]
        ratio = self.total_ms(plan) / doubt.before_ms
        same = 1 / SAME <= ratio <= SAME
        trusted_s = 2 * self._trusted_s.get(plan.name, STALE_S) if same else STALE_S
        self._trusted_s[plan.name] = min(trusted_s, LONGEST_S)

    def not_measured(self, plan: Plan) -> None:
        """A plan that is in doubt could not be measured: it is in doubt again when it is ruled out
        the next time."""
        del self.doubted[plan.name]

    @property
    def _glance(self) -> Cost:
        return next(iter(self.front.values()))

    def _after_glance(self, plan: Plan) -> tuple[Cost, ...]:
        """Of the stages that it needs beside the glance. They are looked up once: every request
        asks for those of every plan, several times."""
        if plan.name not in self._stages:
            front = self.front.get(plan.canvas, self._glance)
            fronts = [] if front is self._glance else [front]
            heads = [self.heads[plan.canvas, head.key] for head in plan.heads]
            self._stages[plan.name] = (*fronts, self.encoders[plan.encoder], *heads)
        return self._stages[plan.name]


@dataclass(slots=True)
class Doubt:
    """A plan whose cost may be wrong. before_ms: that cost. times: how often the engine shall
    measure it while it is idle. stages: how many of its stages it has measured this time."""

    plan: Plan
    before_ms: float
    times: int = AGAIN
    stages: int = 0


def _cost(ms: float | Cost) -> Cost:
    return ms if isinstance(ms, Cost) else Cost(ms)
