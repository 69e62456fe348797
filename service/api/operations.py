"""Everything beside /segment: the page, plans, health, metrics, documentation, and Open Inference
Protocol v2 paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastapi import APIRouter, params
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api import schemas
from service.api.openapi import failure
from service.bundle import Manifest, TensorSpec
from service.errors import NotReady
from service.inference.engine import Scheduler
from service.metrics import Metrics
from service.settings import Settings

WEB = Path(__file__).resolve().parent.parent / "web"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
_DATATYPES = {
    "uint8": "UINT8",
    "float32": "FP32",
}  # the protocol's names of the dtypes that bundles hold
_RETRY_AFTER_S = {"starting": 2.0, "draining": 1.0, "failed": 30.0}


def check_ready(scheduler: Scheduler) -> None:
    """Raises NotReady (503) unless the engine is open and warm and takes work."""
    if scheduler.state != "ready":
        raise NotReady(
            f"The service is {scheduler.state}", retry_after=_RETRY_AFTER_S[scheduler.state]
        )


def pages(folder: Path = WEB) -> APIRouter:
    """The page at / and its files, held in memory: no request ever names a file of the disk."""
    files = {
        path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in _TYPES
    }
    router = APIRouter(include_in_schema=False)

    def file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return Response(
            files[name], media_type=_TYPES[Path(name).suffix], headers={"Cache-Control": "no-cache"}
        )

    @router.get("/")
    async def index() -> Response:
        return file("index.html")

    @router.get("/docs")
    async def docs() -> Response:
        return file("docs.html")

    @router.get("/static/{name}")
    async def static(name: str) -> Response:
        return file(name)

    return router


def operations(
    settings: Settings,
    manifest: Manifest,
    scheduler: Scheduler,
    metrics: Metrics,
    guard: Sequence[params.Depends] = (),
) -> APIRouter:
    """What people, Kubernetes and Prometheus ask for. guard: the dependencies of what needs an API
    key."""
    router = APIRouter(tags=["operations"])

    @router.get("/plans", dependencies=guard)
    async def plans() -> schemas.Plans:
        """The plans with their prices on this node, the classes and the limits."""
        return schemas.plans(manifest, scheduler.plan_ms, settings)

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process lives."""
        return {"status": "alive"}

    @router.get(
        "/readyz", responses={503: failure("Starting, draining or failed; with Retry-After")}
    )
    async def readyz() -> dict[str, str]:
        """The engine is open and warm."""
        check_ready(scheduler)
        return {"status": "ready"}

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}}},
    )
    async def exposition(request: Request) -> Response:
        """Prometheus' text format, or OpenMetrics where Accept asks for it."""
        body, content_type = metrics.expose(",".join(request.headers.getlist("accept")))
        return Response(body, headers={"Content-Type": content_type, "Vary": "Accept"})

    return router


def inference_protocol(
    manifest: Manifest, scheduler: Scheduler, version: str, guard: Sequence[params.Depends] = ()
) -> APIRouter:
    """The health and metadata paths of the Open Inference Protocol v2. Inference itself is
    /segment.

    guard: the dependencies of the metadata.
    """
    router = APIRouter(prefix="/v2", tags=["open inference protocol"])
    front, decoder = manifest.stages["front"], manifest.stages["decoder"]
    model = schemas.Model(
        name=manifest.name,
        versions=[manifest.revision],
        platform="fathom",
        inputs=[_tensor(spec) for spec in front.inputs],
        outputs=[_tensor(spec) for spec in decoder.outputs],
    )

    def named(name: str) -> schemas.Model:
        if name != manifest.name:
            raise HTTPException(404, f"The only model is {manifest.name}")
        return model

    @router.get("", dependencies=guard)
    async def server() -> JSONResponse:
        return JSONResponse({"name": "fathom", "version": version, "extensions": []})

    @router.get("/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/health/ready")
    async def ready() -> dict[str, bool]:
        check_ready(scheduler)
        return {"ready": True}

    @router.get("/models/{name}", dependencies=guard)
    async def metadata(name: str) -> schemas.Model:
        return named(name)

    @router.get("/models/{name}/ready")
    async def model_ready(name: str) -> dict[str, str | bool]:
        named(name)
        check_ready(scheduler)
        return {"name": name, "ready": True}

    return router


def _tensor(spec: TensorSpec) -> schemas.Tensor:
    shape = [size if isinstance(size, int) else -1 for size in spec.dims]
    return schemas.Tensor(name=spec.name, datatype=_DATATYPES[spec.dtype], shape=shape)
