"""create_app: the routes around a Segmenter, and what starts and ends with them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.api import node_budget, openapi
from service.api.auth import ApiKeys
from service.api.body import Intake
from service.api.inference_protocol import inference_protocol
from service.api.middleware import Edge, document, problem
from service.api.operations import operations
from service.api.pages import pages
from service.api.segment import SegmentRoute, observe
from service.errors import BadQuery, FathomError
from service.metrics import Metrics
from service.segmenting import Segmenter
from service.settings import Settings

if TYPE_CHECKING:  # it needs packages that are not there unless tracing is wanted
    from service.api.tracing import Tracing

# FastAPI (0.165, fastapi/telemetry) would record by itself as soon as a global OpenTelemetry
# provider is set or FASTAPI_OTEL_AUTO_CONFIGURE is true: a span for every path, probes and scrapes
# too, more below each for its own work, a second duration histogram, and logs with the messages and
# stacks of exceptions. It knows no stage, and answers no traceparent. Ours are in tracing.py and
# metrics.py; with all of this off, its wrapper calls the app and nothing else.
_TELEMETRY = TelemetryConfig(tracing=False, metrics=False, logs=False, auto_configure=False)


def create_app(
    settings: Settings,
    segmenter: Segmenter,
    metrics: Metrics,
    *,
    version: str = "unknown",
    tracing: Tracing | None = None,
) -> FastAPI:
    """The service over HTTP. Starting it starts the segmenter; ending it drains that, and ends the
    tracing.

    Raises SettingsError for a node budget or API keys that cannot be understood.
    """
    model = segmenter.model
    model.node_budget = node_budget.from_setting(settings.node_budget, model)
    keys = _keys(settings, metrics)
    guard = [] if keys is None else [Depends(keys.require)]
    described = openapi.segment()
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
        lifespan=partial(_lifespan, settings, segmenter, keys, tracing),
    )
    app.add_middleware(Edge, of=model.manifest.layers)
    if tracing is not None:
        app.add_middleware(tracing.around)
    app.add_exception_handler(FathomError, _on_error)
    app.add_exception_handler(HTTPException, _on_error)
    app.add_exception_handler(RequestValidationError, _on_error)
    intake = Intake(
        max_bytes=settings.max_body_bytes,
        timeout_s=settings.body_timeout_s,
        max_waiting=settings.queue_size,
    )
    route = SegmentRoute(segmenter, intake, metrics)
    app.post("/segment", dependencies=guard, **described)(route.segment)
    app.include_router(operations(settings, model, metrics, guard))
    app.include_router(inference_protocol(model, version, guard))
    app.include_router(pages())
    stock = app.openapi
    app.openapi = lambda: openapi.complete(stock())  # type: ignore[method-assign]
    return app


def _keys(settings: Settings, metrics: Metrics) -> ApiKeys | None:
    """The API keys, if there are any; a request without one is counted."""
    if not settings.api_keys_file:
        return None
    refused = partial(observe, metrics, outcome="unauthorized")
    return ApiKeys(Path(settings.api_keys_file), refused)


@asynccontextmanager
async def _lifespan(
    settings: Settings,
    segmenter: Segmenter,
    keys: ApiKeys | None,
    tracing: Tracing | None,
    app: FastAPI,
) -> AsyncIterator[None]:
    """While the server runs: the segmenter, and the watchers of the files that may change."""
    segmenter.start()
    watching: list[Coroutine[object, object, None]] = []
    if settings.node_budget_file:
        watching.append(node_budget.watch(Path(settings.node_budget_file), segmenter.model))
    if keys is not None:
        watching.append(keys.watch())
    watchers = [asyncio.create_task(watch) for watch in watching]
    try:
        yield
    finally:
        for watcher in watchers:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
        end = time.perf_counter() + settings.drain_timeout_s
        await segmenter.drain()
        if tracing is not None:
            await tracing.close(max(0.0, end - time.perf_counter()))


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
