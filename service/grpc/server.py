"""The calls of the protocol around a Segmenter, in the event loop that serves HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from service import outcomes
from service.api.auth import ApiKeys, UnknownKeyError
from service.api.fields import Fields, of_metadata
from service.api.middleware import REQUEST_ID, request_id_of
from service.api.segment import ask_of_fields
from service.core import Ask
from service.errors import BadInference, Overloaded, SettingsError
from service.grpc.endings import RefusedError, refusals, told_of
from service.grpc.messages import MESSAGES, SERVICE
from service.grpc.tensors import request_of, response_of
from service.metrics import Metrics
from service.open_inference import description
from service.open_inference.infer import counted, most_images, places, reply, run_all, take
from service.open_inference.outputs import Outputs
from service.segmenting import Segmenter
from service.settings import Settings, flag
from service.trace import Trace

if TYPE_CHECKING:  # its packages are installed only for tracing
    from service.api.tracing import Tracing

GRACE_S = 1.0  # for answers that are on their way when the engine has ended
HEALTH = "grpc.health.v1.Health"  # what Kubernetes and proxies ask
_HEALTH_CHECK = "HealthCheck"  # its call Check
_SERVING, _NOT_SERVING = 1, 2
_OPEN = {"ServerLive", "ServerReady", "ModelReady", _HEALTH_CHECK}  # to those without a key
_EXTENSIONS = ["parameters"]  # of the others, the calls are not there
INFER = "ModelInfer"


class GrpcServer:
    """version: the service's. keys: None asks for none. tracing: None: no spans."""

    def __init__(
        self,
        settings: Settings,
        segmenter: Segmenter,
        metrics: Metrics,
        *,
        version: str,
        keys: ApiKeys | None,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self._settings, self._segmenter, self._metrics = settings, segmenter, metrics
        self._model, self._keys = segmenter.model, keys
        self._outputs = Outputs.of(segmenter.model)
        self._server: Any = None
        self._drained: asyncio.Task[None] | None = None  # held, since the loop does not
        self._coming = 0  # messages that are being read
        self._told: dict[str, Callable[[], dict[str, Any]]] = {
            "ServerLive": lambda: {"live": True},
            "ServerReady": lambda: {"ready": description.is_ready(self._model)},
            "ModelReady": lambda: {"ready": description.is_ready(self._model)},
            "ServerMetadata": lambda: description.server(version) | {"extensions": _EXTENSIONS},
            "ModelMetadata": lambda: description.metadata(self._model),
            _HEALTH_CHECK: lambda: {
                "status": _SERVING if description.is_ready(self._model) else _NOT_SERVING
            },
        }

    async def start(self, address: str) -> int:
        """Listen on HOST:PORT; the port that it is. Raises SettingsError."""
        handlers = {name: self._handler(name) for name in (*self._told, INFER)}
        health = {"Check": handlers.pop(_HEALTH_CHECK)}
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self._settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ]
        )
        generic = [
            grpc.method_handlers_generic_handler(service, calls)
            for service, calls in ((SERVICE, handlers), (HEALTH, health))
        ]
        self._server.add_generic_rpc_handlers(generic)
        try:
            port: int = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise SettingsError(f"{flag('grpc_port')}: cannot listen on {address}") from error
        await self._server.start()
        return port

    def drain(self, timeout_s: float) -> None:
        """Take no further calls; those that are open have so long."""
        self._drained = asyncio.create_task(self._server.stop(timeout_s))

    async def stop(self) -> None:
        """End; what the engine has answered is still sent."""
        await self._server.stop(GRACE_S)

    def _handler(self, name: str) -> Any:
        async def call(messages: Any, context: Any) -> Any:
            fields = of_metadata(context.invocation_metadata() or ())
            traces = [trace := Trace(request_id_of(fields))]
            told, span, code = [(REQUEST_ID.lower(), trace.request_id)], None, None
            if self._tracing is not None and name == INFER:
                span = self._tracing.begin(fields, f"{SERVICE}/{name}")
                trace.trace_id, trace.sampled = span.traced
                told += span.fields.items()
            context.set_trailing_metadata(told)
            try:
                with refusals(trace.request_id):
                    found = await self._answer(name, messages, fields, traces, context)
                code = grpc.StatusCode.OK
                return found
            except RefusedError as error:
                code = error.code
                again = [] if error.again is None else [("retry-after", str(error.again))]
                try:
                    await context.abort(code, str(error), (*told, *again))
                except grpc.aio.InternalError as gone:  # gRPC would log a failure
                    raise asyncio.CancelledError from gone
            finally:
                if self._tracing is not None and span is not None:
                    self._tracing.end(span, traces, *told_of(name, code), left=code is None)

        # A stream, so that its one message is read only when we want it.
        return grpc.stream_unary_rpc_method_handler(
            call,
            response_serializer=MESSAGES[f"{name}Response"].SerializeToString,
        )

    async def _answer(
        self, name: str, messages: Any, fields: Fields, traces: list[Trace], context: Any
    ) -> Any:
        arrived, ask, trace = time.perf_counter(), Ask(), traces[0]
        if name not in _OPEN:
            self._authorize(trace, fields)

        def ended(outcome: str) -> None:
            """Only images count, and what was refused before they were here."""
            if outcome != "ok":
                self._metrics.observe(trace, outcome, time.perf_counter() - arrived)

        with outcomes.counted(self._metrics, asyncio.CancelledError, ended):
            if name == INFER:
                ask = ask_of_fields(fields, self._model)
            message = _parsed(name, await self._read(name, messages, ask, trace))
        self._check_names(message)
        if name in self._told:
            return MESSAGES[f"{name}Response"](**self._told[name]())
        return await self._infer(message, ask, traces, context.time_remaining())

    async def _read(self, name: str, messages: Any, ask: Ask, trace: Trace) -> bytes:
        """The message of a call. Raises what `Segmenter.place` raises, and Overloaded where too
        many come, before it is read."""
        most = self._settings.queue_size * (2 if name in _OPEN else 1)  # health is told
        if self._coming >= most:
            raise Overloaded("Too many messages come at once", shed="full", retry_after=1)
        with ExitStack() as stack:
            if name == INFER:  # its images take places of their own once they are here
                stack.enter_context(self._segmenter.place(ask, trace, time.perf_counter()))
            self._coming += 1
            try:
                return await anext(aiter(messages), b"")
            finally:
                self._coming -= 1

    def _authorize(self, trace: Trace, fields: Fields) -> None:
        """Note the key's name, before the message is read."""
        if self._keys is None:
            return
        try:
            trace.caller = self._keys.caller(fields)
        except UnknownKeyError as error:
            self._metrics.observe(trace, "unauthorized", 0.0)
            raise RefusedError(grpc.StatusCode.UNAUTHENTICATED, str(error)) from error

    def _check_names(self, message: Any) -> None:
        """The model, the version and the service, in the messages that have them."""
        fields = {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
        name, versions = self._model.manifest.name, description.versions(self._model)
        if fields.get("model_name", fields.get("name", name)) != name:
            raise RefusedError(grpc.StatusCode.NOT_FOUND, f"The only model is {name}")
        if fields.get("service", "") not in ("", SERVICE):
            raise RefusedError(grpc.StatusCode.NOT_FOUND, f"The only service is {SERVICE}")
        if fields.get("model_version", fields.get("version", "")) not in ("", *versions):
            text = f"The model's versions are {' and '.join(versions)}"
            raise RefusedError(grpc.StatusCode.NOT_FOUND, text)

    async def _infer(
        self, message: Any, fields: Ask, traces: list[Trace], remaining_s: float | None
    ) -> Any:
        arrived = time.perf_counter()
        with counted(self._metrics, traces, arrived, asyncio.CancelledError):
            self._model.engine.check_ready()
            request = request_of(message, fields, remaining_s, self._outputs)
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
            return response_of(found)


def _parsed(name: str, data: bytes) -> Any:
    """The request of a call. Here, so that gRPC does not answer UNKNOWN for what is none: it hands
    over bytes where no deserializer is named. Raises BadInference."""
    try:
        return MESSAGES[f"{name}Request"].FromString(data)
    except DecodeError as error:
        raise BadInference(
            f"the {len(data)} bytes are no {name}Request of open_inference_grpc.proto"
        ) from error
