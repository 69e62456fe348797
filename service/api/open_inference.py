"""The routes below /v2: the Open Inference Protocol v2 over HTTP, with Triton's extensions.

Each path of a model also stands below /versions/V.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, params
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from service.api import encodings, openapi_inference
from service.api.body import Intake, media_type_of, whole
from service.api.fields import FIELD, PREFERENCE, VALUE_RANGE, single
from service.api.segment import ask_of_fields, while_connected
from service.errors import UnsupportedMediaType
from service.metrics import Metrics
from service.open_inference import description, rest
from service.open_inference.infer import (
    counted,
    most_images,
    places,
    reply,
    run_all,
    take,
)
from service.open_inference.outputs import Outputs
from service.open_inference.rest import HEADER_LENGTH
from service.segmenting import Segmenter
from service.settings import Settings
from service.trace import Trace

_TYPES = ("", "application/json", "application/octet-stream")  # KServe's and Triton's clients
_FIXED = "The model of this service is fixed: it is not loaded or unloaded by requests"
_SHARED = "Shared memory is not offered: send the data with the request"
_STARTUP = "is set when the service starts, not by requests"
# What Triton's clients can ask for and is not offered: path -> why.
_REFUSED = {
    "/repository/models/{model}/load": _FIXED,
    "/repository/models/{model}/unload": _FIXED,
    "/systemsharedmemory/{rest:path}": _SHARED,
    "/cudasharedmemory/{rest:path}": _SHARED,
    "/logging": f"Logging {_STARTUP}",
    "/trace/setting": f"Tracing {_STARTUP}",
    "/models/{model}/trace/setting": f"Tracing {_STARTUP}",
}


class InferRoute:
    """The handler of infer."""

    def __init__(
        self, segmenter: Segmenter, intake: Intake, metrics: Metrics, settings: Settings
    ) -> None:
        self._segmenter, self._intake, self._metrics = segmenter, intake, metrics
        self._max_pixels = settings.max_pixels
        self._outputs = Outputs.of(segmenter.model)
        self.max_images = most_images(settings)

    async def infer(self, request: Request) -> Response:
        trace: Trace = request.state.trace
        request.state.vary = f"Accept-Encoding, {FIELD}, {PREFERENCE}, {VALUE_RANGE}"
        traces = request.state.traces = [trace]
        gone = ClientDisconnect
        arrived, connected, stack = request.state.arrived, ExitStack(), ExitStack()
        with counted(self._metrics, traces, arrived, gone), connected, stack:
            # Whatever can be refused is refused before the body is read.
            fields = ask_of_fields(request.headers, self._segmenter.model)
            stack.enter_context(self._segmenter.place(fields, trace, request.state.arrived))
            body, header = _body(request), _header_length(request)
            async with self._intake.hold(request, body, whole) as data:
                connected.enter_context(while_connected(request))
                sent = await self._segmenter.in_thread(
                    partial(rest.parse, data, header, self._outputs, fields)
                )
                asked, pictures = sent.request, sent.request.input.pictures(self.max_images)
                stack.close()  # the place of a body becomes one place for each image
                tickets = stack.enter_context(
                    places(
                        self._segmenter, asked.wanted, traces, len(pictures), request.state.arrived
                    )
                )
                frames = await take(
                    self._segmenter, asked, pictures, traces, self._outputs, self._max_pixels
                )
            wanted, binary = asked.wanted, sent.binary
            del data, sent, asked, pictures  # the images are decoded
            answers = await run_all(self._segmenter, tickets, frames, traces)
            encoding = encodings.accepted(request.headers.getlist("accept-encoding"))

            def render() -> tuple[bytes, int | None]:
                found, spans = reply(answers, wanted, self._outputs)
                for trace, span in zip(traces, spans, strict=True):
                    trace.add(span.stage, span.began, span.ended)
                content, header_length = rest.write(found, binary)
                return encodings.encoded(content, encoding), header_length

            content, header_length = await self._segmenter.in_thread(render)
            return _answer(content, header_length, encoding)


def open_inference(
    settings: Settings,
    segmenter: Segmenter,
    intake: Intake,
    metrics: Metrics,
    *,
    version: str,
    guard: Sequence[params.Depends] = (),
) -> APIRouter:
    """The routes. version: the service's. guard: the dependencies of all but live and ready."""
    router = APIRouter(prefix="/v2", tags=["open inference protocol"])
    model = segmenter.model
    route = InferRoute(segmenter, intake, metrics, settings)
    known = description.versions(model)
    outputs = list(Outputs.of(model).known)

    async def named(name: str) -> None:
        if name != model.manifest.name:
            raise HTTPException(404, f"The only model is {model.manifest.name}")

    async def versioned(version: str) -> None:
        if version not in known:
            raise HTTPException(404, f"The model's versions are {' and '.join(known)}")

    def of_model(
        path: str, handler: Callable[..., Any], method: str = "GET", *, open_to_all: bool = False
    ) -> None:
        """A path of the model, with and without a version."""
        keys = [] if open_to_all else guard
        for pinned, checks in (("", [named]), ("/versions/{version}", [named, versioned])):
            router.add_api_route(
                f"/models/{{name}}{pinned}{path}",
                handler,
                methods=[method],
                dependencies=[*keys, *map(Depends, checks)],
                **openapi_inference.described(path, model.manifest, outputs),
            )

    @router.get("", dependencies=guard)
    async def server() -> JSONResponse:
        return JSONResponse(description.server(version))

    @router.get("/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/health/ready")
    async def ready() -> dict[str, bool]:
        model.engine.check_ready()
        return {"ready": True}

    @router.get("/models", dependencies=guard)
    async def models() -> dict[str, list[str]]:
        return {"models": [model.manifest.name]}

    @router.post(
        "/repository/index",
        dependencies=guard,
        **openapi_inference.described("index", model.manifest, outputs),
    )
    async def index(request: Request) -> JSONResponse:
        async with intake.hold(request, _body(request), whole) as data:
            return JSONResponse(description.index(model, rest.only_ready(data)))

    async def statistics() -> JSONResponse:
        return JSONResponse(description.statistics(model, metrics))

    async def metadata() -> JSONResponse:
        return JSONResponse(description.metadata(model))

    async def config() -> JSONResponse:
        return JSONResponse(description.config(model, route.max_images))

    async def model_ready() -> dict[str, str | bool]:
        model.engine.check_ready()
        return {"name": model.manifest.name, "ready": True}

    router.add_api_route("/models/stats", statistics, dependencies=guard)
    of_model("", metadata)
    of_model("/ready", model_ready, open_to_all=True)
    of_model("/config", config)
    of_model("/stats", statistics)
    of_model("/infer", route.infer, "POST")
    for path, why in _REFUSED.items():
        router.add_api_route(
            path,
            _refusal(why),
            methods=["GET", "POST"],
            dependencies=guard,
            include_in_schema=False,
        )
    return router


def _refusal(why: str) -> Callable[[], Any]:
    async def refuse() -> None:
        raise HTTPException(400, why)

    return refuse


def _body(request: Request) -> AsyncGenerator[bytes, None]:
    """The body's stream without its content encoding. Raises BadHeader, UnsupportedMediaType."""
    kind = media_type_of(request.headers)
    if kind not in _TYPES:
        raise UnsupportedMediaType(
            f"The content type is {kind}: send {' or '.join(filter(None, _TYPES))}"
        )
    encoding = ",".join(request.headers.getlist("content-encoding"))
    return encodings.decoded(request.stream(), encoding)


def _header_length(request: Request) -> str | None:
    """The field's value; None without the field. Raises BadHeader."""
    return single(request.headers, HEADER_LENGTH) if HEADER_LENGTH in request.headers else None


def _answer(content: bytes, header_length: int | None, encoding: str) -> Response:
    headers = {"Content-Encoding": encoding} if encoding else {}
    if header_length is None:
        return Response(content, headers=headers, media_type="application/json")
    headers[HEADER_LENGTH] = str(header_length)
    return Response(content, headers=headers, media_type="application/octet-stream")
