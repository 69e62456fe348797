"""k8s/examples/kserve: what KServe makes pods of is valid, starts and answers its probes.

The pods are checked by Kubernetes' own strict schema, KServe's two resources by the types of its
SDK where that is installed (`make test-clients`).
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.bundle import Manifest
from service.command_line import load
from tests.api.server import running
from tests.manifests import K8S, Object
from tests.needs import missing
from tests.open_inference.test_clients import run
from tests.test_kubernetes import VERSIONS


@pytest.fixture(scope="module")
def built() -> dict[str, Object]:
    """The example's objects by kind."""
    kubectl = shutil.which("kubectl", path=Path(sys.executable).parent) or shutil.which("kubectl")
    if kubectl is None:
        missing("KUBECTL", "there is no kubectl")
    done = subprocess.run(
        [kubectl, "kustomize", K8S / "examples" / "kserve"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}


def container(built: dict[str, Object]) -> dict[str, Any]:
    (found,) = built["ServingRuntime"]["spec"]["containers"]
    return copy.deepcopy(found)


def test_there_is_a_runtime_and_a_service_of_it(built: dict[str, Object]) -> None:
    assert set(built) == {"ServingRuntime", "InferenceService"}
    runtime, service = built["ServingRuntime"], built["InferenceService"]
    assert {each["metadata"]["namespace"] for each in built.values()} == {"fathom"}
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    (formats,) = runtime["spec"]["supportedModelFormats"]
    assert model["modelFormat"] == {key: formats[key] for key in ("name", "version")}
    assert container(built)["image"] == "registry.example.com/fathom:cpu"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pod_that_kserve_makes_is_valid(built: dict[str, Object], version: str) -> None:
    predictor = built["InferenceService"]["spec"]["predictor"]
    own = {"minReplicas", "maxReplicas", "model"}
    spec = {key: value for key, value in predictor.items() if key not in own}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "predictor"},
        "spec": spec | {"containers": [container(built)]},
    }
    assert kubernetes_validate.validate(pod, version, strict=True) == version


def test_its_variables_are_settings_and_its_ports_agree(built: dict[str, Object]) -> None:
    found = container(built)
    environ = {entry["name"]: entry["value"] for entry in found["env"]}
    settings = load([], environ)
    assert str(settings.bundle) == "/mnt/models"
    assert [port["containerPort"] for port in found["ports"]] == [settings.port]
    annotations = built["ServingRuntime"]["spec"]["annotations"]
    assert annotations["prometheus.kserve.io/port"] == str(settings.port)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert found[probe]["httpGet"]["port"] == settings.port


def test_a_pod_that_ends_serves_until_nobody_sends_to_it(built: dict[str, Object]) -> None:
    found = container(built)
    drain = load([], {entry["name"]: entry["value"] for entry in found["env"]}).drain_timeout_s
    grace = built["InferenceService"]["spec"]["predictor"]["terminationGracePeriodSeconds"]
    assert grace > found["lifecycle"]["preStop"]["sleep"]["seconds"] + 2 * drain


def test_its_probes_and_metrics_answer(built: dict[str, Object], fake_manifest: Manifest) -> None:
    found = container(built)
    with running(fake_manifest) as server:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert server.http.get(found[probe]["httpGet"]["path"]).status_code == 200
        path = built["ServingRuntime"]["spec"]["annotations"]["prometheus.kserve.io/path"]
        assert server.http.get(path).status_code == 200


def test_both_resources_are_right_by_the_types_of_kserves_sdk(built: dict[str, Object]) -> None:
    printed = run("kserve_types.py", "kserve", sent=json.dumps(list(built.values())))
    counts = dict(re.findall(r"^(\w+) (\d+)$", printed, re.M))
    assert set(counts) == set(built)
    wrong = copy.deepcopy(built["InferenceService"])
    wrong["spec"]["predictor"]["modle"] = {}
    with pytest.raises(AssertionError, match="no field modle"):
        run("kserve_types.py", "kserve", sent=json.dumps([wrong]))
