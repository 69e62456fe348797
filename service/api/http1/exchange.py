"""One request and its answer, as ASGI has them."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Protocol
from urllib.parse import unquote

import h11
from starlette.types import ASGIApp, Message, Scope

HELD_BYTES = 64 * 1024  # of a body that the app has not taken; then no more is read
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


class Wire(Protocol):
    """What an exchange needs of its connection."""

    @property
    def http(self) -> h11.Connection:
        """What writes this answer."""

    @property
    def last(self) -> bool:
        """Whether the connection must end with the answer that begins now."""

    def wanted(self) -> None:
        """The app waits for the body: tell a client that asked (100 Continue), and read on."""

    async def writable(self) -> None:
        """Until the client has read most of what was written."""

    def write(self, data: bytes) -> None: ...

    def answered(self) -> None:
        """The answer has been written to its end."""

    def failed(self) -> None:
        """The app ended without an answer."""


class Exchange:
    """complete: the answer has been written. gone: nobody is left to answer. begun: some of it has
    been written."""

    def __init__(self, wire: Wire, scope: Scope, fields: list[tuple[bytes, bytes]]) -> None:
        self.scope, self._wire, self._fields = scope, wire, fields
        self.complete = self.gone = self.begun = False
        self._body = bytearray()
        self._more = True
        self._start: Message | None = None  # waits for the first bytes behind it
        self._changed = asyncio.Event()

    def feed(self, data: bytes | bytearray) -> bool:
        """A part of the body. Returns whether there is room for more."""
        self._body += data
        self._changed.set()
        return len(self._body) <= HELD_BYTES

    def end(self) -> None:
        """The body has come to its end."""
        self._more = False
        self._changed.set()

    def leave(self) -> None:
        """The client is gone."""
        self.gone = True
        self._changed.set()

    async def run(self, app: ASGIApp) -> None:
        """Let the app answer; without a whole answer, the connection ends."""
        try:
            await app(self.scope, self.receive, self.send)
        finally:
            if not (self.complete or self.gone):
                self._wire.failed()

    async def receive(self) -> Message:
        """ASGI's receive."""
        if not (self.gone or self.complete):
            self._wire.wanted()
            await self._changed.wait()
            self._changed.clear()
        if self.gone or self.complete:
            return {"type": "http.disconnect"}
        body, self._body = bytes(self._body), bytearray()
        return {"type": "http.request", "body": body, "more_body": self._more}

    async def send(self, message: Message) -> None:
        """ASGI's send. Raises RuntimeError for messages in the wrong order."""
        await self._wire.writable()
        if self.gone:
            return
        if message["type"] == "http.response.start":
            if self._start is not None or self.begun:
                raise RuntimeError("the answer has begun already")
            self._start = message
        elif self._start is None and not self.begun:
            raise RuntimeError("the answer must begin with its status")
        elif self.complete:
            raise RuntimeError("the answer is complete already")
        else:
            self._write(message.get("body", b""), bool(message.get("more_body", False)))

    def _write(self, body: bytes, more: bool) -> None:
        """Head and body in one piece, so that small answers are one packet."""
        http, out = self._wire.http, b""
        if self._start is not None:
            out, self._start, self.begun = self._head(self._start), None, True
        if self.scope["method"] != "HEAD":
            out += http.send(h11.Data(body)) or b""
        if not more:
            out += http.send(h11.EndOfMessage()) or b""
            self.complete = True
            self._changed.set()
        self._wire.write(out)
        if self.complete:
            self._wire.answered()

    def _head(self, start: Message) -> bytes:
        fields = [*self._fields, *start.get("headers", ())]
        if self._wire.last and (b"connection", b"close") not in fields:
            fields.append((b"connection", b"close"))
        status = start["status"]
        response = h11.Response(
            status_code=status, headers=fields, reason=_PHRASES.get(status, b"")
        )
        return self._wire.http.send(response) or b""


def scope_of(request: h11.Request, transport: asyncio.BaseTransport, state: object) -> Scope:
    """ASGI's description of a request. state: what the app's lifespan left, for this request."""
    target = request.target
    if target[:1] != b"/" and b"://" in target:  # the absolute form: RFC 9112, 3.2.2
        target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
    path, _, query = target.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.0" if request.http_version == b"1.0" else "1.1",
        "method": request.method.decode("ascii"),
        "scheme": "http",
        "path": unquote(path.decode("ascii")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": list(request.headers),
        "client": _address(transport.get_extra_info("peername")),
        "server": _address(transport.get_extra_info("sockname")),
        "state": state,
    }


def _address(name: object) -> tuple[str, int] | None:
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None
