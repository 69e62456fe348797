"""The health and metadata paths of the Open Inference Protocol v2. Inference itself is /segment."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, params
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from service.api import schemas
from service.bundle import TensorSpec
from service.model import Model

_DATATYPES = {"uint8": "UINT8", "float32": "FP32"}  # dtype -> the protocol's name


def inference_protocol(
    model: Model, version: str, guard: Sequence[params.Depends] = ()
) -> APIRouter:
    """The routes below /v2. guard: the dependencies of the metadata."""
    router = APIRouter(prefix="/v2", tags=["open inference protocol"])
    manifest = model.manifest
    metadata_of_model = schemas.ModelMetadata(
        name=manifest.name,
        versions=[manifest.revision],
        platform="fathom",
        inputs=[_tensor(spec) for spec in manifest.stages["front"].inputs],
        outputs=[_tensor(spec) for spec in manifest.stages["decoder"].outputs],
    )

    def named(name: str) -> schemas.ModelMetadata:
        if name != manifest.name:
            raise HTTPException(404, f"The only model is {manifest.name}")
        return metadata_of_model

    @router.get("", dependencies=guard)
    async def server() -> JSONResponse:
        return JSONResponse({"name": "fathom", "version": version, "extensions": []})

    @router.get("/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/health/ready")
    async def ready() -> dict[str, bool]:
        model.engine.check_ready()
        return {"ready": True}

    @router.get("/models/{name}", dependencies=guard)
    async def metadata(name: str) -> schemas.ModelMetadata:
        return named(name)

    @router.get("/models/{name}/ready")
    async def model_ready(name: str) -> dict[str, str | bool]:
        named(name)
        model.engine.check_ready()
        return {"name": name, "ready": True}

    return router


def _tensor(spec: TensorSpec) -> schemas.Tensor:
    shape = [size if isinstance(size, int) else -1 for size in spec.dims]
    return schemas.Tensor(name=spec.name, datatype=_DATATYPES[spec.dtype], shape=shape)
