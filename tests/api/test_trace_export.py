"""Where spans go: a collector that is slow, or absent; a service without the packages."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from service.__main__ import open_tracing
from service.api.tracing import Tracing, exporter
from service.bundle import Bundle, Manifest
from service.command_line import load, standard_collector
from service.errors import SettingsError
from service.settings import Settings
from tests.api.asgi import call, post
from tests.api.traced import ON_THE_GLANCE, WAIT_S, World, parent_of
from tests.pictures import flat
from tests.processes import ROOT, STRICT_SERVICE, environment, python


class Stuck(SpanExporter):
    """A collector that does not answer until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.got: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        assert self.released.wait(WAIT_S)
        self.got += spans
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is held."""


def test_a_stuck_collector_delays_no_answer_and_the_end_by_a_bounded_time(
    fake_manifest: Manifest,
) -> None:
    stuck = Stuck()
    world = World(fake_manifest, stuck)
    begun = time.perf_counter()
    try:
        answers = world.ask(*(post() for _ in range(8)))
    finally:
        stuck.released.set()
    assert [answer[0] for answer in answers] == [200] * 8
    assert (
        time.perf_counter() - begun < 15
    )  # two seconds for the flush, the rest for a slow machine; unbounded: 30


def test_a_full_queue_drops_spans_instead_of_growing(
    fake_manifest: Manifest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    stuck = Stuck()
    tracing = Tracing(stuck, sample=1.0, version="1")

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def run() -> None:
        for _ in range(100):
            await call(tracing.around(inner), post())
        stuck.released.set()
        await tracing.close(WAIT_S)

    asyncio.run(run())
    assert 8 <= len(stuck.got) <= 12  # what waited, and the batch that was on its way
    assert "Queue full" in caplog.text


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, ExportTraceServiceRequest]]]]:
    """An OTLP collector on loopback: its URL, and the path and content of each request."""
    got: list[tuple[str, ExportTraceServiceRequest]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, ExportTraceServiceRequest.FromString(content)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """The test's output stays clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("path", ["", "/", "/v1/traces"])
def test_spans_reach_a_collector_when_the_service_ends(fake_manifest: Manifest, path: str) -> None:
    with collector() as (url, got):
        (answer,) = World(fake_manifest, exporter(url + path, "--trace-endpoint")).ask(post())
    assert {where for where, _ in got} == {"/v1/traces"}
    (resource,) = got[0][1].resource_spans
    spans = [span for scoped in resource.scope_spans for span in scoped.spans]
    assert {span.name for span in spans} == {"POST /segment", *ON_THE_GLANCE}
    assert {span.trace_id.hex() for span in spans} == {parent_of(answer)[0]}
    assert {"service.name", "service.version"} <= {
        entry.key for entry in resource.resource.attributes
    }


def test_a_collector_that_is_not_there_is_logged_and_costs_no_request(
    fake_manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    with collector() as (url, _):
        pass  # its port is free again
    (answer,) = World(fake_manifest, exporter(url, "--trace-endpoint")).ask(post())
    assert answer[0] == 200
    assert "exporting spans" in caplog.text


@pytest.mark.parametrize(
    "endpoint",
    [
        "collector:4318",
        "ftp://collector",
        "http://",
        "//collector",
        "http://x:port",
        "http://[::1",
        "http://x:0",
    ],
)
def test_an_endpoint_that_is_no_url_is_a_wrong_setting(endpoint: str) -> None:
    with pytest.raises(SettingsError, match="--trace-endpoint: "):
        open_tracing(Settings(trace_endpoint=endpoint), "1")
    environ = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint}
    settings, standard = load([], environ), standard_collector([], environ)
    with pytest.raises(SettingsError, match="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: "):
        open_tracing(settings, "1", standard)


@pytest.mark.parametrize(
    "variable",
    ["OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_SPAN_EVENT_COUNT_LIMIT", "OTEL_BSP_SCHEDULE_DELAY"],
)
def test_a_variable_that_the_sdk_does_not_take_is_a_wrong_setting(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "-1")
    settings = Settings(trace_endpoint="http://127.0.0.1:9")
    with pytest.raises(SettingsError, match=r"an OTEL_\* variable is wrong: "):
        open_tracing(settings, "1")


def test_a_variable_that_the_sdk_does_not_take_as_it_is_imported_is_a_wrong_setting(
    fake_bundle: Bundle,
) -> None:
    command = [*STRICT_SERVICE, "--backend", "fake", "--bundle", str(fake_bundle.root)]
    ended = subprocess.run(
        [*command, "--trace-endpoint", "http://127.0.0.1:9"],
        cwd=ROOT,
        env=environment() | {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many"},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert ended.returncode == 2
    assert "an OTEL_* variable is wrong: OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_without_the_packages_asking_for_tracing_is_a_wrong_setting_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "service.api.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match=r"--trace-endpoint.*'\.\[tracing\]'"):
        open_tracing(Settings(trace_endpoint="http://127.0.0.1:4318"), "1")
    assert open_tracing(Settings(), "1") is None


def test_without_the_packages_a_standard_variable_alone_costs_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "service.api.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    settings, standard = load([], environ), standard_collector([], environ)
    assert open_tracing(settings, "1", standard) is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in record.message
    assert "'.[tracing]'" in record.message
    assert standard_collector(["--trace-endpoint", "http://a"], environ) == ""
    assert standard_collector([], environ | {"FATHOM_TRACE_ENDPOINT": "http://a"}) == ""


def test_spans_over_grpc_need_an_extra_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(trace_endpoint="http://127.0.0.1:4317", trace_protocol="grpc")
    monkeypatch.delitem(sys.modules, "service.api.tracing_grpc", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc", None)
    with pytest.raises(SettingsError, match=r"--trace-endpoint.*'\.\[tracing-grpc\]'"):
        open_tracing(settings, "1")


def test_spans_arrive_over_grpc(fake_manifest: Manifest) -> None:
    grpc = pytest.importorskip("grpc", reason="needs the extra tracing-grpc")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc")
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
        ExportTraceServiceResponse,
    )

    from service.api.tracing_grpc import exporter as over_grpc

    got: list[ExportTraceServiceRequest] = []

    class Collector(service.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
            got.append(request)
            return ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    service.add_TraceServiceServicer_to_server(Collector(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        world = World(fake_manifest, over_grpc(f"http://127.0.0.1:{port}"))
        assert world.ask(post())[0][0] == 200
    finally:
        server.stop(None)
    spans = [s for r in got for e in r.resource_spans for p in e.scope_spans for s in p.spans]
    assert {span.name for span in spans} == {"POST /segment", *ON_THE_GLANCE}


def test_the_service_starts_without_the_packages_and_does_not_load_them_where_they_are() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk'] = None; "
        "sys.modules['opentelemetry.exporter'] = None\n"
        "import service.__main__, service.api.app\n"
        "from service.settings import Settings\n"
        "print(service.__main__.open_tracing(Settings(), '1'), 'service.api.tracing' in "
        "sys.modules)"
    )
    run = python("-W", "error", "-c", code)
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "None False", "")


def test_a_real_service_logs_json_only_and_flushes_its_spans_on_sigterm(
    fake_bundle: Bundle,
) -> None:
    with collector() as (url, got):
        command = [
            *(*STRICT_SERVICE, "--backend", "fake", "--bundle", str(fake_bundle.root)),
            *("--trace-endpoint", url, "--log-format", "json"),
        ]
        with subprocess.Popen(
            command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            lines = [json.loads(process.stderr.readline())]
            while "listening on" not in lines[-1]["message"]:
                lines.append(json.loads(process.stderr.readline()))
            address = lines[-1]["message"].split()[-1]
            answer = segment_when_ready(address)
            process.terminate()
            rest = process.communicate(timeout=WAIT_S)[1]
            assert process.returncode == 0, rest
    lines += [json.loads(line) for line in rest.splitlines()]
    (request,) = [line for line in lines if line["logger"] == "fathom.request"]
    assert request["trace_id"] == answer.headers["traceparent"].split("-")[1]
    assert (request["status"], request["outcome"], request["plan"]) == (200, "ok", "d1")
    spans = [
        span
        for _, sent in got
        for each in sent.resource_spans
        for part in each.scope_spans
        for span in part.spans
    ]
    assert {span.name for span in spans} == {"POST /segment", *ON_THE_GLANCE}


def segment_when_ready(address: str) -> httpx.Response:
    end = time.monotonic() + WAIT_S
    while httpx.get(f"{address}/readyz").status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.02)
    return httpx.post(f"{address}/segment", content=flat(), headers={"Content-Type": "image/png"})
