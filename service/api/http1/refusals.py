"""Answers to requests that no app has seen: what came cannot be read, or not within the limits."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from http import HTTPStatus

from service.api.middleware import REQUEST_ID
from service.api.problems import of_status
from service.logs import Line

_log = logging.getLogger("fathom.http")


class Refused(Exception):
    """The connection cannot go on after this. status: 400, 408, 414, 431, 500 or 505."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


def refusal(error: Refused, fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The whole answer, a problem document; logs it, for nobody else will. fields: of every answer.

    h11 does not write it, since it knows of no answer to what it could not read.
    """
    request_id = uuid.uuid4().hex
    _log.info(
        Line(
            "refused",
            {"request_id": request_id, "status": error.status, "detail": error.detail},
        )
    )
    answer = of_status(error.status, error.detail, request_id)
    named = [
        *fields,
        *answer.raw_headers,
        (REQUEST_ID.encode(), request_id.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"connection", b"close"),
    ]
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}".encode()]
    lines += [name + b": " + value for name, value in named]
    return b"\r\n".join((*lines, b"", bytes(answer.body)))
