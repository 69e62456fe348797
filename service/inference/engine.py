"""The engine thread: it alone opens, warms up, runs and closes the backend.

Other threads take places, submit images, expire and give back. They share two things with the
engine: the queue, under one lock, and a future per image. A Progress carries what the engine
measured.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Literal

from service.bundle import Manifest
from service.core import Ask, Budget, Frames, Plan
from service.engines.base import Backend
from service.errors import BackendError, FathomError, NotReady, Overloaded
from service.inference.batches import Job
from service.inference.costs import Costs
from service.inference.place import stopped
from service.inference.policies import Policies
from service.inference.policy import Policy
from service.inference.queue import Queue
from service.inference.runner import Runner
from service.inference.schedule import objective_s
from service.inference.stages import Stages
from service.inference.ticket import Ticket
from service.inference.turns import Turns
from service.inference.warm_up import warm_up
from service.metrics import Metrics

LONGEST_ANSWER = 0.2  # the most of a deadline that is left for making the answer
THREAD = "engine"  # its name
State = Literal["starting", "ready", "draining", "failed"]
_RETRY_AFTER_S = {"starting": 2.0, "draining": 1.0, "failed": 30.0}
_log = logging.getLogger("fathom.engine")


class Engine:
    """See the module. node_budget may be replaced at any time; state and failure are for reading.

    warm: done when the engine is open and warm; has the error if that failed.
    ended: done when the engine has ended, after a drain or because of `failure`.
    """

    def __init__(
        self,
        open_backend: Callable[[], Backend],
        manifest: Manifest,
        policies: Policies,
        queue: Queue[Ticket],
        metrics: Metrics,
        *,
        batch_wait_s: float = 0.0,
    ) -> None:
        self.state: State = "starting"
        self._process = 0  # not started yet
        self.failure: FathomError | None = None
        self.node_budget = Budget()
        self.warm: Future[None] = Future()
        self.ended: Future[None] = Future()
        for milestone in (self.warm, self.ended):
            milestone.set_running_or_notify_cancel()  # so that no waiter can cancel it
        self._open_backend, self._manifest, self._policies = open_backend, manifest, policies
        self._batch_wait_s, self._metrics = batch_wait_s, metrics
        self._costs = Costs({}, {}, {})  # empty until the warm-up is done
        self._changed = threading.Condition()  # guards the queue and the state
        self._queue = queue
        metrics.queue_depth.set_function(lambda: len(queue.waiting))
        metrics.places.set_function(lambda: queue.taken(time.perf_counter()))
        metrics.inflight.set_function(lambda: len(queue.running))
        metrics.pressure.set_function(lambda: queue.pressure(time.perf_counter()))
        metrics.node_budget_gflops.set_function(lambda: self.node_budget.gflops or math.inf)

    def plan_ms(self, plans: Iterable[Plan]) -> Mapping[str, float]:
        """Engine time per image and plan in ms, measured on this node; empty until it is warm."""
        return self._costs.plan_ms(plans)

    def start(self) -> None:
        """Start the thread. Call once."""
        self._process = os.getpid()
        # A daemon: an engine that hangs must not keep the process alive after its drain.
        threading.Thread(target=self._live, name=THREAD, daemon=True).start()

    @property
    def is_elsewhere(self) -> bool:
        """Whether this process is a fork of the one with the thread."""
        return self._process not in (0, os.getpid())

    def check_ready(self) -> None:
        """Raises NotReady unless the engine is open and warm and takes work."""
        if self.is_elsewhere:
            raise NotReady(
                "This process was forked after the bundle was opened, and the engine stayed in the "
                "other one: open the bundle in this one, too"
            )
        state = self.state
        if state != "ready":
            raise NotReady(
                f"The service is {state}",
                retry_after=_RETRY_AFTER_S[state],
                shed="draining" if state == "draining" else "",
            )

    def reserve(
        self,
        ask: Ask,
        arrived: float,
        request_id: str = "",
        *,
        caller: str = "",
        coming: bool = True,
    ) -> Ticket:
        """Take a place for an image; give it back with `leave`. Nothing of the image is needed yet.

        arrived: time.perf_counter() when the request began. coming: its body is not read yet.
        Raises NotReady, UnsatisfiableBudget, or Overloaded (queue full, deadline out of reach).
        """
        now, node = time.perf_counter(), self.node_budget
        limits_ms = [ms for ms in (ask.budget.ms, node.ms) if ms is not None]
        promise = arrived + min(limits_ms) / 1000 if limits_ms else None
        with self._changed:
            # Beside the engine's time, an answer takes some to be made.
            longest_s = LONGEST_ANSWER * (promise - arrived) if promise else 0.0
            deadline = promise and promise - min(self._costs.answer.s, longest_s)
            self.check_ready()
            # Its size is not known yet: one that is larger may need more, see `submit`.
            fastest = self._fastest(ask, node, self._policies.of(ask.preference))
            ticket = Ticket(
                *(arrived, deadline, ask.urgency, caller),
                least_ms=self._costs.total_ms(fastest),
                safe_ms=self._costs.total_ms(fastest, high=True),
                ask=ask,
                request_id=request_id,
                promise=promise,
            )
            try:
                self._queue.reserve(ticket, now, coming=coming)
            except Overloaded:
                if self._queue.idle:  # then only the estimate stands in the way
                    self._costs.doubt(fastest, now)
                    self._changed.notify()
                raise
        return ticket

    def received(self, ticket: Ticket) -> None:
        """The body of an image is there. Raises Overloaded if its place was given away."""
        with self._changed:
            self._queue.received(ticket, time.perf_counter())

    def submit(self, ticket: Ticket, frames: Frames) -> None:
        """The image of a place is decoded. Raises NotReady, Overloaded if its deadline can no
        longer be met, or UnsatisfiableBudget if the node's ceilings have changed."""
        now = time.perf_counter()
        ask, policy = ticket.ask, self._policies.for_image(ticket.ask.preference, frames)
        with self._changed:
            if ticket not in self._queue.held:
                raise stopped()
            if policy is not self._policies.of(ask.preference):
                fastest = self._fastest(ask, self.node_budget, policy)
                ticket.least_ms = self._costs.total_ms(fastest)
                ticket.safe_ms = self._costs.total_ms(fastest, high=True)
            due = max(ticket.due, ticket.arrived + self._queue.target_s)
            ticket.job = Job(frames, ticket.ask, ticket.deadline, due)
            ticket.queued = now
            self._queue.enter(ticket, now)
            self._changed.notify()

    def _fastest(self, ask: Ask, node: Budget, policy: Policy) -> Plan:
        """Of the plans that an image may get. Raises UnsatisfiableBudget if there are none."""
        return min(policy.possible(ask.budget, node), key=self._costs.total_ms)

    def expire(self, ticket: Ticket) -> FathomError:
        """Take an image that missed its deadline out of the queue. Returns its caller's error."""
        with self._changed:
            return self._queue.expire([ticket], time.perf_counter())[0]

    def leave(self, ticket: Ticket) -> None:
        """Give a place back, wherever its image is. May be called again."""
        with self._changed:
            if ticket in self._queue.answering and ticket.woken is not None:
                self._costs.answer.add(ticket.answer_s(time.perf_counter()))
            self._queue.leave(ticket)
            self._changed.notify()

    def begin_drain(self) -> None:
        """Refuse new work, finish what was admitted, then end. It ends a warm-up."""
        with self._changed:
            if self.state in ("starting", "ready"):
                self.state = "draining"
            self._changed.notify()

    def abandon(self) -> bool:
        """End a drain that took too long: admitted images get NotReady. Returns whether there were
        any."""
        with self._changed:
            left = self._queue.clear()
        if left:
            _log.warning("drain: %d admitted images were not finished in time", len(left))
        for ticket in left:
            ticket.fail(stopped())
        return bool(left)

    def _live(self) -> None:
        """The thread, from opening the backend to closing it."""
        backend: Backend | None = None
        try:
            backend = self._open_backend()
            stages = Stages(backend, self._manifest)
            costs = warm_up(stages, self._queue.max_batch, lambda: self.state == "starting")
            runner = Runner(stages, self._policies, costs, self._queue.max_batch, self._metrics)
            with self._changed:
                self._costs = costs
                if not self._queue.promised:
                    self._queue.target_s = objective_s(runner.slowest_ms)
                if self.state == "starting":
                    self.state = "ready"
            self.warm.set_result(None)
            turns = Turns(self._changed, self._queue, runner, self._batch_wait_s)
            while (batch := turns.next(lambda: self.state == "ready")).places:
                runner.run(batch, self.node_budget, turns.busy_for)
        except NotReady as error:  # nothing was admitted yet: a drain does not wait for the rest
            self.warm.set_exception(error)
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
            ticket.fail(NotReady("The engine stopped.", retry_after=1))
