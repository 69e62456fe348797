"""Debian's Prometheus with the project's own config and rules, on loopback, and the dashboard's
queries put to it."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.needs import missing
from tests.processes import ROOT, answers

MONITORING = ROOT / "monitoring"
# What the dashboard's variables stand for here: the whole service, as after opening it.
VARIABLES = {"namespace": ".*", "job": "fathom", "instance": ".*", "gpu": ".*"}


# NVIDIA's dcgm-exporter: names among its shipped default counters, with values that a GPU could
# have.
DCGM = {
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": 0.6,
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": 0.3,
    "DCGM_FI_DEV_GPU_UTIL": 70,
    "DCGM_FI_DEV_FB_USED": 2048,
    "DCGM_FI_DEV_FB_FREE": 38912,
    "DCGM_FI_DEV_POWER_USAGE": 150,
    "DCGM_FI_DEV_GPU_TEMP": 55,
    "DCGM_FI_DEV_XID_ERRORS": 0,
}


def program(name: str) -> str:
    """The path of prometheus or promtool. Without it the test skips, or fails where
    REQUIRE_PROMETHEUS=1 is set."""
    found = shutil.which(name)
    if found is None:
        missing("PROMETHEUS", f"{name} is not installed (Debian: apt-get install prometheus)")
    return found


def free_port() -> int:
    """A port of loopback that nobody listens on now, for a process that must come back on the same
    one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Prometheus:
    """The HTTP API of a running Prometheus."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=f"{url}/api/v1", timeout=30)

    def get(self, path: str, **params: Any) -> Any:
        answer = self.http.get(path, params=params).json()
        if answer["status"] != "success":
            raise RuntimeError(f"{path} {params}: {answer['error']}")
        return answer["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series of an instant query that have a number, not NaN."""
        found = self.get("/query", query=expr)["result"]
        return [series for series in found if not math.isnan(float(series["value"][1]))]

    def query_range(
        self, expr: str, start: float, end: float, step: float = 1
    ) -> list[dict[str, Any]]:
        """The series of a range query that have any number; NaNs are left out of their values."""
        found = self.get("/query_range", query=expr, start=start, end=end, step=step)["result"]
        for series in found:
            series["values"] = [
                (at, float(text)) for at, text in series["values"] if not math.isnan(float(text))
            ]
        return [series for series in found if series["values"]]

    def ask(
        self, target: Mapping[str, Any], start: float, end: float, window: str = "15s"
    ) -> list[dict[str, Any]]:
        """What Grafana would get for one target of a panel."""
        expr = filled(target["expr"], window)
        return self.query(expr) if target.get("instant") else self.query_range(expr, start, end)

    def fired(self) -> set[str]:
        """The alerts that fired at any time up to now."""
        found = self.query('count by (alertname) (max_over_time(ALERTS{alertstate="firing"}[1h]))')
        return {series["metric"]["alertname"] for series in found}


@contextmanager
def prometheus(
    folder: Path, targets: Sequence[str], others: Mapping[str, str] | None = None
) -> Iterator[Prometheus]:
    """Prometheus with monitoring/prometheus.yml and rules.yml, but these targets (HOST:PORT) and
    all intervals at 1 s.

    Alerts fire after 1 s in the place of their `for`. others: further jobs, name -> HOST:PORT.
    Raises RuntimeError with its last words when it does not get ready.
    """
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text("utf-8"))
    config["global"] = dict.fromkeys(config["global"], "1s")
    (scrape,) = config["scrape_configs"]
    scrape["static_configs"] = [{"targets": list(targets)}]
    config["scrape_configs"] += [
        {"job_name": job, "static_configs": [{"targets": [target]}]}
        for job, target in (others or {}).items()
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    rules = (MONITORING / "rules.yml").read_text("utf-8")
    (folder / "rules.yml").write_text(
        re.sub(r"^( +(?:for|interval): )\w+$", r"\g<1>1s", rules, flags=re.M)
    )
    address, log = f"127.0.0.1:{free_port()}", folder / "prometheus.log"
    command = [
        *(program("prometheus"), f"--config.file={folder / 'prometheus.yml'}", "--log.level=warn"),
        *(f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"),
    ]
    with (
        log.open("w") as words,
        subprocess.Popen(command, stdout=words, stderr=words, cwd=folder) as process,
    ):
        try:
            end = time.monotonic() + 30
            while not answers(f"http://{address}/-/ready"):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"Prometheus did not get ready:\n{log.read_text()}")
                time.sleep(0.05)
            api = Prometheus(f"http://{address}")
            try:
                yield api
            finally:
                api.http.close()
        finally:
            process.terminate()


def board() -> dict[str, Any]:
    """The dashboard as it is committed."""
    found: dict[str, Any] = json.loads(
        (MONITORING / "dashboards" / "fathom.json").read_text("utf-8")
    )
    return found


def panels(of: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every panel that asks for something, those in folded rows too, in their order."""
    return [
        inner
        for panel in of["panels"]
        for inner in (panel, *panel.get("panels", []))
        if inner.get("targets")
    ]


def filled(expr: str, window: str) -> str:
    """A panel's query as Grafana sends it: with its variables put in."""
    for name, value in (VARIABLES | {"__rate_interval": window}).items():
        expr = expr.replace(f"${name}", value)
    if "$" in expr:
        raise ValueError(f"a variable that the dashboard does not have: {expr}")
    return expr


RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((MONITORING / "rules.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
RECORDS = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
ALERTS = [rule for rule in RULES if "alert" in rule]
TARGETS = [(panel["title"], target) for panel in panels(board()) for target in panel["targets"]]
