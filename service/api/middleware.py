"""The middleware around every request.

It gives the request an id and a trace, adds the common header fields, and turns unexpected errors
into problem documents. HEAD is answered as GET without the body. It is pure ASGI: behind
starlette's BaseHTTPMiddleware a handler would not see its client leave.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.fields import format_used
from service.api.origins import Origins
from service.api.problems import problem
from service.errors import FathomError, ForeignOrigin
from service.inference.place import stopped
from service.trace import Trace

REQUEST_ID = "X-Request-Id"
# The page shows photos and masks that it makes itself (blob:); all else comes from this service.
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger("fathom.http")


def request_id_of(headers: Headers) -> str:
    """The caller's `X-Request-Id`, or a new one."""
    sent = ", ".join(set(headers.getlist(REQUEST_ID)))  # several are none
    return sent if _ID.fullmatch(sent) else uuid.uuid4().hex


def unexpected(request_id: str) -> FathomError:
    """Log the exception at hand; the error that the caller gets tells nothing of it."""
    _log.exception("request_id=%s an unexpected error, please report it", request_id)
    return FathomError("The request failed for a reason inside the service")


class Edge:
    """Gives the request a trace and the answer its common header fields.

    The trace is `request.state.trace`, the time of arrival `request.state.arrived`. A handler may
    put the answer's `Vary` in `request.state.vary`; errors have it, too. What it puts in
    `request.state.afterwards` is called once the answer is on its way, whatever became of it.

    of, several_canvases: for `Compute-Used`, the bundle's deepest exit and whether it has several
    canvases. on_foreign: called with a request that gets 403 because of its origin.
    """

    def __init__(
        self,
        app: ASGIApp,
        of: int,
        origins: Origins | None = None,
        on_foreign: Callable[[Request], None] = lambda _request: None,
        *,
        several_canvases: bool = False,
    ) -> None:
        self._app, self._of, self._several_canvases = app, of, several_canvases
        self._origins, self._on_foreign = origins or Origins(), on_foreign

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        trace = Trace(request_id_of(headers))
        state = scope.setdefault("state", {})
        trace.trace_id, trace.sampled = state.get("traced", ("", False))
        state |= {"trace": trace, "arrived": time.perf_counter(), "vary": "", "afterwards": None}
        started = False
        bodiless = scope["method"] == "HEAD"
        if bodiless:
            scope = {**scope, "method": "GET"}

        async def send_with_fields(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                fields = MutableHeaders(scope=message)
                self._add_fields(fields, trace, state["vary"])
                self._origins.add_fields(headers, fields)
            elif bodiless:
                message = {**message, "body": b""}
            await send(message)

        try:
            answer = self._answer(scope, headers, trace) or self._app
            await answer(scope, receive, send_with_fields)
        except ClientDisconnect:
            return  # nobody is left to answer
        except asyncio.CancelledError:  # by the server at the end of its drain, and by nothing else
            if started:
                raise
            response = problem(stopped(), trace.request_id, scope["path"])
            await response(scope, receive, send_with_fields)
        except Exception:
            error = unexpected(trace.request_id)
            if started:
                raise
            response = problem(error, trace.request_id, scope["path"])
            await response(scope, receive, send_with_fields)
        finally:
            if state["afterwards"] is not None:
                state["afterwards"]()

    def _answer(self, scope: Scope, headers: Headers, trace: Trace) -> Response | None:
        """The answer that takes the place of the app's, if there is one."""
        try:
            return self._origins.answer(scope["method"], headers)
        except ForeignOrigin as error:
            self._on_foreign(Request(scope))
            return problem(error, trace.request_id, scope["path"])

    def _add_fields(self, headers: MutableHeaders, trace: Trace, vary: str) -> None:
        headers[REQUEST_ID] = trace.request_id
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Content-Security-Policy"] = POLICY
        headers["Referrer-Policy"] = "no-referrer"
        if vary:
            headers["Vary"] = vary
        if trace.stages:
            headers["Server-Timing"] = ", ".join(
                f"{name};dur={1000 * s:.3f}" for name, s in trace.stages.items()
            )
        if trace.decision is not None:
            headers["Compute-Used"] = format_used(
                trace.decision, self._of, several_canvases=self._several_canvases
            )
