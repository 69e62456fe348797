"""OpenTelemetry spans of /segment: one for the request and one below it per stage, by OTLP/HTTP.

Imported only if tracing is on: the SDK and the exporter are the optional extra `tracing`; over gRPC
see tracing_grpc.py. The standard OTEL_* variables for the exporter (headers, certificates), the
queue and the resource apply as well; those for endpoint, protocol and sampler become settings.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Sequence
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
from service.settings import flag
from service.trace import Trace

METHOD, SEGMENT, INFER = "POST", "/segment", "/v2/models/{name}/infer"  # what is recorded
_INFER = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer")
FLUSH_S = 2.0  # a working collector needs milliseconds
# Of what a caller says. A longer traceparent is never valid, and OpenTelemetry would log each.
_MAX_LENGTH = 512
_W3C = TraceContextTextMapPropagator()


def exporter(endpoint: str) -> OTLPSpanExporter:
    """The exporter to a collector: its base URL, or the URL of its traces. Raises SettingsError."""
    url = checked(endpoint)
    return OTLPSpanExporter(
        endpoint if url.path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
    )


def checked(endpoint: str) -> SplitResult:
    """The parts of a collector's URL. Raises SettingsError."""
    try:
        url = urlsplit(endpoint)
        right = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # an invalid port or IPv6 address
        right = False
    if not right:
        raise SettingsError(
            f"{flag('trace_endpoint')} is {endpoint!r}: it must be a URL such as "
            "http://collector:4318"
        )
    return url


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
            span = self._begin(Headers(scope=scope), route)
            context = span.get_span_context()
            state = scope.setdefault("state", {})
            state["traced"] = (f"{context.trace_id:032x}", context.trace_flags.sampled)
            fields: dict[str, str] = {}
            _W3C.inject(fields, set_span_in_context(span))
            status = 0

            async def send_with_parent(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    MutableHeaders(scope=message).update(fields)
                await send(message)

            try:
                await app(scope, receive, send_with_parent)
            finally:
                self._end(span, scope, route, state.get("trace", Trace()), status)

        return traced

    def _begin(self, headers: Headers, route: str) -> Span:
        """Begin a span in the caller's trace, or in a new one without a valid `traceparent`."""
        carrier = {}
        for name in ("traceparent", "tracestate"):
            lines = headers.getlist(name)
            short = sum(map(len, lines)) <= _MAX_LENGTH
            if lines and short and (name == "tracestate" or len(lines) == 1):
                carrier[name] = ",".join(lines)
        return self._tracer.start_span(f"{METHOD} {route}", _W3C.extract(carrier), SpanKind.SERVER)

    def _end(self, span: Span, scope: Scope, route: str, trace: Trace, status: int) -> None:
        """End a request's span, with its stages below it.

        status: of the answer; 0 if the caller left before it began.
        """
        if not span.is_recording():
            span.end()
            return
        # The stages ran earlier, in batches in other threads. Their times are perf_counter's and
        # become wall-clock times here.
        offset = time.time_ns() - time.perf_counter_ns()
        context = set_span_in_context(span)
        for stage, seconds in trace.stages.items():
            start = offset + round(trace.began[stage] * 1e9)
            child = self._tracer.start_span(stage, context, start_time=start)
            child.end(start + round(seconds * 1e9))
        span.set_attributes(
            _of_request(scope, route)
            | {"fathom.request_id": trace.request_id}
            | _of_image(trace)
            | ({"http.response.status_code": status} if status else {"error.type": "cancelled"})
        )
        if status >= 500:  # 4xx is the caller's error, not the server's
            span.set_attribute("error.type", str(status))
            span.set_status(StatusCode.ERROR)
        span.end()

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
