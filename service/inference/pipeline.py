"""The spine: front -> route -> encoder -> decoder, for one batch of images. No queue, no HTTP, no
file.

Every image gets the plan that its own scores and budget call for; images of equal plan run
together.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from service.core import Budget, Frame, Margin, Outcome, Plan, Trace
from service.engines.base import Backend, Features
from service.errors import FathomError
from service.inference.costs import Costs
from service.inference.policy import choose


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One image to segment. deadline: in seconds of time.perf_counter, None = there is none. The
    trace is written."""

    frame: Frame
    budget: Budget
    deadline: float | None
    trace: Trace


Answer: TypeAlias = tuple[Job, Outcome | FathomError]


class Pipeline:
    """Holds no state but the costs, which it keeps current."""

    def __init__(
        self,
        backend: Backend,
        costs: Costs,
        margins: Sequence[Margin],
        *,
        default_max_loss: float,
        load_start: float,
    ) -> None:
        self._backend, self._costs, self._plans, self._margins = (
            backend,
            costs,
            tuple(costs.rest),
            margins,
        )
        self._default_max_loss, self._load_start = default_max_loss, load_start

    def run(self, jobs: Sequence[Job], node: Budget, load: float) -> Iterator[list[Answer]]:
        """The answers, group by group: jobs of one plan as soon as it has run, and a job that fails
        alone by itself.

        jobs: the most urgent first; load: fill of the queue, 0..1. What the backend raises goes
        through.
        """
        begun = time.perf_counter()
        features, scores = self._backend.front(
            np.stack([job.frame.pixels for job in jobs])
        )  # (B, H, W, 3)
        now = time.perf_counter()
        self._costs.front.add(now - begun, len(jobs), now)
        groups: dict[Plan, list[int]] = {}
        promised_ms = 0.0  # what the images before this one will take
        for row, job in enumerate(jobs):
            job.trace.add("front", begun, now)
            try:
                decision = choose(
                    scores[row].tolist(),
                    job.budget,
                    node,
                    self._plans,
                    margins=self._margins,
                    default_max_loss=self._default_max_loss,
                    remaining_ms=None
                    if job.deadline is None
                    else (job.deadline - now) * 1000 - promised_ms,
                    # Later images may join this one, and n images take at most n times as long as
                    # one.
                    costs_ms=[
                        cost.ms(now) * (len(jobs) - row) for cost in self._costs.rest.values()
                    ],
                    load=load,
                    load_start=self._load_start,
                )
            except FathomError as error:
                yield [(job, error)]
                continue
            job.trace.decision = decision
            promised_ms += self._costs.rest[decision.plan].ms(now)
            groups.setdefault(decision.plan, []).append(row)
        for plan, rows in groups.items():
            part = features if len(rows) == len(jobs) else features.take(rows)
            yield self._finish(plan, part, [jobs[row] for row in rows])

    def _finish(self, plan: Plan, features: Features, jobs: Sequence[Job]) -> list[Answer]:
        begun = time.perf_counter()
        encoded = self._backend.encode(plan, features)
        between = time.perf_counter()
        probabilities = self._backend.decode(encoded)  # (jobs, channels, h, w)
        now = time.perf_counter()
        self._costs.rest[plan].add(now - begun, len(jobs), now)
        answers: list[Answer] = []
        paused = [None] * len(jobs) if encoded.paused is None else encoded.paused
        for job, mask, still in zip(jobs, probabilities, paused, strict=True):
            assert job.trace.decision is not None
            job.trace.add("encoder", begun, between)
            job.trace.add("decoder", between, now)
            job.trace.batch_size = len(jobs)
            answers.append((job, Outcome(job.trace.decision, job.frame.geometry, mask, still)))
        return answers
