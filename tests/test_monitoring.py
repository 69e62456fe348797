"""What monitoring/ promises, on paper: names exist, derived files are fresh, alerts fire when
provoked, only then."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring import build
from service.core import Reason
from service.labels import MISSED, OUTCOMES, REQUEST_SECONDS, SHED, STAGES
from service.metrics import Metrics
from tests.observed import (
    ALERTS,
    DCGM,
    MONITORING,
    RECORDS,
    ROOT,
    RULES,
    TARGETS,
    board,
    filled,
    panels,
    program,
)

FOREIGN = {"up", "ALERTS", *DCGM}  # what others export
QUERIES = [
    *RECORDS.values(),
    *(rule["expr"] for rule in ALERTS),
    *(target["expr"] for _, target in TARGETS),
]


def names(expr: str) -> set[str]:
    """The metrics that a query reads: what is left without strings, matchers, labels, functions and
    words."""
    bare = re.sub(r'"(?:\\.|[^"\\])*"', "", filled(expr, "1m"))
    bare = re.sub(r"\{[^}]*\}|\[\w+\]|\b(?:by|on|group_left)\s*\([^)]*\)", " ", bare)
    found = re.findall(r"[A-Za-z_:][\w:]*(?!\w|\s*\()", re.sub(r"(?<![\w:])\d[\w.]*", " ", bare))
    return set(found) - {"and", "or", "Inf", "sum", "count", "max", "by"}


def exported() -> set[str]:
    """Every series that the service's registry exports."""
    found = set()
    for family in Metrics(layers=6, max_batch=4).registry.collect():
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(
            family.type, ("",)
        )
        found |= {family.name + end for end in ends}
    return found


def test_names_are_found_in_a_query() -> None:
    query = (
        'sum by (job, le) (rate(a_total{b="c d", e=~"f"}[5m])) '
        "/ on (g) group_left () (x:y:rate5m > 0.5e3) or up"
    )
    assert names(query) == {"a_total", "x:y:rate5m", "up"}


def test_every_metric_is_exported_recorded_or_known_to_be_foreign() -> None:
    known = exported() | set(RECORDS) | FOREIGN
    assert {name: expr for expr in QUERIES for name in names(expr) if name not in known} == {}


def test_every_value_of_a_label_is_one_that_the_service_can_give() -> None:
    values = {
        "outcome": set(OUTCOMES),
        "stage": set(STAGES),
        "kind": set(MISSED),
        "reason": {reason.value for reason in Reason} | set(SHED),
    }
    asked = {
        pair
        for expr in QUERIES
        for pair in re.findall(r'\b(outcome|stage|kind|reason)=~?"([^"]+)"', expr)
    }
    assert {label for label, _ in asked} == set(values)
    assert {
        (label, text) for label, text in asked if not set(text.split("|")) <= values[label]
    } == set()


def test_readme_shows_every_recording_rule() -> None:
    """Of the percentiles and windows of one rule it shows the first in full."""
    text = (MONITORING / "README.md").read_text("utf-8")
    shown = {
        record: re.sub(r":p\d\d_", ":p50_", re.sub(r"rate(30m|1h|6h|3d)$", "rate5m", record))
        for record in RECORDS
    }
    assert {record for record, name in shown.items() if f"`{name}`" not in text} == set()


def test_errors_are_the_outcomes_with_a_5xx_status() -> None:
    failed = {outcome for outcome, status in OUTCOMES.items() if status >= 500}
    for window in ("5m", "30m", "1h", "6h", "3d"):
        expr = RECORDS[f"namespace_job:fathom_request_errors_per_requests:ratio_rate{window}"]
        above, below = (set(text.split("|")) for text in re.findall(r'outcome=~"([^"]+)"', expr))
        assert (above, below) == (failed, failed | {"ok"})


def test_the_objective_is_an_edge_of_the_histogram() -> None:
    edges = {float(edge) for expr in QUERIES for edge in re.findall(r'le="([\d.]+)"', expr)}
    assert edges == {0.5}
    assert edges <= set(REQUEST_SECONDS)


@pytest.mark.parametrize(
    "rule", ALERTS, ids=lambda rule: rule["alert"] + rule["labels"].get("window", "")
)
def test_alert_says_how_bad_it_is_and_where_its_runbook_is(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"]
    path, anchor = rule["annotations"]["runbook_url"].split("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text("utf-8"), re.M)
    assert anchor == rule["alert"].lower()
    assert rule["alert"] in headings


def test_readme_shows_every_metric_and_every_alert() -> None:
    text = (MONITORING / "README.md").read_text("utf-8")
    ours = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for name in exported()
        if name.startswith("fathom_")
    }
    assert ours == set(re.findall(r"^\| `(fathom_\w+)", text, re.M))
    assert {rule["alert"] for rule in ALERTS} == set(re.findall(r"^### (Fathom\w+)$", text, re.M))


def test_dashboard_and_prometheus_rule_are_fresh() -> None:
    stale = [path.name for path, text in build.built().items() if path.read_text("utf-8") != text]
    assert stale == [], "run `python -m monitoring.build`"


def test_build_check_names_what_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh, old = tmp_path / "fresh", tmp_path / "old"
    fresh.write_text("a")
    old.write_text("b")
    monkeypatch.setattr(build, "HERE", tmp_path / "monitoring")
    monkeypatch.setattr(build, "built", lambda: {fresh: "a", old: "c"})
    assert build.main(["--check"]) == 1
    assert old.read_text() == "b"
    assert build.main([]) == 0
    assert (old.read_text(), build.main(["--check"])) == ("c", 0)


def test_every_panel_has_a_description_a_unit_and_the_chosen_data_source() -> None:
    found = panels(board())
    assert len({panel["id"] for panel in found}) == len(found)
    for panel in found:
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert (
            panel["type"] in {"table", "heatmap", "state-timeline"}
            or panel["fieldConfig"]["defaults"]["unit"]
        )


def test_compose_gets_the_data_source_and_the_folder_of_dashboards() -> None:
    provisioning = MONITORING / "grafana" / "provisioning"
    (source,) = yaml.safe_load(
        (provisioning / "datasources" / "prometheus.yaml").read_text("utf-8")
    )["datasources"]
    assert (source["uid"], source["url"]) == ("prometheus", "http://prometheus:9090")
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text("utf-8"))
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "fathom.yaml").read_text("utf-8"))[
        "providers"
    ]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


def promtool(*arguments: str) -> str:
    run = subprocess.run(
        [program("promtool"), *arguments],
        cwd=MONITORING,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_promtool_accepts_config_and_rules() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "config", "prometheus.yml")


def test_promtool_fires_every_alert_when_it_is_provoked_and_only_then() -> None:
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yml")
    cases = yaml.safe_load((MONITORING / "rules_test.yml").read_text("utf-8"))["tests"]
    samples = [
        sample
        for case in cases
        for test in case["promql_expr_test"]
        for sample in test["exp_samples"]
    ]
    fired = {
        name for sample in samples for name in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    assert fired == {rule["alert"] for rule in ALERTS}
