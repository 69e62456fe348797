"""How calls end: errors as statuses of gRPC, and what a span tells of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from service.api.middleware import unexpected
from service.errors import FathomError
from service.grpc.messages import SERVICE

_FAILED = {  # those that OpenTelemetry takes for the server's
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


class RefusedError(Exception):
    """What ends a call. Its text is for the caller. again: seconds until a retry has a chance."""

    def __init__(self, code: Any, text: str, again: int | None = None) -> None:
        super().__init__(text)
        self.code, self.again = code, again


@contextmanager
def refusals(request_id: str) -> Iterator[None]:
    """Turn every error into a RefusedError. gRPC would tell the text of those it does not know."""
    try:
        yield
    except RefusedError:
        raise
    except FathomError as error:
        raise RefusedError(_code(error), error.detail, error.retry_after_s) from error
    except Exception as error:
        inside = unexpected(request_id)
        raise RefusedError(_code(inside), inside.detail) from error


def told_of(call: str, code: Any) -> tuple[dict[str, str | int], str]:
    """The attributes of a call's span, by OpenTelemetry's conventions, and its status if the server
    is to blame. code: None: the caller left."""
    attributes: dict[str, str | int] = {"rpc.system": "grpc", "rpc.service": SERVICE}
    attributes["rpc.method"] = call
    if code is not None:
        attributes["rpc.grpc.status_code"] = code.value[0]
    return attributes, code.name if code in _FAILED else ""


def _code(error: FathomError) -> grpc.StatusCode:
    known = {
        429: grpc.StatusCode.RESOURCE_EXHAUSTED,
        500: grpc.StatusCode.INTERNAL,
        503: grpc.StatusCode.UNAVAILABLE,
        504: grpc.StatusCode.DEADLINE_EXCEEDED,
    }
    return known.get(error.status, grpc.StatusCode.INVALID_ARGUMENT)
