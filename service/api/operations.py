"""The routes for operators, Kubernetes and Prometheus: plans, health, metrics."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, params
from starlette.requests import Request
from starlette.responses import Response

from service.api import openapi_fields
from service.api import plans as answer
from service.api.fields import PREFERENCE, names_the_header, parse_preference
from service.api.openapi_answers import failure
from service.core import Ask
from service.errors import BadHeader
from service.metrics import Metrics
from service.model import Model
from service.settings import Settings


def operations(
    settings: Settings, model: Model, metrics: Metrics, guard: Sequence[params.Depends] = ()
) -> APIRouter:
    """The routes. guard: the dependencies of those that need an API key."""
    router = APIRouter(tags=["operations"])

    described = {
        "parameters": [openapi_fields.preference([head.name for head in model.manifest.heads])]
    }

    @router.get(
        "/plans",
        dependencies=guard,
        responses={400: failure(BadHeader.title)},
        openapi_extra=described,
    )
    async def plans(request: Request) -> answer.Plans:
        """The plans with their costs on this node, the canvases, the heads and the limits."""
        request.state.vary = PREFERENCE
        weights = parse_preference(request.headers.getlist(PREFERENCE))
        with names_the_header():
            model.policies.check(Ask(preference=weights))
        return answer.plans(model, settings, weights)

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    @router.get("/readyz", responses={503: failure("Starting, draining or failed")})
    async def readyz() -> dict[str, str]:
        """The engine is open and warm."""
        model.engine.check_ready()
        return {"status": "ready"}

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}}},
    )
    async def exposition(request: Request) -> Response:
        """Prometheus' text format, or OpenMetrics if Accept asks for it."""
        body, content_type = metrics.expose(",".join(request.headers.getlist("accept")))
        return Response(body, headers={"Content-Type": content_type, "Vary": "Accept"})

    return router
