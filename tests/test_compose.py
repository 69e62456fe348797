"""compose.yaml is valid, locked down, and agrees with the service, with monitoring/ and with
k8s/."""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import re
import subprocess
import time
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
import jsonschema
import pytest
import yaml

from service.command_line import load
from service.settings import Settings
from tests.observed import free_port, program

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
SERVICES = ("fathom", "prometheus", "grafana")


def test_compose_is_valid() -> None:
    schemas = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((schemas / "compose-spec.json").read_text("utf-8"))
    check = jsonschema.validators.validator_for(schema)(schema)
    check.validate(COMPOSE)
    with pytest.raises(jsonschema.ValidationError):
        check.validate({"services": {"fathom": {"imagee": "fathom"}}})


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_pinned_locked_down_and_on_loopback(name: str) -> None:
    service = COMPOSE["services"][name]
    assert set(COMPOSE["services"]) == set(SERVICES)
    assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"]), service["image"]
    assert service["read_only"] is True
    assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    # Compose refuses it beside those limits; the schema does not.
    assert "pids_limit" not in service
    for port in service["ports"]:
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), port
    assert "privileged" not in service
    for other, wait in service.get("depends_on", {}).items():
        assert wait == {"condition": "service_healthy"}
        assert "test" in COMPOSE["services"][other]["healthcheck"]


def mounts(name: str) -> dict[str, Path]:
    """Folders of the repository that a service sees, by the place where it sees them; all of them
    read-only."""
    found = {}
    for source, target, *mode in (
        volume.split(":") for volume in COMPOSE["services"][name].get("volumes", [])
    ):
        if source.startswith("."):
            assert mode == ["ro"], source
            found[target] = ROOT / source
            assert found[target].is_dir(), source
        else:
            assert source in COMPOSE["volumes"], source
    return found


def test_prometheus_finds_its_files_and_the_service() -> None:
    folder = mounts("prometheus")["/etc/prometheus"]
    config = yaml.safe_load((folder / "prometheus.yml").read_text("utf-8"))
    assert [(folder / name).is_file() for name in config["rule_files"]] == [True]
    (scrape,) = config["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"fathom:{Settings().port}"]}]
    assert scrape.get("metrics_path", "/metrics") == "/metrics"


def test_grafana_finds_data_source_and_dashboard_and_lets_nobody_change_anything() -> None:
    seen = mounts("grafana")
    provisioning = seen["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text("utf-8"))[
        "datasources"
    ]
    assert COMPOSE["services"]["prometheus"]["ports"] == [
        f"127.0.0.1:{httpx.URL(source['url']).port}:9090"
    ]
    (provider,) = yaml.safe_load((provisioning / "dashboards/fathom.yaml").read_text("utf-8"))[
        "providers"
    ]
    environ = COMPOSE["services"]["grafana"]["environment"]
    home = PurePosixPath(environ["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (seen[provider["options"]["path"]] / home.name).is_file()
    assert str(home.parent) == provider["options"]["path"]
    assert environ["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environ["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environ["GF_AUTH_BASIC_ENABLED"] == "false"


def test_the_service_runs_as_in_kubernetes() -> None:
    service = COMPOSE["services"]["fathom"]
    assert service["build"] == {"context": ".", "dockerfile": "docker/Dockerfile", "target": "cpu"}
    load([], service["environment"])
    overlay = yaml.safe_load((ROOT / "k8s/overlays/cpu/resources.yaml").read_text("utf-8"))
    (container,) = overlay["spec"]["template"]["spec"]["containers"]
    for variable in container["env"]:
        assert service["environment"][variable["name"]] == variable["value"]
    limits = service["deploy"]["resources"]["limits"]
    assert (limits["cpus"], limits["memory"] + "i") == tuple(
        container["resources"]["limits"].values()
    )


def test_a_real_prometheus_takes_the_flags_of_compose(tmp_path: Path) -> None:
    flags = [
        flag.replace("/etc/prometheus", str(mounts("prometheus")["/etc/prometheus"])).replace(
            "=/prometheus", f"={tmp_path}"
        )
        for flag in COMPOSE["services"]["prometheus"]["command"]
    ]
    port = free_port()
    with subprocess.Popen(
        [program("prometheus"), *flags, f"--web.listen-address=127.0.0.1:{port}"],
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            flags_seen = _flags(port)
        finally:
            process.terminate()
    assert flags_seen["storage.tsdb.retention.time"] == "3d"
    assert flags_seen["enable-feature"] == "exemplar-storage"
    assert process.returncode == 0


def _flags(port: int) -> dict[str, Any]:
    """/api/v1/status/flags as soon as it answers. Raises TimeoutError after a minute."""
    for _ in range(300):
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/status/flags")
            if answer.status_code == 200:
                return dict(answer.json()["data"])
        time.sleep(0.2)
    raise TimeoutError("Prometheus did not answer")
