"""A service process under requests that no sound client sends, and beside stalled sockets.

    python tests/bench/hostile.py [--requests 10000] [--stalled 200] [--backend fake]

Prints tables and ends in one JSON line. Bars: no 5xx, no hang, memory back to within 5 % after the
bad requests; p50 of sound requests beside the stalled sockets within 10 %, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.served import Served, served  # noqa: E402
from tests.hostile import Hostile, is_failure, statuses  # noqa: E402

SILENT_S = 1.0  # after which a connection has no more to say
HANG_S = 60.0
HEAD = b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
# What a stalled socket has sent, and whether it goes on with a byte a second.
STALLS = (
    (b"", False),
    (b"POST /seg", False),
    (HEAD, True),
    (HEAD + b"Content-Length: 60000\r\n\r\n" + bytes(3000), False),
    (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", False),
)


def photo(width: int, height: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    Image.fromarray(pixels).resize((width, height)).save(file, "JPEG", quality=92)
    return file.getvalue()


async def exchange(port: int, sent: bytes) -> tuple[list[int], float]:
    """The statuses on one connection, and its seconds."""
    began, got = time.perf_counter(), b""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    with contextlib.suppress(TimeoutError, ConnectionError):
        while part := await asyncio.wait_for(reader.read(65536), SILENT_S):
            got += part
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return statuses(got), time.perf_counter() - began


async def attack(port: int, count: int, seed: int) -> tuple[Counter[int], int]:
    """Statuses of all answers, and how many connections hung."""
    hostile, limit = Hostile(seed, photo(160, 120)), asyncio.Semaphore(64)
    answered: Counter[int] = Counter()
    hung = 0

    async def one(sent: bytes) -> None:
        nonlocal hung
        async with limit:
            try:
                found, _ = await asyncio.wait_for(exchange(port, sent), HANG_S)
                answered.update(found)
            except TimeoutError:
                hung += 1

    for begin in range(0, count, 500):
        block = (hostile.connection() for _ in range(min(500, count - begin)))
        await asyncio.gather(*map(one, block))
    return answered, hung


async def stall(port: int, count: int, until: asyncio.Event) -> None:
    """Keep so many sockets stalled; one that the service closes is opened again."""

    async def one(sent: bytes, trickles: bool) -> None:
        while not until.is_set():
            with contextlib.suppress(ConnectionError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(sent)
                while not until.is_set() and not reader.at_eof():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(4096), 1.0)
                    if trickles:
                        writer.write(b"x")
                writer.close()

    await asyncio.gather(*(one(*STALLS[i % len(STALLS)]) for i in range(count)))


async def beside(port: int, count: int, requests: int) -> list[list[float]]:
    """Milliseconds of sound requests without and with stalled sockets, in turns."""
    body = photo(480, 360)
    spent: list[list[float]] = [[], []]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for turn in range(-1, 10):
            stalled = turn % 2
            until = asyncio.Event()
            stalling = asyncio.create_task(stall(port, count * stalled, until))
            await asyncio.sleep(1)
            for _ in range(requests // 5):
                began = time.perf_counter()
                headers = {"content-type": "image/jpeg", "compute-budget": "depth=1"}
                answer = await client.post("/segment", content=body, headers=headers)
                assert answer.status_code == 200
                if turn >= 0:
                    spent[stalled].append(1000 * (time.perf_counter() - began))
            until.set()
            await stalling
    return spent


def memory(service: Served) -> float:
    """MB resident."""
    return psutil.Process(service.pid).memory_info().rss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--stalled", type=int, default=200)
    parser.add_argument(
        "--sound", type=int, default=200, help="requests beside the stalled sockets"
    )
    parser.add_argument("--backend", default="fake")
    parser.add_argument("--bundle", default="trained_weights/camvid-tiny")
    args = parser.parse_args()
    flags = ("--backend", args.backend)
    with served(args.bundle, *flags) as service:
        port = int(service.url.rsplit(":", 1)[1])
        asyncio.run(attack(port, 1500, seed=1))  # what Python and its allocator keep is there now
        time.sleep(3)
        before = memory(service)
        began = time.perf_counter()
        answered, hung = asyncio.run(attack(port, args.requests, seed=2))
        seconds = time.perf_counter() - began
        time.sleep(3)
        after = memory(service)
        print(f"{args.requests} connections in {seconds:.0f} s, {hung} hung; answers:")
        print(", ".join(f"{status}: {count}" for status, count in sorted(answered.items())))
        print(f"resident: {before:.1f} MB before, {after:.1f} MB after")
        alone, among = asyncio.run(beside(port, args.stalled, args.sound))
    p50 = [statistics.median(spent) for spent in (alone, among)]
    print(f"p50 {p50[0]:.2f} ms alone, {p50[1]:.2f} ms beside {args.stalled} stalled sockets")
    failed = sum(count for status, count in answered.items() if is_failure(status))
    growth, slower = after / before - 1, p50[1] / p50[0] - 1
    met = failed == 0 and hung == 0 and growth <= 0.05 and slower <= 0.1
    result = {
        "answers_5xx": failed,
        "hung": hung,
        "memory_growth": round(growth, 4),
        "p50_ms": [round(ms, 3) for ms in p50],
        "p50_slower": round(slower, 4),
        "met": met,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
