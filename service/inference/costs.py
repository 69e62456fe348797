"""What a plan costs on this node, in milliseconds per image.

Costs are measured during the warm-up and then updated by the batches that run. They decide which
deadlines can be met, and `/plans` shows them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np

from service.core import Plan
from service.inference.stages import Stages

WEIGHT = 0.2  # of a new measurement in a moving average
HALF_LIFE_S = 10.0
_T = TypeVar("_T")
_log = logging.getLogger("fathom.costs")


class Cost:
    """The cost of one stage: the warm-up's measurement, and how far later runs moved it.

    The move decays with time. Otherwise one slow run could close a plan to every request with a
    deadline, and a plan that is never chosen is never measured again.
    """

    def __init__(self, base_ms: float) -> None:
        self._base = base_ms
        self._moved = self._seen = 0.0

    def ms(self, now: float) -> float:
        """Milliseconds per image. now: in seconds of time.perf_counter."""
        return self._base + self._moved * float(0.5 ** ((now - self._seen) / HALF_LIFE_S))

    def add(self, seconds: float, images: int, now: float) -> None:
        """Note how long a batch took.

        An image alone takes longer than its share of a batch, so a share counts only if it is more.
        """
        known, share = self.ms(now), seconds * 1000 / images
        if images == 1 or share > known:
            self._moved, self._seen = known + WEIGHT * (share - known) - self._base, now


class Costs:
    """The costs of all stages.

    front: features and gate.
    rest: encoder and head per plan, the cheapest first.
    mean_ms: mean engine time per image.
    """

    def __init__(self, front_ms: float, rest_ms: dict[Plan, float]) -> None:
        self.front = Cost(front_ms)
        self.rest = {plan: Cost(ms) for plan, ms in rest_ms.items()}
        self.mean_ms = front_ms + sum(rest_ms.values()) / max(1, len(rest_ms))

    def served(self, seconds: float, images: int) -> None:
        """Update the mean with the time of a whole batch."""
        self.mean_ms += WEIGHT * (seconds * 1000 / images - self.mean_ms)

    def plan_ms(self) -> dict[str, float]:
        """Engine time of one image per plan (name -> ms): front, encoder and decoder."""
        now = time.perf_counter()
        return {plan.name: self.front.ms(now) + cost.ms(now) for plan, cost in self.rest.items()}


def warm_up(stages: Stages, max_batch: int) -> Costs:
    """Measure every plan for one image, and run the cheapest with the largest batch.

    The first run of a stage allocates its memory, so the front, the most expensive encoder and the
    head run twice, and the better time counts. The other encoders reuse that memory: they run once,
    and again if they took longer than a more expensive one.
    """
    plans, canvas = stages.manifest.plans, stages.manifest.input
    image = np.zeros((1, canvas.height, canvas.width, 3), np.uint8)
    (features, _), front_ms = _timed(2, lambda: stages.front(image))
    encoder_ms: dict[Plan, float] = {}
    for plan in reversed(plans):
        larger_ms = min(encoder_ms.values(), default=0.0)
        encoded, encoder_ms[plan] = _timed(1, partial(stages.encode, plan, features))
        if encoder_ms[plan] > larger_ms:
            again_ms = _timed(1, partial(stages.encode, plan, features))[1]
            encoder_ms[plan] = min(encoder_ms[plan], again_ms)
    _, head_ms = _timed(2, lambda: stages.head(encoded))
    features, _ = stages.front(np.repeat(image, max_batch, axis=0))
    stages.head(stages.encode(plans[0], features))
    costs = Costs(front_ms, {plan: encoder_ms[plan] + head_ms for plan in plans})
    shown = ", ".join(f"{name} {ms:.1f} ms" for name, ms in costs.plan_ms().items())
    _log.info("%s is warm: %s", stages.backend.name, shown)
    return costs


def _timed(runs: int, stage: Callable[[], _T]) -> tuple[_T, float]:
    """The last result, and the best time in ms."""
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        result = stage()
        times.append(1000 * (time.perf_counter() - begun))
    return result, min(times)
