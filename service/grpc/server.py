"""The calls of the protocol around a Segmenter, in the event loop that serves HTTP."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from service.api.auth import ApiKeys
from service.core import Ask
from service.errors import BadInference, FathomError, Overloaded, SettingsError, shown
from service.grpc.messages import MESSAGES, SERVICE
from service.metrics import Metrics
from service.open_inference import description
from service.open_inference.infer import Reply, counted, most_images, places, reply, run_all, take
from service.open_inference.outputs import Outputs
from service.open_inference.parameters import within
from service.open_inference.request import (
    Input,
    Offer,
    Request,
    check_input,
    check_shape,
    elements,
    wanted,
)
from service.segmenting import Segmenter
from service.settings import Settings, flag
from service.trace import Trace

GRACE_S = 1.0  # for answers that are on their way when the engine has ended
_OPEN = {"ServerLive", "ServerReady", "ModelReady"}  # to those without a key
_KINDS = {str: "string_param", int: "int64_param", float: "double_param"}


class GrpcServer:
    """version: the service's. keys: None asks for none."""

    def __init__(
        self,
        settings: Settings,
        segmenter: Segmenter,
        metrics: Metrics,
        *,
        version: str,
        keys: ApiKeys | None,
    ) -> None:
        self._settings, self._segmenter, self._metrics = settings, segmenter, metrics
        self._model, self._keys = segmenter.model, keys
        self._outputs = Outputs.of(segmenter.model)
        self._server: Any = None
        self._coming = 0  # messages that are being read
        self._told: dict[str, Callable[[], dict[str, Any]]] = {
            "ServerLive": lambda: {"live": True},
            "ServerReady": lambda: {"ready": description.is_ready(self._model)},
            "ModelReady": lambda: {"ready": description.is_ready(self._model)},
            "ServerMetadata": lambda: description.server(version),
            "ModelMetadata": lambda: description.metadata(self._model),
        }

    async def start(self, address: str) -> int:
        """Listen on HOST:PORT; the port that it is. Raises SettingsError."""
        handlers = {name: self._handler(name) for name in (*self._told, "ModelInfer")}
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self._settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ]
        )
        generic = grpc.method_handlers_generic_handler(SERVICE, handlers)
        self._server.add_generic_rpc_handlers((generic,))
        try:
            port: int = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise SettingsError(f"{flag('grpc_port')}: cannot listen on {address}") from error
        await self._server.start()
        return port

    async def stop(self) -> None:
        """End; what the engine has answered is still sent."""
        await self._server.stop(GRACE_S)

    def _handler(self, name: str) -> Any:
        async def call(messages: Any, context: Any) -> Any:
            trace = Trace(uuid.uuid4().hex)
            if name not in _OPEN:
                await self._authorize(trace, context)
            try:
                message = self._parsed(name, await self._read(name, messages, trace), trace)
                await self._check_names(message, context)
                if name in self._told:
                    return MESSAGES[f"{name}Response"](**self._told[name]())
                return await self._infer(message, trace, context)
            except FathomError as error:
                again = error.retry_after_s
                fields = () if again is None else (("retry-after", str(again)),)
                await context.abort(_code(error), error.detail, fields)

        # A stream, so that its one message is read only when we want it.
        return grpc.stream_unary_rpc_method_handler(
            call,
            response_serializer=MESSAGES[f"{name}Response"].SerializeToString,
        )

    async def _read(self, name: str, messages: Any, trace: Trace) -> bytes:
        """The message of a call. Raises what `Segmenter.place` raises, and Overloaded where too
        many come, before it is read."""
        arrived = time.perf_counter()
        with ExitStack() as stack:
            try:
                most = self._settings.queue_size * (2 if name in _OPEN else 1)  # health is told
                if self._coming >= most:
                    raise Overloaded("Too many messages come at once", shed="full", retry_after=1)
                if name == "ModelInfer":  # its images take places of their own once they are here
                    stack.enter_context(self._segmenter.place(Ask(), trace, arrived))
            except FathomError as error:
                if error.shed:
                    self._metrics.shed(error.shed)
                self._metrics.observe(trace, error.problem, time.perf_counter() - arrived)
                raise
            self._coming += 1
            try:
                return await anext(aiter(messages), b"")
            finally:
                self._coming -= 1

    async def _authorize(self, trace: Trace, context: Any) -> None:
        if self._keys is None:
            return
        fields = dict(context.invocation_metadata())
        scheme, _, bearer = str(fields.get("authorization", "")).partition(" ")
        key = str(fields.get("x-api-key", "")) or (bearer if scheme.lower() == "bearer" else "")
        name = self._keys.name_of(key)
        if name is None:
            self._metrics.observe(trace, "unauthorized", 0.0)
            text = "Send an API key that is known, as authorization: Bearer or as x-api-key"
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, text)
        trace.caller = name or ""

    def _parsed(self, name: str, data: bytes, trace: Trace) -> Any:
        """The request of a call. Here, so that gRPC does not answer UNKNOWN for what is none: it
        hands over bytes where no deserializer is named. Raises BadInference."""
        try:
            return MESSAGES[f"{name}Request"].FromString(data)
        except DecodeError as error:
            self._metrics.observe(trace, BadInference.problem, 0.0)
            raise BadInference(
                f"the {len(data)} bytes are no {name}Request of open_inference_grpc.proto"
            ) from error

    async def _check_names(self, message: Any, context: Any) -> None:
        """The model and the version, in the messages that have them."""
        fields = {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
        name, versions = self._model.manifest.name, description.versions(self._model)
        if fields.get("model_name", fields.get("name", name)) != name:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"The only model is {name}")
        if fields.get("model_version", fields.get("version", "")) not in ("", *versions):
            text = f"The model's versions are {' and '.join(versions)}"
            await context.abort(grpc.StatusCode.NOT_FOUND, text)

    async def _infer(self, message: Any, trace: Trace, context: Any) -> Any:
        arrived, traces = time.perf_counter(), [trace]
        with counted(self._metrics, traces, arrived, asyncio.CancelledError):
            self._model.engine.check_ready()
            request = _request(message, context.time_remaining(), self._outputs)
            pictures = request.input.pictures(most_images(self._settings))
            asked, count = request.wanted, len(pictures)
            with places(self._segmenter, asked, traces, count, arrived) as tickets:
                most = self._settings.max_pixels
                frames = await take(self._segmenter, request, pictures, traces, self._outputs, most)
                # The images are decoded: they need not wait as bytes, too.
                del request, message, pictures
                answers = await run_all(self._segmenter, tickets, frames, traces)
                del frames
                found, spans = await self._segmenter.in_thread(
                    lambda: reply(answers, asked, self._outputs)
                )
            for image, span in zip(traces, spans, strict=True):
                image.add(span.stage, span.began, span.ended)
            return _response(found)


def _code(error: FathomError) -> grpc.StatusCode:
    known = {
        429: grpc.StatusCode.RESOURCE_EXHAUSTED,
        500: grpc.StatusCode.INTERNAL,
        503: grpc.StatusCode.UNAVAILABLE,
        504: grpc.StatusCode.DEADLINE_EXCEEDED,
    }
    return known.get(error.status, grpc.StatusCode.INVALID_ARGUMENT)


def _request(message: Any, remaining_s: float | None, offer: Offer) -> Request:
    """remaining_s: until the caller's own deadline. offer: the model's outputs. Raises
    BadInference, BadBudget and BadPreference."""
    names = [out.name for out in message.outputs]
    found = wanted(message.id, _plain(message.parameters), names, offer, Ask())
    if remaining_s is not None:
        budget = within(found.ask.budget, max(1.0, remaining_s * 1000))
        found = replace(found, ask=replace(found.ask, budget=budget))
    if len(message.inputs) != 1:
        raise BadInference(f"there are {len(message.inputs)} inputs: send one")
    (tensor,) = message.inputs
    check_input(tensor.name, tensor.datatype)
    # Both belong to HTTP, and KServe's client sends them here, too.
    for entry in (tensor, *message.outputs):
        for key in _plain(entry.parameters).keys() - {"binary_data_size", "binary_data"}:
            raise BadInference(f"the parameter {shown(key)} of {shown(entry.name)} is unknown")
    raw, shape = list(message.raw_input_contents), check_shape(tensor.name, list(tensor.shape))
    if len(raw) > 1 or (raw and tensor.HasField("contents")):
        raise BadInference("the input must have contents or raw contents, of one tensor")
    if tensor.datatype == "BYTES":
        count = shape[0] if shape else 1
        files = elements(raw[0], count) if raw else list(tensor.contents.bytes_contents)
        return Request(found, Input(tensor.name, "BYTES", shape, files=files))
    try:
        values = raw[0] if raw else bytes(tensor.contents.uint_contents)
    except ValueError as error:
        raise BadInference("the values of the input must be from 0 to 255") from error
    return Request(found, Input(tensor.name, tensor.datatype, shape, values=values))


def _plain(parameters: Iterable[Any]) -> dict[str, object]:
    chosen = ((entry, entry.value.WhichOneof("parameter_choice")) for entry in parameters)
    return {entry.key: getattr(entry.value, kind) if kind else None for entry, kind in chosen}


def _response(found: Reply) -> Any:
    return MESSAGES["ModelInferResponse"](
        model_name=found.model_name,
        model_version=found.model_version,
        id=found.id,
        parameters=[
            {"key": key, "value": {_KINDS[type(value)]: value}}
            for key, value in found.parameters.items()
        ],
        outputs=[
            {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
            for tensor in found.outputs
        ],
        raw_output_contents=[tensor.raw() for tensor in found.outputs],
    )
