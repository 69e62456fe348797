"""Metrics: names and labels as documented, closed label sets, and one log line that no caller can
forge."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from service import __main__ as entry
from service import errors, logs
from service.bundle import Manifest
from service.core import Ask, Budget, Decision, Frame, Geometry, Margin, Plan, Reason
from service.engines.base import Arrays, HostTensors, Tensors
from service.engines.fake import FakeBackend
from service.inference.policy import Policy, Pressure
from service.labels import (
    COMPUTE_GIVEN_UP,
    MISSED,
    OUTCOMES,
    QUALITY_GIVEN_UP,
    REQUEST_SECONDS,
    SHED,
    STAGES,
)
from service.metrics import Metrics
from service.segmenting import Answer
from service.settings import Settings
from service.trace import Trace
from tests.processes import python
from tests.serving import answered, segmenter_of

CANVASES = ("c320", "c640")
PLAN = Plan("c640-d2", 2, 1.0, 1.0, 4.5, 0.7, canvas="c640")
STAGE_TIMES = {
    "decode": 0.002,
    "queue": 0.0001,
    "glance": 0.01,
    "front": 0.02,
    "encoder": 0.03,
    "decoder": 0.01,
    "mask": 0.003,
}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(layers=6, max_batch=4, canvases=CANVASES)


def traced(reason: Reason = Reason.GATE) -> Trace:
    return Trace("abc", dict(STAGE_TIMES), Decision(PLAN, reason, 0.83), 3)


def edges_of(metrics: Metrics, name: str) -> list[str]:
    families = {family.name: family for family in metrics.registry.collect()}
    buckets = [each.labels for each in families[name].samples if each.name.endswith("_bucket")]
    first = buckets[0].get("reason")
    return [labels["le"] for labels in buckets if labels.get("reason") == first]


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_observe_counts_the_request_once_in_every_instrument(metrics: Metrics) -> None:
    metrics.observe(traced(Reason.REQUEST), "ok", 0.07)
    assert value(metrics, "fathom_requests_total", outcome="ok") == 1
    assert value(metrics, "fathom_request_duration_seconds_sum", outcome="ok") == 0.07
    for stage, seconds in STAGE_TIMES.items():
        assert value(metrics, "fathom_stage_duration_seconds_sum", stage=stage) == seconds
    depth, canvas = "fathom_exit_depth_layers", "c640"
    assert value(metrics, f"{depth}_bucket", canvas=canvas, reason="request", le="1.0") == 0
    assert value(metrics, f"{depth}_bucket", canvas=canvas, reason="request", le="2.0") == 1
    assert value(metrics, f"{depth}_count", canvas=canvas, reason="gate") == 0
    assert value(metrics, f"{depth}_count", canvas="c320", reason="request") == 0
    assert value(metrics, "fathom_predicted_quality_sum") == 0.83
    assert value(metrics, "fathom_budget_missed_total", kind="deadline") == 0


def test_a_refused_request_counts_its_outcome_and_no_depth(metrics: Metrics) -> None:
    metrics.observe(Trace("abc"), "deadline-exceeded", 0.5)
    assert value(metrics, "fathom_requests_total", outcome="deadline-exceeded") == 1
    assert value(metrics, "fathom_budget_missed_total", kind="deadline") == 1
    assert value(metrics, "fathom_predicted_quality_count") == 0


def test_depth_has_one_edge_per_exit(metrics: Metrics) -> None:
    families = {family.name: family for family in metrics.registry.collect()}
    samples = families["fathom_exit_depth_layers"].samples
    edges = {sample.labels["le"] for sample in samples if sample.name.endswith("_bucket")}
    assert edges == {"1.0", "2.0", "3.0", "4.0", "5.0", "6.0", "+Inf"}
    series = {(sample.labels["canvas"], sample.labels["reason"]) for sample in samples}
    assert series == {(canvas, reason) for canvas in CANVASES for reason in Reason}


def test_without_the_names_of_canvases_their_label_stays_empty() -> None:
    metrics = Metrics(layers=6, max_batch=4)
    name = "fathom_exit_depth_layers_count"
    assert value(metrics, name, canvas="", reason="gate") == 0
    metrics.observe(traced(), "ok", 0.1)
    assert value(metrics, name, canvas="", reason="gate") == 1
    assert value(metrics, name, canvas="c640", reason="gate") is None


def test_what_was_given_up_against_what_the_gate_wanted_is_counted(metrics: Metrics) -> None:
    deep = Plan("c640-d6", 6, 1.0, 1.0, 9.0, 0.8, canvas="c640")
    metrics.observe(traced(), "ok", 0.1)
    metrics.observe(Trace(decision=Decision(PLAN, Reason.LOAD, 0.83, deep, 0.03, False)), "ok", 0.1)
    assert value(metrics, "fathom_depth_given_up_layers_bucket", le="0.0") == 1
    assert value(metrics, "fathom_depth_given_up_layers_bucket", le="3.0") == 1
    assert value(metrics, "fathom_depth_given_up_layers_bucket", le="4.0") == 2
    ratio, quality = "fathom_compute_given_up_ratio", "fathom_quality_given_up"
    assert value(metrics, f"{ratio}_bucket", reason="gate", le="0.0") == 1
    assert value(metrics, f"{ratio}_bucket", reason="load", le="0.4") == 0
    assert value(metrics, f"{ratio}_bucket", reason="load", le="0.5") == 1
    assert value(metrics, f"{ratio}_sum", reason="load") == 0.5
    assert value(metrics, f"{quality}_bucket", reason="gate", le="0.0") == 1
    assert value(metrics, f"{quality}_bucket", reason="load", le="0.02") == 0
    assert value(metrics, f"{quality}_bucket", reason="load", le="0.05") == 1
    assert value(metrics, f"{quality}_sum", reason="load") == 0.03
    assert value(metrics, f"{quality}_count", reason="request") == 0  # rate() needs a first value
    # More layers and compute than were wanted.
    metrics.observe(Trace(decision=Decision(deep, Reason.NODE, 0.83, PLAN)), "ok", 0.1)
    assert value(metrics, "fathom_depth_given_up_layers_bucket", le="0.0") == 2
    assert value(metrics, f"{ratio}_bucket", reason="node", le="0.0") == 1
    assert value(metrics, f"{ratio}_sum", reason="node") == 0


def test_a_smaller_canvas_gives_up_compute_but_no_layer(metrics: Metrics) -> None:
    small = Plan("c320-d2", 2, 1.0, 1.0, 1.125, 0.6, canvas="c320")
    metrics.observe(Trace(decision=Decision(small, Reason.LOAD, 0.7, PLAN, 0.1)), "ok", 0.1)
    assert value(metrics, "fathom_depth_given_up_layers_sum") == 0
    ratio = "fathom_compute_given_up_ratio"
    assert value(metrics, f"{ratio}_sum", reason="load") == 0.75
    assert value(metrics, f"{ratio}_bucket", reason="load", le="0.7") == 0
    assert value(metrics, f"{ratio}_bucket", reason="load", le="0.8") == 1


def test_edges_of_what_was_given_up(metrics: Metrics) -> None:
    assert edges_of(metrics, "fathom_depth_given_up_layers") == [
        "0.0",
        "1.0",
        "2.0",
        "3.0",
        "4.0",
        "5.0",
        "+Inf",
    ]
    assert COMPUTE_GIVEN_UP == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert edges_of(metrics, "fathom_compute_given_up_ratio") == [
        *(str(edge) for edge in COMPUTE_GIVEN_UP),
        "+Inf",
    ]
    assert edges_of(metrics, "fathom_quality_given_up") == [
        *(str(edge) for edge in QUALITY_GIVEN_UP),
        "+Inf",
    ]


@pytest.mark.parametrize(
    ("request_budget", "node", "closed", "wanted", "given_up", "kept", "reason"),
    [
        (Budget(), Budget(), set(), None, 0.0, True, Reason.GATE),
        (Budget(depth=1), Budget(), set(), "d3", 0.095, False, Reason.REQUEST),
        (Budget(), Budget(gflops=4.0), set(), "d3", 0.035, False, Reason.NODE),
        (Budget(), Budget(), {1, 2, 3}, "d3", 0.095, False, Reason.LOAD),
        (Budget(depth=1, max_loss=0.2), Budget(), set(), None, 0.0, True, Reason.GATE),
        # the plan that was wanted is closed, a dearer one keeps the floor and gives up nothing
        (Budget(depth=1, max_loss=0.05), Budget(), set(), "d2", 0.0, True, Reason.REQUEST),
    ],
)
def test_a_decision_knows_what_the_gate_wanted(
    request_budget: Budget,
    node: Budget,
    closed: set[int],
    wanted: str | None,
    given_up: float,
    kept: bool,
    reason: Reason,
) -> None:
    plans = [Plan(f"d{depth}", depth, 1.0, 1.0, 2.0 * depth, 0.5) for depth in (1, 2, 3, 4)]
    if request_budget.max_loss == 0.05:
        plans[2] = Plan("d1-wide", 1, 1.0, 1.0, 6.0, 0.5)
    margins = tuple(Margin(asked, asked) for asked in (0.01, 0.05, 0.2))
    policy = Policy(tuple(plans), margins, default_max_loss=0.01)
    scores, costs_ms = [0.60, 0.66, 0.695, 0.70], [1.0, 2.0, 3.0, 4.0]
    found = policy.choose(scores, Ask(request_budget), node, costs_ms, Pressure(frozenset(closed)))
    assert (found.wanted and found.wanted.name, found.floor_kept, found.reason) == (
        wanted,
        kept,
        reason,
    )
    assert found.quality_given_up == pytest.approx(given_up)


def test_missed_budgets_are_counted_by_kind_once_a_request(metrics: Metrics) -> None:
    deep = Plan("c640-d6", 6, 1.0, 1.0, 9.0, 0.8, canvas="c640")
    broken = Decision(PLAN, Reason.NODE, 0.8, deep, 0.03, floor_kept=False)
    metrics.observe(Trace(decision=broken), "ok", 0.1)
    metrics.observe(traced(), "ok", 0.1)
    assert [value(metrics, "fathom_budget_missed_total", kind=kind) for kind in MISSED] == [0, 1]
    own = replace(broken, reason=Reason.REQUEST)
    metrics.observe(Trace(decision=own), "ok", 0.1)
    assert value(metrics, "fathom_budget_missed_total", kind="max-loss") == 1
    # There is no answer whose quality could be low.
    metrics.observe(Trace(decision=broken), "deadline-exceeded", 0.1)
    metrics.observe(Trace(decision=broken), "internal", 0.1)
    assert [value(metrics, "fathom_budget_missed_total", kind=kind) for kind in MISSED] == [1, 1]
    assert value(metrics, "fathom_budget_missed_total", kind="deadline") == 1


@pytest.mark.parametrize(
    ("limit_s", "outcome", "missed"),
    [
        (0.5, "ok", 0),
        (0.1, "ok", 1),
        (None, "ok", 0),
        (0.1, "overloaded", 0),
        (0.1, "cancelled", 0),
    ],
)
def test_an_answer_after_its_deadline_has_missed_it(
    metrics: Metrics, limit_s: float | None, outcome: str, missed: int
) -> None:
    metrics.observe(Trace(limit_s=limit_s), outcome, 0.2)
    assert value(metrics, "fathom_budget_missed_total", kind="deadline") == missed


def test_a_batch_that_fails_in_the_engine_is_one_engine_error(fake_manifest: Manifest) -> None:
    class Broken(FakeBackend):
        warm = False

        def run(self, stage: str, tensors: Tensors | Arrays) -> HostTensors:
            if self.warm:
                raise RuntimeError("a fault")
            return super().run(stage, tensors)

    metrics, backend = Metrics(layers=4, max_batch=4), Broken(fake_manifest)
    settings = Settings(batch_wait_ms=200.0)
    segmenter = segmenter_of(fake_manifest, settings, backend=backend, metrics=metrics)
    frame = Frame(np.zeros((48, 64, 3), np.uint8), Geometry(64, 48, 64, 48, (48, 64)))

    async def run() -> list[Answer | BaseException]:
        segmenter.start()
        await asyncio.to_thread(segmenter.model.engine.warm.result, 20)
        assert value(metrics, "fathom_engine_errors_total") == 0
        backend.warm = True
        frames = {fake_manifest.glance.name: frame}
        tasks = [
            answered(segmenter, frames, Ask(), Trace(str(n)), time.perf_counter()) for n in range(3)
        ]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await segmenter.model.drain(5)
        return results

    assert [type(result) for result in asyncio.run(run())] == [errors.FathomError] * 3
    assert value(metrics, "fathom_engine_errors_total") == 1


def test_request_edges_are_fine_from_10_ms_to_2_s() -> None:
    edges = [edge for edge in REQUEST_SECONDS if 0.01 <= edge <= 2]
    assert edges[0] == 0.01
    assert edges[-1] == 2
    assert list(REQUEST_SECONDS) == sorted(REQUEST_SECONDS)
    assert max(after / before for before, after in itertools.pairwise(edges)) <= 1.5


def test_batches_and_compute_count_when_they_are_spent(metrics: Metrics) -> None:
    deep = Plan("c640-d6", 6, 1.0, 1.0, 9.0, 0.8, canvas="c640")
    metrics.ran([Decision(plan, Reason.GATE, 0.8) for plan in (PLAN, deep, PLAN)])
    metrics.ran([])
    assert value(metrics, "fathom_compute_gflops_total") == 18.0
    assert value(metrics, "fathom_batch_size_count") == 2
    assert value(metrics, "fathom_batch_size_sum") == 3
    assert value(metrics, "fathom_batch_size_bucket", le="1.0") == 1


def test_labels_come_from_closed_sets(metrics: Metrics) -> None:
    with pytest.raises(ValueError, match="teapot"):
        metrics.observe(Trace(), "teapot", 0.1)
    with pytest.raises(ValueError, match="lunch"):
        metrics.observe(Trace(stages={"lunch": 1.0}), "ok", 0.1)
    with pytest.raises(ValueError, match="mood"):
        metrics.shed("mood")
    unknown = Plan("c480-d1", 1, 1.0, 1.0, 2.0, 0.5, canvas="c480")
    with pytest.raises(ValueError, match="c480"):
        metrics.observe(Trace(decision=Decision(unknown, Reason.GATE, 0.5)), "ok", 0.1)
    for reason in SHED:
        metrics.shed(reason)
        assert value(metrics, "fathom_shed_total", reason=reason) == 1


def test_every_error_has_an_outcome_with_its_status(metrics: Metrics) -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.FathomError)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        assert OUTCOMES[kind.problem] == kind.status
        metrics.observe(Trace(), kind.problem, 0.1)


def test_the_page_is_prometheus_text_with_every_documented_name(metrics: Metrics) -> None:
    metrics.build_info(version="0", bundle="b@1", backend="fake", reason="asked")
    # Replaces the first.
    metrics.build_info(version="1", bundle="b@2", backend="fake", reason="asked")
    families = {
        family.name: family
        for family in text_string_to_metric_families(metrics.expose("")[0].decode())
    }
    ours = {name for name in families if name.startswith("fathom_")}
    assert ours == {
        "fathom_request_duration_seconds",
        "fathom_stage_duration_seconds",
        "fathom_exit_depth_layers",
        "fathom_head_images",
        "fathom_requests",
        "fathom_queue_depth",
        "fathom_inflight",
        "fathom_places_taken",
        "fathom_held_bytes",
        "fathom_response_cache_bytes",
        "fathom_response_cache_requests",
        "fathom_pressure_ratio",
        "fathom_shed",
        "fathom_batch_size",
        "fathom_compute_gflops",
        "fathom_predicted_quality",
        "fathom_compute_given_up_ratio",
        "fathom_depth_given_up_layers",
        "fathom_quality_given_up",
        "fathom_budget_missed",
        "fathom_engine_errors",
        "fathom_node_budget_gflops",
        "fathom_build_info",
    }
    assert [sample.labels["version"] for sample in families["fathom_build_info"].samples] == ["1"]
    assert families["process_resident_memory_bytes"].samples[0].value > 1e6


def test_series_are_there_before_the_first_event(metrics: Metrics) -> None:
    assert all(
        value(metrics, "fathom_requests_total", outcome=outcome) == 0 for outcome in OUTCOMES
    )
    assert all(
        value(metrics, "fathom_stage_duration_seconds_count", stage=stage) == 0 for stage in STAGES
    )
    assert all(value(metrics, "fathom_shed_total", reason=reason) == 0 for reason in SHED)
    assert all(value(metrics, "fathom_budget_missed_total", kind=kind) == 0 for kind in MISSED)


# -- the two text formats
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "text/plain; version=0.0.4; charset=utf-8"),
        (
            "application/openmetrics-text",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.5",
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=allow-utf-8",
        ),
        ("application/openmetrics-text;version=x", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=1..0", "text/plain; version=0.0.4; charset=utf-8"),
    ],
)
def test_the_scraper_chooses_the_format_and_names_are_the_same_in_both(
    metrics: Metrics, accept: str, content_type: str
) -> None:
    metrics.observe(traced(), "ok", 0.1)
    body, found = metrics.expose(accept)
    assert found == content_type
    assert 'fathom_requests_total{outcome="ok"} 1.0\n' in body.decode()
    assert ("# EOF" in body.decode()) == content_type.startswith("application/openmetrics-text")


def test_exemplars_are_of_recorded_requests_and_in_openmetrics_only(metrics: Metrics) -> None:
    metrics.observe(Trace(trace_id="a" * 32, sampled=True), "ok", 0.07)
    metrics.observe(Trace(trace_id="b" * 32), "ok", 0.5)
    body = metrics.expose("application/openmetrics-text")[0].decode()
    families = {family.name: family for family in openmetrics.text_string_to_metric_families(body)}
    found = [sample for family in families.values() for sample in family.samples if sample.exemplar]
    assert [(sample.name, sample.labels["le"]) for sample in found] == [
        ("fathom_request_duration_seconds_bucket", "0.08")
    ]
    assert found[0].exemplar.labels == {"trace_id": "a" * 32}
    assert b"trace_id" not in metrics.expose("")[0]


# -- log lines -------------------------------------------------------------------------------------


def test_there_is_one_log_line_per_request(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "fathom.request"):
        metrics.observe(traced(), "ok", 0.0714)
        metrics.observe(Trace('x y\n status=200 "=é'), "overloaded", math.pi)
    assert caplog.messages == [
        "request_id=abc status=200 outcome=ok plan=c640-d2 canvas=c640 reason=gate batch=3 "
        "total_ms=71.4 decode_ms=2.0 queue_ms=0.1 glance_ms=10.0 front_ms=20.0 encoder_ms=30.0 "
        "decoder_ms=10.0 mask_ms=3.0",
        'request_id="x y\\n status=200 \\"=\\u00e9" status=429 outcome=overloaded '
        "plan=- canvas=- reason=- batch=0 total_ms=3141.6",
    ]
    assert not any(re.search(r"[\n\r]", message) for message in caplog.messages)


def test_the_line_names_the_key_and_the_trace_where_there_are_any(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "fathom.request"):
        metrics.observe(Trace("r", caller="camera-7", trace_id="a" * 32), "overloaded", 0.001)
    assert caplog.messages[0].endswith(f" total_ms=1.0 key=camera-7 trace_id={'a' * 32}")


def test_a_higher_level_switches_the_line_off(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "fathom.request"):
        metrics.observe(traced(), "ok", 0.1)
    assert caplog.messages == []


def as_json(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    lines = [logs.JsonFormatter().format(record) for record in caplog.records]
    assert not any("\n" in line for line in lines)
    return [json.loads(line) for line in lines]


def test_as_json_the_fields_are_members_with_their_types(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "fathom.request"):
        metrics.observe(traced(), "ok", 0.0714)
        metrics.observe(Trace('x"\n'), "overloaded", 0.1)
    first, second = as_json(caplog)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(first.pop("time")))
    assert first == {
        "level": "INFO",
        "logger": "fathom.request",
        "message": "request",
        "request_id": "abc",
        "status": 200,
        "outcome": "ok",
        "plan": "c640-d2",
        "canvas": "c640",
        "reason": "gate",
        "batch": 3,
        "total_ms": 71.4,
        **{f"{stage}_ms": round(seconds * 1000, 1) for stage, seconds in STAGE_TIMES.items()},
    }
    assert (second["request_id"], second["plan"], second["status"]) == ('x"\n', None, 429)


def test_as_json_any_other_line_has_its_text_and_an_error_its_stack(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = logging.getLogger("uvicorn.error")
    with caplog.at_level(logging.INFO):
        log.info("started %d\nprocess", 7)
        try:
            raise KeyError("a\nb")
        except KeyError:
            log.exception("it broke")
    first, second = as_json(caplog)
    assert (first["message"], first["logger"]) == ("started 7\nprocess", "uvicorn.error")
    assert (second["message"], second["level"]) == ("it broke", "ERROR")
    assert "Traceback" in str(second["exception"])


@pytest.mark.parametrize(
    ("form", "argv", "status", "text"),
    [
        ("json", ["--bundle", "nowhere"], 1, "BundleError: "),
        (
            "json",
            ["--api-keys-file", "nowhere"],
            2,
            "SettingsError: --api-keys-file nowhere: No such file",
        ),
        (
            "json",
            ["--trace-endpoint", "nowhere"],
            2,
            "SettingsError: --trace-endpoint: 'nowhere'",
        ),
        ("json", ["--port", "http"], 2, "SettingsError: --port is 'http'"),
        ("json", ["--max-batch"], 2, "SettingsError: argument --max-batch"),
    ],
)
def test_a_service_that_cannot_start_says_so_in_the_form_that_was_chosen(
    form: str, argv: list[str], status: int, text: str
) -> None:
    run = python("-m", "service", "--log-format", form, "--backend", "fake", "--port", "0", *argv)
    lines = [json.loads(line) for line in run.stderr.splitlines()]
    assert (run.returncode, lines[-1]["level"]) == (status, "CRITICAL")
    assert lines[-1]["message"].startswith(text)


def test_as_json_warnings_and_unforeseen_errors_are_lines_too() -> None:
    code = (
        "import warnings\nfrom service import logs\n"
        "logs.configure('info', 'json')\nwarnings.warn('old\\nthing')\nraise RuntimeError('a bug')"
    )
    run = python("-c", code)
    first, second = (json.loads(line) for line in run.stderr.splitlines())
    assert (first["logger"], first["level"]) == ("py.warnings", "WARNING")
    assert "old\nthing" in first["message"]
    assert second["level"] == "CRITICAL"
    assert "RuntimeError: a bug" in second["exception"]


def test_a_wrong_setting_is_plain_text_as_long_as_the_form_is_not_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert entry.main(["--log-format", "xml"], {}) == 2
    assert capsys.readouterr().err.startswith("SettingsError: --log-format is 'xml'")
