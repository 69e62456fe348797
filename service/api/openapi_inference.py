"""What /openapi.json says about the paths below /v2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from service.api.fields import preference_pattern
from service.api.openapi import titles
from service.api.openapi_answers import error
from service.api.openapi_fields import ask_fields
from service.ask import NUMBERS
from service.bundle import Manifest
from service.errors import (
    BadInference,
    BadQuery,
    NotAcceptable,
    Overloaded,
    RequestTimeout,
    TooLarge,
    UnsupportedMediaType,
)
from service.open_inference.parameters import IGNORED
from service.open_inference.request import IMAGE, MAX_ID, PIXELS
from service.open_inference.rest import HEADER_LENGTH
from service.structured import MAX_LENGTH


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a member that may be null, which is as good as absent."""
    return schema | {"type": [schema["type"], "null"]}


_NAMED = {"type": "object", "required": ["name"]}
_SCALAR = {"anyOf": [{"type": kind} for kind in ("string", "number", "boolean")]}
_TENSOR = {
    "name": {"type": "string"},
    "datatype": {"type": "string"},
    "shape": {"type": "array", "items": {"type": "integer"}},
    "parameters": _or_null({"type": "object", "additionalProperties": _SCALAR}),
    "data": _or_null({"type": "array", "items": {}}),
}
_PARAMETERS: dict[str, Any] = {
    **{key: {} for key in sorted(IGNORED)},
    **{
        key.replace("-", "_"): {"type": "number", "minimum": own.low, "maximum": own.high}
        for key, own in NUMBERS.items()
        if not own.whole  # the depth: its range is the bundle's
    },
    "strict": {"type": "boolean"},
    "timeout": {"type": "integer", "minimum": 0},
    "binary_data_output": {"type": "boolean"},
}
_REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": _or_null({"type": "string", "maxLength": MAX_ID}),
        "inputs": {
            "type": "array",
            "description": f"One tensor, '{IMAGE}' or '{PIXELS}'",
            "minItems": 1,
            "maxItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape"],
                "properties": _TENSOR
                | {
                    "name": {"type": "string", "enum": [IMAGE, PIXELS]},
                    "datatype": {"type": "string", "enum": ["BYTES", "UINT8"]},
                },
            },
        },
    },
}
_RESPONSE = {
    "type": "object",
    "required": ["model_name", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "parameters": {"type": "object", "additionalProperties": _SCALAR},
        "outputs": {"type": "array", "items": {"type": "object", "properties": _TENSOR}},
    },
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_SUMMARIES = {
    "": "Metadata of the model: its inputs and outputs",
    "/ready": "Whether the model takes work",
    "/config": "Triton's model configuration",
    "/stats": "Triton's statistics",
    "/infer": "Segment one or several images",
    "index": "The models and their states",
}


def described(path: str, manifest: Manifest, outputs: Sequence[str]) -> dict[str, Any]:
    """The arguments of a route of the model that describe it.

    path: below the model's own. outputs: the names of the model's.
    """
    found: dict[str, Any] = {"summary": _SUMMARIES[path], "responses": {404: error("Unknown")}}
    if path == "index":
        return found | _index()
    if path == "/ready":
        found["responses"][503] = error("Starting, draining or failed")
    if path == "/infer":
        found |= _infer(manifest, outputs)
    return found


def _index() -> dict[str, Any]:
    kinds = (BadInference, RequestTimeout, TooLarge, UnsupportedMediaType, Overloaded)
    only = {"type": "boolean", "description": "Leave out a model that is not ready"}
    schema = {"type": "object", "properties": {"ready": _or_null(only)}}
    content = {"application/json": {"schema": schema, "example": {"ready": True}}}
    return {
        "responses": {kind.status: error(kind.title) for kind in kinds},
        "openapi_extra": {"requestBody": {"required": False, "content": content}},
    }


def _request(manifest: Manifest, outputs: Sequence[str]) -> dict[str, Any]:
    """The schema of a request."""
    depth = {"type": "integer", "minimum": 1, "maximum": manifest.layers}
    weights = preference_pattern([head.name for head in manifest.heads])
    preference = {"type": "string", "pattern": weights, "maxLength": MAX_LENGTH}
    parameters = {
        "type": "object",
        "description": "The keys of Compute-Budget, task_preference as the field Task-Preference, "
        "timeout in microseconds, binary_data_output. Numbers may be strings. What a header field "
        "says too must be the same.",
        "additionalProperties": False,
        "properties": {"depth": depth, "task_preference": preference, **_PARAMETERS},
    }
    binary = {"binary_data": {"type": "boolean"}}
    of_output = {"type": "object", "additionalProperties": False, "properties": binary}
    output = {"name": {"type": "string", "enum": list(outputs)}, "parameters": _or_null(of_output)}
    properties = {
        "parameters": _or_null(parameters),
        "outputs": _or_null({"type": "array", "items": _NAMED | {"properties": output}}),
        **_REQUEST["properties"],
    }
    return _REQUEST | {"properties": properties}


def _infer(manifest: Manifest, outputs: Sequence[str]) -> dict[str, Any]:
    responses: dict[int, Any] = {
        200: {
            "description": "The outputs, with what each image took in the parameters",
            "content": {
                "application/json": {"schema": _RESPONSE},
                "application/octet-stream": _BINARY,
            },
        },
        404: error("Unknown model or version"),
    }
    for status, names in titles(BadQuery, NotAcceptable).items():
        responses[status] = error(" / ".join(names))
    length = {
        "name": HEADER_LENGTH,
        "in": "header",
        "description": "Bytes of JSON before the binary data; 0: the body is one image file",
        "schema": {"type": "integer", "minimum": 0},
    }
    data = ["/9j/4AAQSkZJRg..."]
    example = {
        "inputs": [{"name": IMAGE, "datatype": "BYTES", "shape": [1], "data": data}],
        "outputs": [{"name": outputs[-1]}],
        "parameters": {"gflops": 6.5},
    }
    content = {
        "application/json": {"schema": _request(manifest, outputs), "example": example},
        "application/octet-stream": _BINARY,
    }
    return {
        "response_class": Response,
        "responses": responses,
        "openapi_extra": {
            "parameters": [
                length,
                *ask_fields(manifest.layers, [head.name for head in manifest.heads]),
            ],
            "requestBody": {"required": True, "content": content},
        },
    }
