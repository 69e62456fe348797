"""The routes for operators, Kubernetes and Prometheus: plans, health, metrics."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, params
from starlette.requests import Request
from starlette.responses import Response

from service.api import plans as answer
from service.api.openapi_answers import failure
from service.metrics import Metrics
from service.model import Model
from service.settings import Settings


def operations(
    settings: Settings, model: Model, metrics: Metrics, guard: Sequence[params.Depends] = ()
) -> APIRouter:
    """The routes. guard: the dependencies of those that need an API key."""
    router = APIRouter(tags=["operations"])

    @router.get("/plans", dependencies=guard)
    async def plans() -> answer.Plans:
        """The plans with their costs on this node, the canvases, the classes and the limits."""
        return answer.plans(model, settings)

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
