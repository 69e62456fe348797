"""OpenTelemetry spans of /segment: one for the request, one below it for each stage, sent to a
collector by OTLP/HTTP.

Imported only when tracing is asked for: the SDK and the exporter are the optional extra `tracing`.
What the standard OTEL_* variables say about the exporter (headers, certificates), the queue and the
resource holds, too.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.core import Trace
from service.errors import SettingsError
from service.settings import flag

ROUTE = ("POST", "/segment")
FLUSH_S = 2.0  # what a collector that is up needs is milliseconds
_MAX_LENGTH = (
    512  # of traceparent and tracestate; longer ones are never right, and OpenTelemetry logs each
)
_W3C = TraceContextTextMapPropagator()


def exporter(endpoint: str) -> OTLPSpanExporter:
    """The exporter to a collector: its base URL, or the URL of its traces. Raises SettingsError."""
    try:
        url = urlsplit(endpoint)
        right = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # a port or an IPv6 address that is none
        right = False
    if not right:
        raise SettingsError(
            f"{flag('trace_endpoint')} is {endpoint!r}: it must be a URL such as http://collector:4318"
        )
    return OTLPSpanExporter(
        endpoint if url.path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
    )


class Tracing:
    """Records requests and sends them in batches from a thread of its own; a full queue drops
    spans, never waits.

    sample: share of the requests without a `traceparent` that are recorded; a caller's trace keeps
    its own flag.
    """

    def __init__(self, to: SpanExporter, *, sample: float, version: str) -> None:
        # Never made the global one: FastAPI, and any library that looks for that, would record
        # every request again.
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample)),
            resource=Resource.create({"service.name": "fathom", "service.version": version}),
            shutdown_on_exit=False,  # it waits up to 30 s; close() has a limit
        )
        self._provider.add_span_processor(BatchSpanProcessor(to))
        self._tracer = self._provider.get_tracer("fathom", version)

    def around(self, app: ASGIApp) -> ASGIApp:
        """The middleware, outermost, so that every answer to a segmentation carries `traceparent`.

        It leaves (trace id, whether it is sampled) in `request.state.traced`.
        """

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or (scope["method"], scope["path"]) != ROUTE:
                await app(scope, receive, send)
                return
            span = self._begin(Headers(scope=scope))
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
                self._end(span, state.get("trace", Trace()), status)

        return traced

    def _begin(self, headers: Headers) -> Span:
        """A span that continues the caller's trace, or begins a new one where `traceparent` is
        missing or malformed."""
        carrier = {}
        for name in ("traceparent", "tracestate"):
            lines = headers.getlist(name)
            if (
                lines
                and sum(map(len, lines)) <= _MAX_LENGTH
                and (name == "tracestate" or len(lines) == 1)
            ):
                carrier[name] = ",".join(lines)
        return self._tracer.start_span(" ".join(ROUTE), _W3C.extract(carrier), SpanKind.SERVER)

    def _end(self, span: Span, trace: Trace, status: int) -> None:
        """End a request's span, with its stages below it. status: 0 if the caller left before the
        answer began."""
        if not span.is_recording():
            span.end()
            return
        # The stages ran in other threads, in batches, before anybody knew that they were over:
        # their times are kept as perf_counter's, and become wall-clock times here.
        offset = time.time_ns() - time.perf_counter_ns()
        context = set_span_in_context(span)
        for stage, seconds in trace.stages.items():
            start = offset + round(trace.began[stage] * 1e9)
            child = self._tracer.start_span(stage, context, start_time=start)
            child.end(start + round(seconds * 1e9))
        method, route = ROUTE
        span.set_attributes(
            {
                "http.request.method": method,
                "http.route": route,
                "fathom.request_id": trace.request_id,
            }
            | _of_image(trace)
            | ({"http.response.status_code": status} if status else {"error.type": "cancelled"})
        )
        if status >= 500:  # 4xx is the caller's error, not the server's
            span.set_attribute("error.type", str(status))
            span.set_status(StatusCode.ERROR)
        span.end()

    async def close(self, limit_s: float) -> None:
        """Send what is left, for at most limit_s seconds; a collector that does not answer loses
        it."""
        # The provider's own shutdown waits for 30 s. A daemon, so that the process can end before
        # it does.
        ended = threading.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            ended.set()

        threading.Thread(target=shut_down, name="tracing", daemon=True).start()
        await asyncio.to_thread(ended.wait, min(limit_s, FLUSH_S))


def _of_image(trace: Trace) -> dict[str, str | int | float | Sequence[int]]:
    """What is known of the image and its plan."""
    found: dict[str, str | int | float | Sequence[int]] = {}
    if trace.size is not None:
        found |= {"fathom.image.width": trace.size[0], "fathom.image.height": trace.size[1]}
    if trace.decision is not None:
        plan = trace.decision.plan
        found |= {
            "fathom.plan": plan.name,
            "fathom.depth": plan.depth,
            "fathom.gflops": plan.gflops,
            "fathom.reason": trace.decision.reason.value,
            "fathom.predicted_quality": trace.decision.predicted_quality,
            "fathom.batch_size": trace.batch_size,
        }
    return found
