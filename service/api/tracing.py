"""OpenTelemetry spans of requests for images, over HTTP and gRPC: one for the request and one below
it per stage, by OTLP/HTTP.

Imported only if tracing is on: the SDK and the exporter are the optional extra `tracing`; over gRPC
see tracing_grpc.py. The standard OTEL_* variables for the exporter (headers, certificates), the
queue and the resource apply as well; those for endpoint, protocol and sampler become settings.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import SplitResult, urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import SettingsError
from service.trace import Trace

METHOD, SEGMENT, INFER = "POST", "/segment", "/v2/models/{name}/infer"  # what is recorded
_INFER = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer")
FLUSH_S = 2.0  # a working collector needs milliseconds
# Of what a caller says. A longer traceparent is never valid, and OpenTelemetry would log each.
_MAX_LENGTH = 512
_W3C = TraceContextTextMapPropagator()

Attributes: TypeAlias = Mapping[str, str | int | float | Sequence[int]]


def exporter(endpoint: str, setting: str) -> OTLPSpanExporter:
    """The exporter to a collector: its base URL, or the URL of its traces. setting: the flag or the
    variable that names it. Raises SettingsError."""
    url = checked(endpoint, setting)
    return OTLPSpanExporter(
        endpoint if url.path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
    )


def checked(endpoint: str, setting: str) -> SplitResult:
    """The parts of a collector's URL. setting: what names it. Raises SettingsError."""
    try:
        url = urlsplit(endpoint)
        right = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # an invalid port or IPv6 address
        right = False
    if not right:
        raise SettingsError(f"{setting}: {endpoint!r} is no URL such as http://collector:4318")
    return url


@dataclass(frozen=True, slots=True)
class Begun:
    """A request's span, until it ends. traced: the trace's id, and whether it is sampled. fields:
    what the answer says of it."""

    span: Span
    traced: tuple[str, bool]
    fields: Mapping[str, str]


class Tracing:
    """Records requests and sends them in batches from its own thread.

    A full queue drops spans and never waits. sample: the recorded share of the requests without a
    `traceparent`; a caller's trace keeps its own flag.
    """

    def __init__(self, to: SpanExporter, *, sample: float, version: str) -> None:
        # Not the global provider: FastAPI and other libraries would use that and record every
        # request again.
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample)),
            resource=_resource(version),
            shutdown_on_exit=False,  # that waits up to 30 s; close() has its own limit
        )
        self._provider.add_span_processor(BatchSpanProcessor(to))
        self._tracer = self._provider.get_tracer("fathom", version)

    def around(self, app: ASGIApp) -> ASGIApp:
        """The outermost middleware, so that every answer to images has a `traceparent`.

        It leaves (trace id, whether it is sampled) in `request.state.traced`.
        """

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            route = _route(scope)
            if not route:
                await app(scope, receive, send)
                return
            begun = self.begin(Headers(scope=scope), f"{METHOD} {route}")
            state = scope.setdefault("state", {})
            state["traced"] = begun.traced
            status = 0

            async def send_with_parent(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    MutableHeaders(scope=message).update(begun.fields)
                await send(message)

            try:
                await app(scope, receive, send_with_parent)
            finally:
                traces = state.get("traces") or [state.get("trace", Trace())]
                code = {"http.response.status_code": status} if status else {}
                # 4xx is the caller's error, not the server's.
                failed = str(status) if status >= 500 else ""
                self.end(begun, traces, _of_request(scope, route) | code, failed, left=not status)

        return traced

    def begin(self, headers: Headers, name: str) -> Begun:
        """Begin a span in the caller's trace, or in a new one without a valid `traceparent`."""
        carrier = {}
        for field in ("traceparent", "tracestate"):
            lines = headers.getlist(field)
            short = sum(map(len, lines)) <= _MAX_LENGTH
            if lines and short and (field == "tracestate" or len(lines) == 1):
                carrier[field] = ",".join(lines)
        span = self._tracer.start_span(name, _W3C.extract(carrier), SpanKind.SERVER)
        context = span.get_span_context()
        fields: dict[str, str] = {}
        _W3C.inject(fields, set_span_in_context(span))
        return Begun(span, (f"{context.trace_id:032x}", context.trace_flags.sampled), fields)

    def end(
        self,
        begun: Begun,
        traces: Sequence[Trace],
        attributes: Attributes,
        failed: str = "",
        *,
        left: bool = False,
    ) -> None:
        """End a request's span, with its stages below it.

        traces: one per image. failed: the status, if the server is to blame. left: the caller has.
        """
        span = begun.span
        if span.is_recording():
            several = len(traces) > 1
            for index, trace in enumerate(traces):
                own = {"fathom.image.index": index} | _of_image(trace) if several else {}
                self._stages(span, trace, own)
            told = {"fathom.images": len(traces)} if several else _of_image(traces[0])
            span.set_attributes(
                {**attributes, "fathom.request_id": traces[0].request_id, **told}
                | ({"error.type": "cancelled"} if left else {})
            )
            if failed:
                span.set_attribute("error.type", failed)
                span.set_status(StatusCode.ERROR)
        span.end()

    def _stages(self, span: Span, trace: Trace, own: Attributes) -> None:
        # They ran in batches in other threads. Times of perf_counter become wall-clock times here.
        offset = time.time_ns() - time.perf_counter_ns()
        context = set_span_in_context(span)
        for stage, seconds in trace.stages.items():
            start = offset + round(trace.began[stage] * 1e9)
            child = self._tracer.start_span(stage, context, start_time=start, attributes=own)
            child.end(start + round(seconds * 1e9))

    async def close(self, limit_s: float) -> None:
        """Send the remaining spans, within limit_s seconds; what is not sent by then is lost."""
        # The provider's own shutdown waits for 30 s. A daemon, so that the process can end first.
        ended = threading.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            ended.set()

        threading.Thread(target=shut_down, name="tracing", daemon=True).start()
        await asyncio.to_thread(ended.wait, min(limit_s, FLUSH_S))


def _route(scope: Scope) -> str:
    """The route of a request that segments; empty for others."""
    if scope["type"] != "http" or scope["method"] != METHOD:
        return ""
    if scope["path"] == SEGMENT:
        return SEGMENT
    return INFER if _INFER.fullmatch(scope["path"]) else ""


def _resource(version: str) -> Resource:
    """The sender of the spans. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence."""
    ours = {"service.name": "fathom", "service.version": version}
    given = OTELResourceDetector().detect().attributes
    return Resource.create({key: text for key, text in ours.items() if key not in given})


def _of_request(scope: Scope, route: str) -> dict[str, str | int | float | Sequence[int]]:
    """The attributes of the stable semantic conventions for HTTP server spans."""
    headers = Headers(scope=scope)
    host, _, port = headers.get("host", "").rpartition(":")
    if not port.isdecimal():
        host, port = headers.get("host", ""), ""
    texts = {
        "http.request.method": METHOD,
        "http.route": route,
        "url.path": scope["path"],
        "url.query": scope["query_string"].decode("latin-1"),
        "url.scheme": scope["scheme"],
        "network.protocol.version": scope["http_version"],
        "client.address": scope["client"][0] if scope["client"] else "",
        "server.address": host,
        "user_agent.original": headers.get("user-agent", ""),
    }
    attributes: dict[str, str | int | float | Sequence[int]] = {}
    attributes |= {key: text[:_MAX_LENGTH] for key, text in texts.items() if text}
    if port:
        attributes["server.port"] = int(port[:5])
    return attributes


def _of_image(trace: Trace) -> dict[str, str | int | float | Sequence[int]]:
    """The attributes for the image and its plan, as far as they are known."""
    attributes: dict[str, str | int | float | Sequence[int]] = {}
    if trace.size is not None:
        attributes |= {"fathom.image.width": trace.size[0], "fathom.image.height": trace.size[1]}
    if trace.decision is not None:
        plan = trace.decision.plan
        attributes |= {
            "fathom.plan": plan.name,
            "fathom.canvas": plan.canvas,
            "fathom.depth": plan.depth,
            "fathom.gflops": plan.price,
            "fathom.reason": trace.decision.reason.value,
            "fathom.predicted_quality": trace.decision.predicted_quality,
            "fathom.batch_size": trace.batch_size,
        }
    return attributes
