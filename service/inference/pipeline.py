"""The pipeline for one batch of images: front -> choose -> encoder -> head. No queue, no file.

Every image gets the plan that its own scores and budget call for. Images with the same plan run
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
    """One image to segment. deadline: in seconds of time.perf_counter, if it has one."""

    frame: Frame
    ask: Ask
    deadline: float | None


Step: TypeAlias = list[tuple[Job, Progress]]


class Pipeline:
    """Has no state but the costs, which it keeps current."""

    def __init__(self, stages: Stages, policy: Policy, costs: Costs) -> None:
        self._stages, self._policy, self._costs = stages, policy, costs

    def run(self, jobs: Sequence[Job], node: Budget, fill: float) -> Iterator[Step]:
        """Yield each job's progress: first the decisions, then the results, plan by plan.

        jobs: the most urgent first. fill: filled share of the queue, 0..1. If no plan fits a job,
        only that job fails. Errors of the backend are not caught.
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
            together = len(jobs) - row
            costs_ms = [cost.ms(now) * together for cost in self._costs.rest.values()]
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
        encoder_ended = time.perf_counter()
        tensors = self._stages.head(encoded)
        now = time.perf_counter()
        count, paused = len(group), self._stages.paused(plan, encoded)
        self._costs.rest[plan].add(now - began, count, now)
        spans = (
            front,
            Span("encoder", began, encoder_ended),
            Span("decoder", encoder_ended, now),
        )
        step: Step = []
        for row, (job, decision) in enumerate(group):
            answer = {name: values[row] for name, values in tensors.items()}
            image_paused = None if paused is None else paused[row]
            outcome = Outcome(decision, job.frame.geometry, answer, image_paused)
            step.append((job, Progress(spans, decision, count, outcome)))
        return step
