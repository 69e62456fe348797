"""Reads the bytes and the type of one image from a request's body.

Size, time and memory are limited. Bytes are counted as they stream in, whatever Content-Length
says. Nothing is written to disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.errors import (
    Overloaded,
    RequestTimeout,
    TooLarge,
    UndecodableImage,
    UnsupportedMediaType,
)
from service.pixels.formats import FORMATS, unsupported

_T = TypeVar("_T")
FORM = "multipart/form-data"
# Bodies of the largest size that may be in memory together, arriving or waiting for a thread.
HELD_BODIES = 8
MAX_FIELDS = 8  # fields besides the file; they are ignored, and each may have a kilobyte
# It would log a line for every misplaced byte of a caller.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class Upload:
    """The image of a request. content_type: one of FORMATS, or "" if a form's part has none."""

    data: bytes
    content_type: str


class _InMemoryParser(MultiPartParser):
    # Never to disk: it may be read-only, and the body's size is limited anyway.
    spool_max_size = 0

    def close(self) -> None:
        """Close every file: parse() leaves the file of an unfinished part open."""
        for file in self._files_to_close_on_error:
            file.close()


class Intake:
    """Reads bodies.

    max_bytes: the most bytes of a body.
    timeout_s: the time within which a body must arrive.
    max_waiting: the most bodies that have arrived and are not decoded yet.
    """

    def __init__(self, *, max_bytes: int, timeout_s: float, max_waiting: int) -> None:
        self._max_bytes, self._timeout_s, self._max_waiting = max_bytes, timeout_s, max_waiting
        self._held_bytes = self._waiting = 0

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[Upload]:
        """Receive an upload. Its bytes count as held until the block ends: decode them inside.

        Raises UnsupportedMediaType, TooLarge, RequestTimeout, Overloaded, UndecodableImage (a form
        without exactly one file) and starlette's ClientDisconnect.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != FORM and kind not in FORMATS:
            raise unsupported(kind, FORM)
        if request.headers.get("content-encoding", "identity") != "identity":
            raise UnsupportedMediaType("The body must not have a content encoding")
        stream = request.stream()
        read = (lambda data: _file(request, data)) if kind == FORM else partial(_raw, kind)
        async with self.hold(request, stream, stream, read) as upload:
            yield upload

    @asynccontextmanager
    async def hold(
        self,
        request: Request,
        stream: AsyncGenerator[bytes, None],
        decoded: AsyncGenerator[bytes, None],
        read: Callable[[AsyncGenerator[bytes, None]], Awaitable[_T]],
    ) -> AsyncIterator[_T]:
        """What `read` makes of a body; its bytes count as held until the block ends.

        stream: the request's. decoded: the same without its content encoding, whose bytes are those
        that count. Raises TooLarge, RequestTimeout, Overloaded, what `read` raises, and
        ClientDisconnect.
        """
        if self._waiting >= self._max_waiting:
            raise self._overloaded()
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            raise self._too_large()
        held = 0

        async def counted() -> AsyncGenerator[bytes, None]:
            nonlocal held
            async for chunk in decoded:
                held += len(chunk)
                self._held_bytes += len(chunk)
                if held > self._max_bytes or self._held_bytes > HELD_BODIES * self._max_bytes:
                    # A client that is still sending would lose an early answer.
                    async for _ in stream:
                        pass
                    raise self._too_large() if held > self._max_bytes else self._overloaded()
                yield chunk

        try:
            try:
                async with asyncio.timeout(self._timeout_s):
                    held_body = await read(counted())
            except TimeoutError as error:
                raise RequestTimeout(
                    f"The body did not arrive within {self._timeout_s:g} s"
                ) from error
            self._waiting += 1
            try:
                yield held_body
            finally:
                self._waiting -= 1
        finally:
            self._held_bytes -= held

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
    return Upload(await whole(stream), kind)


async def _file(request: Request, stream: AsyncGenerator[bytes, None]) -> Upload:
    """The one file of a form; its other fields are ignored."""
    parser = _InMemoryParser(
        request.headers, stream, max_files=1, max_fields=MAX_FIELDS, max_part_size=1024
    )
    try:
        form = await parser.parse()
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise UndecodableImage("The form has no file: send the image as its one file")
        kind = (files[0].content_type or "").partition(";")[0].strip().lower()
        return Upload(await files[0].read(), "" if kind == "application/octet-stream" else kind)
    except MultiPartException as error:
        raise UndecodableImage(f"The form cannot be read: {error.message}") from error
    finally:
        parser.close()
