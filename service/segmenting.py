"""Segmenting images without a transport: admit -> decode -> queue -> answer.

Everything that answers images calls this: HTTP, evaluation, and Python programs:

    with open_bundle("trained_weights/camvid-tiny") as segmenter:
        answer = segmenter.segment("photo.jpg", gflops=6.5)
        print(answer.decision.plan.name, [segment.label for segment in answer.segments])

`segment` blocks and may be called from many threads at once; their images run in batches. The
coroutines are the same steps for an event loop.
"""

from __future__ import annotations

import asyncio
import difflib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import TimeoutError as NotInTime
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from service.answer import Answer
from service.ask import budget_of, preference_of, value_range_of
from service.bundle import load
from service.core import Ask, Frames, ValueRange
from service.engines.choice import choose_backend, open_backend
from service.errors import FathomError, SettingsError
from service.inference.place import missed
from service.inference.ticket import Ticket
from service.model import Model, metrics_of
from service.pixels.decode import Limits, Picture, decode, from_memory
from service.settings import Settings
from service.threads import Threads
from service.trace import Progress, Trace

__all__ = ["Answer", "Segmenter", "open_bundle"]

# Those of `Settings` that mean something without a transport.
SETTINGS = (
    "backend",
    "engine_cache",
    "threads",
    "max_batch",
    "batch_wait_ms",
    "queue_size",
    "max_loss",
    "target_ms",
    "max_pixels",
    "max_side",
    "min_side",
    "drain_timeout_s",
    "image_threads",
)

_T = TypeVar("_T")


class Segmenter:
    """A model and the threads that decode images and make masks."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self.model = model
        self._limits = Limits(settings.max_pixels, settings.max_side, settings.min_side)
        self._drain_timeout_s = settings.drain_timeout_s
        self._threads = Threads(settings.image_threads)

    def segment(
        self,
        picture: bytes | str | Path | Picture,
        *,
        depth: int | None = None,
        gflops: float | None = None,
        ms: float | None = None,
        max_loss: float | None = None,
        strict: bool = False,
        value_range: ValueRange = "full",
        preference: Mapping[str, float] | None = None,
    ) -> Answer:
        """Segment one image under a budget and block until it is done. The keys: `Compute-Budget`.

        preference: how much each head matters, by name; those without a weight do not run. None: as
            the bundle has it. The answer is that of the head with the largest weight.
        picture: the bytes of an image file, its path, a Pillow image, or an array, see
            `from_memory`.
        value_range: "auto" scales 16-bit samples by the range that the image uses.
        Raises these of service.errors: BadBudget, BadPreference, UndecodableImage,
        UnsupportedMediaType, TooLarge, UnsatisfiableBudget, Overloaded, DeadlineExceeded, NotReady;
        OSError for a path.
        """
        arrived, trace = time.perf_counter(), Trace(uuid.uuid4().hex)
        limits = {"depth": depth, "gflops": gflops, "ms": ms, "max-loss": max_loss}
        values = {key: limit for key, limit in limits.items() if limit is not None}
        ask = Ask(
            budget_of({**values, "strict": strict}),
            value_range_of(value_range),
            preference=None if preference is None else preference_of(preference),
        )
        with self.place(ask, trace, arrived, coming=False) as ticket:
            if isinstance(picture, str | Path):
                picture = Path(picture).read_bytes()
            frames = self._frames(picture, "", ask)
            trace.add("decode", arrived, time.perf_counter())
            self.model.submit(ticket, frames)
            try:
                progress = ticket.done.result(ticket.remaining_s())
            except NotInTime as error:
                raise self.model.engine.expire(ticket) from error
        return self._answer(progress, ticket, trace)

    @contextmanager
    def place(
        self, ask: Ask, trace: Trace, arrived: float, *, coming: bool = True
    ) -> Iterator[Ticket]:
        """A place in the queue, until the block ends: take it before anything of the image is read,
        and keep it until the image is answered.

        arrived: perf_counter when the request began. coming: its body is not read yet. Raises
        NotReady, BadBudget, BadPreference, UnsatisfiableBudget or Overloaded.
        """
        caller = trace.caller
        ticket = self.model.reserve(ask, arrived, trace.request_id, caller=caller, coming=coming)
        trace.limit_s = None if ticket.promise is None else ticket.promise - arrived
        try:
            yield ticket
        finally:
            self.model.engine.leave(ticket)

    async def decode(
        self,
        picture: bytes | Picture,
        content_type: str,
        trace: Trace,
        ask: Ask,
        ticket: Ticket | None = None,
    ) -> Frames:
        """A picture, as `segment` takes it -> on every canvas. content_type: of bytes; one of
        FORMATS, or "".

        ticket: of a place, to which the image is submitted at once, so that the engine need not
            wait for the event loop.
        """

        def work() -> tuple[Frames, float]:
            frames, ended = self._frames(picture, content_type, ask), time.perf_counter()
            if ticket is not None:
                self.model.submit(ticket, frames)
            return frames, ended

        began = time.perf_counter()
        frames, ended = await self.in_thread(work)
        trace.add("decode", began, ended)
        trace.size = self.size_of(frames)
        return frames

    def size_of(self, frames: Frames) -> tuple[int, int]:
        """The width and height of an image as shown, in pixels."""
        geometry = frames[self.model.manifest.glance.name].geometry
        return geometry.width, geometry.height

    def received(self, ticket: Ticket) -> None:
        """The body with the image of a place is there. Raises Overloaded if that took so long that
        the place was given away."""
        self.model.engine.received(ticket)

    async def run(self, ticket: Ticket, trace: Trace) -> Answer:
        """Wait for the result of an image that was submitted.

        Raises NotReady, UnsatisfiableBudget, DeadlineExceeded (it passed while running) or
        Overloaded (the deadline cannot be met any more, or passed in the queue).
        """
        try:
            async with asyncio.timeout(ticket.remaining_s()):
                progress = await asyncio.wrap_future(ticket.done)
        except TimeoutError as error:
            trace.follow(ticket.progress)
            raise self.model.engine.expire(ticket) from error
        return self._answer(progress, ticket, trace)

    async def in_thread(self, work: Callable[[], _T]) -> _T:
        """Run work that would block the event loop in one of the image threads; see `Threads`."""
        return await self._threads.run(work)

    def start(self) -> None:
        """Start the engine; it is ready some time later."""
        self.model.engine.start()

    async def drain(self, timeout_s: float) -> None:
        """Finish what was admitted, within that time, and end."""
        await self.model.drain(timeout_s)
        self._threads.shutdown()

    def close(self) -> None:
        """`drain`, within the drain timeout, for callers without an event loop."""
        self.model.close(self._drain_timeout_s)
        self._threads.shutdown()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _frames(self, picture: bytes | Picture, content_type: str, ask: Ask) -> Frames:
        spec = self.model.manifest.input
        if isinstance(picture, bytes | bytearray | memoryview):
            return decode(bytes(picture), content_type, self._limits, spec, ask.value_range)
        return from_memory(picture, self._limits, spec, ask.value_range)

    def _answer(self, progress: Progress, ticket: Ticket, trace: Trace) -> Answer:
        """The answer of a finished image. Raises its error, if it has one."""
        trace.follow(progress)
        if isinstance(progress.result, FathomError):
            raise progress.result
        ticket.woken = time.perf_counter()
        if ticket.promise is not None and ticket.woken > ticket.promise:
            raise missed()
        assert progress.result is not None  # a finished image has a result
        return Answer.of(progress.result, self.model.manifest, self.model.tasks, trace.stages)


def open_bundle(folder: str | Path, **changes: Any) -> Segmenter:
    """Open a bundle in this process and wait until it is warm. Close it by `with` or `close`.

    changes: SETTINGS by name, e.g. backend="onnxruntime", threads=2, max_loss=0.01; see
    service.settings. Raises BundleError, BackendError or SettingsError.
    """
    for name in changes.keys() - set(SETTINGS):
        if name in {entry.name for entry in fields(Settings)}:
            raise SettingsError(
                f"{name!r} is a setting of the service: open_bundle takes {', '.join(SETTINGS)}"
            )
        near = difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.0)
        raise SettingsError(f"there is no setting {name!r}; did you mean {near[0]!r}?")
    if isinstance(cache := changes.get("engine_cache"), str):
        changes["engine_cache"] = Path(cache)
    settings = Settings(bundle=Path(folder), **changes)
    bundle = load(settings.bundle)
    metrics = metrics_of(bundle.manifest, settings)
    choice = choose_backend(settings, bundle)
    model = Model(bundle, settings, metrics, lambda: open_backend(choice, settings, bundle))
    segmenter = Segmenter(model, settings)
    segmenter.start()
    model.engine.warm.result()
    return segmenter
