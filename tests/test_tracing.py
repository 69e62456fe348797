"""Tracing: one span per segmentation with its stages, the caller's trace, and a collector that is
slow, or absent."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from opentelemetry import trace as opentelemetry
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from tests.test_app import GONE, body, call, image_bytes, post, scope, started

from service import __main__ as entry
from service.api.app import create_app
from service.api.tracing import Tracing, exporter
from service.bundle import Bundle, Manifest
from service.engines.fake import FakeBackend
from service.errors import SettingsError
from service.inference.engine import Scheduler
from service.metrics import STAGES, Metrics
from service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
WAIT_S = 30.0


class World:
    """The app with a real scheduler and a slow fake engine, and where its spans go."""

    def __init__(
        self, manifest: Manifest, to: SpanExporter | None = None, sample: float = 1.0
    ) -> None:
        self.kept = InMemorySpanExporter()
        self.metrics = Metrics(layers=4, max_batch=4)
        delay_s = {"front": 0.004, "decoder": 0.002} | {
            f"d{depth}": 0.003 * depth for depth in (1, 2, 3, 4)
        }
        self.backend = FakeBackend(manifest, delay_s=delay_s)
        settings = replace(Settings(), batch_wait_ms=50.0, drain_timeout_s=5.0)
        self.scheduler = Scheduler(lambda: self.backend, manifest, settings, self.metrics)
        tracing = Tracing(to or self.kept, sample=sample, version="1")
        self.app: FastAPI = create_app(
            settings, manifest, self.scheduler, self.metrics, tracing=tracing
        )

    def ask(self, *requests: dict[str, Any]) -> list[Any]:
        """Send these together to the started app, and end it, which sends the spans."""

        async def run() -> list[Any]:
            async with self.ready():
                return list(
                    await asyncio.gather(
                        *(call(self.app, each, body(image_bytes())) for each in requests)
                    )
                )

        return asyncio.run(run())

    @asynccontextmanager
    async def ready(self) -> AsyncIterator[None]:
        async with asyncio.timeout(WAIT_S), started(self.app):
            while self.scheduler.state != "ready":
                await asyncio.sleep(0.002)
            yield

    @property
    def servers(self) -> list[ReadableSpan]:
        return [span for span in self.kept.get_finished_spans() if span.kind is SpanKind.SERVER]

    def below(self, span: ReadableSpan) -> list[ReadableSpan]:
        return [each for each in self.kept.get_finished_spans() if each.parent == span.context]


@pytest.fixture
def world(fake_manifest: Manifest) -> World:
    return World(fake_manifest)


def parent_of(answer: Any) -> tuple[str, str, bool]:
    """The answer's trace id, span id, and whether it is sampled. Beside that bit, 2 says that the
    id is random."""
    match = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-0([0-3])", answer[1]["traceparent"])
    assert match is not None, answer[1]
    return match[1], match[2], bool(int(match[3]) & 1)


# -- spans -----------------------------------------------------------------------------------------


def test_a_request_is_a_span_with_a_span_per_stage_at_its_true_time(world: World) -> None:
    before = time.time_ns()
    (answer,) = world.ask(post(x_request_id="r1", compute_budget="depth=2"))
    (span,) = world.servers
    assert answer[0] == 200
    assert (span.name, span.parent, span.status.status_code) == (
        "POST /segment",
        None,
        StatusCode.UNSET,
    )
    assert parent_of(answer) == (
        f"{span.context.trace_id:032x}",
        f"{span.context.span_id:016x}",
        True,
    )
    stages = world.below(span)
    assert [stage.name for stage in stages] == list(STAGES)
    assert len(world.kept.get_finished_spans()) == 1 + len(STAGES)
    told = dict(re.findall(r"(\w+);dur=([\d.]+)", answer[1]["server-timing"]))
    assert before <= span.start_time <= stages[0].start_time
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        assert (
            stage.start_time
            <= stage.end_time
            <= (following.start_time if following else span.end_time)
        )
        assert (stage.end_time - stage.start_time) / 1e6 == pytest.approx(
            float(told[stage.name]), abs=0.002
        )
    times = {stage.name: (stage.end_time - stage.start_time) / 1e9 for stage in stages}
    assert times["queue"] >= 0.045  # the batch was not full
    assert times["front"] >= 0.004
    assert times["encoder"] >= 0.003


def test_a_span_tells_plan_reason_image_and_status(world: World) -> None:
    world.ask(post(x_request_id="r1", compute_budget="depth=1, max-loss=0"))
    assert world.servers[0].attributes is not None
    found = dict(world.servers[0].attributes)
    assert found.pop("fathom.predicted_quality") == pytest.approx(0.9)
    assert found == {
        "http.request.method": "POST",
        "http.route": "/segment",
        "http.response.status_code": 200,
        "fathom.request_id": "r1",
        "fathom.image.width": 64,
        "fathom.image.height": 48,
        "fathom.plan": "d1",
        "fathom.depth": 1,
        "fathom.gflops": 2.0,
        "fathom.reason": "request",
        "fathom.batch_size": 1,
    }
    assert world.servers[0].resource.attributes["service.name"] == "fathom"


def test_images_of_one_batch_have_spans_of_their_own_in_traces_of_their_own(world: World) -> None:
    world.ask(*(post(x_request_id=f"r{number}") for number in range(3)))
    assert len({span.context.trace_id for span in world.servers}) == 3
    for span in world.servers:
        assert span.attributes is not None
        assert span.attributes["fathom.batch_size"] == 3
        assert [stage.name for stage in world.below(span)] == list(STAGES)


def test_a_refused_request_is_a_span_without_the_stages_that_it_did_not_reach(world: World) -> None:
    (answer,) = world.ask(post(accept="text/html"))
    (span,) = world.servers
    assert answer[0] == 406
    assert parent_of(answer)[1] == f"{span.context.span_id:016x}"
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 406
    assert (span.status.status_code, world.below(span)) == (
        StatusCode.UNSET,
        [],
    )  # the caller's error, not ours
    assert "fathom.plan" not in span.attributes


def test_an_unforeseen_error_is_a_failed_span_whose_answer_has_its_parent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret of the engine room")

    monkeypatch.setattr(world.scheduler, "submit", broken)
    (answer,) = world.ask(post())
    (span,) = world.servers
    assert answer[0] == 500
    assert parent_of(answer)[1] == f"{span.context.span_id:016x}"
    assert span.attributes is not None
    assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, "500")
    assert "secret" not in span.to_json()


def test_a_caller_that_leaves_is_a_span_without_a_status(world: World) -> None:
    async def run() -> None:
        async with world.ready():
            assert await call(world.app, post(), body(b"x", True), GONE) is None

    asyncio.run(run())
    (span,) = world.servers
    assert span.attributes is not None
    assert span.attributes["error.type"] == "cancelled"
    assert "http.response.status_code" not in span.attributes


def test_nothing_but_segmentations_is_recorded(world: World) -> None:
    answers = world.ask(
        *(scope(path=path) for path in ("/healthz", "/metrics", "/plans")), scope(path="/segment")
    )
    assert [answer[0] for answer in answers] == [200, 200, 200, 405]
    assert not any("traceparent" in answer[1] for answer in answers)
    assert world.kept.get_finished_spans() == ()


def test_the_framework_records_nothing_beside_us(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its own telemetry wakes up when there is a global provider, which a library may set.
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    provider = TracerProvider(shutdown_on_exit=False)
    everywhere = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(everywhere))
    monkeypatch.setattr(opentelemetry, "_TRACER_PROVIDER", provider)
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    assert opentelemetry.get_tracer_provider() is provider
    world.ask(post(), scope(path="/healthz"))
    assert len(world.servers) == 1
    assert everywhere.get_finished_spans() == ()


# -- the caller's trace
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [0.0, 1.0])
@pytest.mark.parametrize("flag", ["00", "01"])
def test_a_callers_trace_is_continued_and_its_flag_counts_whatever_our_share_is(
    fake_manifest: Manifest, sample: float, flag: str
) -> None:
    world = World(fake_manifest, sample=sample)
    (answer,) = world.ask(post(traceparent=f"00-{TRACE}-{PARENT}-{flag}", tracestate="vendor=1"))
    assert (parent_of(answer)[0], parent_of(answer)[2]) == (TRACE, flag == "01")
    assert parent_of(answer)[1] != PARENT
    assert len(world.servers) == int(flag)
    for span in world.servers:
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == PARENT
        assert span.parent.is_remote
        assert span.context.trace_state.to_header() == "vendor=1"


def test_a_share_of_none_records_no_new_trace_and_still_names_it(fake_manifest: Manifest) -> None:
    world = World(fake_manifest, sample=0.0)
    (answer,) = world.ask(post())
    assert not parent_of(answer)[2]
    assert world.kept.get_finished_spans() == ()


@pytest.mark.parametrize(
    "given",
    [
        "",
        "x",
        TRACE,
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-01-more",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-é1",
        f"00-{TRACE}-{PARENT}-01" + "x" * 10_000,
        f"00-{TRACE}-{PARENT}-01, 00-{TRACE}-{PARENT}-01",
    ],
)
def test_a_malformed_parent_begins_a_new_trace_and_is_no_error(
    world: World, caplog: pytest.LogCaptureFixture, given: str
) -> None:
    (answer,) = world.ask(post(traceparent=given, tracestate="x" * 10_000))
    assert answer[0] == 200
    assert (world.servers[0].parent, parent_of(answer)[2]) == (None, True)
    assert parent_of(answer)[0] != TRACE
    assert "header exceeded" not in caplog.text  # a stranger must not fill the log


def test_two_parents_are_none(world: World) -> None:
    given = post(traceparent=f"00-{TRACE}-{PARENT}-01")
    given["headers"].append((b"traceparent", f"00-{TRACE}-{PARENT}-01".encode()))
    (answer,) = world.ask(given)
    assert (answer[0], world.servers[0].parent) == (200, None)


@pytest.mark.parametrize("state", ["é", "=", "a=1,a=2", "x" * 600, ",,,"])
def test_a_malformed_state_does_not_lose_the_parent(world: World, state: str) -> None:
    (answer,) = world.ask(post(traceparent=f"00-{TRACE}-{PARENT}-01", tracestate=state))
    assert (answer[0], parent_of(answer)[0]) == (200, TRACE)


# -- exemplars and the log
# ---------------------------------------------------------------------------------------------


def exemplars(metrics: Metrics) -> list[dict[str, str]]:
    text = metrics.expose("application/openmetrics-text")[0].decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = families["fathom_request_duration_seconds"].samples
    return [sample.exemplar.labels for sample in samples if sample.exemplar]


def test_a_recorded_request_is_an_exemplar_and_its_log_line_has_the_trace(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        (answer,) = world.ask(post(x_request_id="r1"))
    assert exemplars(world.metrics) == [{"trace_id": parent_of(answer)[0]}]
    (line,) = [message for message in caplog.messages if message.startswith("request_id=r1 ")]
    assert line.endswith(f" trace_id={parent_of(answer)[0]}")


def test_a_request_that_is_not_recorded_is_no_exemplar(
    fake_manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(fake_manifest, sample=0.0)
    with caplog.at_level(logging.INFO):
        (answer,) = world.ask(post())
    assert exemplars(world.metrics) == []
    assert (
        f" trace_id={parent_of(answer)[0]}" in caplog.text
    )  # the caller's other services may have recorded it


# -- the collector ---------------------------------------------------------------------------------


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
        (answer,) = World(fake_manifest, exporter(url + path)).ask(post())
    assert {where for where, _ in got} == {"/v1/traces"}
    (resource,) = got[0][1].resource_spans
    spans = [span for scoped in resource.scope_spans for span in scoped.spans]
    assert {span.name for span in spans} == {"POST /segment", *STAGES}
    assert {span.trace_id.hex() for span in spans} == {parent_of(answer)[0]}
    assert {"service.name", "service.version"} <= {
        entry.key for entry in resource.resource.attributes
    }


def test_a_collector_that_is_not_there_is_logged_and_costs_no_request(
    fake_manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    with collector() as (url, _):
        pass  # its port is free again
    (answer,) = World(fake_manifest, exporter(url)).ask(post())
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
    with pytest.raises(SettingsError, match="--trace-endpoint"):
        exporter(endpoint)


# -- the service -----------------------------------------------------------------------------------


def test_without_the_packages_asking_for_tracing_is_a_wrong_setting_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "service.api.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match=r"--trace-endpoint.*'fathom\[tracing\]'"):
        entry.open_tracing(Settings(trace_endpoint="http://127.0.0.1:4318"), "1")
    assert entry.open_tracing(Settings(), "1") is None


def test_the_service_starts_without_the_packages_and_does_not_load_them_where_they_are() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk'] = None; "
        "sys.modules['opentelemetry.exporter'] = None\n"
        "import service.__main__, service.api.app\n"
        "from service.settings import Settings\n"
        "print(service.__main__.open_tracing(Settings(), '1'), 'service.api.tracing' in "
        "sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "None False", "")


def test_a_real_service_logs_json_only_and_flushes_its_spans_on_sigterm(
    fake_bundle: Bundle,
) -> None:
    with collector() as (url, got):
        command = [
            sys.executable,
            "-W",
            "error",
            "-m",
            "service",
            "--port",
            "0",
            "--backend",
            "fake",
        ]
        command += [
            "--bundle",
            str(fake_bundle.root),
            "--trace-endpoint",
            url,
            "--log-format",
            "json",
        ]
        environ = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("FATHOM_", "OTEL_"))
        }
        with subprocess.Popen(
            command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True
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
    assert {span.name for span in spans} == {"POST /segment", *STAGES}


def segment_when_ready(address: str) -> Any:
    import httpx

    end = time.monotonic() + WAIT_S
    while httpx.get(f"{address}/readyz").status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.02)
    return httpx.post(
        f"{address}/segment", content=image_bytes(), headers={"Content-Type": "image/png"}
    )
