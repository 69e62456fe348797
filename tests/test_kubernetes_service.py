"""k8s/ says what the service does: its settings, paths, metrics and times, and whom it lets in."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml
from starlette.testclient import TestClient

from service.api.fields import parse_budget
from service.bundle import Manifest
from service.command_line import load
from service.inference.policy import Policy
from service.metrics import Metrics
from service.settings import Settings
from tests.manifests import BUILDS, ROOT, Object, build, container_of, of_kind, one, pod_of, strings
from tests.serving import app_of


@pytest.fixture(params=BUILDS)
def built(request: pytest.FixtureRequest) -> list[Object]:
    return build(request.param)


@pytest.fixture
def paths(fake_manifest: Manifest) -> set[str]:
    """The app's own, and those that its OpenAPI document leaves out."""
    app = app_of(fake_manifest)
    with TestClient(app) as client:
        hidden = {
            path for path in ("/", "/docs", "/openapi.json") if client.get(path).status_code == 200
        }
    return set(app.openapi()["paths"]) | hidden


def settings_of(objects: list[Object]) -> Settings:
    container = container_of(objects)
    assert "command" not in container
    return load(
        container.get("args", []), {each["name"]: each["value"] for each in container["env"]}
    )


def test_one_autoscaler_and_never_two(built: list[Object]) -> None:
    (scaler,) = of_kind(built, "HorizontalPodAutoscaler") + of_kind(built, "ScaledObject")
    spec = scaler["spec"]
    assert spec["scaleTargetRef"]["name"] == one(built, "Deployment")["metadata"]["name"]
    if scaler["kind"] == "HorizontalPodAutoscaler":
        assert spec["metrics"][0]["containerResource"]["container"] == container_of(built)["name"]
        return
    # KEDA takes over an autoscaler that already runs under this name.
    assert spec["advanced"]["horizontalPodAutoscalerConfig"]["name"] == "fathom"
    assert (
        scaler["metadata"]["annotations"]["scaledobject.keda.sh/transfer-hpa-ownership"] == "true"
    )
    assert spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]
    prometheus = [each for each in spec["triggers"] if each["type"] == "prometheus"]
    assert {each["name"] for each in prometheus} == {"queue-wait", "compute-given-up"}
    assert all(each["metadata"]["ignoreNullValues"] == "false" for each in prometheus)


def test_settings_and_ports_are_the_service_s_own(built: list[Object]) -> None:
    settings = settings_of(built)
    assert settings.host == "0.0.0.0"
    # FATHOM_PORT=tcp://... would stop the start.
    assert pod_of(built)["enableServiceLinks"] is False
    (port,) = container_of(built)["ports"]
    assert port["containerPort"] == settings.port
    assert one(built, "Service")["spec"]["ports"][0]["targetPort"] == port["name"]
    assert one(built, "NetworkPolicy")["spec"]["ingress"][0]["ports"] == [
        {"port": port["name"], "protocol": "TCP"}
    ]


def test_watched_files_lie_in_volumes_that_change(
    built: list[Object], fake_manifest: Manifest
) -> None:
    settings, volumes = (
        settings_of(built),
        {each["name"]: each for each in pod_of(built)["volumes"]},
    )
    mounts = {each["mountPath"]: each for each in container_of(built)["volumeMounts"]}
    budget, keys = Path(settings.node_budget_file), Path(settings.api_keys_file)
    assert "subPath" not in mounts[str(budget.parent)]
    name = volumes[mounts[str(budget.parent)]["name"]]["configMap"]["name"]
    budget_lines = one(built, "ConfigMap", name)["data"][budget.name].splitlines()
    Policy(fake_manifest.plans, (), 0.0).check(parse_budget(budget_lines))
    if settings.api_keys_file:
        assert "subPath" not in mounts[str(keys.parent)]
        assert (
            volumes[mounts[str(keys.parent)]["name"]]["secret"]["secretName"] == "fathom-api-keys"
        )
        # Nothing that is committed holds a key: the Secret is made by hand.
        assert of_kind(built, "Secret") == []


def test_probes_scrapes_and_routes_ask_for_paths_that_exist(
    built: list[Object], paths: set[str]
) -> None:
    container = container_of(built)
    probes = {
        name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")
    }
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/readyz",
        "readiness": "/readyz",
        # a queue that is full or an engine that warms up must not restart the pod
        "liveness": "/healthz",
    }
    asked = {probe["path"] for probe in probes.values()}
    for monitor in of_kind(built, "ServiceMonitor"):
        asked |= {each["path"] for each in monitor["spec"]["endpoints"]}
        assert {each["port"] for each in monitor["spec"]["endpoints"]} == {
            one(built, "Service")["spec"]["ports"][0]["name"]
        }
    for route in of_kind(built, "HTTPRoute"):
        routed = {
            match["path"]["value"] for rule in route["spec"]["rules"] for match in rule["matches"]
        }
        assert routed.isdisjoint({"/metrics", "/healthz", "/readyz"})
        asked |= routed - {"/static"}  # a prefix
    assert asked <= paths


def test_admitted_work_is_finished_before_the_pod_is_killed(built: list[Object]) -> None:
    pod, container = pod_of(built), container_of(built)
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = math.ceil(settings_of(built).drain_timeout_s)
    assert pod["terminationGracePeriodSeconds"] > sleep + drain + 10
    assert (
        container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"]
        >= 30
    )


def test_pods_pass_the_restricted_standard(built: list[Object]) -> None:
    assert (
        one(built, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
        == "restricted"
    )
    pod = pod_of(built)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*pod["containers"], *pod.get("initContainers", ())):
        context = container["securityContext"]
        assert context == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {each["mountPath"] for each in container["volumeMounts"]} >= {"/tmp"}
    assert not any("hostPath" in volume for volume in pod["volumes"])


def test_every_selector_finds_the_pods(built: list[Object]) -> None:
    labels = one(built, "Deployment")["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        one(built, "Service")["spec"]["selector"],
        one(built, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    selectors += [
        one(built, kind)["spec"]["selector"]["matchLabels"]
        for kind in ("PodDisruptionBudget", "Deployment")
    ]
    selectors += [
        each["labelSelector"]["matchLabels"] for each in pod_of(built)["topologySpreadConstraints"]
    ]
    assert all(selector.items() <= labels for selector in selectors)
    for monitor in of_kind(built, "ServiceMonitor"):
        found = one(built, "Service")["metadata"]["labels"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= found.items()
        # The job that the triggers and alerts ask for.
        assert found[monitor["spec"]["jobLabel"]] == "fathom"


def test_a_rollout_takes_nothing_away_and_nodes_can_be_drained(built: list[Object]) -> None:
    rolling = one(built, "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert rolling["maxUnavailable"] == 0
    assert math.ceil(int(rolling["maxSurge"].rstrip("%")) / 100 * 2) >= 1
    budget = one(built, "PodDisruptionBudget")["spec"]
    assert "minAvailable" not in budget
    share = int(budget["maxUnavailable"].rstrip("%")) / 100
    for replicas in range(2, 41):
        assert 1 <= math.ceil(share * replicas) < replicas  # percentages are rounded up


def test_prometheus_and_the_gateway_come_in_and_only_spans_go_out(built: list[Object]) -> None:
    spec = one(built, "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert ("egress" in spec) == bool(settings_of(built).trace_endpoint)
    if "egress" in spec:
        to, port = spec["egress"][0]["to"][0], spec["egress"][0]["ports"][0]["port"]
        space = to["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        assert settings_of(built).trace_endpoint.endswith(f".{space}.svc:{port}")
    (rule,) = spec["ingress"]
    selectors = [
        peer["namespaceSelector"]["matchLabels"]
        for peer in rule["from"]
        if "namespaceSelector" in peer
    ]
    assert {name for each in selectors for name in each.values()} == {
        "envoy-gateway-system",
        "monitoring",
    }
    for each in of_kind(built, "ScaledObject"):
        servers = {
            trigger["metadata"].get("serverAddress", ".monitoring.svc")
            for trigger in each["spec"]["triggers"]
        }
        assert all(".monitoring.svc" in server for server in servers)


def test_the_gateway_ends_idle_connections_before_a_replica_does(built: list[Object]) -> None:
    for policy in of_kind(built, "BackendTrafficPolicy"):
        idle = policy["spec"]["timeout"]["http"]["connectionIdleTimeout"]
        assert int(idle.removesuffix("s")) < settings_of(built).keep_alive_s


def test_every_metric_is_exported_or_recorded(built: list[Object]) -> None:
    exported: set[str] = set()
    for family in Metrics(layers=6, max_batch=4).registry.collect():
        suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}.get(
            family.type, ("",)
        )
        exported |= {family.name + suffix for suffix in suffixes}
    rules = yaml.safe_load((ROOT / "monitoring/rules.yml").read_text())["groups"]
    recorded = {rule["record"] for group in rules for rule in group["rules"] if "record" in rule}
    for each in (*of_kind(built, "ScaledObject"), *of_kind(built, "PrometheusRule")):
        queries = [
            trigger["metadata"].get("query", "") for trigger in each["spec"].get("triggers", ())
        ]
        queries += [
            rule["expr"] for group in each["spec"].get("groups", ()) for rule in group["rules"]
        ]
        text = re.sub(r'"[^"]*"', "", " ".join(strings(queries)))
        names = set(re.findall(r"[a-z_]+:fathom[a-z_]*:\w+|(?<![:\w])fathom_[a-z_]+(?!:)\b", text))
        assert names, each["kind"]
        assert names <= exported | recorded


def test_engines_are_kept_per_gpu_product(built: list[Object]) -> None:
    for init in pod_of(built).get("initContainers", ()):
        env = {each["name"]: each["value"] for each in init["env"]}
        assert env["GPU_PRODUCT"] == pod_of(built)["nodeSelector"]["nvidia.com/gpu.product"]
        assert init["command"][-1].endswith("/$(GPU_PRODUCT)")
        serving = {each["name"]: each.get("value") for each in container_of(built)["env"]}
        assert serving["FATHOM_ENGINE_CACHE"] == init["command"][-1]
        assert (serving["GPU_PRODUCT"], serving["FATHOM_BACKEND"]) == (
            env["GPU_PRODUCT"],
            "tensorrt",
        )
        assert (
            init["resources"]["limits"]["nvidia.com/gpu"]
            == container_of(built)["resources"]["limits"]["nvidia.com/gpu"]
        )
