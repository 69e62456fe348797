"""Requests that no sound client sends: no answer is a 5xx, nothing hangs, nothing stays."""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from service.bundle import Manifest
from tests.api.server import Server, running
from tests.api.wire import Wire, get, request
from tests.hostile import Hostile, is_failure, statuses
from tests.pictures import quarters

COUNT, STALLED = 600, 200


async def all_of(port: int, sent: bytes) -> bytes:
    """What comes until the server closes, or nothing more comes for a while after the last byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = b""
    try:
        writer.write(sent)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while part := await asyncio.wait_for(reader.read(65536), 1.0):
                got += part
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return got


def test_hostile_requests_get_no_5xx_and_leave_nothing(fake_manifest: Manifest) -> None:
    hostile = Hostile(21, quarters())
    sent = [hostile.connection() for _ in range(COUNT)]
    with running(fake_manifest, queue_size=200) as server:
        port = httpx.URL(server.url).port or 0

        async def run() -> list[bytes]:
            limit = asyncio.Semaphore(32)

            async def one(data: bytes) -> bytes:
                async with limit:
                    return await all_of(port, data)

            async with asyncio.timeout(90):
                return list(await asyncio.gather(*map(one, sent)))

        answers = asyncio.run(run())
        bad = [data[:300] for data, got in zip(sent, answers, strict=True) if is_5xx(got)]
        assert bad == []
        seen = {status for got in answers for status in statuses(got)}
        assert {200, 400, 404, 405, 406, 415, 422, 431, 505} <= seen
        until_idle(server)
        assert server.post(quarters()).status_code == 200


def is_5xx(answers: bytes) -> bool:
    return any(map(is_failure, statuses(answers)))


def until_idle(server: Server) -> None:
    for name in ("fathom_queue_depth", "fathom_inflight"):
        server.until(name, 0)
    assert server.model.state == "ready"


def test_stalled_connections_hold_up_nobody(fake_manifest: Manifest) -> None:
    head = b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    begun = (b"", b"GET", head, head + b"Content-Length: 99\r\n\r\nabc", get())
    with running(fake_manifest) as server, contextlib.ExitStack() as stack:
        for i in range(STALLED):
            stack.enter_context(Wire(server, begun[i % len(begun)]))
        began = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask_once, server) for _ in range(40)]
            assert [reply.result() for reply in asked] == [200] * 40
        assert time.monotonic() - began < 8


def ask_once(server: Server) -> int:
    with Wire(server, request(quarters())) as wire:
        return wire.reply().status
