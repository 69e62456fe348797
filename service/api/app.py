"""create_app: the HTTP routes around a Segmenter, and what starts and stops with the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
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
from service.api.middleware import Edge
from service.api.open_inference import open_inference
from service.api.operations import operations
from service.api.origins import Origins
from service.api.pages import pages
from service.api.problems import of_status, problem
from service.api.response_cache import ResponseCache
from service.api.segment import SegmentRoute, observe
from service.errors import BadQuery, FathomError, ForeignOrigin
from service.metrics import Metrics
from service.segmenting import Segmenter
from service.settings import Settings

if TYPE_CHECKING:  # its packages are installed only for tracing
    from service.api.tracing import Tracing

# FastAPI (0.165, fastapi/telemetry) has its own telemetry. A global OpenTelemetry provider or
# FASTAPI_OTEL_AUTO_CONFIGURE turns it on: a span for every path, probes and scrapes too, with spans
# for its own work below, a second duration histogram, and logs with the messages and stacks of
# exceptions. It does not know the stages, and does not answer with a traceparent. tracing.py and
# metrics.py do that instead; with all of this off, FastAPI's wrapper just calls the app.
_TELEMETRY = TelemetryConfig(tracing=False, metrics=False, logs=False, auto_configure=False)


def create_app(
    settings: Settings,
    segmenter: Segmenter,
    metrics: Metrics,
    *,
    version: str = "unknown",
    tracing: Tracing | None = None,
) -> FastAPI:
    """The service over HTTP.

    Its start starts the segmenter; its end drains the segmenter and closes the tracing. Raises
    SettingsError for a node budget, API keys or origins that cannot be understood.
    """
    model = segmenter.model
    model.node_budget = node_budget.at_start(settings.node_budget, settings.node_budget_file, model)
    keys = _keys(settings, metrics)
    guard = [] if keys is None else [Depends(keys.require)]
    app = FastAPI(
        title="Fathom",
        version=version,
        summary=(
            "Segments each image with only as much compute as it needs "
            "and as its caller can afford."
        ),
        # FastAPI's page loads its scripts from elsewhere; the page of pages() does not.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # to an absolute URL that the caller's Host would make up
        telemetry=_TELEMETRY,
        lifespan=partial(_lifespan, settings, segmenter, keys, tracing),
        generate_unique_id_function=openapi.operation_id,
    )
    app.state.keys, app.state.tracing = keys, tracing  # for transports beside this one
    # When a drain must be over, by time.perf_counter; a server that drains connections sets it.
    app.state.drained_by = None
    foreign = partial(observe, metrics, outcome=ForeignOrigin.problem)
    origins = Origins(settings.cors_origins)
    app.add_middleware(
        Edge,
        of=model.manifest.layers,
        origins=origins,
        on_foreign=foreign,
        several_canvases=len(model.manifest.input.canvases) > 1,
    )
    if tracing is not None:
        app.add_middleware(tracing.around)
    app.add_exception_handler(FathomError, _on_error)
    app.add_exception_handler(HTTPException, _on_error)
    app.add_exception_handler(RequestValidationError, _on_error)
    intake = Intake(
        max_bytes=settings.max_body_bytes,
        timeout_s=settings.body_timeout_s,
        min_rate=settings.body_min_rate,
    )
    metrics.held_bytes.set_function(lambda: intake.held_bytes)
    kept_bytes = settings.response_cache_mb * 1_000_000
    cache = ResponseCache(kept_bytes, metrics) if kept_bytes else None
    route = SegmentRoute(segmenter, intake, metrics, cache)
    described = openapi.segment(model.manifest.layers, [head.name for head in model.manifest.heads])
    app.post("/segment", dependencies=guard, **described)(route.segment)
    app.include_router(operations(settings, model, metrics, guard))
    app.include_router(
        open_inference(settings, segmenter, intake, metrics, version=version, guard=guard)
    )
    app.include_router(pages())
    fastapi_openapi = app.openapi
    app.openapi = lambda: openapi.complete(fastapi_openapi())  # type: ignore[method-assign]
    return app


def _keys(settings: Settings, metrics: Metrics) -> ApiKeys | None:
    """The API keys, if the settings have a file of them. A request that they refuse is counted."""
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
    """Run the segmenter and the watchers of files for as long as the server runs."""
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
        end = app.state.drained_by or time.perf_counter() + settings.drain_timeout_s
        await segmenter.drain(max(0.0, end - time.perf_counter()))
        if tracing is not None:
            await tracing.close(max(0.0, end - time.perf_counter()))


async def _on_error(request: Request, error: Exception) -> Response:
    """Answer every expected error. The middleware catches the unexpected ones."""
    request_id: str = request.state.trace.request_id
    path: str = request.scope["path"]
    if isinstance(error, FathomError):
        return problem(error, request_id, path)
    if isinstance(error, HTTPException):
        detail = error.detail
        if detail == HTTPStatus(error.status_code).phrase:
            detail = f"{request.method} {path}: {detail}"
        headers = _with_head(error.headers)
        return of_status(error.status_code, detail, request_id, path, headers)
    detail = "A parameter of the path or the query cannot be understood"
    return problem(BadQuery(detail), request_id, path)


def _with_head(headers: Mapping[str, str] | None) -> dict[str, str]:
    """`Allow` of a 405: every path that answers GET answers HEAD."""
    fields = dict(headers or {})
    if "GET" in (allowed := fields.get("Allow", "")) and "HEAD" not in allowed:
        fields["Allow"] = f"{allowed}, HEAD"
    return fields
