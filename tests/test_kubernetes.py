"""k8s/: what kustomize makes of it is valid for three versions of Kubernetes and ready for
server-side apply."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.manifests import BUILDS, K8S, Object, build, one
from tests.needs import data_at

VERSIONS = ("1.35", "1.36", "1.37")
# Their schemas are not at hand.
UNCHECKED = {
    "Gateway",
    "HTTPRoute",
    "BackendTrafficPolicy",
    "ClientTrafficPolicy",
}


@pytest.fixture(params=BUILDS)
def built(request: pytest.FixtureRequest) -> list[Object]:
    return build(request.param)


def is_native(each: Object) -> bool:
    group = each["apiVersion"].rpartition("/")[0]
    return (
        "." not in group
        or group.split(".", 1)[1] == "k8s.io"
        or group in ("policy", "networking.k8s.io")
    )


def closed(schema: Any) -> Any:
    """The API server prunes what a schema does not name; a manifest that relies on that is
    wrong."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get(
        "x-kubernetes-preserve-unknown-fields"
    ):
        found.setdefault("additionalProperties", False)
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_of_every_build_is_valid_by_the_strict_schema(version: str) -> None:
    different = {
        json.dumps(each, sort_keys=True): each
        for name in BUILDS
        for each in build(name)
        if is_native(each)
    }
    kinds = {each["kind"] for each in different.values()}
    assert kinds == {
        *(
            "ConfigMap",
            "Deployment",
            "HorizontalPodAutoscaler",
            "Namespace",
            "NetworkPolicy",
            "PersistentVolumeClaim",
        ),
        *("PodDisruptionBudget", "Service"),
    }
    for each in different.values():
        assert kubernetes_validate.validate(each, version, strict=True) == version, each["kind"]


def test_the_strict_schema_finds_a_field_that_is_misspelt() -> None:
    service = one(build("base"), "Service")
    service["spec"]["selektor"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="selektor"):
        kubernetes_validate.validate(service, VERSIONS[-1], strict=True)


def test_custom_resources_are_valid_by_their_published_schemas(built: list[Object]) -> None:
    custom = [each for each in built if not is_native(each) and each["kind"] not in UNCHECKED]
    crds = data_at("crds")
    for each in custom:
        group, _, version = each["apiVersion"].partition("/")
        definition = yaml.safe_load((crds / f"{group}_{each['kind'].lower()}s.yaml").read_text())[
            "spec"
        ]
        (schema,) = (
            found["schema"]["openAPIV3Schema"]
            for found in definition["versions"]
            if found["name"] == version
        )
        schema = closed(schema)
        schema["properties"]["metadata"] = {"type": "object"}
        jsonschema.Draft202012Validator(schema).validate(each)
        each["spec"]["surplus"] = 1
        assert not jsonschema.Draft202012Validator(schema).is_valid(each)


def test_server_side_apply_finds_nothing_to_stumble_over(built: list[Object]) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in built]
    assert len(set(names)) == len(names)
    assert {each["metadata"].get("namespace") for each in built if each["kind"] != "Namespace"} == {
        "fathom"
    }

    def walk(value: object, path: str) -> None:
        assert value not in (None, {}, []), f"{path} is empty"
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(inner, (dict, list)) or inner is None:
                walk(inner, f"{path}.{key}")
        if isinstance(value, list) and all(isinstance(inner, dict) for inner in value):
            keys = ("mountPath",) if path.endswith("volumeMounts") else ("name", "containerPort")
            for key in keys:
                found = [inner[key] for inner in value if key in inner]
                assert len(set(found)) == len(found), f"{path} has {key} twice"

    for each in built:
        assert "status" not in each
        # Its rules are a list by name in which names may repeat.
        if each["kind"] != "PrometheusRule":
            walk(each, each["kind"])
    assert "replicas" not in one(built, "Deployment")["spec"]  # it is the autoscaler's


@pytest.mark.parametrize(
    "path", sorted(K8S.rglob("*.yaml")), ids=lambda path: str(path.relative_to(K8S))
)
def test_no_file_has_a_key_twice(path: Path) -> None:
    def check(node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            assert len(set(keys)) == len(keys), keys
        for child in node.value if isinstance(node, yaml.CollectionNode) else ():
            for each in child if isinstance(child, tuple) else (child,):
                check(each)

    for document in yaml.compose_all(path.read_text(), yaml.SafeLoader):
        check(document)
