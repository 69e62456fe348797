"""What belongs to one opened bundle: its manifest and task, the policy, the queue, the engine."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from contextlib import suppress
from functools import partial
from typing import NoReturn

from service.bundle import Bundle, Manifest
from service.core import Ask, Budget, Frames, Plan
from service.engines.base import Backend
from service.errors import FathomError
from service.inference.engine import Engine, State
from service.inference.policies import Policies
from service.inference.policy import margin_for
from service.inference.queue import Queue
from service.inference.schedule import PAYS, PROMISED
from service.inference.ticket import Ticket
from service.metrics import Metrics
from service.native.library import described
from service.settings import Settings, flag
from service.tasks import tasks_of

CLOSE_S = 1.0  # for an engine without work to close, see `Model.drain`
_log = logging.getLogger("fathom")


def metrics_of(manifest: Manifest, settings: Settings) -> Metrics:
    """The metrics of a bundle that is served; labels have the names of its canvases and heads."""
    return Metrics(
        layers=manifest.layers,
        max_batch=settings.max_batch,
        canvases=[canvas.name for canvas in manifest.input.canvases],
        heads=manifest.head_widths,
    )


class Model:
    """A bundle that is served. `engine` runs it; node_budget may be replaced at any time.

    open_backend: called on the engine's thread.
    Raises BundleError for a task or a head that this version does not support, and BackendError
    for a compiled library that does not fit.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: Settings,
        metrics: Metrics,
        open_backend: Callable[[], Backend],
    ) -> None:
        _log.info("scaling and label maps %s", described())
        self.bundle, self.manifest, self.tasks = bundle, bundle.manifest, tasks_of(bundle)
        self.task = self.tasks[self.manifest.head.name]
        self.policies = Policies(self.manifest, settings.max_loss)
        queue = Queue[Ticket](
            size=settings.queue_size,
            max_batch=settings.max_batch,
            # Without an objective, the engine sets one once it knows what plans take.
            target_s=(settings.target_ms or 1000.0) / 1000,
            promised=settings.target_ms > 0,
            # Who waits for company wants batches, even if they save nothing here.
            pays=math.inf if settings.batch_wait_ms else PAYS,
        )
        self.engine = Engine(
            open_backend,
            self.manifest,
            self.policies,
            queue,
            metrics,
            batch_wait_s=settings.batch_wait_ms / 1000,
        )
        if settings.target_ms > 0:
            self.engine.warm.add_done_callback(partial(self._check_objective, settings.target_ms))
        if settings.max_loss > 0 and margin_for(settings.max_loss, self.manifest.margins) is None:
            _log.warning(
                "%s promises nothing for %s %g: without a budget every image takes the full plan",
                self.manifest.name,
                flag("max_loss"),
                settings.max_loss,
            )

    def _check_objective(self, target_ms: float, _warm: Future[None]) -> None:
        """Warn of an objective that no plan can hold."""
        times_ms = self.plan_ms(self.policies.default.plans).values()
        if (fastest_ms := min(times_ms, default=0.0)) > PROMISED * target_ms:
            _log.warning(
                "this node refuses every image without ms: %s %g, and its fastest plan takes "
                "%.3g ms",
                *(flag("target_ms"), target_ms, fastest_ms),
            )

    @property
    def label(self) -> str:
        """What is served, for people and metrics: NAME@DIGEST."""
        return f"{self.manifest.name}@{self.bundle.digest[:12]}"

    @property
    def state(self) -> State:
        """The engine's state."""
        return self.engine.state

    def plan_ms(self, plans: Iterable[Plan]) -> Mapping[str, float]:
        """Engine time of one image per plan, in ms, as measured on this node; empty until then."""
        return self.engine.plan_ms(plans)

    @property
    def node_budget(self) -> Budget:
        """The ceilings of this node, for every image."""
        return self.engine.node_budget

    @node_budget.setter
    def node_budget(self, budget: Budget) -> None:
        self.engine.node_budget = budget

    def reserve(
        self, ask: Ask, arrived: float, request_id: str, *, caller: str = "", coming: bool = True
    ) -> Ticket:
        """Take a place for an image before its bytes are read, or refuse it at once.

        Raises NotReady, BadBudget, BadPreference, UnsatisfiableBudget or Overloaded; see
        `Engine.reserve`.
        """
        self.engine.check_ready()
        self.policies.check(ask)
        return self.engine.reserve(ask, arrived, request_id, caller=caller, coming=coming)

    def submit(self, ticket: Ticket, frames: Frames) -> None:
        """The image of a place is decoded. Who waits for it gets what `Engine.submit` raises."""
        try:
            self.engine.submit(ticket, frames)
        except FathomError as error:
            ticket.fail(error)

    async def drain(self, timeout_s: float) -> None:
        """Refuse new work, finish what was admitted, close the engine.

        What is left after the timeout gets NotReady. An engine that nothing is left for has
        CLOSE_S more to close: requests whose bodies never came may have taken all of the time.
        """
        self.engine.begin_drain()
        ended = asyncio.wrap_future(self.engine.ended)
        await asyncio.wait({ended}, timeout=timeout_s)
        if not ended.done() and not self.engine.abandon():
            await asyncio.wait({ended}, timeout=CLOSE_S)

    def close(self, timeout_s: float) -> None:
        """`drain` for callers without an event loop."""
        if self.engine.is_elsewhere:
            return  # a fork's copy: the engine's lock may be held for good
        self.engine.begin_drain()
        try:
            self.engine.ended.result(timeout_s)
        except NotInTime:
            if not self.engine.abandon():
                with suppress(NotInTime):
                    self.engine.ended.result(CLOSE_S)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an open bundle cannot be sent to another process: open it there")
