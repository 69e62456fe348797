"""The part of /openapi.json about /segment.

It is made from the table of forms, the image formats and the error tree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastapi.routing import APIRoute
from starlette.responses import Response

from service.api import openapi_answers
from service.api.body import FORM
from service.api.fields import VALUE_SCALE
from service.api.forms import FORMS, INCLUDES
from service.api.image_info import Wire
from service.api.openapi_answers import failure
from service.api.openapi_fields import ask_fields, header
from service.api.schemas import TASK_NOTES, Problem
from service.errors import BadInference, FathomError
from service.pixels.formats import FORMATS
from service.tasks import TASKS

_BINARY = {"type": "string", "format": "binary"}
_IMAGE_FORM = {"type": "object", "properties": {"file": _BINARY}, "required": ["file"]}
_EXAMPLE = {
    "image": {
        "width": 480,
        "height": 360,
        "orientation_applied": False,
        "damaged": False,
        "hint": None,
    },
    "task": "semantic",
    "segments": [
        {
            "id": 1,
            "class_id": 3,
            "label": "Road",
            "is_thing": False,
            "score": 0.9312,
            "area": 41237,
            "box": [0, 171, 480, 189],
            "rle": {"size": [360, 480], "counts": "lT1d0Y:5K4L3M3M2N1O..."},
        }
    ],
    "usage": {
        "plan": "c640-d2",
        "canvas": {"name": "c640", "height": 480, "width": 640},
        "depth": 2,
        "of": 6,
        "gflops": 21.3,
        "reason": "gate",
        "predicted_quality": 0.7104,
    },
    "timing_ms": {
        "decode": 2.1,
        "queue": 0.1,
        "glance": 5.3,
        "front": 21.4,
        "encoder": 9.8,
        "decoder": 6.2,
        "mask": 4.9,
    },
}
_HEADERS = {
    "Compute-Used": (
        "What was spent and why (RFC 9651 Dictionary); canvas where the bundle has several",
        "canvas=c640, depth=2, of=6, gflops=21.3, reason=request",
    ),
    "Server-Timing": (
        "Milliseconds per stage; none if another request's computation answered it",
        "decode;dur=2.1, queue;dur=0.1, front;dur=21.4",
    ),
    "Cache-Status": ("What the response cache did, where there is one (RFC 9211)", "fathom; hit"),
}


def segment(layers: int, heads: Sequence[str]) -> dict[str, Any]:
    """The arguments of the route /segment for its description.

    layers: the bundle's deepest exit. heads: the names of its heads.
    """
    headers = {
        name: {
            "description": text,
            "required": name == "Compute-Used",
            "schema": {"type": "string"},
            "example": example,
        }
        for name, (text, example) in _HEADERS.items()
    }
    content: dict[str, Any] = {
        form.media_type: {"schema": _reference(form.model) if form.model else _BINARY}
        for form in FORMS
    }
    content["application/json"]["example"] = _EXAMPLE
    headers[VALUE_SCALE] = {
        "description": "With a PNG of values: by what they were multiplied, and their unit "
        "(RFC 9651 Item)",
        "schema": {"type": "string"},
        "example": '512.0;unit="m"',
    }
    responses: dict[int, Any] = {
        200: {
            "description": "The segmented image",
            "headers": headers,
            "content": content,
        }
    }
    for status, names in sorted(titles(BadInference).items()):
        responses[status] = failure(" / ".join(names))
    forms = "\n".join(f"- {form.media_type}: {form.holds}" for form in FORMS)
    pixels = "\n".join(f"- {task.name}: {task.png}" for task in TASKS.values() if task.png)
    return {
        "summary": "Segment one image",
        "description": "Masks, boxes or values of one image, with the compute that the image needs "
        f"and its budget allows.\n\nAccept picks the form:\n\n{forms}\n\n"
        f"Segments: {TASK_NOTES}.\n\nLabel map, per pixel:\n\n{pixels}",
        "tags": ["segment"],
        "response_class": Response,
        "responses": responses,
        "openapi_extra": {"parameters": _parameters(layers, heads), "requestBody": _request_body()},
    }


def operation_id(route: APIRoute) -> str:
    """The path's words: `segment`, `v2_models_name`. Generated clients name their functions so."""
    return "_".join(re.findall(r"\w+", route.path))


def complete(schema: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's document, with our problem documents instead of its validation errors, and with
    what every operation can answer."""
    schemas = schema["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Problem"] = Problem.model_json_schema()
    schemas["ImageForm"] = _IMAGE_FORM
    for model in (form.model for form in FORMS if form.model):
        own = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= own.pop("$defs", {}) | {model.__name__: own}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            if path != "/segment" and not path.endswith("/infer"):
                operation["responses"].pop("422", None)
            openapi_answers.add(path, method, operation)
    return schema


def _reference(model: type[Wire]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def titles(*others: type[FathomError]) -> dict[int, list[str]]:
    """Status -> titles of the errors that a caller can get. others: errors of other paths.

    Errors without a status of their own end the start, so no caller gets them.
    """
    titles: dict[int, list[str]] = {FathomError.status: [FathomError.title]}
    for kind in FathomError.__subclasses__():
        if kind.status != FathomError.status and kind not in others:
            titles.setdefault(kind.status, []).append(kind.title)
    return titles


def _request_body() -> dict[str, Any]:
    kinds = (*FORMATS, "application/octet-stream")
    content: dict[str, Any] = {kind: {"schema": _BINARY} for kind in kinds}
    encoding = {"file": {"contentType": ", ".join(kinds)}}
    form = {"schema": {"$ref": "#/components/schemas/ImageForm"}, "encoding": encoding}
    return {"required": True, "content": content | {FORM: form}}


def _parameters(layers: int, heads: Sequence[str]) -> list[dict[str, Any]]:
    # No Accept here: OpenAPI ignores it as a parameter, and takes it from the answers' types.
    return [
        *ask_fields(layers, heads),
        header("X-Request-Id", "Echoed if it matches [A-Za-z0-9._-]{1,64}", "3f1c9a"),
        {
            "name": "include",
            "in": "query",
            "description": "paused: adds to JSON the part of the image that the encoder paused; "
            "null if none. values: adds their PNG to what a head measured",
            "schema": {"type": "string", "enum": sorted(INCLUDES)},
            "example": "paused",
        },
        {
            "name": "head",
            "in": "query",
            "description": "Answer this head alone; it must be asked for. Without it, a form that "
            "holds one head has the one that matters most of those that it can hold",
            "schema": {"type": "string", "enum": list(heads)},
            "example": heads[0],
        },
    ]
