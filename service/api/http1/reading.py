"""The bytes of a connection -> the events of HTTP/1.1 requests, within limits. h11 parses.

What h11 lets pass, but this service does not: heads, targets and numbers of fields over a limit; a
body whose length is told in two ways; a Host that cannot be one; major versions other than 1;
floods of tiny chunks. A later 1.x is read as 1.1 (RFC 9110, 2.5). An `Upgrade` is ignored, since no
other protocol is spoken here (RFC 9110, 7.8), and trailer fields are dropped (RFC 9110, 6.5.1).
"""

from __future__ import annotations

import re
from typing import TypeAlias

import h11

from service.api.http1.refusals import Refused

MAX_HEAD = 32 * 1024  # bytes of a request's line and fields together; of trailers as well
MAX_TARGET = 8 * 1024  # bytes of path and query
MAX_FIELDS = 100
# Each chunk costs some 20 us: a body may have this many, and one more per so many bytes. Senders
# fill a packet or a page.
FREE_CHUNKS, BYTES_PER_CHUNK = 1024, 256
EMPTY_LINES = b"\r\n"  # before a request's line they mean nothing (RFC 9112, 2.2)
KEPT_REST = 1024 * 1024  # bytes of an unwanted body that are read so that the connection stays
# A name, IPv4 address or IPv6 literal, and a port (RFC 9112, 3.2; RFC 3986, 3.2.2). A comma is left
# out: it may come of two fields that somebody has joined.
_HOST = re.compile(
    rb"(\[[0-9A-Fa-f:.]+(%[\w.~%-]+)?\]|([\w.~!$&'()*+;=-]|%[0-9A-Fa-f]{2})*)(:[0-9]*)?", re.ASCII
)

Event: TypeAlias = h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]


class Reader:
    """One connection's requests, one after the other. `http` is also what writes the answers."""

    def __init__(self) -> None:
        self.http = _parser()
        self._length: int | None = None  # of the body at hand; None: it has chunks
        self._bytes = self._chunks = 0  # of that body, as far as they have come

    @property
    def between(self) -> bool:
        """Whether the next byte belongs to the head of a request."""
        return self.http.their_state is h11.IDLE

    @property
    def done(self) -> bool:
        """Whether the request at hand has been read to its end."""
        return self.http.their_state not in (h11.IDLE, h11.SEND_BODY)

    @property
    def closed(self) -> bool:
        """Whether no further request can come: the client said so, or made a mistake."""
        return self.http.their_state in (h11.MUST_CLOSE, h11.CLOSED, h11.ERROR)

    @property
    def begun(self) -> bool:
        """Whether a part of a head has come."""
        return self.between and bool(self.http.trailing_data[0])

    @property
    def ends_soon(self) -> bool:
        """Whether little enough of the request is to come that it can be read for nothing."""
        if self.done or self._length is None:
            return self.done
        withheld = self.http.they_are_waiting_for_100_continue
        return not withheld and self._length - self._bytes <= KEPT_REST

    def feed(self, data: bytes) -> bytes:
        """Take some, and return the rest. With what has come before of a head, trailers or a line,
        these are MAX_HEAD bytes at most: whatever is longer comes to the parser incomplete."""
        if self.between and not self.begun:
            data = data.lstrip(EMPTY_LINES)
        room = MAX_HEAD - len(self.http.trailing_data[0])
        if data:  # none means to h11 that the client has closed
            self.http.receive_data(data[:room])
        return data[room:]

    def next_event(self) -> Event:
        """Raises Refused."""
        if self.done:  # what follows a last request is an error to h11, and must cost no answer
            return h11.PAUSED
        between = self.between
        try:
            event = self.http.next_event()
        except h11.RemoteProtocolError as error:
            raise self._explained(error, between) from error
        if isinstance(event, h11.Request):
            self._check(event)
        elif isinstance(event, h11.Data):
            self._count(event)
        return event

    def next_request(self) -> None:
        """Both sides are done with a request: on to the next one.

        By a new parser, for none drops the empty lines of what has come already.
        """
        data, _ = self.http.trailing_data
        self.http = _parser()
        self.feed(data)

    def _explained(self, error: h11.RemoteProtocolError, between: bool) -> Refused:
        """h11's error, without the caller's bytes that it may repeat after a colon."""
        if error.error_status_hint == 431:
            if between and b"\n" not in self.http.trailing_data[0]:
                return _target_too_long()
            return Refused(431, f"Head, trailers and chunk lines can have {MAX_HEAD} bytes")
        what = str(error).partition(": bytearray")[0].partition(": b'")[0]
        return Refused(400, f"This is no HTTP/1.1 request: {what[:80]}")

    def _check(self, request: h11.Request) -> None:
        version, fields = request.http_version, dict(request.headers)
        if version[:2] != b"1.":
            raise Refused(505, "The version must be HTTP/1.1 or HTTP/1.0")
        if version != b"1.0" and b"host" not in fields:  # h11 looks at 1.1 alone
            raise Refused(400, "A request needs the field Host")
        if not _HOST.fullmatch(fields.get(b"host", b"")):
            raise Refused(400, "Host must be a name or an address, with a port or without one")
        if len(request.target) > MAX_TARGET:
            raise _target_too_long()
        if len(request.headers) > MAX_FIELDS:
            raise Refused(431, f"A request can have {MAX_FIELDS} header fields")
        coded = b"transfer-encoding" in fields
        if coded and (b"content-length" in fields or version == b"1.0"):
            # Whoever believes the other one sees another request behind the body: RFC 9112, 6.1.
            raise Refused(400, "Transfer-Encoding cannot stand beside Content-Length or HTTP/1.0")
        self._length = None if coded else int(fields.get(b"content-length", 0))
        self._bytes = self._chunks = 0

    def _count(self, data: h11.Data) -> None:
        self._bytes += len(data.data)
        self._chunks += data.chunk_start
        if self._chunks > FREE_CHUNKS + self._bytes // BYTES_PER_CHUNK:
            raise Refused(400, f"The chunks of a body must have {BYTES_PER_CHUNK} bytes on average")


def _parser() -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD - 1)


def _target_too_long() -> Refused:
    return Refused(414, f"Path and query can have {MAX_TARGET} bytes")
