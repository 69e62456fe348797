"""Whose turn is next: the engine's thread waits here for images, and for company for them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from service.inference.place import Batch
from service.inference.queue import Queue
from service.inference.runner import Runner
from service.inference.ticket import Ticket

IDLE_S = 0.05  # without work, before a cost that is in doubt is measured again


class Turns:
    """changed: guards the queue, and is notified when something in it changes. batch_wait_s: how
    long a batch that is not full may wait for more."""

    def __init__(
        self,
        changed: threading.Condition,
        queue: Queue[Ticket],
        runner: Runner,
        batch_wait_s: float,
    ) -> None:
        self._changed, self._queue, self._runner = changed, queue, runner
        self._batch_wait_s = batch_wait_s

    def next(self, ready: Callable[[], bool]) -> Batch[Ticket]:
        """Wait for the next batch; it has no places once the engine is not ready any more and
        nothing is left."""
        queue = self._queue
        with self._changed:
            queue.running, queue.free = [], -math.inf
            while True:
                self._await_images(ready)
                if not queue.waiting:
                    return Batch([])
                self._await_company(ready)
                now = time.perf_counter()
                batch = queue.take(now, self._runner.times(queue.together))
                errors = queue.expire(batch.hopeless, now)
                for ticket, error in zip(batch.hopeless, errors, strict=True):
                    ticket.fail(error)
                if batch.places:
                    return batch

    def busy_for(self, seconds: float) -> None:
        """The engine will be done after that time."""
        with self._changed:
            self._queue.free = time.perf_counter() + seconds

    def _await_images(self, ready: Callable[[], bool]) -> None:
        """Until something waits, or the engine drains and nothing has a place. While nothing does,
        measure what is in doubt."""
        queue, changed, doubted = self._queue, self._changed, self._runner.doubted

        def wanted() -> bool:
            return bool(queue.waiting) or not (ready() or queue.held)

        def may_run(seconds: float) -> bool:
            """Whether a stage may be measured now. What is in doubt keeps nobody out, and who comes
            waits for one stage at most."""
            with changed:
                queue.free = time.perf_counter() + seconds
                return not (queue.held or wanted())

        while not wanted():
            if not doubted:
                changed.wait_for(lambda: wanted() or doubted)
            elif not changed.wait_for(wanted, IDLE_S):
                plan = next(iter(doubted.values())).plan
                changed.release()  # others may take places meanwhile
                try:
                    self._runner.measure(plan, may_run)
                finally:
                    changed.acquire()
                    queue.free = -math.inf

    def _await_company(self, ready: Callable[[], bool]) -> None:
        """Wait for a full batch, if told to and if the images that wait can afford it."""
        if not self._batch_wait_s:
            return
        until, slowest_ms = time.perf_counter() + self._batch_wait_s, self._runner.slowest_ms
        while ready():
            now = time.perf_counter()
            patience_s = min(until - now, self._queue.patience_s(now, slowest_ms))
            if patience_s <= 0:
                return
            self._changed.wait(patience_s)
