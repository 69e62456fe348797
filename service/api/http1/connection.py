"""One connection of the server: limits of time and memory around requests that follow each other.

A connection is always in one of these states, and in none of them for ever:

    reading a head   head_timeout_s, then 408; without any byte it just closes
    idle             between two requests: keep_alive_s
    answering        the app's own limits; a client that does not read: STALLED_S
    discarding       the rest of a body that nobody wanted: REST_S
    lingering        answered, the rest of the bytes is dropped until the client closes: LINGER_S

A refusal before the body was read leaves the connection usable if the rest of the body is small;
otherwise it says `Connection: close`, and the connection lingers.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any, cast

import h11
from starlette.types import ASGIApp

from service.api.http1.exchange import Exchange, scope_of
from service.api.http1.flow import Flow, Lingering, Timer, Unread
from service.api.http1.reading import Reader
from service.api.http1.refusals import Refused, refusal
from service.settings import Settings

REST_S = 10.0
_log = logging.getLogger("fathom.http")


def protocol(settings: Settings) -> type[asyncio.Protocol]:
    """What uvicorn calls for each connection."""
    made = partial(Connection, settings.head_timeout_s, settings.keep_alive_s, Unread())
    return cast("type[asyncio.Protocol]", made)  # uvicorn only calls it


class Connection(asyncio.Protocol):
    """The arguments that are named are uvicorn's."""

    def __init__(
        self,
        head_timeout_s: float,
        keep_alive_s: float,
        unread: Unread,
        *,
        config: Any,
        server_state: Any,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._head_timeout_s, self._keep_alive_s = head_timeout_s, keep_alive_s
        self._app: ASGIApp = config.loaded_app
        self._server, self._app_state = server_state, app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._reader, self._unread = Reader(), unread
        self._exchange: Exchange | None = None
        self._timer = Timer(self._loop)
        self._later = b""  # bytes of further requests, while one is answered
        self._idle = self._closing = self._draining = False
        self._lingering: Lingering | None = None

    # asyncio calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._flow = Flow(self._transport, self._loop, self._unread)
        self._server.connections.add(self)
        self._timer.start(self._head_timeout_s, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        if self._lingering is not None:
            self._lingering.heard()
        elif not self._closing and not self._reader.closed:
            self._consume(self._later + data)

    def eof_received(self) -> None:
        """asyncio closes now: who will not send any more counts as gone."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._server.connections.discard(self)
        self._timer.stop()
        self._flow.lost()
        if self._lingering is not None:
            self._lingering.stop()
        if self._exchange is not None:
            self._exchange.leave()

    def pause_writing(self) -> None:
        self._flow.pause()

    def resume_writing(self) -> None:
        self._flow.resume()

    def shutdown(self) -> None:
        """uvicorn calls this when the service ends: an answer that is due is still given."""
        self._draining = True
        if self._exchange is None or self._exchange.complete:
            self._close()

    # The exchange calls these.

    @property
    def http(self) -> h11.Connection:
        return self._reader.http

    @property
    def last(self) -> bool:
        return self._draining or self._closing or not self._reader.ends_soon

    def wanted(self) -> None:
        if self._closing:
            return
        if self.http.they_are_waiting_for_100_continue:
            self.write(self.http.send(h11.InformationalResponse(status_code=100, headers=[])))
        if not self._later:
            self._flow.read(True)

    async def writable(self) -> None:
        await self._flow.writable.wait()

    def write(self, data: bytes | None) -> None:
        self._transport.write(data or b"")

    def answered(self) -> None:
        self._server.total_requests += 1
        if self._closing or self._transport.is_closing():
            return
        if self.http.our_state is not h11.DONE:
            self._close(linger=True)
        elif self._reader.done:
            self._next()
            later, self._later = self._later, b""
            self._consume(later)
        else:
            self._timer.start(REST_S, self._close)
            self._flow.read(True)

    def failed(self) -> None:
        if self._exchange is None or self._exchange.begun:
            self._transport.abort()
        else:
            self._refuse(Refused(500, "The request failed for a reason inside the service"))

    # Reading.

    def _consume(self, data: bytes) -> None:
        """In the pieces that the reader takes."""
        while True:
            self._read_events()
            if not data or self._closing or self._reader.closed:
                break
            if self._reader.done:  # a request before this one waits for its answer
                self._later = data
                self._flow.read(False)
                return
            data = self._reader.feed(data)
        self._later = b""
        if self._idle and self._reader.begun:
            self._idle = False
            self._timer.start(self._head_timeout_s, self._head_is_late)

    def _read_events(self) -> None:
        while not self._closing:
            try:
                event = self._reader.next_event()
            except Refused as error:
                self._refuse(error)
                return
            if isinstance(event, h11.Request):
                self._begin(event)
            elif isinstance(event, h11.Data):
                self._body(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self._end_of_body()
            else:  # more bytes are needed, or an answer is due first
                return

    def _begin(self, request: h11.Request) -> None:
        self._idle = False
        self._timer.stop()
        scope = scope_of(request, self._transport, self._app_state.copy())
        fields = self._server.default_headers
        exchange = self._exchange = Exchange(self, scope, fields)
        task = self._loop.create_task(exchange.run(self._app))
        self._server.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._server.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("the app failed", exc_info=error)

    def _body(self, data: bytes | bytearray) -> None:
        assert self._exchange is not None  # h11 gives a body after its request only
        if not self._exchange.complete and not self._exchange.feed(data):
            self._flow.read(False)

    def _end_of_body(self) -> None:
        assert self._exchange is not None
        if not self._exchange.complete:
            self._exchange.end()
        elif self.http.our_state is h11.DONE:
            self._next()

    def _next(self) -> None:
        """On to the next request."""
        self._reader.next_request()
        self._exchange, self._idle = None, True
        self._timer.start(self._keep_alive_s, self._close)
        self._flow.read(True)

    # Ending.

    def _refuse(self, error: Refused) -> None:
        """Answer what no app has seen, if no answer has begun, and end the connection."""
        exchange, self._exchange = self._exchange, None
        begun = exchange is not None and exchange.begun
        if exchange is not None:
            exchange.leave()
        if not begun and self.http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.write(refusal(error, self._server.default_headers))
        self._close(linger=True)

    def _head_is_late(self) -> None:
        if self._reader.begun:
            detail = f"The head of the request did not arrive within {self._head_timeout_s:g} s"
            self._refuse(Refused(408, detail))
        else:
            self._close()

    def _close(self, *, linger: bool = False) -> None:
        """linger: the client may still send. What it does not read of its answer is given up."""
        if self._transport.is_closing():
            return
        self._timer.stop()
        if linger and not self._draining and not self._closing:
            self._closing, self._later = True, b""
            self._flow.read(True)
            self._transport.write_eof()
            self._lingering = Lingering(self._loop, self._close)
        else:
            self._closing = True
            self._transport.close()
        self._flow.watch()
