"""What kustomize makes of k8s/, and the parts of it that tests look at."""

from __future__ import annotations

import copy
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from tests.needs import missing
from tests.processes import ROOT

Object: TypeAlias = dict[str, Any]
K8S = ROOT / "k8s"
BUILDS = {
    "base": ("base",),
    "cpu": ("overlays/cpu",),
    "gpu": ("overlays/gpu",),
    "cpu with keys": ("overlays/cpu", "components/api-keys"),
    "cpu with tracing": ("overlays/cpu", "components/tracing"),
    "cpu with KEDA": ("overlays/cpu", "components/keda"),
    "cpu with Prometheus": ("overlays/cpu", "../monitoring"),
    "gpu with everything": (
        "overlays/gpu",
        "components/tensorrt-cache",
        "components/keda",
        "../monitoring",
    ),
    "production": ("examples/production",),
}


def build(name: str) -> list[Object]:
    """The objects of one of BUILDS. Skips without kubectl, or fails where
    REQUIRE_KUBECTL=1 is set."""
    return copy.deepcopy(_built(name))


@functools.cache
def _built(name: str) -> list[Object]:
    kubectl = shutil.which("kubectl", path=Path(sys.executable).parent) or shutil.which("kubectl")
    if kubectl is None:
        missing("KUBECTL", "there is no kubectl")
    resource, *components = ((K8S / part).resolve() for part in BUILDS[name])
    with tempfile.TemporaryDirectory() as overlay:
        kustomization: Object = {
            "namespace": "fathom",
            "resources": [os.path.relpath(resource, overlay)],
        }
        if components:
            kustomization["components"] = [os.path.relpath(each, overlay) for each in components]
        (Path(overlay) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        run = subprocess.run(
            [kubectl, "kustomize", overlay], capture_output=True, text=True, check=False
        )
    assert (run.returncode, run.stderr) == (0, "")  # nothing deprecated either
    return list(yaml.safe_load_all(run.stdout))


def one(objects: list[Object], kind: str, name: str = "fathom") -> Object:
    (found,) = (
        each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)
    )
    return found


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def pod_of(objects: list[Object]) -> Object:
    """spec.template.spec of the Deployment."""
    pod: Object = one(objects, "Deployment")["spec"]["template"]["spec"]
    return pod


def container_of(objects: list[Object]) -> Object:
    """The service's container; there is no other."""
    (container,) = pod_of(objects)["containers"]
    return dict(container)


def strings(value: object) -> Iterator[str]:
    """Every text in a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from chain.from_iterable(map(strings, value.values()))
    elif isinstance(value, list):
        yield from chain.from_iterable(map(strings, value))
