"""Metrics: names and labels as documented, closed label sets, and one log line that no caller can forge."""

from __future__ import annotations

import itertools
import logging
import math
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service import errors
from service.core import Decision, Plan, Reason, Trace
from service.metrics import OUTCOMES, REQUEST_SECONDS, SHED, STAGES, Metrics

PLAN = Plan("d2", 2, 1.0, 1.0, 4.5, 0.7)
STAGE_TIMES = {"decode": 0.002, "queue": 0.0001, "front": 0.02, "encoder": 0.03, "decoder": 0.01, "mask": 0.003}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(layers=6, max_batch=4)


def traced(reason: Reason = Reason.GATE) -> Trace:
    return Trace("abc", dict(STAGE_TIMES), Decision(PLAN, reason, 0.83), 3)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_observe_counts_the_request_once_in_every_instrument(metrics: Metrics) -> None:
    metrics.observe(traced(Reason.REQUEST), "ok", 0.07)
    assert value(metrics, "fathom_requests_total", outcome="ok") == 1
    assert value(metrics, "fathom_request_duration_seconds_sum", outcome="ok") == 0.07
    for stage, seconds in STAGE_TIMES.items():
        assert value(metrics, "fathom_stage_duration_seconds_sum", stage=stage) == seconds
    assert value(metrics, "fathom_exit_depth_layers_bucket", reason="request", le="1.0") == 0
    assert value(metrics, "fathom_exit_depth_layers_bucket", reason="request", le="2.0") == 1
    assert value(metrics, "fathom_exit_depth_layers_count", reason="gate") == 0
    assert value(metrics, "fathom_predicted_quality_sum") == 0.83
    assert value(metrics, "fathom_deadline_missed_total") == 0


def test_a_refused_request_counts_its_outcome_and_no_depth(metrics: Metrics) -> None:
    metrics.observe(Trace("abc"), "deadline-exceeded", 0.5)
    assert value(metrics, "fathom_requests_total", outcome="deadline-exceeded") == 1
    assert value(metrics, "fathom_deadline_missed_total") == 1
    assert value(metrics, "fathom_predicted_quality_count") == 0


def test_depth_has_one_edge_per_exit(metrics: Metrics) -> None:
    families = {family.name: family for family in metrics.registry.collect()}
    samples = families["fathom_exit_depth_layers"].samples
    edges = {sample.labels["le"] for sample in samples if sample.name.endswith("_bucket")}
    assert edges == {"1.0", "2.0", "3.0", "4.0", "5.0", "6.0", "+Inf"}
    assert {sample.labels["reason"] for sample in samples} == set(Reason)


def test_request_edges_are_fine_from_10_ms_to_2_s() -> None:
    edges = [edge for edge in REQUEST_SECONDS if 0.01 <= edge <= 2]
    assert edges[0] == 0.01
    assert edges[-1] == 2
    assert list(REQUEST_SECONDS) == sorted(REQUEST_SECONDS)
    assert max(after / before for before, after in itertools.pairwise(edges)) <= 1.5


def test_batches_and_compute_count_when_they_are_spent(metrics: Metrics) -> None:
    deep = Plan("d6", 6, 1.0, 1.0, 9.0, 0.8)
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
    for reason in SHED:
        metrics.shed(reason)
        assert value(metrics, "fathom_shed_total", reason=reason) == 1


def test_every_error_has_an_outcome_with_its_status(metrics: Metrics) -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.FathomError)]
    assert len(kinds) > 10
    for kind in kinds:
        assert OUTCOMES[kind.problem] == kind.status
        metrics.observe(Trace(), kind.problem, 0.1)


def test_the_page_is_prometheus_text_with_every_documented_name(metrics: Metrics) -> None:
    metrics.build_info(version="0", bundle="b@1", backend="fake")
    metrics.build_info(version="1", bundle="b@2", backend="fake")  # replaces the first
    families = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}
    ours = {name for name in families if name.startswith("fathom_")}
    assert ours == {
        "fathom_request_duration_seconds",
        "fathom_stage_duration_seconds",
        "fathom_exit_depth_layers",
        "fathom_requests",
        "fathom_queue_depth",
        "fathom_inflight",
        "fathom_shed",
        "fathom_deadline_missed",
        "fathom_batch_size",
        "fathom_compute_gflops",
        "fathom_predicted_quality",
        "fathom_node_budget_gflops",
        "fathom_build_info",
    }
    assert [sample.labels["version"] for sample in families["fathom_build_info"].samples] == ["1"]
    assert families["process_resident_memory_bytes"].samples[0].value > 1e6


def test_series_are_there_before_the_first_event(metrics: Metrics) -> None:
    assert all(value(metrics, "fathom_requests_total", outcome=outcome) == 0 for outcome in OUTCOMES)
    assert all(value(metrics, "fathom_stage_duration_seconds_count", stage=stage) == 0 for stage in STAGES)
    assert all(value(metrics, "fathom_shed_total", reason=reason) == 0 for reason in SHED)


def test_there_is_one_log_line_per_request(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fathom.request"):
        metrics.observe(traced(), "ok", 0.0714)
        metrics.observe(Trace('x y\n status=200 "=é'), "overloaded", math.pi)
    assert caplog.messages == [
        "request_id=abc status=200 outcome=ok plan=d2 reason=gate batch=3 total_ms=71.4",
        'request_id="x y\\n status=200 \\"=\\u00e9" status=429 outcome=overloaded '
        "plan=- reason=- batch=0 total_ms=3141.6",
    ]
    assert not any(re.search(r"[\n\r]", message) for message in caplog.messages)
