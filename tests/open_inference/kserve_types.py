"""Whether objects are right by the types of KServe's Python SDK: python kserve_types.py < JSON.

Every key must be one that the type has, every list and object be of the type's form. Runs where
kserve is installed (see test_clients.py).
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import kubernetes.client
from kserve import models

ROOTS = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}
PLAIN = {"str": str, "int": int, "bool": bool, "float": float, "object": object}


def check(value: Any, kind: str, path: str) -> int:
    """How many values there are below it."""
    if inner := re.fullmatch(r"[lL]ist\[(.+)\]", kind):
        assert isinstance(value, list), path
        return sum(check(entry, inner[1], f"{path}[{i}]") for i, entry in enumerate(value))
    if inner := re.fullmatch(r"[dD]ict[(\[]str, (.+)[)\]]", kind):
        assert isinstance(value, dict), path
        return sum(check(entry, inner[1], f"{path}.{key}") for key, entry in value.items())
    if kind in PLAIN:
        assert isinstance(value, PLAIN[kind]), f"{path} must be {kind}"
        return 1
    found = getattr(models, kind, None) or getattr(kubernetes.client, kind, None)
    if found is None:
        # A port by number or name, a quantity: named differently by the two packages.
        assert isinstance(value, str | int), f"{path}: {kind}"
        return 1
    assert isinstance(value, dict), path
    names = {wire: name for name, wire in found.attribute_map.items()}
    for key in value:
        assert key in names, f"{path} has no field {key}"
    return sum(
        check(entry, found.openapi_types[names[key]], f"{path}.{key}")
        for key, entry in value.items()
    )


def main() -> None:
    for each in json.load(sys.stdin):
        print(each["kind"], check(each, ROOTS[each["kind"]], each["kind"]))


if __name__ == "__main__":
    main()
