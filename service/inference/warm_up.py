"""Measures what plans cost: all of them at the start, and later one whose cost is in doubt."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np

from service.bundle import EncoderPlan, Shape
from service.core import Frame, HeadWidth, Plan
from service.engines.base import Tensors
from service.errors import BackendError, NotReady
from service.inference.batches import at_once
from service.inference.costs import Cost, Costs
from service.inference.stages import Stages

LONG_MS = 50.0  # a batch that takes longer runs once at the start, or the start would take long
_T = TypeVar("_T")
_log = logging.getLogger("fathom.costs")


def _always() -> bool:
    return True


def warm_up(stages: Stages, max_batch: int, wanted: Callable[[], bool] = _always) -> Costs:
    """Measure every encoder plan and every head for one image, and each canvas' cheapest plan and
    full heads with the largest batch.

    wanted: asked before each run of a stage. Raises NotReady once it says no, BackendError where
    the gate's scores are no numbers, and what the backend raises.

    The first run of a stage allocates its memory. The largest canvas comes first: its stages and
    the most expensive encoder run twice, and the better time counts; the others reuse that memory,
    and run again only if they took longer than a more expensive one. What the largest batch takes
    against one image is measured with the cheapest plan of a canvas and with the widest of each
    head, and taken to be so for its others. Shapes of a canvas other than its first cost about the
    same: each of their stages runs once.
    """
    front: dict[str, Cost] = {}
    encoders: dict[str, Cost] = {}
    heads: dict[tuple[str, str], Cost] = {}
    manifest = stages.manifest
    every = manifest.head_widths
    measure = partial(_measure, stages, wanted)
    for canvas in reversed(manifest.input.canvases):
        plans = [plan for plan in manifest.encoder_plans if plan.canvas == canvas.name]
        first, *others = canvas.shapes
        one = measure(first, plans, every, 1)
        for shape in others:
            measure(shape, plans, every, 1, runs=1)
        most, many = at_once(first, max_batch, stages.backend.whole_batch), one
        if most > 1:
            full = [at for at in every if at.width == 1]
            many = measure(first, plans[:1], full, most)
        front[canvas.name] = Cost(one.front_ms, most=most, most_ms=many.front_ms)
        for name, ms in one.encoder_ms.items():
            factor = many.encoder_ms[plans[0].name] / one.encoder_ms[plans[0].name]
            encoders[name] = Cost(ms, most=most, most_ms=factor * ms)
        for at, ms in one.head_ms.items():
            widest = HeadWidth(at.name)
            factor = many.head_ms[widest] / one.head_ms[widest]
            heads[canvas.name, at.key] = Cost(ms, most=most, most_ms=factor * ms)
    costs = Costs(
        {canvas.name: front[canvas.name] for canvas in manifest.input.canvases},
        {plan.name: encoders[plan.name] for plan in manifest.encoder_plans},
        heads,
    )
    shown = (f"{name} {ms:.1f} ms" for name, ms in costs.plan_ms(manifest.plans).items())
    _log.info("%s is warm: %s", stages.backend.name, ", ".join(shown))
    return costs


def measure_again(
    stages: Stages, costs: Costs, plan: Plan, may_run: Callable[[float], bool]
) -> None:
    """Run a plan that is in doubt on a blank image, so that its cost follows, stage by stage.

    may_run: asked before each stage, with the seconds that it will take at least. Where it says no,
    the next time measures the rest; what that reads is computed once more.
    """
    canvases = {canvas.name: canvas.shapes[0] for canvas in stages.manifest.input.canvases}
    glance, own = next(iter(canvases)), plan.canvas or next(iter(canvases))
    shape, made = canvases[own].name, dict[str, Tensors]()

    def front(canvas: str) -> None:
        made["features"] = stages.front([_blank(canvases[canvas])])

    def encode() -> None:
        made["encoded"] = stages.encode(plan, shape, made["features"])

    def head(key: str) -> None:
        stages.head(shape, made["encoded"], key)

    work: list[tuple[Cost, Callable[[], None]]] = [
        *((costs.front[canvas], partial(front, canvas)) for canvas in dict.fromkeys((glance, own))),
        (costs.encoders[plan.encoder], encode),
        *((costs.heads[own, each.key], partial(head, each.key)) for each in plan.heads),
    ]
    doubt = costs.doubted[plan.name]
    for number, (cost, run) in enumerate(work):
        if not may_run(cost.least_ms / 1000):
            return
        _, ms = _timed(_always, 1, run)
        if number == doubt.stages:
            cost.add(ms / 1000, 1, time.perf_counter())
            doubt.stages += 1
    costs.measured(plan)


def check(stages: Stages) -> None:
    """Run every stage on a blank image. Raises as `warm_up` does."""
    manifest = stages.manifest
    for canvas in manifest.input.canvases:
        plans = [plan for plan in manifest.encoder_plans if plan.canvas == canvas.name]
        _measure(stages, _always, canvas.shapes[0], plans, manifest.head_widths, 1, runs=1)


class _Measured(NamedTuple):
    """Milliseconds of the stages of one shape. encoder_ms: by the plan's name."""

    front_ms: float
    encoder_ms: dict[str, float]
    head_ms: dict[HeadWidth, float]


def _measure(
    stages: Stages,
    wanted: Callable[[], bool],
    shape: Shape,
    plans: Sequence[EncoderPlan],
    heads: Sequence[HeadWidth],
    images: int,
    *,
    runs: int = 2,
) -> _Measured:
    """Of the front, of each of the canvas' plans, and of the heads."""
    frames = [_blank(shape)] * images
    most_ms = math.inf if images == 1 else LONG_MS
    timed = partial(_timed, wanted)
    features, front_ms = timed(runs, lambda: stages.front(frames), most_ms)
    if shape in stages.manifest.glance.shapes:
        _check_scores(stages, shape, features)
    measured = _Measured(front_ms, {}, {})
    for plan in reversed(plans):
        larger_ms = min(measured.encoder_ms.values(), default=0.0)
        encode = partial(stages.encode, plan, shape.name, features)
        encoded, ms = timed(1, encode)
        if runs > 1 and larger_ms < ms <= most_ms:
            encoded, again_ms = timed(1, encode)  # on some engines it overwrites the first result
            ms = min(ms, again_ms)
        measured.encoder_ms[plan.name] = ms
    for head in heads if plans else ():
        run = partial(stages.head, shape.name, encoded, head.key)
        _, measured.head_ms[head] = timed(runs, run, most_ms)
    return measured


def _check_scores(stages: Stages, shape: Shape, features: Tensors) -> None:
    """Raises BackendError where the gate's scores, by which plans are chosen, are no numbers."""
    if not np.isfinite(features["quality"]).all():
        file = stages.manifest.stages[stages.manifest.graphs[shape.name].front].file
        raise BackendError(
            f"{file}: the gate's scores of a blank image are no numbers on {stages.backend.name}: "
            f"make the gate again (python -m model_export train-gate, then export)"
        )


def _blank(shape: Shape) -> Frame:
    return Frame.filling(np.zeros((shape.height, shape.width, 3), np.uint8))


def _timed(
    wanted: Callable[[], bool], runs: int, stage: Callable[[], _T], most_ms: float = math.inf
) -> tuple[_T, float]:
    """The last result, and the best time in ms; no further run after one of over most_ms. Raises
    NotReady where it is not wanted any more."""
    times: list[float] = []
    while len(times) < runs and max(times, default=0.0) <= most_ms:
        if not wanted():
            raise NotReady("The service stopped before it was warm")
        begun = time.perf_counter()
        result = stage()
        times.append(1000 * (time.perf_counter() - begun))
    return result, min(times)
