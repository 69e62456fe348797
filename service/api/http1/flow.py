"""The two directions of a connection's bytes, and how each of them ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

STALLED_S = 30.0  # without a byte that the client took of what waits for it
LINGER_S, LINGER_SILENT_S = 30.0, 5.0  # in all, and without a byte of the client
UNREAD_BYTES = 128 * 1024 * 1024  # of answers that clients have not read yet, all together


class Timer:
    """One call in the future at most."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float, late: Callable[[], None]) -> None:
        """Call `late` then, in the place of what it was to call before."""
        self.stop()
        self._handle = self._loop.call_later(seconds, late)

    def stop(self) -> None:
        """Call nothing."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class Unread:
    """The connections whose clients do not read as fast as they ask, the first one first.

    An answer can have a thousand times the bytes of its request, so who reads a byte now and then
    must not fill the memory.
    """

    def __init__(self) -> None:
        self._transports: dict[asyncio.Transport, None] = {}

    def add(self, transport: asyncio.Transport) -> None:
        """End the connections that have been here longest until the others hold UNREAD_BYTES at
        most; this one stays, for it may have just begun to read."""
        self._transports.setdefault(transport)
        held = {each: each.get_write_buffer_size() for each in self._transports}
        over = sum(held.values()) - UNREAD_BYTES
        for each in list(held):
            if over <= 0 or each is transport:
                return
            over -= held[each]
            self.discard(each)
            each.abort()

    def discard(self, transport: asyncio.Transport) -> None:
        """Its client has read most of what was written, or it is lost."""
        self._transports.pop(transport, None)


class Flow:
    """transport: of an open connection. writable: the client has read most of what was written, or
    the connection is lost."""

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, unread: Unread
    ) -> None:
        self._transport, self._timer, self._unread = transport, Timer(loop), unread
        self.writable = asyncio.Event()
        self.writable.set()
        self._reading = True

    def read(self, on: bool) -> None:
        """Whether to read; if not, the kernel makes the client wait."""
        if on == self._reading or self._transport.is_closing():
            return
        self._reading = on
        if on:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def pause(self) -> None:
        """Too much waits for the client to read it."""
        self.writable.clear()
        self.watch()
        self._unread.add(self._transport)

    def resume(self) -> None:
        """The client has read most of it."""
        self.writable.set()
        self._unread.discard(self._transport)

    def watch(self) -> None:
        """From now on until the client has read all: nothing in STALLED_S ends the connection."""
        self._timer.stop()
        if left := self._transport.get_write_buffer_size():
            self._timer.start(STALLED_S, partial(self._check, left))

    def lost(self) -> None:
        """The connection has ended."""
        self._timer.stop()
        self.resume()

    def _check(self, before: int) -> None:
        if self._transport.get_write_buffer_size() >= before:
            self._transport.abort()
        else:
            self.watch()


class Lingering:
    """Behind the last answer: what the client still sends is dropped until it closes, too.

    Closing at once would reset the connection, and take the answer from a client that has not read
    it (RFC 9112, 9.6). close: called when it has sent nothing for LINGER_SILENT_S, or after
    LINGER_S.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, close: Callable[[], None]) -> None:
        self._loop, self._close, self._timer = loop, close, Timer(loop)
        self._began = self._heard = loop.time()
        self._timer.start(LINGER_SILENT_S, self._check)

    def heard(self) -> None:
        """Bytes came."""
        self._heard = self._loop.time()

    def stop(self) -> None:
        """It is over."""
        self._timer.stop()

    def _check(self) -> None:
        now = self._loop.time()
        if now - self._heard >= LINGER_SILENT_S or now - self._began >= LINGER_S:
            self._close()
        else:
            self._timer.start(LINGER_SILENT_S, self._check)
