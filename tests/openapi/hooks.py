"""What schemathesis cannot know from the document: how an image is made, that `Accept` picks a
form, and two refusals that are right although the request is.

Schemathesis loads this module by its name in schemathesis.toml.
"""

from __future__ import annotations

import base64
import itertools
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import schemathesis
from hypothesis import strategies as st
from PIL import Image, features
from schemathesis.core.failures import Failure, ServerError
from schemathesis.core.parameters import ParameterLocation
from schemathesis.openapi.checks import RejectedPositiveData

from tests.pictures import quarters

SIZES = ((16, 16), (64, 48), (17, 90))  # width, height; no side may be shorter than 16 by default
# What a caller's own ceilings can bring about, so that it is no fault of a request that fits the
# document: the status of which problem passes which check.
ALLOWED = {
    # A budget may ask for less than the cheapest plan of the bundle.
    (RejectedPositiveData, "urn:fathom:problem:unsatisfiable-budget"),
    # A deadline may be shorter than what the machine needs today.
    (ServerError, "urn:fathom:problem:deadline-exceeded"),
}
ASK = {"Compute-Budget", "Task-Preference", "Value-Range"}
LENGTH = "Inference-Header-Content-Length"
_turn = itertools.count()


if find_spec("pillow_heif") is not None:
    import_module("pillow_heif").register_heif_opener()


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """Images of every type that the document names and Pillow can write."""
    Image.init()
    kinds = {mime: kind for kind, mime in Image.MIME.items() if kind in Image.SAVE}
    kinds |= dict.fromkeys(("image/jpg", "image/pjpeg"), "JPEG")  # what some clients call it
    if "HEIF" in Image.SAVE:
        kinds |= dict.fromkeys(("image/heic", "image/heif"), "HEIF")
    for media_type in sorted(_types_taken(raw_schema)):
        kind = kinds.get(media_type)
        if kind is None or (kind == "AVIF" and not features.check("avif")):
            continue
        images = [quarters(width, height, kind) for width, height in SIZES]
        schemathesis.openapi.media_type(media_type, st.sampled_from(images))


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """The forms of the answer take turns. OpenAPI has no parameter for them: `Accept` is what the
    documented types of an answer are for."""
    answer = case.operation.definition.raw["responses"].get("200", {})
    forms = sorted(answer.get("content", {}))
    made = case.meta.components.get(ParameterLocation.BODY)
    if made is None or made.mode.is_positive:
        _carry_an_image(case)
    # What `include` adds has a place in JSON only.
    if len(forms) > 1 and "include" not in (case.query or {}):
        case.headers.setdefault("Accept", forms[next(_turn) % len(forms)])


def _carry_an_image(case: Any) -> None:
    """Gives a request whose body is meant to be right an image, where its type does not say that it
    holds one."""
    image, inference = quarters(*SIZES[0], "JPEG"), case.path.endswith("/infer")
    length = {}
    if case.media_type == "application/octet-stream":
        case.body, length = image, {LENGTH: "0"}
    elif inference and isinstance(case.body, dict):
        _infer(case.body, image)
        # The document cannot say that field and parameter must not differ.
        if ASK & set(case.headers):
            case.body.pop("parameters", None)
    # The header field goes with the body. One that is no number is meant to be wrong.
    if inference and str(case.headers.get(LENGTH, "0")).isdecimal():
        case.headers.pop(LENGTH, None)
        case.headers.update(length)


def _infer(body: dict[str, Any], image: bytes) -> None:
    """An image for the Open Inference Protocol, and no output twice. The protocol is too free for a
    schema: datatype, shape and data go together."""
    data = [base64.b64encode(image).decode()]
    body["inputs"] = [{"name": "image", "datatype": "BYTES", "shape": [1], "data": data}]
    if outputs := body.get("outputs"):
        body["outputs"] = list({output["name"]: output for output in outputs}.values())


@schemathesis.hook
def filter_failure(context: Any, failure: Failure, case: Any, response: Any) -> bool:
    try:
        document = response.json()
    except ValueError:
        return True
    problem = document.get("type") if isinstance(document, dict) else None
    return (type(failure), problem) not in ALLOWED


def _types_taken(document: dict[str, Any]) -> set[str]:
    """The image types among all request bodies."""
    return {
        media_type
        for operations in document["paths"].values()
        for operation in operations.values()
        for media_type in operation.get("requestBody", {}).get("content", {})
        if media_type.startswith("image/")
    }
