"""What every operation of /openapi.json can answer: the errors that are not its own, and the header
fields that the edge adds."""

from __future__ import annotations

from typing import Any

from service.api.problems import MEDIA_TYPE
from service.errors import ForeignOrigin

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}
_REQUEST_ID = {
    "description": "The request's id, the caller's or a new one",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    "example": "3f1c9a",
}
_RETRY_AFTER = {
    "description": "Seconds after which a retry has a chance",
    "required": True,
    "schema": {"type": "integer", "minimum": 1},
    "example": 2,
}
_AUTHENTICATE = {
    "description": "How to send the key",
    "required": True,
    "schema": {"type": "string"},
    "example": 'Bearer realm="fathom"',
}
_FIELDS = {
    "401": {"WWW-Authenticate": _AUTHENTICATE},
    "429": {"Retry-After": _RETRY_AFTER},
    "503": {"Retry-After": _RETRY_AFTER},
}


def failure(description: str) -> dict[str, Any]:
    """The description of a problem document, for a route's `responses`."""
    return {
        "description": description,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def error(description: str) -> dict[str, Any]:
    """The same below /v2, with the member `error` of the Open Inference Protocol."""
    return {"description": description, "content": {"application/json": {"schema": _ERROR}}}


def add(path: str, method: str, operation: dict[str, Any]) -> None:
    """Complete an operation's `responses` in place; what it says itself stays."""
    responses: dict[str, Any] = operation["responses"]
    refused = error if path.startswith("/v2") else failure
    if "security" in operation:
        responses.setdefault("401", refused("No API key, an unknown one, or several"))
    if method == "post":
        responses.setdefault("403", refused(ForeignOrigin.title))
    if "{" in path:
        responses.setdefault("404", refused("There is nothing of this name"))
    if path.endswith("/ready"):
        responses.setdefault("503", refused("Starting, draining or failed"))
    responses.setdefault("500", refused("Internal error"))
    for status, response in responses.items():
        fields = {"X-Request-Id": _REQUEST_ID, **_FIELDS.get(status, {})}
        response["headers"] = fields | response.get("headers", {})
    operation["responses"] = dict(sorted(responses.items()))
