"""The pipeline for one batch of images: glance -> choose -> front -> encoder -> head. No queue.

Every image gets the plan that its own scores, budget and preference call for. Images with the same
canvas share a front, those with the same encoder plan an encoder, and of these, those with the same
head at the same width a head. For a plan on the smallest canvas, the glance is the front.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from service.core import Budget, Decision, Outcome
from service.engines.base import Tensors
from service.errors import FathomError
from service.inference.batches import Job, together
from service.inference.costs import Costs
from service.inference.decisions import decide
from service.inference.heads import rows, run_heads
from service.inference.policies import Policies
from service.inference.stages import Stages
from service.trace import Progress, Span

Step: TypeAlias = list[tuple[Job, Progress]]


class Pipeline:
    """Has no state but the costs, which it keeps current. max_batch: most images at once."""

    def __init__(self, stages: Stages, policies: Policies, costs: Costs, max_batch: int) -> None:
        self._stages, self._policies, self._costs = stages, policies, costs
        self._max_batch = max_batch
        self._glance, *self._others = (each.name for each in stages.manifest.input.canvases)

    def run(self, jobs: Sequence[Job], node: Budget, limit_ms: float = math.inf) -> Iterator[Step]:
        """Yield each job's progress: first the decisions, then the results, plan by plan.

        jobs: the most urgent first. limit_ms: the most that load lets each of them take. If no plan
        fits a job, only that job fails. Errors of the backend are not caught. Images whose glances
        cannot run together run one after the other.
        """
        for alike in self._together(jobs, self._glance):
            yield from self._run_alike(alike, node, limit_ms)

    def _run_alike(self, jobs: Sequence[Job], node: Budget, limit_ms: float) -> Iterator[Step]:
        glance, decisions = self._glance, dict[Job, Decision]()
        features, front = self._front(jobs, glance, time.perf_counter())
        predicted, seen = features["quality"].tolist(), replace(front, stage="glance")
        decided: Step = []
        policies = [self._policies.for_image(job.ask.preference, job.frames) for job in jobs]
        scores = [own.scores(row) for own, row in zip(policies, predicted, strict=True)]
        found = decide(policies, self._costs, jobs, scores, node, limit_ms, front.ended)
        for job, decision in zip(jobs, found, strict=True):
            if isinstance(decision, FathomError):
                decided.append((job, Progress((front,), result=decision)))
                continue
            span = front if decision.plan.canvas == glance else seen
            decided.append((job, Progress((span,), decision)))
            decisions[job] = decision
        yield decided
        # The glance's canvas comes first: its features are there, and may be overwritten later.
        own = [job for job, decision in decisions.items() if decision.plan.canvas == glance]
        if own:
            yield from self._finish(own, decisions, rows(features, jobs, own), (front,))
        for canvas in self._others:
            own = [job for job, decision in decisions.items() if decision.plan.canvas == canvas]
            began = time.perf_counter()  # before the images are put on this canvas
            for part in self._together(own, canvas):
                features, front = self._front(part, canvas, began)
                yield from self._finish(part, decisions, features, (seen, front))
                began = time.perf_counter()

    def _together(self, jobs: Sequence[Job], canvas: str) -> Iterator[Sequence[Job]]:
        return together(jobs, canvas, self._max_batch, self._stages.backend.whole_batch)

    def _front(self, jobs: Sequence[Job], canvas: str, began: float) -> tuple[Tensors, Span]:
        features = self._stages.front([job.frames[canvas] for job in jobs])
        now = time.perf_counter()
        self._costs.front[canvas].add(now - began, len(jobs), now)
        return features, Span("front", began, now)

    def _finish(
        self,
        jobs: Sequence[Job],
        decisions: Mapping[Job, Decision],
        features: Tensors,
        spans: tuple[Span, ...],
    ) -> Iterator[Step]:
        """Encoder and heads, encoder by encoder, for images of one shape. spans: before that."""
        for name in dict.fromkeys(decisions[job].plan.encoder for job in jobs):
            group = [job for job in jobs if decisions[job].plan.encoder == name]
            plan, part = decisions[group[0]].plan, rows(features, jobs, group)
            geometries = [job.frames[plan.canvas].geometry for job in group]
            shape, began = geometries[0].shape, time.perf_counter()
            encoded = self._stages.encode(plan, shape, part)
            encoder_ended = time.perf_counter()
            self._costs.encoders[name].add(encoder_ended - began, len(group), encoder_ended)
            # On some engines a later call overwrites it.
            paused = self._stages.paused(plan, shape, encoded)
            answers = run_heads(self._stages, self._costs, decisions, group, shape, encoded)
            ran = (
                Span("encoder", began, encoder_ended),
                Span("decoder", encoder_ended, time.perf_counter()),
            )
            step: Step = []
            for row, (job, geometry) in enumerate(zip(group, geometries, strict=True)):
                shares = self._policies.shares(job.ask.preference)
                image_paused = None if paused is None else paused[row]
                outcome = Outcome(decisions[job], geometry, answers[job], shares, image_paused)
                step.append((job, Progress((*spans, *ran), decisions[job], len(group), outcome)))
            yield step
