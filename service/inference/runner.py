"""Runs batches on the engine's thread, answers them, and keeps what is known of the costs.

A batch that fails, fails alone. After a few in a row the stages run on a blank image: if that fails
too, it is the engine and not the images, and the service ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from service.core import Budget, Decision, Outcome, Plan
from service.errors import DeadlineExceeded, FathomError
from service.inference.batches import Job
from service.inference.costs import Costs, Doubt
from service.inference.pipeline import Pipeline, Step
from service.inference.place import Batch
from service.inference.policies import Policies
from service.inference.schedule import Times
from service.inference.stages import Stages
from service.inference.ticket import Ticket
from service.inference.warm_up import check, measure_again
from service.metrics import Metrics

FAILURES = 3  # batches in a row after which the engine itself is checked
_log = logging.getLogger("fathom.engine")


class Runner:
    """See the module."""

    def __init__(
        self, stages: Stages, policies: Policies, costs: Costs, max_batch: int, metrics: Metrics
    ) -> None:
        self._stages, self._costs, self._metrics = stages, costs, metrics
        self._policies, self._failures = policies, 0
        self._pipeline = Pipeline(stages, policies, costs, max_batch)

    def times(self, most: int) -> Times:
        """What plans take now for up to so many images together, for those who say nothing of
        heads; without those for larger images alone, which would make every batch look slow."""
        sizes, costs = range(1, most + 1), self._costs
        plans = self._policies.default.plans
        return Times([[costs.total_ms(plan, size) for size in sizes] for plan in plans])

    @property
    def slowest_ms(self) -> float:
        """The most that one image may take, by any plan, also of those for larger images alone."""
        return max(map(self._costs.total_ms, self._policies.plans()))

    @property
    def doubted(self) -> Mapping[str, Doubt]:
        """Plans whose costs are in doubt."""
        return self._costs.doubted

    def measure(self, plan: Plan, may_run: Callable[[float], bool]) -> None:
        """Measure again what a plan takes, or a part of it (see `measure_again`). An error of the
        backend counts as a batch's."""
        try:
            measure_again(self._stages, self._costs, plan, may_run)
        except Exception:  # noqa: BLE001  # as for a batch
            self._costs.not_measured(plan)
            self._failed({}, f"a blank image, to measure {plan.name}")

    def run(self, batch: Batch[Ticket], node: Budget, on_decided: Callable[[float], None]) -> None:
        """Run a batch and answer it.

        on_decided: is told how many seconds more it will take, once that is known. An error of the
        backend fails only this batch. Raises it if the engine itself is broken.
        """
        began = time.perf_counter()
        left = {ticket.begin(began): ticket for ticket in batch.places}
        ran: set[tuple[float, float]] = set()
        try:
            for step in self._pipeline.run(list(left), node, batch.limit_ms):
                ran |= {(span.began, span.ended) for _, each in step for span in each.spans}
                if left_ms := self._left_ms(step):
                    on_decided(left_ms / 1000)
                self._answer(step, left)
        except Exception:  # noqa: BLE001  # only these images fail; the next batch may be fine
            ids = ", ".join(ticket.request_id for ticket in left.values())
            self._failed(left, f"the requests {ids}")
            return
        self._failures = 0
        ended = time.perf_counter()
        stages_s = sum(until - since for since, until in ran)
        self._costs.beside.add(max(0.0, ended - began - stages_s), 1, ended)

    def _left_ms(self, step: Step) -> float:
        """What the images that this step decides on will still take."""
        plans = [each.decision.plan for _, each in step if each.decision and not each.result]
        return sum(self._costs.after_glance_ms(plan) for plan in plans)

    def _answer(self, step: Step, left: dict[Job, Ticket]) -> None:
        """Publish what is known; images with a result are no longer left."""
        results = [progress.result for _, progress in step]
        ran = [result.decision for result in results if isinstance(result, Outcome)]
        self._metrics.ran(ran)
        now = time.perf_counter()
        for job, progress in step:
            decided = progress.decision or progress.result
            if isinstance(decided, Decision | DeadlineExceeded):
                plans = self._policies.for_image(job.ask.preference, job.frames).plans
                self._costs.doubt_of(plans, decided, now)
            left[job].publish(progress)
            if progress.result is not None:
                del left[job]

    def _failed(self, left: dict[Job, Ticket], what: str) -> None:
        self._metrics.engine_failed()
        _log.exception("the engine failed on %s", what)
        for ticket in left.values():
            ticket.fail(FathomError("The engine failed; the log has more under this id."))
        self._failures += 1
        if self._failures >= FAILURES:
            _log.error("%d batches failed in a row: checking the engine", self._failures)
            check(self._stages)
            self._failures = 0
