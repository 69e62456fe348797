"""Tracing: one span per segmentation with its stages, an exemplar, and a log line that names it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from typing import Any

import pytest
from opentelemetry import trace as opentelemetry
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from service.bundle import Manifest
from service.labels import STAGES
from service.metrics import Metrics
from tests.api.asgi import GONE, body, call, post, scope
from tests.api.traced import ON_THE_GLANCE, World, parent_of
from tests.open_inference.asking import document
from tests.pictures import flat


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
    assert [stage.name for stage in stages] == list(ON_THE_GLANCE)
    assert len(world.kept.get_finished_spans()) == 1 + len(ON_THE_GLANCE)
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


@pytest.mark.parametrize(
    ("budget", "canvas", "stages"),
    [("gflops=1.5", "c32", ON_THE_GLANCE), ("max-loss=0", "c64", STAGES)],
)
def test_an_image_on_a_larger_canvas_has_a_span_for_the_glance_as_well(
    canvases_manifest: Manifest, budget: str, canvas: str, stages: tuple[str, ...]
) -> None:
    world = World(canvases_manifest)
    world.ask(post(compute_budget=budget))
    (span,) = world.servers
    assert [stage.name for stage in world.below(span)] == list(stages)
    assert (span.attributes or {})["fathom.canvas"] == canvas


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
        "url.path": "/segment",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "client.address": "127.0.0.1",
        "server.address": "test",
        "fathom.image.width": 64,
        "fathom.image.height": 48,
        "fathom.plan": "d1",
        "fathom.canvas": "c64",
        "fathom.depth": 1,
        "fathom.gflops": 2.0,
        "fathom.reason": "request",
        "fathom.batch_size": 1,
    }
    assert world.servers[0].resource.attributes["service.name"] == "fathom"


def test_inference_requests_are_spans_of_their_own_route(world: World) -> None:
    headers = {"inference-header-content-length": "0"}
    answers = world.ask(
        scope("POST", "/v2/models/fake/infer", headers),
        scope("POST", "/v2/models/fake/versions/1/infer", headers),
        scope("POST", "/v2/models/fake"),
        scope("POST", "/v2/repository/index"),
    )
    assert [answer[0] for answer in answers] == [200, 200, 405, 400]
    assert len(world.servers) == 2
    for span in world.servers:
        assert span.name == "POST /v2/models/{name}/infer"
        assert [stage.name for stage in world.below(span)] == list(ON_THE_GLANCE)
    ids = {f"{span.context.trace_id:032x}" for span in world.servers}
    assert {parent_of(answer)[0] for answer in answers[:2]} == ids


def test_each_image_of_an_inference_request_has_its_stages(world: World) -> None:
    text = json.dumps(document(flat(), flat())).encode()

    async def run() -> Any:
        async with world.ready():
            kind = {"content-type": "application/json"}
            request = scope("POST", "/v2/models/fake/infer", kind)
            return await call(world.app, request, body(text))

    assert asyncio.run(run())[0] == 200
    (span,) = world.servers
    assert span.attributes is not None
    assert span.attributes["fathom.images"] == 2
    stages = [(each.attributes or {}, each.name) for each in world.below(span)]
    for index in (0, 1):
        own = [name for told, name in stages if told["fathom.image.index"] == index]
        assert own == list(ON_THE_GLANCE)
    assert {told["fathom.plan"] for told, _ in stages} <= {"d1", "d2", "d3", "d4"}


def test_a_span_tells_the_request_by_the_semantic_conventions(world: World) -> None:
    given = post(User_Agent="cam/1") | {"query_string": b"include=paused"}
    given["headers"] = [(b"host", b"fathom.example:8443"), *given["headers"][1:]]
    world.ask(given)
    found = dict(world.servers[0].attributes or {})
    expected = {
        "http.request.method": "POST",
        "http.route": "/segment",
        "http.response.status_code": 200,
        "url.path": "/segment",
        "url.query": "include=paused",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "client.address": "127.0.0.1",
        "server.address": "fathom.example",
        "server.port": 8443,
        "user_agent.original": "cam/1",
    }
    assert {key: found.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ("fathom", "1")),
        ({"OTEL_SERVICE_NAME": "masks"}, ("masks", "1")),
        (
            {"OTEL_RESOURCE_ATTRIBUTES": "service.name=masks,service.version=7,team=a"},
            ("masks", "7"),
        ),
        (
            {"OTEL_RESOURCE_ATTRIBUTES": "service.name=a", "OTEL_SERVICE_NAME": "masks"},
            ("masks", "1"),
        ),
    ],
)
def test_the_services_name_is_the_one_that_opentelemetrys_variables_give_it(
    fake_manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    expected: tuple[str, str],
) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    world = World(fake_manifest)
    world.ask(post())
    resource = world.servers[0].resource.attributes
    assert (resource["service.name"], resource["service.version"]) == expected
    assert resource.get("team") == ("a" if "team" in str(variables) else None)


def test_images_of_one_batch_have_spans_of_their_own_in_traces_of_their_own(world: World) -> None:
    world.ask(*(post(x_request_id=f"r{number}") for number in range(3)))
    assert len({span.context.trace_id for span in world.servers}) == 3
    for span in world.servers:
        assert span.attributes is not None
        assert span.attributes["fathom.batch_size"] == 3
        assert [stage.name for stage in world.below(span)] == list(ON_THE_GLANCE)


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

    monkeypatch.setattr(world.segmenter.model.engine, "submit", broken)
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
