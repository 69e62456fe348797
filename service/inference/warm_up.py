"""Measures what plans cost: all of them at the start, and later one whose cost is in doubt."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from service.bundle import Shape
from service.core import Frame, Plan
from service.engines.base import Tensors
from service.inference.batches import at_once
from service.inference.costs import Cost, Costs
from service.inference.stages import Stages

LONG_MS = 50.0  # a batch that takes longer runs once at the start, or the start would take long
_T = TypeVar("_T")
_log = logging.getLogger("fathom.costs")


def warm_up(stages: Stages, max_batch: int) -> Costs:
    """Measure every plan for one image, and each canvas' cheapest with the largest batch.

    The first run of a stage allocates its memory. The largest canvas comes first: its stages and
    the most expensive encoder run twice, and the better time counts; the others reuse that memory,
    and run again only if they took longer than a more expensive one. What the largest batch takes
    against one image is measured with the cheapest plan of a canvas, and taken to be so for its
    others. Shapes of a canvas other than its first cost about the same: each of their stages runs
    once.
    """
    front: dict[str, Cost] = {}
    rest: dict[Plan, Cost] = {}
    canvases = stages.manifest.input.canvases
    for canvas in reversed(canvases):
        plans = [plan for plan in stages.manifest.plans if plan.canvas == canvas.name]
        first, *others = canvas.shapes
        front_ms, rest_ms = _measure(stages, first, plans, 1)
        for shape in others:
            _measure(stages, shape, plans, 1, runs=1)
        most = at_once(first, max_batch)
        if most == 1:
            front[canvas.name] = Cost(front_ms)
            rest |= {plan: Cost(ms) for plan, ms in rest_ms.items()}
            continue
        most_front_ms, most_rest_ms = _measure(stages, first, plans[:1], most)
        front[canvas.name] = Cost(front_ms, most=most, most_ms=most_front_ms)
        for plan, ms in rest_ms.items():
            factor = most_rest_ms[plans[0]] / rest_ms[plans[0]]
            rest[plan] = Cost(ms, most=most, most_ms=factor * ms)
    costs = Costs(
        {canvas.name: front[canvas.name] for canvas in canvases},
        {plan: rest[plan] for plan in stages.manifest.plans},
    )
    shown = ", ".join(f"{name} {ms:.1f} ms" for name, ms in costs.plan_ms().items())
    _log.info("%s is warm: %s", stages.backend.name, shown)
    return costs


def measure_again(stages: Stages, costs: Costs, plan: Plan) -> None:
    """Run a plan on a blank image, so that its cost follows."""
    canvases = {canvas.name: canvas.shapes[0] for canvas in stages.manifest.input.canvases}
    glance, own = next(iter(canvases)), plan.canvas or next(iter(canvases))
    for canvas in dict.fromkeys((glance, own)):
        frame = _blank(canvases[canvas])
        features, ms = _timed(1, partial(stages.front, [frame]))
        costs.front[canvas].add(ms / 1000, 1, time.perf_counter())
    shape = canvases[own].name
    _, ms = _timed(1, partial(_encode_and_head, stages, plan, shape, features))
    costs.rest[plan].add(ms / 1000, 1, time.perf_counter())
    costs.measured(plan)


def check(stages: Stages) -> None:
    """Run every stage on a blank image. Raises what the backend raises."""
    for canvas in stages.manifest.input.canvases:
        plans = [plan for plan in stages.manifest.plans if plan.canvas == canvas.name]
        _measure(stages, canvas.shapes[0], plans, 1, runs=1)


def _encode_and_head(stages: Stages, plan: Plan, shape: str, features: Tensors) -> None:
    stages.head(shape, stages.encode(plan, shape, features))


def _measure(
    stages: Stages, shape: Shape, plans: Sequence[Plan], images: int, *, runs: int = 2
) -> tuple[float, dict[Plan, float]]:
    """Milliseconds of the front, and of encoder and head for each of the canvas' plans."""
    frames = [_blank(shape)] * images
    most_ms = math.inf if images == 1 else LONG_MS
    features, front_ms = _timed(runs, lambda: stages.front(frames), most_ms)
    encoder_ms: dict[Plan, float] = {}
    for plan in reversed(plans):
        larger_ms = min(encoder_ms.values(), default=0.0)
        encode = partial(stages.encode, plan, shape.name, features)
        encoded, encoder_ms[plan] = _timed(1, encode)
        if runs > 1 and larger_ms < encoder_ms[plan] <= most_ms:
            encoded, again_ms = _timed(1, encode)  # on some engines it overwrites the first result
            encoder_ms[plan] = min(encoder_ms[plan], again_ms)
    if not plans:
        return front_ms, {}
    _, head_ms = _timed(runs, lambda: stages.head(shape.name, encoded), most_ms)
    return front_ms, {plan: encoder_ms[plan] + head_ms for plan in plans}


def _blank(shape: Shape) -> Frame:
    return Frame.filling(np.zeros((shape.height, shape.width, 3), np.uint8))


def _timed(runs: int, stage: Callable[[], _T], most_ms: float = math.inf) -> tuple[_T, float]:
    """The last result, and the best time in ms; no further run after one of over most_ms."""
    times: list[float] = []
    while len(times) < runs and max(times, default=0.0) <= most_ms:
        begun = time.perf_counter()
        result = stage()
        times.append(1000 * (time.perf_counter() - begun))
    return result, min(times)
