"""The spine: front -> choose -> encoder -> head, for one batch of images. No queue, no file.

Every image gets the plan that its own scores and budget call for; images of equal plan run
together.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from service.core import Ask, Budget, Decision, Frame, Outcome, Plan, Progress, Span
from service.engines.base import Tensors
from service.errors import FathomError
from service.inference.costs import Costs
from service.inference.policy import Policy, Pressure
from service.inference.stages import Stages


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One image to segment. deadline: in seconds of time.perf_counter; None: there is none."""

    frame: Frame
    ask: Ask
    deadline: float | None


Step: TypeAlias = list[tuple[Job, Progress]]


class Pipeline:
    """Holds no state but the costs, which it keeps current."""

    def __init__(self, stages: Stages, policy: Policy, costs: Costs) -> None:
        self._stages, self._policy, self._costs = stages, policy, costs

    def run(self, jobs: Sequence[Job], node: Budget, fill: float) -> Iterator[Step]:
        """What happened to the jobs, as it happens: the decisions, then the results plan by plan.

        jobs: the most urgent first; fill: of the queue, 0..1. A job that no plan fits fails alone.
        What the backend raises goes through.
        """
        began = time.perf_counter()
        features, scores = self._stages.front(np.stack([job.frame.pixels for job in jobs]))
        now = time.perf_counter()
        self._costs.front.add(now - began, len(jobs), now)
        front = Span("front", began, now)
        decided: Step = []
        decisions: dict[int, Decision] = {}
        groups: dict[Plan, list[int]] = {}
        promised_ms = 0.0  # what the images before this one will take
        for row, job in enumerate(jobs):
            left_ms = None if job.deadline is None else 1000 * (job.deadline - now) - promised_ms
            # Later images may join this one, and n images take at most n times as long as one.
            company = len(jobs) - row
            costs_ms = [cost.ms(now) * company for cost in self._costs.rest.values()]
            pressure = Pressure(fill, left_ms)
            try:
                quality = scores[row].tolist()
                decision = self._policy.choose(quality, job.ask, node, costs_ms, pressure)
            except FathomError as error:
                decided.append((job, Progress((front,), result=error)))
                continue
            decided.append((job, Progress((front,), decision)))
            decisions[row] = decision
            promised_ms += self._costs.rest[decision.plan].ms(now)
            groups.setdefault(decision.plan, []).append(row)
        yield decided
        for plan, rows in groups.items():
            part = features if len(rows) == len(jobs) else features.take(rows)
            group = [(jobs[row], decisions[row]) for row in rows]
            yield self._finish(plan, part, front, group)

    def _finish(
        self,
        plan: Plan,
        features: Tensors,
        front: Span,
        group: Sequence[tuple[Job, Decision]],
    ) -> Step:
        began = time.perf_counter()
        encoded = self._stages.encode(plan, features)
        between = time.perf_counter()
        tensors = self._stages.head(encoded)
        now = time.perf_counter()
        count, paused = len(group), self._stages.paused(plan, encoded)
        self._costs.rest[plan].add(now - began, count, now)
        spans = (front, Span("encoder", began, between), Span("decoder", between, now))
        step: Step = []
        for row, (job, decision) in enumerate(group):
            own = {name: values[row] for name, values in tensors.items()}
            still = None if paused is None else paused[row]
            outcome = Outcome(decision, job.frame.geometry, own, still)
            step.append((job, Progress(spans, decision, count, outcome)))
        return step
