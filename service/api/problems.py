"""Problem documents (RFC 9457): the answers to errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import Response

from service.errors import FathomError, RequestTimeout

MEDIA_TYPE = "application/problem+json"
# Python 3.13 took over the phrases of RFC 9110, and a problem's type must not hang on the version.
RENAMED = {414: "URI Too Long"}


def problem(error: FathomError, request_id: str, path: str = "") -> Response:
    """The answer to an error, as a problem document. path: the request's."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, RequestTimeout):
        headers["Connection"] = "close"  # do not wait for the rest of the body
    return _document(
        error.status,
        error.problem,
        error.title,
        error.detail,
        request_id,
        path,
        headers,
        error.extra,
    )


def of_status(
    status: int,
    detail: str,
    request_id: str,
    path: str = "",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The document of an error that is none of this service's own: titled as HTTP has it."""
    phrase = RENAMED.get(status, HTTPStatus(status).phrase)
    slug = phrase.lower().replace(" ", "-")
    return _document(status, slug, phrase, detail, request_id, path, headers)


def _document(
    status: int,
    slug: str,
    title: str,
    detail: str,
    request_id: str,
    path: str = "",
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, object] | None = None,
) -> Response:
    """A problem document (RFC 9457). extra: its further members.

    Below /v2 it has the member `error` of the Open Inference Protocol, whose clients look for that
    in JSON of the plain type only.
    """
    members: dict[str, object] = {
        "type": f"urn:fathom:problem:{slug}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": f"urn:fathom:request:{request_id}",
    }
    kind = MEDIA_TYPE
    if path == "/v2" or path.startswith("/v2/"):
        members, kind = {"error": detail} | members, "application/json"
    body = json.dumps(
        members | {key: value for key, value in (extra or {}).items() if key not in members}
    )
    return Response(body, status, dict(headers or {}), kind)
