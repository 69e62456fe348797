"""Reads the bytes and the type of one image from a request's body.

Size, time and memory are limited. Bytes are counted as they stream in, whatever Content-Length
says. Nothing is written to disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from starlette.datastructures import Headers
from starlette.requests import Request

from service.api.encodings import codings
from service.api.fields import single
from service.api.multipart import image_of
from service.errors import Overloaded, RequestTimeout, TooLarge, UnsupportedMediaType
from service.pixels.formats import FORMATS, unsupported

_T = TypeVar("_T")
FORM = "multipart/form-data"
# Types that say less than the bytes do, and names that were never registered: the bytes decide.
BY_BYTES = frozenset(
    {
        *("application/octet-stream", "binary/octet-stream", "image/*"),
        *("image/jpg", "image/pjpeg", "image/jfif", "image/x-png", "image/x-webp"),
        *("image/tif", "image/x-tif", "image/x-tiff", "image/apng", "image/vnd.mozilla.apng"),
        *("image/heic-sequence", "image/heif-sequence", "image/avif-sequence"),
    }
)
# Bodies of the largest size that may be in memory together, arriving or waiting for a thread.
HELD_BODIES = 8


@dataclass(frozen=True, slots=True)
class Upload:
    """The image of a request. content_type: one of FORMATS, or "" if a form's part has none."""

    data: bytes
    content_type: str


class Intake:
    """Reads bodies.

    max_bytes: the most bytes of a body.
    timeout_s: the time without progress after which a body is given up.
    min_rate: bytes per second of a body that takes longer than that, see `_Pace`.
    held_bytes: those of bodies that are in memory, at most HELD_BODIES of the largest.
    """

    def __init__(self, *, max_bytes: int, timeout_s: float, min_rate: float) -> None:
        self._max_bytes, self._timeout_s, self._min_rate = max_bytes, timeout_s, min_rate
        self.held_bytes = 0

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[Upload]:
        """Receive an upload. Its bytes count as held until the block ends: decode them inside, and
        leave it only when nothing holds them any more.

        Raises BadHeader, UnsupportedMediaType, TooLarge, RequestTimeout, Overloaded,
        UndecodableImage (a form without exactly one image) and starlette's ClientDisconnect.
        """
        kind = media_type_of(request.headers)
        if kind != FORM and kind not in FORMATS and kind not in BY_BYTES:
            raise unsupported(kind, "application/octet-stream", FORM)
        if codings(request.headers.getlist("content-encoding")):
            raise UnsupportedMediaType("The body must not have a content encoding")
        read = (lambda data: _file(request, data)) if kind == FORM else partial(_raw, kind)
        async with self.hold(request, request.stream(), read) as upload:
            yield upload

    @asynccontextmanager
    async def hold(
        self,
        request: Request,
        stream: AsyncGenerator[bytes, None],
        read: Callable[[AsyncGenerator[bytes, None]], Awaitable[_T]],
    ) -> AsyncIterator[_T]:
        """What `read` makes of a body; its bytes count as held until the block ends.

        stream: the request's, without its content encoding. What remains of a body that is refused
        is the server's. Raises TooLarge, RequestTimeout, Overloaded, what `read` raises, and
        ClientDisconnect.
        """
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            raise self._too_large()
        held = 0

        async def counted(pace: _Pace) -> AsyncGenerator[bytes, None]:
            nonlocal held
            async for chunk in stream:
                pace.moved(len(chunk))
                held += len(chunk)
                self.held_bytes += len(chunk)
                if held > self._max_bytes:
                    raise self._too_large()
                if self.held_bytes > HELD_BODIES * self._max_bytes:
                    raise self._overloaded()
                yield chunk

        try:
            try:
                async with asyncio.timeout(self._timeout_s) as limit:
                    pace = _Pace(limit, self._timeout_s, self._min_rate)
                    held_body = await read(counted(pace))
            except TimeoutError as error:
                raise RequestTimeout(
                    f"The body came to a halt for {self._timeout_s:g} s, or was slower than "
                    f"{self._min_rate:.15g} bytes per second"
                ) from error
            yield held_body
        finally:
            self.held_bytes -= held

    def _overloaded(self) -> Overloaded:
        return Overloaded("Too many images are arriving at once", shed="full", retry_after=1)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"The body has more than {self._max_bytes} bytes")


async def whole(stream: AsyncGenerator[bytes, None]) -> bytes:
    """All of a stream."""
    data = bytearray()
    async for chunk in stream:
        data += chunk
    return bytes(data)


async def _raw(kind: str, stream: AsyncGenerator[bytes, None]) -> Upload:
    return Upload(await whole(stream), "" if kind in BY_BYTES else kind)


async def _file(request: Request, stream: AsyncGenerator[bytes, None]) -> Upload:
    """The one image of a form; its other fields are ignored."""
    data, content_type = await image_of(request.headers, stream)
    kind = _media_type(content_type)
    return Upload(data, "" if kind in BY_BYTES else kind)


class _Pace:
    """How long a body may take: timeout_s at first and after any progress, but less for progress of
    less than min_rate bytes per second.

    So a sound body of any size passes, a halt ends it after timeout_s, and a byte now and then does
    not keep it alive: it takes timeout_s + size / min_rate at most.
    """

    def __init__(self, limit: asyncio.Timeout, timeout_s: float, min_rate: float) -> None:
        self._limit, self._timeout_s, self._min_rate = limit, timeout_s, min_rate

    def moved(self, count: int) -> None:
        """Bytes came."""
        before, now = self._limit.when(), asyncio.get_running_loop().time()
        assert before is not None  # it was given one
        self._limit.reschedule(min(before + count / self._min_rate, now + self._timeout_s))


def _media_type(line: str) -> str:
    """The type of a Content-Type line, without its parameters."""
    return line.partition(";")[0].strip().lower()


def media_type_of(headers: Headers) -> str:
    """Of a request's body, without its parameters; "" if it names none. Raises BadHeader."""
    return _media_type(single(headers, "Content-Type"))
