"""Answers that are kept, and requests for the same answer that share one computation.

Off by default. Two requests ask for the same answer if the bytes of their images, their budgets,
forms and API keys are the same, and the node's ceilings are. Callers never share answers: how soon
one comes would tell who else has sent that image. `Cache-Status` (RFC 9211) says what was done, and
`Cache-Control: no-cache` or `no-store` in a request keeps out of all this.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field

from service.core import Decision, Reason
from service.metrics import Metrics
from service.trace import Trace

HIT = "fathom; hit"
COLLAPSED = "fathom; fwd=miss; collapsed"
MISS = "fathom; fwd=miss"
STORED = "fathom; fwd=miss; stored"
BYPASS = "fathom; fwd=request"
OVERHEAD = 1024  # bytes that an entry takes beside its body, amply
# What came of a moment's load is not what the next caller should get.
_PASSING = (Reason.LOAD, Reason.DEADLINE)


@dataclass(frozen=True, slots=True)
class Made:
    """An answer's body, and what its header and metrics say.

    fields: of the header. outdated: whether the node's ceilings changed since it was asked for, so
    that it may be the answer under others than those of its key.
    """

    body: bytes
    media_type: str
    decision: Decision
    batch_size: int
    size: tuple[int, int] | None
    fields: Mapping[str, str] = field(default_factory=dict)
    outdated: bool = False

    def tell(self, trace: Trace) -> None:
        """Note in a trace that another request had this made."""
        trace.shared = True
        trace.decision, trace.batch_size, trace.size = self.decision, self.batch_size, self.size


class Flight:
    """A computation that one or several requests wait for.

    trace: of the request that began it; its stages and its decision are noted there. orphan:
    whether that request left before they were, so that another one must count them.
    """

    def __init__(self, key: bytes, task: asyncio.Task[Made], trace: Trace) -> None:
        self.key, self.task, self.trace = key, task, trace
        self.waiters, self.orphan = 0, False

    def adopt(self, trace: Trace) -> None:
        """Count an orphan's work in the trace of a request that it has answered."""
        if self.orphan:
            self.orphan = trace.shared = False
            for stage, began in self.trace.began.items():
                if stage != "decode":  # counted when that request left
                    trace.add(stage, began, began + self.trace.stages[stage])


class ResponseCache:
    """The answers that were asked for last. Used on the event loop alone.

    max_bytes: of all bodies together, with OVERHEAD each.
    """

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes, self._metrics = max_bytes, metrics
        self._kept: OrderedDict[bytes, Made] = OrderedDict()
        self._flights: dict[bytes, Flight] = {}
        self.bytes = 0
        metrics.cached_bytes.set_function(lambda: self.bytes)

    def find(self, key: bytes) -> Made | Flight | None:
        """What is kept, or else being computed: `join` it. Counts it."""
        if (made := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            self._metrics.cached("hit")
            return made
        if (flight := self._flights.get(key)) is not None:
            self._metrics.cached("collapsed")
        return flight

    def begin(
        self,
        key: bytes,
        work: Coroutine[object, object, Made],
        trace: Trace,
        done: Callable[[], object],
    ) -> Flight:
        """Compute an answer, in a task that ends with its last waiter, and keep it: `lead` it.
        Counts a miss.

        trace: see `Flight`. done: called when the task has ended, however that was.
        """
        self._metrics.cached("miss")
        flight = self._flights[key] = Flight(key, asyncio.ensure_future(work), trace)

        def ended(task: asyncio.Task[Made]) -> None:
            done()
            self._forget(flight)
            # Reading the error says that it is no surprise: the waiters, if any, have it, too.
            if not task.cancelled() and task.exception() is None:
                self._keep(key, task.result())

        flight.task.add_done_callback(ended)
        return flight

    async def lead(self, flight: Flight) -> Made:
        """`join`, for the request that began it."""
        try:
            return await self.join(flight)
        except asyncio.CancelledError:
            flight.orphan = flight.trace.decision is None
            raise

    async def join(self, found: Made | Flight) -> Made:
        """The answer. Raises the error of its computation.

        A waiter that is cancelled ends that only if there is no other.
        """
        if isinstance(found, Made):
            return found
        flight = found
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                self._forget(flight)  # nobody may find what is about to be cancelled
                # Whoever has found it joins before this is called.
                asyncio.get_running_loop().call_soon(self._abandon, flight)

    def status(self, made: Made) -> str:
        """`Cache-Status` of an answer that was computed."""
        return STORED if self._lasts(made) else MISS

    def _forget(self, flight: Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    def _abandon(self, flight: Flight) -> None:
        if not flight.waiters:
            flight.task.cancel()

    def _lasts(self, made: Made) -> bool:
        if made.outdated or made.decision.reason in _PASSING:
            return False
        return _size(made) <= self._max_bytes

    def _keep(self, key: bytes, made: Made) -> None:
        if not self._lasts(made):
            return
        if (before := self._kept.pop(key, None)) is not None:
            self.bytes -= _size(before)
        self._kept[key] = made
        self.bytes += _size(made)
        while self.bytes > self._max_bytes:
            self.bytes -= _size(self._kept.popitem(last=False)[1])


def _size(made: Made) -> int:
    return len(made.body) + OVERHEAD


def key_of(image: bytes, *ask: object) -> bytes:
    """The name of an answer. ask: all else that it depends on; its text tells values apart."""
    digest = hashlib.sha256(image)
    digest.update(repr(ask).encode())
    return digest.digest()


def bypasses(lines: Sequence[str]) -> bool:
    """Whether a request's Cache-Control wants an answer of its own."""
    directives = {each.strip().lower() for line in lines for each in line.split(",")}
    return bool(directives & {"no-cache", "no-store"})
