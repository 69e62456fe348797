"""create_app: the routes, what starts and ends with them, and the way of one image through the rim.

body -> Frame -> scheduler -> Outcome -> the form that Accept asked for
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import ParamSpec, TypeVar

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.api import forms, openapi
from service.api.body import Intake
from service.api.budget import FIELD, parse_budget
from service.api.image import Limits, decode
from service.api.middleware import Edge, document, problem
from service.api.node_budget import from_setting, watch
from service.api.operations import check_ready, inference_protocol, operations, pages
from service.bundle import Manifest
from service.core import Budget, Outcome, Trace
from service.errors import BadQuery, FathomError
from service.inference.scheduler import Scheduler
from service.metrics import Metrics
from service.settings import Settings

_P = ParamSpec("_P")
_T = TypeVar("_T")


def create_app(
    settings: Settings, manifest: Manifest, scheduler: Scheduler, metrics: Metrics, *, version: str = "unknown"
) -> FastAPI:
    """The service over HTTP. Starting it starts the scheduler, ending it drains the scheduler.

    Raises SettingsError for a node budget that cannot be understood.
    """
    scheduler.node_budget = from_setting(settings.node_budget, manifest.layers)
    rim = Rim(settings, manifest, scheduler, metrics)
    app = FastAPI(
        title="Fathom",
        version=version,
        summary="Segments each image with only as much compute as it needs and as its caller can afford.",
        docs_url=None,  # the stock page loads its scripts from elsewhere; pages() has one that does not
        redoc_url=None,
        lifespan=rim.lifespan,
    )
    app.add_middleware(Edge, of=manifest.layers)
    app.add_exception_handler(FathomError, _on_error)
    app.add_exception_handler(HTTPException, _on_error)
    app.add_exception_handler(RequestValidationError, _on_error)
    app.post("/segment", **openapi.segment())(rim.segment)
    app.include_router(operations(settings, manifest, scheduler, metrics))
    app.include_router(inference_protocol(manifest, scheduler, version))
    app.include_router(pages())
    stock = app.openapi
    app.openapi = lambda: openapi.complete(stock())  # type: ignore[method-assign]
    return app


class Rim:
    """What /segment needs: the threads for images, the intake of bodies, the scheduler."""

    def __init__(self, settings: Settings, manifest: Manifest, scheduler: Scheduler, metrics: Metrics) -> None:
        self._settings, self._manifest, self._scheduler, self._metrics = settings, manifest, scheduler, metrics
        self._limits = Limits(settings.max_pixels, settings.max_side, settings.min_side)
        self._intake = Intake(
            max_bytes=settings.max_body_bytes,
            timeout_s=settings.body_timeout_s,
            max_waiting=settings.queue_size,
            on_refusal=partial(metrics.shed, "full"),
        )
        self._threads = ThreadPoolExecutor(settings.image_threads, thread_name_prefix="image")

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """While the server runs: the scheduler, and the watcher of the node's budget file."""
        self._scheduler.start()
        watcher = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
            await self._scheduler.drain(self._settings.drain_timeout_s)
            self._threads.shutdown(wait=False, cancel_futures=True)

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
            self._metrics.observe(trace, outcome, time.perf_counter() - request.state.arrived)

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
            image = self._in_thread(decode, upload.data, upload.content_type, self._limits, self._manifest.input)
            frame = await _while_connected(request, image)
            trace.stages["decode"] = time.perf_counter() - began
        outcome = await _while_connected(request, self._scheduler.submit(frame, budget, trace, request.state.arrived))
        body = await _while_connected(request, self._render(form, include, outcome, trace))
        return Response(body, media_type=form.media_type)

    async def _render(self, form: forms.Form, include: Set[str], outcome: Outcome, trace: Trace) -> bytes:
        # A copy: the thread may still write into it after the client has left and the trace was counted.
        own = replace(trace, stages=dict(trace.stages))
        body = await self._in_thread(form.render, outcome, own, self._manifest, include)
        trace.stages = own.stages
        return body

    async def _in_thread(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))

    async def _watch(self) -> None:
        if self._settings.node_budget_file:
            await watch(Path(self._settings.node_budget_file), self._manifest.layers, self._apply)

    def _apply(self, budget: Budget) -> None:
        self._scheduler.node_budget = budget


async def _while_connected(request: Request, work: Coroutine[object, object, _T]) -> _T:
    """The result of `work`, which is cancelled when the client leaves: then ClientDisconnect is raised.

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
    return problem(BadQuery("A parameter of the path or the query cannot be understood"), request_id)
