"""What monitoring/ promises, tried: a real Prometheus watches two real services and answers every
query of it.

One service has the shipped bundle and its engine, the engine of the other one fails and dawdles on
request.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prometheus_client
import pytest

from service import bundle
from service.settings import Settings
from tests.faulty_service import BLUE, RED
from tests.observed import (
    ALERTS,
    DCGM,
    RECORDS,
    RULES,
    TARGETS,
    VARIABLES,
    Prometheus,
    board,
    filled,
    free_port,
    panels,
    program,
    prometheus,
)
from tests.pictures import flat
from tests.processes import until
from tests.traffic import PHOTOS, Traffic, noise, service

# The first test waits for all that is watched.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(480),
]
DCGM_LABELS = {
    "gpu": "0",
    "UUID": "GPU-1",
    "device": "nvidia0",
    "modelName": "NVIDIA L4",
    "Hostname": "node-1",
}
# These need minutes or an empty Prometheus; `promtool test rules` fires them.
NOT_PROVOKED = {"FathomAbsent", "FathomEngineStalled"}
ROOT = Path(__file__).resolve().parent.parent
NOISE = noise()
CANVAS = (480, 384)  # width and height of the bundle's, so that nothing is scaled or padded
COSTS = [plan.gflops for plan in bundle.load(ROOT / Settings().bundle).manifest.plans]
HALF = f"gflops={(COSTS[0] + COSTS[-1]) / 2:.3f}"
VARIED = (
    "",
    "depth=1",
    "depth=3",
    HALF,
    "ms=3000",
    "max-loss=0",
    "max-loss=0.02",
    "depth=2, max-loss=0.01",
)


@contextmanager
def gpu_exporter() -> Iterator[int]:
    """The port of a stand-in for dcgm-exporter: its names and labels, one GPU."""
    registry = prometheus_client.CollectorRegistry()
    for name, value in DCGM.items():
        gauge = prometheus_client.Gauge(
            name, "See NVIDIA's list of fields.", list(DCGM_LABELS), registry=registry
        )
        gauge.labels(**DCGM_LABELS).set(value)
    server, thread = prometheus_client.start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@dataclass(frozen=True)
class Watched:
    """engine: HOST:PORT of the service with the real engine; start, end: of the traffic, in seconds
    of the epoch."""

    api: Prometheus
    engine: str
    start: float
    end: float


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Prometheus after two services got everything that the alerts are about.

    The faulty one costs next to nothing, so that alerts come soon on a slow machine, too.
    """
    program("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    budget, engine, port = folder / "node-budget", free_port(), free_port()
    budget.write_text("")
    with ExitStack() as stack:
        flags = ("--threads", "1", "--node-budget-file", str(budget))
        stack.enter_context(service(engine, folder / "service.log", *flags))
        first = stack.enter_context(ExitStack())
        first.enter_context(faulty(folder, port))
        gpu = stack.enter_context(gpu_exporter())
        targets = [f"127.0.0.1:{engine}", f"127.0.0.1:{port}"]
        start = time.time()
        api = stack.enter_context(prometheus(folder, targets, {"dcgm": f"127.0.0.1:{gpu}"}))
        good, bad = (
            stack.enter_context(closing(Traffic(f"http://{target}"))) for target in targets
        )
        until(lambda: len(api.query('up{job="fathom"} == 1')) == 2, 20, "both targets")
        time.sleep(3)  # what they export before the first request

        bad.send(flat(BLUE, *CANVAS), "ms=400")  # admitted, for nothing has been slow so far
        until_fired(api, "FathomDeadlineMisses")
        with good.running(1, lambda i: (PHOTOS[i % 2], VARIED[i % len(VARIED)])):
            with bad.running(16, rough):
                until_fired(api, "FathomShedding", "FathomQueueWait", "FathomEngineErrors")
                until_fired(api, "FathomErrorBudgetBurn", "FathomLatencyBudgetBurn")
            until(lambda: good.answered > len(VARIED), 60, "the real engine")
            # Between the cheapest plan and the next.
            budget.write_text(f"gflops={(COSTS[0] + COSTS[1]) / 2:.3f}")
            with bad.running(4, lambda i: (NOISE, "max-loss=0")):
                until_fired(
                    api, "FathomQualityDegraded", "FathomFloorMisses", "FathomNodeBudgetBinds"
                )
        restart(api, first, folder, port)
        until_fired(api, "FathomRestarting", "FathomDown")
        yield Watched(api, targets[0], start, time.time())


def rough(number: int) -> tuple[bytes, str]:
    """One picture in 15 fails its whole batch, half of them hold up theirs, the rest want all the
    depth there is."""
    if number % 15 == 7:
        return flat(RED, *CANVAS), ""
    return (flat(BLUE, *CANVAS), "") if number % 2 else (NOISE, "max-loss=0")


def until_fired(api: Prometheus, *alerts: str) -> None:
    until(lambda: set(alerts) <= api.fired(), 60, f"{alerts} to fire")


def faulty(folder: Path, port: int) -> AbstractContextManager[None]:
    """The faulty service, with a queue that is soon full."""
    flags = (
        "--queue-size",
        "8",
        "--node-budget-file",
        str(folder / "node-budget"),
    )
    return service(port, folder / "faulty.log", *flags, module="tests.faulty_service")


def restart(api: Prometheus, running: ExitStack, folder: Path, port: int) -> None:
    """Restart the faulty service twice, each process in Prometheus' sight, and leave it down."""
    running.close()
    for _ in range(2):
        before = started(api, port)
        with faulty(folder, port):
            until(lambda: started(api, port) != before, 20, "a scrape of the new process")  # noqa: B023


def started(api: Prometheus, port: int) -> str | None:
    """When the process behind the port was started, in Prometheus' memory of the last minutes."""
    found = api.query(
        f'last_over_time(process_start_time_seconds{{instance="127.0.0.1:{port}"}}[5m])'
    )
    return found[0]["value"][1] if found else None


def test_every_rule_of_the_running_prometheus_is_healthy(watched: Watched) -> None:
    found = [rule for group in watched.api.get("/rules")["groups"] for rule in group["rules"]]
    assert len(found) == len(RULES)
    assert {rule["name"]: rule.get("lastError") for rule in found if rule["health"] != "ok"} == {}


def test_every_recording_rule_has_data(watched: Watched) -> None:
    assert [record for record in RECORDS if not watched.api.query(record)] == []


def test_every_alert_fires_that_was_provoked(watched: Watched) -> None:
    assert {rule["alert"] for rule in ALERTS} - watched.api.fired() <= NOT_PROVOKED
    windows = watched.api.query(
        'count by (alertname, window) (max_over_time(ALERTS{window!="", alertstate="firing"}[1h]))'
    )
    assert len(windows) == 6  # each of the two objectives over each of its three windows


def test_alerts_are_worded_without_holes(watched: Watched) -> None:
    found = watched.api.get("/alerts")["alerts"]
    assert found
    texts = [alert["annotations"][part] for alert in found for part in ("summary", "description")]
    assert [text for text in texts if re.search(r"<|\{\{|no value|NaN|error", text)] == []


def test_the_signals_for_autoscaling_are_there_also_without_traffic(watched: Watched) -> None:
    for record in (
        "namespace_job:fathom_queue_wait_seconds:mean1m",
        "namespace_job:fathom_compute_given_up_ratio:mean1m",
    ):
        (series,) = watched.api.query_range(record, watched.start, watched.end)
        values = [value for _, value in series["values"]]
        assert values[0] == 0  # before the first request
        assert max(values) > 0


@pytest.mark.parametrize(
    ("title", "target"), TARGETS, ids=[f"{title} {t['refId']}" for title, t in TARGETS]
)
def test_every_query_of_every_panel_returns_data(
    watched: Watched, title: str, target: dict[str, Any]
) -> None:
    assert watched.api.ask(target, watched.start, watched.end), filled(target["expr"], "15s")


def test_depth_of_the_real_engine_is_what_was_asked_for(watched: Watched) -> None:
    """The heatmap holds images at depth 1 (asked for) and deeper ones (max-loss=0)."""
    (target,) = next(panel for panel in panels(board()) if panel["type"] == "heatmap")["targets"]
    expr = filled(target["expr"], "15s").replace('instance=~".*"', f'instance="{watched.engine}"')
    found = watched.api.query_range(expr, watched.start, watched.end)
    most = {series["metric"]["le"]: max(value for _, value in series["values"]) for series in found}
    assert 0 < most["1.0"] < most["6.0"] == most["+Inf"]


@pytest.mark.parametrize("name", ["job", "instance", "gpu"])
def test_every_variable_finds_its_choices(watched: Watched, name: str) -> None:
    (variable,) = (each for each in board()["templating"]["list"] if each["name"] == name)
    series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr]
    found = watched.api.get(f"/label/{label}/values", **{"match[]": filled(series, "1m")})
    assert found
    assert name != "job" or found == [VARIABLES["job"]]
