"""Admission, the deadline-ordered queue, batches, and the one thread that owns the engine.

The event loop admits, expires and answers; the engine thread opens, warms, runs and closes the
backend. Between them lie the queue (under one lock) and `call_soon_threadsafe`. A caller's trace is
written on the event loop only.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import threading
import time
from bisect import bisect, insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Literal

from service.bundle import Manifest
from service.core import Budget, Frame, Outcome, Trace
from service.engines.base import Backend
from service.errors import BackendError, DeadlineExceeded, FathomError, NotReady, Overloaded
from service.inference.costs import Costs, warm_up
from service.inference.pipeline import Job, Pipeline
from service.inference.policy import under_budget
from service.metrics import Metrics
from service.settings import Settings

State = Literal["starting", "ready", "draining", "failed"]
# an image without a deadline queues as if it had this one, so that the others cannot starve it
PATIENCE_S = 10.0
_log = logging.getLogger("fathom.scheduler")


@dataclass(slots=True, eq=False)
class _Ticket:
    """A job that waits or runs. The job has a trace of its own, for the engine thread; `trace` is
    the caller's."""

    job: Job
    trace: Trace
    answer: asyncio.Future[Outcome]
    queued: float
    order: tuple[float, int]  # due time, then arrival
    started: bool = False


class Scheduler:
    """See the module. node_budget may be replaced at any time; `state` and `failure` are for
    reading."""

    def __init__(
        self,
        open_backend: Callable[[], Backend],
        manifest: Manifest,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        self.state: State = "starting"
        self.failure: FathomError | None = None
        self.node_budget = Budget()
        self._open_backend, self._manifest, self._settings, self._metrics = (
            open_backend,
            manifest,
            settings,
            metrics,
        )
        self._costs = Costs(0.0, {})  # empty until the warm-up is done
        self._changed = threading.Condition()  # guards what follows
        self._queue: list[_Ticket] = []  # the most urgent first
        self._running: list[_Ticket] = []
        self._began = 0.0
        self._numbers = count()
        self._ended = asyncio.Event()
        metrics.queue_depth.set_function(lambda: len(self._queue))
        metrics.inflight.set_function(lambda: len(self._running))
        metrics.node_budget_gflops.set_function(lambda: self.node_budget.gflops or math.inf)

    @property
    def plan_ms(self) -> Mapping[str, float]:
        """Engine time of one image per plan, in ms, as measured on this node; empty until then."""
        return self._costs.plan_ms()

    def start(self) -> None:
        """Start the engine thread. Call once, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        # A daemon: an engine that hangs must not keep the process from ending after its drain
        # timeout.
        threading.Thread(target=self._engine, name="engine", daemon=True).start()

    async def ended(self) -> None:
        """Wait until the engine has ended: after a drain, or because of `failure`."""
        await self._ended.wait()

    async def submit(self, frame: Frame, budget: Budget, trace: Trace, arrived: float) -> Outcome:
        """Wait for the image's turn and its result. arrived: time.perf_counter() when the request
        began.

        Raises NotReady, UnsatisfiableBudget, Overloaded (queue full, deadline out of reach, or
        passed in the queue) or DeadlineExceeded (passed while running). Cancelling the task takes a
        waiting job out of the queue.
        """
        now, node = time.perf_counter(), self.node_budget
        limit_ms = min((ms for ms in (budget.ms, node.ms) if ms is not None), default=None)
        deadline = None if limit_ms is None else arrived + limit_ms / 1000
        job = Job(frame, budget, deadline, Trace(trace.request_id))
        order = (arrived + PATIENCE_S if deadline is None else deadline, next(self._numbers))
        ticket = _Ticket(job, trace, asyncio.get_running_loop().create_future(), now, order)
        with self._changed:
            self._admit(ticket, node, now)
            insort(self._queue, ticket, key=lambda each: each.order)
            self._changed.notify()
        timer = (
            None
            if deadline is None
            else self._loop.call_later(deadline - now, self._expire, ticket)
        )
        try:
            return await ticket.answer
        finally:
            if timer is not None:
                timer.cancel()
            with self._changed:
                if ticket in self._queue:  # its caller left, or its deadline passed
                    self._queue.remove(ticket)

    async def drain(self, timeout_s: float) -> None:
        """Refuse new work, finish what was admitted, close the engine; what is left after the
        timeout gets NotReady."""
        with self._changed:
            if self.state in ("starting", "ready"):
                self.state = "draining"
            self._changed.notify()
        try:
            await asyncio.wait_for(self.ended(), timeout_s)
        except TimeoutError:
            with self._changed:
                left, self._queue = [*self._queue, *self._running], []
            _log.warning(
                "drain: %d admitted images were not finished in %g s", len(left), timeout_s
            )
            for ticket in left:
                self._answer(
                    ticket, NotReady("The service stopped before this image's turn.", retry_after=1)
                )

    def _admit(self, ticket: _Ticket, node: Budget, now: float) -> None:
        if self.state != "ready":
            if self.state == "draining":
                self._metrics.shed("draining")
            raise NotReady(f"The service is {self.state}.", retry_after=1)
        affordable = under_budget(ticket.job.budget, node, self._manifest.plans)
        busy_ms = max(0.0, len(self._running) * self._costs.mean_ms - (now - self._began) * 1000)
        # Spread, so that those who were refused together do not come back together.
        retry_after = (
            random.uniform(1, 1.5) * (busy_ms + len(self._queue) * self._costs.mean_ms) / 1000
        )
        if len(self._queue) >= self._settings.queue_size:
            self._metrics.shed("full")
            raise Overloaded(
                "The queue is full: send less at a time, or retry later.", retry_after=retry_after
            )
        if ticket.job.deadline is None:
            return
        ahead = bisect(self._queue, ticket.order, key=lambda each: each.order)
        plan_ms = list(self._costs.plan_ms().values())
        needed_ms = (
            busy_ms + ahead * self._costs.mean_ms + min(plan_ms[index] for index in affordable)
        )
        if now + needed_ms / 1000 > ticket.job.deadline:
            self._metrics.shed("predicted")
            detail = (
                "The deadline cannot be met: "
                f"waiting and the cheapest plan take about {needed_ms:.0f} ms."
            )
            raise Overloaded(detail, retry_after=retry_after)

    def _expire(self, ticket: _Ticket) -> None:
        if ticket.started or ticket.answer.done():
            self._answer(ticket, _missed())
        else:
            self._metrics.shed("expired")
            retry_after = (len(self._queue) + 1) * self._costs.mean_ms / 1000
            self._answer(
                ticket, Overloaded("The deadline passed in the queue.", retry_after=retry_after)
            )

    def _answer(self, ticket: _Ticket, result: Outcome | FathomError) -> None:
        """On the event loop. Nobody may be waiting any more: then the result is dropped."""
        if ticket.answer.done():
            return
        own, deadline = ticket.job.trace, ticket.job.deadline
        ticket.trace.merge(own)
        if isinstance(result, Outcome) and deadline is not None and time.perf_counter() > deadline:
            result = _missed()
        if isinstance(result, Outcome):
            ticket.answer.set_result(result)
        else:
            ticket.answer.set_exception(result)

    def _engine(self) -> None:
        """The engine thread, from opening the backend to closing it."""
        backend: Backend | None = None
        try:
            backend = self._open_backend()
            costs = warm_up(backend, self._manifest, self._settings.max_batch)
            floor, load_start, margins = (
                self._settings.max_loss,
                self._settings.load_start,
                self._manifest.margins,
            )
            pipeline = Pipeline(
                backend, costs, margins, default_max_loss=floor, load_start=load_start
            )
            with self._changed:
                self._costs = costs
                if self.state == "starting":
                    self.state = "ready"
            while tickets := self._next():
                self._run(pipeline, tickets)
        except Exception as error:  # noqa: BLE001  # whatever stops the engine is kept, and ends the service
            known = (
                error
                if isinstance(error, FathomError)
                else BackendError(f"{type(error).__name__}: {error}")
            )
            # An error of ours says what to change; where in the code it came up helps nobody.
            _log.error(
                "the engine stopped: %s", known.detail, exc_info=None if known is error else error
            )
            with self._changed:
                self.state, self.failure = "failed", known
                left, self._queue = [*self._queue, *self._running], []
            for ticket in left:
                self._call(self._answer, ticket, NotReady("The engine stopped.", retry_after=1))
        finally:
            try:
                if backend is not None:
                    backend.close()
            finally:
                self._call(self._ended.set)

    def _next(self) -> list[_Ticket]:
        """Wait for work and take what runs together; empty when the service drains and nothing is
        left."""
        most, wait_s = self._settings.max_batch, self._settings.batch_wait_ms / 1000
        with self._changed:
            self._running = []
            while self._queue or self.state == "ready":
                self._changed.wait_for(lambda: self._queue or self.state != "ready")
                if self._queue and wait_s:
                    self._changed.wait_for(
                        lambda: len(self._queue) >= most or self.state != "ready", wait_s
                    )
                now = time.perf_counter()
                # A ticket past its deadline is left to its timer, which answers it.
                self._queue = [
                    ticket for ticket in self._queue if (ticket.job.deadline or math.inf) > now
                ]
                if not self._queue:
                    continue
                # Company must not push the most urgent image to a cheaper plan: its slack limits
                # the batch.
                slack_ms = ((self._queue[0].job.deadline or math.inf) - now) * 1000
                size = max(1, int(min(most, slack_ms / max(self.plan_ms.values()))))
                self._running, self._queue, self._began = (
                    self._queue[:size],
                    self._queue[size:],
                    now,
                )
                for ticket in self._running:
                    ticket.started = True
                    ticket.job.trace.add("queue", ticket.queued, now)
                break
            return self._running

    def _run(self, pipeline: Pipeline, tickets: list[_Ticket]) -> None:
        """Run a batch and answer it. What the backend raises fails this batch only."""
        left = {ticket.job: ticket for ticket in tickets}
        try:
            load = len(self._queue) / self._settings.queue_size
            for answers in pipeline.run(list(left), self.node_budget, load):
                self._metrics.ran(
                    [result.decision for _, result in answers if isinstance(result, Outcome)]
                )
                for job, result in answers:
                    self._call(self._answer, left.pop(job), result)
        except Exception:  # noqa: BLE001  # concerns these images only; the next batch may be fine
            self._metrics.engine_failed()
            ids = ", ".join(ticket.job.trace.request_id for ticket in left.values())
            _log.exception("the engine failed on the requests %s", ids)
            for ticket in left.values():
                failure = FathomError(
                    "The engine failed; the log has more under this request's id."
                )
                self._call(self._answer, ticket, failure)
        self._costs.served(time.perf_counter() - self._began, len(tickets))

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        """From the engine thread to the event loop, if that still runs."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            _log.warning("an answer came after the event loop had ended")


def _missed() -> DeadlineExceeded:
    return DeadlineExceeded("The deadline passed while the image was running.")
