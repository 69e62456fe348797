"""The engine thread: it alone opens, warms up, runs and closes the backend.

Other threads submit, expire and withdraw images. They share two things with the engine: the queue,
under one lock, and a future per image. A Progress carries what the engine measured.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from service.bundle import Manifest
from service.core import Ask, Budget, Frames, Outcome, Progress, Span
from service.engines.base import Backend
from service.errors import BackendError, FathomError, NotReady
from service.inference.batches import Job
from service.inference.costs import Costs, warm_up
from service.inference.pipeline import Pipeline
from service.inference.policy import Policy
from service.inference.queue import Place, Queue
from service.inference.stages import Stages
from service.metrics import Metrics

State = Literal["starting", "ready", "draining", "failed"]
_log = logging.getLogger("fathom.engine")


@dataclass(slots=True, eq=False)
class Ticket(Place):
    """An admitted image. progress: what is known so far. done: the same, once there is a result."""

    job: Job
    request_id: str
    queued: float
    progress: Progress = field(default_factory=Progress)
    done: Future[Progress] = field(default_factory=Future)


class Engine:
    """See the module. node_budget may be replaced at any time; state and failure are for reading.

    warm: done when the engine is open and warm; has the error if that failed.
    ended: done when the engine has ended, after a drain or because of `failure`.
    """

    def __init__(
        self,
        open_backend: Callable[[], Backend],
        manifest: Manifest,
        policy: Policy,
        queue: Queue[Ticket],
        metrics: Metrics,
        *,
        batch_wait_s: float = 0.0,
    ) -> None:
        self.state: State = "starting"
        self.failure: FathomError | None = None
        self.node_budget = Budget()
        self.warm: Future[None] = Future()
        self.ended: Future[None] = Future()
        for milestone in (self.warm, self.ended):
            milestone.set_running_or_notify_cancel()  # so that no waiter can cancel it
        self._open_backend, self._manifest, self._policy = open_backend, manifest, policy
        self._batch_wait_s, self._metrics = batch_wait_s, metrics
        self._costs = Costs({}, {})  # empty until the warm-up is done
        self._changed = threading.Condition()  # guards the queue and the state
        self._queue = queue
        metrics.queue_depth.set_function(lambda: len(queue.waiting))
        metrics.inflight.set_function(lambda: len(queue.running))
        metrics.node_budget_gflops.set_function(lambda: self.node_budget.gflops or math.inf)

    @property
    def plan_ms(self) -> Mapping[str, float]:
        """Engine time per image and plan in ms, measured on this node; empty until it is warm."""
        return self._costs.plan_ms()

    def start(self) -> None:
        """Start the thread. Call once."""
        # A daemon: an engine that hangs must not keep the process alive after its drain.
        threading.Thread(target=self._live, name="engine", daemon=True).start()

    def check_ready(self) -> None:
        """Raises NotReady unless the engine is open and warm and takes work."""
        state = self.state
        if state != "ready":
            raise NotReady(
                f"The service is {state}",
                retry_after=_RETRY_AFTER_S[state],
                shed="draining" if state == "draining" else "",
            )

    def submit(self, frames: Frames, ask: Ask, arrived: float, request_id: str = "") -> Ticket:
        """Admit an image. arrived: time.perf_counter() when the request began.

        Raises NotReady, UnsatisfiableBudget, or Overloaded (queue full, deadline out of reach).
        """
        now, node = time.perf_counter(), self.node_budget
        limits_ms = [ms for ms in (ask.budget.ms, node.ms) if ms is not None]
        deadline = arrived + min(limits_ms) / 1000 if limits_ms else None
        ticket = Ticket(arrived, deadline, Job(frames, ask, deadline), request_id, now)
        with self._changed:
            self.check_ready()
            affordable = self._policy.affordable(ask.budget, node)
            plan_ms = list(self._costs.plan_ms().values())
            self._queue.admit(ticket, now, min(plan_ms[index] for index in affordable))
            self._changed.notify()
        return ticket

    def expire(self, ticket: Ticket) -> FathomError:
        """Take an image that missed its deadline out of the queue. Returns its caller's error."""
        with self._changed:
            return self._queue.expire(ticket)

    def withdraw(self, ticket: Ticket) -> None:
        """Take an image that nobody waits for out of the queue, if it is still there."""
        with self._changed:
            self._queue.withdraw(ticket)

    def begin_drain(self) -> None:
        """Refuse new work, finish what was admitted, then end."""
        with self._changed:
            if self.state in ("starting", "ready"):
                self.state = "draining"
            self._changed.notify()

    def abandon(self, timeout_s: float) -> None:
        """End a drain that took longer than timeout_s: admitted images get NotReady."""
        with self._changed:
            left = self._queue.clear()
        _log.warning("drain: %d admitted images were not finished in %g s", len(left), timeout_s)
        for ticket in left:
            _fail(ticket, NotReady("The service stopped before this image's turn.", retry_after=1))

    def _live(self) -> None:
        """The thread, from opening the backend to closing it."""
        backend: Backend | None = None
        try:
            backend = self._open_backend()
            stages = Stages(backend, self._manifest)
            costs = warm_up(stages, self._queue.max_batch)
            pipeline = Pipeline(stages, self._policy, costs, self._queue.max_batch)
            with self._changed:
                self._costs, self._queue.mean_ms = costs, costs.mean_ms
                if self.state == "starting":
                    self.state = "ready"
            self.warm.set_result(None)
            while tickets := self._next():
                self._run(pipeline, tickets)
        except Exception as error:  # noqa: BLE001  # any error here ends the service
            self._failed(error)
        finally:
            try:
                if backend is not None:
                    backend.close()
            finally:
                self.ended.set_result(None)

    def _failed(self, error: Exception) -> None:
        known = error if isinstance(error, FathomError) else None
        # A FathomError says what to change: its stack would help nobody.
        failure = known or BackendError(f"{type(error).__name__}: {error}")
        _log.error("the engine stopped: %s", failure.detail, exc_info=None if known else error)
        with self._changed:
            self.state, self.failure = "failed", failure
            left = self._queue.clear()
        if not self.warm.done():
            self.warm.set_exception(failure)
        for ticket in left:
            _fail(ticket, NotReady("The engine stopped.", retry_after=1))

    def _next(self) -> list[Ticket]:
        """Wait for the next batch; empty once the engine drains and nothing is left."""
        queue, wait_s = self._queue, self._batch_wait_s
        with self._changed:
            queue.running = []
            while queue.waiting or self.state == "ready":
                self._changed.wait_for(lambda: queue.waiting or self.state != "ready")
                if queue.waiting and wait_s:
                    self._changed.wait_for(lambda: queue.full or self.state != "ready", wait_s)
                now = time.perf_counter()
                if batch := queue.take(now, max(self.plan_ms.values())):
                    for ticket in batch:
                        spans = (Span("queue", ticket.queued, now),)
                        ticket.progress = replace(ticket.progress, spans=spans)
                        # A caller that leaves now cannot cancel the batch for the others.
                        ticket.done.set_running_or_notify_cancel()
                    return batch
            return []

    def _run(self, pipeline: Pipeline, tickets: Sequence[Ticket]) -> None:
        """Run a batch and answer it. An error of the backend fails only this batch."""
        began, left = time.perf_counter(), {ticket.job: ticket for ticket in tickets}
        try:
            for step in pipeline.run(list(left), self.node_budget, self._queue.fill):
                results = [progress.result for _, progress in step]
                ran = [result.decision for result in results if isinstance(result, Outcome)]
                self._metrics.ran(ran)
                for job, progress in step:
                    _publish(left[job], progress)
                    if progress.result is not None:
                        del left[job]
        except Exception:  # noqa: BLE001  # only these images fail; the next batch may be fine
            self._metrics.engine_failed()
            ids = ", ".join(ticket.request_id for ticket in left.values())
            _log.exception("the engine failed on the requests %s", ids)
            for ticket in left.values():
                _fail(ticket, FathomError("The engine failed; the log has more under this id."))
        self._costs.served(time.perf_counter() - began, len(tickets))
        self._queue.mean_ms = self._costs.mean_ms


_RETRY_AFTER_S = {"starting": 2.0, "draining": 1.0, "failed": 30.0}


def _publish(ticket: Ticket, progress: Progress) -> None:
    """Add what was measured to the ticket; a result wakes its waiter."""
    queued = ticket.progress.spans[:1]
    ticket.progress = replace(progress, spans=(*queued, *progress.spans))
    if progress.result is not None:
        with suppress(InvalidStateError):  # nobody waits any more
            ticket.done.set_result(ticket.progress)


def _fail(ticket: Ticket, error: FathomError) -> None:
    ticket.progress = replace(ticket.progress, result=error)
    with suppress(InvalidStateError):
        ticket.done.set_result(ticket.progress)
