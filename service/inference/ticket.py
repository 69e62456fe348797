"""An image on its way through the engine, and the future that its caller waits for."""

from __future__ import annotations

import time
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace

from service.core import Ask
from service.errors import FathomError
from service.inference.batches import Job
from service.inference.place import Place
from service.trace import Progress, Span


@dataclass(slots=True, eq=False)
class Ticket(Place):
    """A place that was taken. job: the image, once it is decoded; until then there is none.

    promise: when its answer is due; its deadline is that of the engine, which leaves time to make
    the answer. ended: when the engine was done with it. woken: when its waiter knew; None if its
    times say nothing of what an answer takes.
    queued: when it began to wait. progress: what is known so far. done: the same, once there is a
    result.
    """

    ask: Ask = field(kw_only=True)
    promise: float | None = field(default=None, kw_only=True)
    request_id: str = field(default="", kw_only=True)
    job: Job | None = field(default=None, init=False)
    queued: float = field(default=0.0, init=False)
    ended: float | None = field(default=None, init=False)
    woken: float | None = field(default=None, init=False)
    progress: Progress = field(default_factory=Progress, init=False)
    done: Future[Progress] = field(default_factory=Future, init=False)

    def begin(self, now: float) -> Job:
        """Note that its turn has come. Returns the job."""
        assert self.job is not None  # what waits has an image
        spans = (Span("queue", self.queued, now),)
        self.progress = replace(self.progress, spans=spans)
        # A caller that leaves now cannot cancel the batch for the others.
        self.done.set_running_or_notify_cancel()
        return self.job

    def publish(self, progress: Progress) -> None:
        """Add what was measured; a result wakes the waiter."""
        queued = self.progress.spans[:1]
        self.progress = replace(progress, spans=(*queued, *progress.spans))
        if progress.result is not None:
            self.ended = time.perf_counter()
            self._wake()

    def remaining_s(self) -> float | None:
        """Seconds until its answer is due; None without a deadline."""
        return None if self.promise is None else max(0.0, self.promise - time.perf_counter())

    def answer_s(self, now: float) -> float:
        """What its answer takes beside the engine, if that is made now; its waiter must know it.

        The request's way in and the answer's way out cannot be seen from here. On a busy node they
        take what it takes to wake a waiter, for it is the same event loop that is late.
        """
        assert self.ended is not None
        assert self.woken is not None
        return now - self.ended + 2 * (self.woken - self.ended)

    def fail(self, error: FathomError) -> None:
        self.progress = replace(self.progress, result=error)
        self._wake()

    def _wake(self) -> None:
        with suppress(InvalidStateError):  # nobody waits any more
            self.done.set_result(self.progress)
