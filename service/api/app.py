"""create_app: the routes, what starts and ends with them, and the way of one image through the rim.

body -> Frame -> scheduler -> Outcome -> the form that Accept asked for
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from fastapi import Depends, FastAPI, params
from fastapi.exceptions import RequestValidationError
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.api import forms, openapi
from service.api.auth import ApiKeys
from service.api.body import Intake
from service.api.fields import FIELD, parse_budget
from service.api.middleware import Edge, document, problem
from service.api.node_budget import from_setting, watch
from service.api.operations import check_ready, inference_protocol, operations, pages
from service.bundle import Manifest
from service.core import Budget, Outcome, Trace
from service.errors import BadQuery, FathomError
from service.inference.engine import Scheduler
from service.metrics import Metrics
from service.pixels.decode import Limits, decode
from service.settings import Settings

if TYPE_CHECKING:  # it needs packages that are not there unless tracing is wanted
    from service.api.tracing import Tracing

# FastAPI (0.165, fastapi/telemetry) would record by itself as soon as a global OpenTelemetry
# provider is set or FASTAPI_OTEL_AUTO_CONFIGURE is true: a span for every path, probes and scrapes
# too, more below each for its own work, a second duration histogram, and logs with the messages and
# stacks of exceptions. It knows no stage, and answers no traceparent. Ours are in tracing.py and
# metrics.py; with all of this off, its wrapper calls the app and nothing else.
_TELEMETRY = TelemetryConfig(tracing=False, metrics=False, logs=False, auto_configure=False)
_P = ParamSpec("_P")
_T = TypeVar("_T")


def create_app(
    settings: Settings,
    manifest: Manifest,
    scheduler: Scheduler,
    metrics: Metrics,
    *,
    version: str = "unknown",
    tracing: Tracing | None = None,
) -> FastAPI:
    """The service over HTTP. Starting it starts the scheduler, ending it drains the scheduler and
    ends the tracing.

    Raises SettingsError for a node budget or API keys that cannot be understood.
    """
    scheduler.node_budget = from_setting(settings.node_budget, manifest.layers)
    rim = Rim(settings, manifest, scheduler, metrics, tracing)
    guard, described = rim.guard(), openapi.segment()
    if guard:
        described["responses"][401] = openapi.failure("No API key, or none that is known")
    app = FastAPI(
        title="Fathom",
        version=version,
        summary="Segments each image with only as much compute as it needs "
        "and as its caller can afford.",
        # the stock page loads its scripts from elsewhere; pages() has one that does not
        docs_url=None,
        redoc_url=None,
        telemetry=_TELEMETRY,
        lifespan=rim.lifespan,
    )
    app.add_middleware(Edge, of=manifest.layers)
    if tracing is not None:
        app.add_middleware(tracing.around)
    app.add_exception_handler(FathomError, _on_error)
    app.add_exception_handler(HTTPException, _on_error)
    app.add_exception_handler(RequestValidationError, _on_error)
    app.post("/segment", dependencies=guard, **described)(rim.segment)
    app.include_router(operations(settings, manifest, scheduler, metrics, guard))
    app.include_router(inference_protocol(manifest, scheduler, version, guard))
    app.include_router(pages())
    stock = app.openapi
    app.openapi = lambda: openapi.complete(stock())  # type: ignore[method-assign]
    return app


class Rim:
    """What /segment needs: the threads for images, the intake of bodies, the scheduler; the API
    keys, if there are."""

    def __init__(
        self,
        settings: Settings,
        manifest: Manifest,
        scheduler: Scheduler,
        metrics: Metrics,
        tracing: Tracing | None,
    ) -> None:
        self._settings, self._manifest, self._scheduler, self._metrics = (
            settings,
            manifest,
            scheduler,
            metrics,
        )
        self._tracing = tracing
        refuse = partial(self._observe, outcome="unauthorized")
        self._keys = (
            ApiKeys(Path(settings.api_keys_file), refuse) if settings.api_keys_file else None
        )
        self._limits = Limits(settings.max_pixels, settings.max_side, settings.min_side)
        self._intake = Intake(
            max_bytes=settings.max_body_bytes,
            timeout_s=settings.body_timeout_s,
            max_waiting=settings.queue_size,
            on_refusal=partial(metrics.shed, "full"),
        )
        self._threads = ThreadPoolExecutor(settings.image_threads, thread_name_prefix="image")

    def guard(self) -> Sequence[params.Depends]:
        """The dependencies of a route that needs an API key: none where no key is asked for."""
        return [] if self._keys is None else [Depends(self._keys.require)]

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """While the server runs: the scheduler, and the watchers of the files that may change."""
        self._scheduler.start()
        watchers = [asyncio.create_task(watching) for watching in self._watch()]
        try:
            yield
        finally:
            for watcher in watchers:
                watcher.cancel()
                with suppress(asyncio.CancelledError):
                    await watcher
            end = time.perf_counter() + self._settings.drain_timeout_s
            await self._scheduler.drain(self._settings.drain_timeout_s)
            self._threads.shutdown(wait=False, cancel_futures=True)
            if self._tracing is not None:
                await self._tracing.close(max(0.0, end - time.perf_counter()))

    async def segment(self, request: Request) -> Response:
        """POST /segment; described in openapi.py."""
        trace: Trace = request.state.trace
        request.state.vary = f"Accept, {FIELD}"
        outcome = FathomError.problem
        try:
            response = await self._segment(request, trace)
            outcome = "ok"
            return response
        except FathomError as error:
            outcome = error.problem
            raise
        except (ClientDisconnect, asyncio.CancelledError):
            outcome = "cancelled"
            raise
        finally:
            self._observe(request, outcome)

    async def _segment(self, request: Request, trace: Trace) -> Response:
        # Whatever can be refused is refused before the body is read.
        form = forms.choose(request.headers.getlist("accept"))
        include = forms.included(request.query_params.multi_items(), form)
        budget = parse_budget(request.headers.getlist(FIELD), self._manifest.layers)
        if self._scheduler.state == "draining":
            self._metrics.shed("draining")
        check_ready(self._scheduler)
        async with self._intake.receive(request) as upload:
            began = time.perf_counter()
            image = self._in_thread(
                decode, upload.data, upload.content_type, self._limits, self._manifest.input
            )
            frame = await _while_connected(request, image)
            trace.add("decode", began, time.perf_counter())
        trace.size = frame.geometry.width, frame.geometry.height
        outcome = await _while_connected(
            request, self._scheduler.submit(frame, budget, trace, request.state.arrived)
        )
        body = await _while_connected(request, self._render(form, include, outcome, trace))
        return Response(body, media_type=form.media_type)

    async def _render(
        self, form: forms.Form, include: Set[str], outcome: Outcome, trace: Trace
    ) -> bytes:
        # A copy: the thread may still write into it after the client has left and the trace was
        # counted.
        own = replace(trace, stages=dict(trace.stages), began=dict(trace.began))

        def render() -> bytes:
            own.began["mask"] = time.perf_counter()
            return form.render(outcome, own, self._manifest, include)

        body = await self._in_thread(render)
        trace.merge(own)
        return body

    async def _in_thread(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: work(*args, **kwargs)
        )

    def _observe(self, request: Request, outcome: str) -> None:
        trace: Trace = request.state.trace
        trace.trace_id, trace.sampled = getattr(request.state, "traced", ("", False))
        self._metrics.observe(trace, outcome, time.perf_counter() - request.state.arrived)

    def _watch(self) -> Iterator[Coroutine[object, object, None]]:
        if self._settings.node_budget_file:
            yield watch(Path(self._settings.node_budget_file), self._manifest.layers, self._apply)
        if self._keys is not None:
            yield self._keys.watch()

    def _apply(self, budget: Budget) -> None:
        self._scheduler.node_budget = budget


async def _while_connected(request: Request, work: Coroutine[object, object, _T]) -> _T:
    """The result of `work`, which is cancelled when the client leaves: then ClientDisconnect is
    raised.

    The request's body must have been read.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _on_error(request: Request, error: Exception) -> Response:
    """The one handler of errors; what is not foreseen goes to the middleware's last net."""
    request_id: str = request.state.trace.request_id
    if isinstance(error, FathomError):
        return problem(error, request_id)
    if isinstance(error, HTTPException):
        status = HTTPStatus(error.status_code)
        slug = status.phrase.lower().replace(" ", "-")
        detail = (
            error.detail
            if error.detail != status.phrase
            else f"{request.method} {request.scope['path']}: {status.phrase}"
        )
        return document(status, slug, status.phrase, detail, request_id, error.headers)
    return problem(
        BadQuery("A parameter of the path or the query cannot be understood"), request_id
    )
