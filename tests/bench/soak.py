"""A service process for some minutes under all that happens at once: mixed plans, budgets and
forms, clients that leave at every stage, bodies that come slowly or never end, and bad requests.

    python tests/bench/soak.py [--minutes 5] [--bundle trained_weights/camvid-tiny]
        [-- FLAGS of the service]

Prints a line each ten seconds, a table, and ends in one JSON line. Bars: the growth of resident
memory from the end of the first fifth to the end <= 3 %; afterwards no place is taken, nothing is
in flight, held or queued, there are as many threads and open files as before; no answer of 5xx but
503 and 504; every request that was not aborted was answered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.open_loop import Load, _post, _request, poisson  # noqa: E402
from tests.bench.photos import Photos  # noqa: E402
from tests.bench.served import served  # noqa: E402

BUDGETS = (
    *("", "max-loss=0", "max-loss=0.02", "depth=1", "gflops=3", "ms=300", "ms=1500", "ms=20"),
    *("ms=800, max-loss=0", "depth=1, max-loss=0, strict", "nonsense=1"),
)
ACCEPTS = ("image/png", "application/json", "application/geo+json", "text/html")
ABORTS = 0.2  # of the requests
SLOW = 0.05
RATE = 8.0  # requests a second: with all faults, more than two cores can do at the full plan
LIMIT_S = 60.0
GAUGES = ("queue_depth", "places_taken", "inflight", "held_bytes")


def bodies() -> list[bytes]:
    """Photos of several sizes, a PNG, and what is no image."""
    found = [Path(path).read_bytes() for path in Photos.of(None).paths]
    with Image.open(io.BytesIO(found[0])) as photo:
        for width, height, kind in ((96, 64, "JPEG"), (1600, 1200, "JPEG"), (300, 500, "PNG")):
            file = io.BytesIO()
            photo.resize((width, height)).save(file, kind)
            found.append(file.getvalue())
    return [*found, found[0][: len(found[0]) // 2], b"no image"]


class Client:
    """Sends one request after the other, each in one of several ways."""

    def __init__(self, url: str, seed: int) -> None:
        self.url, self._random, self._bodies = url, random.Random(seed), bodies()
        self.seen: Counter[str] = Counter()

    async def one(self) -> None:
        pick = self._random
        body = pick.choice(self._bodies)
        load = Load(self.url, [0.0], [], pick.choice(BUDGETS), pick.choice(("body", "form")))
        request, content = _request(body, load)
        fields = [(name, value) for name, value in request.headers if name != b"accept"]
        request = type(request)(
            method="POST",
            target="/segment",
            headers=[*fields, ("Accept", pick.choice(ACCEPTS)), ("Priority", "u=1")],
        )
        draw = pick.random()
        if draw < ABORTS:
            await self._abort(request, content, pick.random())
        elif draw < ABORTS + SLOW:
            await self._slowly(content, pick.choice((0.3, 3.0)))
        else:
            await self._whole(request, content)

    async def _whole(self, request: object, content: bytes) -> None:
        host, port = urlsplit(self.url).hostname or "", urlsplit(self.url).port or 0
        try:
            async with asyncio.timeout(LIMIT_S):
                status, _, _ = await _post(host, port, request, content)  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001  # it is what the report is about
            self.seen[f"no answer ({type(error).__name__})"] += 1
        else:
            self.seen[str(status)] += 1

    async def _abort(self, request: object, content: bytes, when: float) -> None:
        """Send a part of the body, or all of it, and leave some time later."""
        reader, writer = await self._connected()
        head = self._head(len(content))
        sent = content if when > 0.4 else content[: int(len(content) * when * 2.5)]
        writer.write(head + sent)
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(0.6 * self._random.random()):
                await reader.read()
        writer.transport.abort()
        self.seen["aborted"] += 1

    async def _slowly(self, content: bytes, seconds: float) -> None:
        """A body that takes some time, of which the last part never comes now and then."""
        reader, writer = await self._connected()
        parts, ends = 10, self._random.random() < 0.7
        size = len(content) // parts + 1
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(LIMIT_S):
                writer.write(self._head(len(content)))
                for index in range(parts if ends else parts - 1):
                    writer.write(content[index * size : (index + 1) * size])
                    await asyncio.sleep(seconds / parts)
                if ends:
                    await reader.read(64)
        writer.transport.abort()
        self.seen["slow body" if ends else "slow body that did not end"] += 1

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(urlsplit(self.url).hostname, urlsplit(self.url).port)

    def _head(self, length: int) -> bytes:
        lines = ("POST /segment HTTP/1.1", "Host: x", "Content-Type: application/octet-stream")
        return "\r\n".join((*lines, f"Content-Length: {length}", "", "")).encode()


class Process:
    """What the service's process holds."""

    def __init__(self, pid: int, url: str) -> None:
        self._process, self._url = psutil.Process(pid), url

    def look(self) -> dict[str, float]:
        held: dict[str, float] = {
            "rss_mb": self._process.memory_info().rss / 1e6,
            "threads": self._process.num_threads(),
            "files": self._process.num_fds(),  # without the connection of the next line
        }
        text = httpx.get(f"{self._url}/metrics", timeout=30).text
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        return held | {name: float(values[f"fathom_{name}"]) for name in GAUGES}


async def send_all(client: Client, seconds: float, watch: Callable[[], Awaitable[None]]) -> None:
    """Poisson arrivals for that long, whatever was answered by then, and then wait for all."""
    begun, tasks = time.monotonic(), set[asyncio.Task[None]]()
    watching = asyncio.create_task(watch())  # type: ignore[arg-type]
    for at in poisson(RATE, seconds, 1):
        await asyncio.sleep(max(0.0, begun + at - time.monotonic()))
        task = asyncio.create_task(client.one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks, timeout=LIMIT_S + 10)
    watching.cancel()
    if tasks:
        client.seen["hangs"] += len(tasks)


def settle(process: Process, limit_s: float = 30.0) -> dict[str, float]:
    """What it holds once the last request is done."""
    end = time.monotonic() + limit_s
    while any(process.look()[name] for name in GAUGES) and time.monotonic() < end:
        time.sleep(0.5)
    time.sleep(1.0)  # for connections that are being closed
    return process.look()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="trained_weights/camvid-tiny")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("flags", nargs="*", help="of the service, after --")
    asked = parser.parse_args()
    seconds = 60 * asked.minutes
    with served(asked.bundle, *asked.flags) as service:
        process, looks = Process(service.pid, service.url), list[tuple[float, dict[str, float]]]()
        client = Client(service.url, 0)
        # The first of each kind, which opens and caches what stays.
        asyncio.run(send_all(client, min(30.0, seconds), lambda: asyncio.sleep(0)))
        before = settle(process)
        client.seen.clear()
        begun = time.monotonic()

        async def watch() -> None:
            while True:
                now = await asyncio.to_thread(process.look)
                looks.append((time.monotonic() - begun, now))
                told = "  ".join(f"{name} {value:g}" for name, value in now.items())
                print(f"{looks[-1][0]:6.0f} s  {told}", flush=True)
                await asyncio.sleep(10)

        asyncio.run(send_all(client, seconds, watch))
        after = settle(process)
    early = max(now["rss_mb"] for at, now in looks if at <= max(seconds / 5, looks[0][0]))
    growth = after["rss_mb"] / early - 1
    left = {name: after[name] for name in GAUGES if after[name]}
    errors = sum(
        count
        for status, count in client.seen.items()
        if (status.startswith("5") and status not in ("503", "504")) or status.startswith("no ")
    )
    print("\n".join(f"{count:7d}  {what}" for what, count in sorted(client.seen.items())))
    found = {
        "minutes": asked.minutes,
        "requests": sum(client.seen.values()),
        "rss_mb": [round(before["rss_mb"]), round(early), round(after["rss_mb"])],
        "growth": round(growth, 4),
        "left": left,
        "threads": [before["threads"], after["threads"]],
        "files": [before["files"], after["files"]],
        "unexpected": errors + client.seen["hangs"],
    }
    held = growth <= 0.03 and not left and not found["unexpected"]
    held = held and after["threads"] <= before["threads"] and after["files"] <= before["files"]
    print(json.dumps(found))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
