"""What a plan costs on this node, in milliseconds per image.

Costs are measured during the warm-up and then updated by the batches that run. They decide which
deadlines can be met, and `/plans` shows them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from service.bundle import Shape
from service.core import Frame, Plan
from service.inference.batches import at_once
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

    front: of each canvas; that of the first, the glance, has the gate in it.
    rest: encoder and head per plan, the cheapest plan first.
    mean_ms: mean engine time per image.
    """

    def __init__(self, front_ms: Mapping[str, float], rest_ms: Mapping[Plan, float]) -> None:
        """front_ms: by canvas, the glance first."""
        self.front = {canvas: Cost(ms) for canvas, ms in front_ms.items()}
        self.rest = {plan: Cost(ms) for plan, ms in rest_ms.items()}
        plan_ms = self.plan_ms().values()
        self.mean_ms = sum(plan_ms) / max(1, len(plan_ms))

    def served(self, seconds: float, images: int) -> None:
        """Update the mean with the time of a whole batch."""
        self.mean_ms += WEIGHT * (seconds * 1000 / images - self.mean_ms)

    def after_glance_ms(self, plan: Plan, now: float) -> float:
        """What a plan still needs once the gate has seen the image, for one image.

        now: in seconds of time.perf_counter.
        """
        again = 0.0 if plan.canvas == next(iter(self.front)) else self.front[plan.canvas].ms(now)
        return again + self.rest[plan].ms(now)

    def plan_ms(self) -> dict[str, float]:
        """Engine time of one image per plan (name -> ms): glance, front, encoder and decoder."""
        now = time.perf_counter()
        glance_ms = next((cost.ms(now) for cost in self.front.values()), 0.0)
        return {plan.name: glance_ms + self.after_glance_ms(plan, now) for plan in self.rest}


def warm_up(stages: Stages, max_batch: int) -> Costs:
    """Measure every plan for one image, and run each canvas' cheapest with the largest batch.

    The first run of a stage allocates its memory. The largest canvas comes first: its stages and
    the most expensive encoder run twice, and the better time counts; the others reuse that memory,
    and run again only if they took longer than a more expensive one. Shapes of a canvas other than
    its first cost about the same: each of their stages runs once.
    """
    front_ms: dict[str, float] = {}
    rest_ms: dict[Plan, float] = {}
    canvases = stages.manifest.input.canvases
    for canvas in reversed(canvases):
        plans = [plan for plan in stages.manifest.plans if plan.canvas == canvas.name]
        first, *others = canvas.shapes
        front_ms[canvas.name], of_plans = _measure(stages, first, plans)
        rest_ms |= of_plans
        for shape in others:
            _run(stages, shape, plans, 1)
        _run(stages, first, plans[:1], at_once(first, max_batch))
    costs = Costs(
        {canvas.name: front_ms[canvas.name] for canvas in canvases},
        {plan: rest_ms[plan] for plan in stages.manifest.plans},
    )
    shown = ", ".join(f"{name} {ms:.1f} ms" for name, ms in costs.plan_ms().items())
    _log.info("%s is warm: %s", stages.backend.name, shown)
    return costs


def _measure(
    stages: Stages, shape: Shape, plans: Sequence[Plan]
) -> tuple[float, dict[Plan, float]]:
    """Milliseconds of the front, and of encoder and head for each of the canvas' plans."""
    frame = _blank(shape)
    features, front_ms = _timed(2, lambda: stages.front([frame]))
    encoder_ms: dict[Plan, float] = {}
    for plan in reversed(plans):
        larger_ms = min(encoder_ms.values(), default=0.0)
        encode = partial(stages.encode, plan, shape.name, features)
        encoded, encoder_ms[plan] = _timed(1, encode)
        if encoder_ms[plan] > larger_ms:
            encoded, again_ms = _timed(1, encode)  # on some engines it overwrites the first result
            encoder_ms[plan] = min(encoder_ms[plan], again_ms)
    if not plans:
        return front_ms, {}
    _, head_ms = _timed(2, lambda: stages.head(shape.name, encoded))
    return front_ms, {plan: encoder_ms[plan] + head_ms for plan in plans}


def _run(stages: Stages, shape: Shape, plans: Sequence[Plan], images: int) -> None:
    """Run each stage of these plans once."""
    features = stages.front([_blank(shape)] * images)
    for plan in plans:
        encoded = stages.encode(plan, shape.name, features)
    if plans:
        stages.head(shape.name, encoded)


def _blank(shape: Shape) -> Frame:
    return Frame.filling(np.zeros((shape.height, shape.width, 3), np.uint8))


def _timed(runs: int, stage: Callable[[], _T]) -> tuple[_T, float]:
    """The last result, and the best time in ms."""
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        result = stage()
        times.append(1000 * (time.perf_counter() - begun))
    return result, min(times)
