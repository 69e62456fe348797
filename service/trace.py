"""What the engine reports of an image while it works, and what is known of a request at its end."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.core import Decision, Outcome
from service.errors import FathomError


@dataclass(frozen=True, slots=True)
class Span:
    """A finished stage. began, ended: in seconds of time.perf_counter."""

    stage: str
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the engine is with one image. result: None while it is not done.

    batch_size: images that ran together through the chosen encoder.
    """

    spans: tuple[Span, ...] = ()
    decision: Decision | None = None
    batch_size: int = 0
    result: Outcome | FathomError | None = None


@dataclass(slots=True)
class Trace:
    """What happened to one request; read once at the edge (metrics, headers, log line).

    Only one thread writes to it: the event loop's, or with the Python API the caller's.

    stages: seconds per stage, in order of completion (decode, queue, glance, front, encoder,
        decoder, mask; glance only if the plan's canvas is another one).
    batch_size: images that ran together through the chosen encoder.
    began: when each stage began, in seconds of time.perf_counter.
    size: width and height of the image as shown, in pixels; None until it is decoded.
    caller: the name of the API key; empty if none is required.
    trace_id: of the distributed trace, 32 hex digits; empty while tracing is off.
    sampled: whether the distributed trace is recorded.
    shared: another request's computation answered it: its decision counts there.
    limit_s: its deadline, in seconds from when it began; None without one.
    """

    request_id: str = ""
    stages: dict[str, float] = field(default_factory=dict)
    decision: Decision | None = None
    batch_size: int = 0
    began: dict[str, float] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    caller: str = ""
    trace_id: str = ""
    sampled: bool = False
    shared: bool = False
    limit_s: float | None = None

    def add(self, stage: str, began: float, ended: float) -> None:
        """Note a finished stage. began, ended: in seconds of time.perf_counter."""
        self.began[stage], self.stages[stage] = began, ended - began

    def missed(self, seconds: float) -> bool:
        """Whether an answer after so many seconds is too late."""
        return self.limit_s is not None and seconds > self.limit_s

    def follow(self, progress: Progress) -> None:
        """Note what the engine measured."""
        for span in progress.spans:
            self.add(span.stage, span.began, span.ended)
        self.decision, self.batch_size = progress.decision, progress.batch_size
