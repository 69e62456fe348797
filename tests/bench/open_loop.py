"""An open-loop HTTP client: requests are sent at times that were planned before, whatever has been
answered by then, and latency counts from the planned time (wrk2's remedy for coordinated omission).

`python -m tests.bench.open_loop` reads a Load as JSON from standard input, in a process of its own,
and writes the answers as JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import h11
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60.0  # for one answer


@dataclass(frozen=True)
class Load:
    """times: when to send, in seconds from the start. photos: paths of JPEGs, sent in turn."""

    url: str
    times: Sequence[float]
    photos: Sequence[str]
    budget: str = ""


@dataclass(frozen=True)
class Answer:
    """planned, late_s, took_s: in seconds; late_s: of the client itself; took_s: from the planned
    time. status 0: no answer. gflops: of the plan that ran, 0 if none did. retry_s: Retry-After."""

    planned: float
    late_s: float
    took_s: float
    status: int
    gflops: float = 0.0
    retry_s: float = 0.0


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of a Poisson process."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, int(2 * rate * seconds) + 50))
    return [float(at) for at in times[times < seconds]]


def bursts(
    rates: tuple[float, float], mean_s: tuple[float, float], seconds: float, seed: int
) -> list[float]:
    """Times of a Poisson process whose rate changes between two at random (MMPP).

    mean_s: how long each state lasts on average.
    """
    rng, times, begins, state = np.random.default_rng(seed), list[float](), 0.0, 0
    while begins < seconds:
        lasts = float(rng.exponential(mean_s[state]))
        end = min(seconds, begins + lasts)
        own = poisson(rates[state], end - begins, int(rng.integers(2**31)))
        times += [begins + at for at in own]
        begins, state = begins + lasts, 1 - state
    return times


def step(low: float, high: float, before_s: float, burst_s: float, seed: int) -> list[float]:
    """Times of a Poisson process with a burst at its end."""
    return [
        *poisson(low, before_s, seed),
        *(before_s + t for t in poisson(high, burst_s, seed + 1)),
    ]


def send(load: Load) -> list[Answer]:
    """Send a load from a process of its own."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.bench.open_loop"],
        input=json.dumps(asdict(load)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [Answer(**row) for row in json.loads(run.stdout)]


async def _all(load: Load) -> list[Answer]:
    host, port = urlsplit(load.url).hostname, urlsplit(load.url).port
    bodies = [Path(photo).read_bytes() for photo in load.photos]
    begin = time.perf_counter() + 0.5

    async def one(index: int, planned: float) -> Answer:
        await asyncio.sleep(max(0.0, begin + planned - time.perf_counter()))
        sent = time.perf_counter() - begin
        try:
            async with asyncio.timeout(LIMIT_S):
                found = await _post(host or "", port or 0, bodies[index % len(bodies)], load.budget)
        except (OSError, TimeoutError, h11.RemoteProtocolError):
            found = (0, {})
        status, headers = found
        gflops = re.search(r"gflops=([\d.]+)", headers.get("compute-used", ""))
        return Answer(
            planned,
            sent - planned,
            time.perf_counter() - begin - planned,
            status,
            float(gflops[1]) if gflops else 0.0,
            float(headers.get("retry-after", 0)),
        )

    return list(await asyncio.gather(*(one(i, at) for i, at in enumerate(load.times))))


async def _post(host: str, port: int, body: bytes, budget: str) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer that was read to its end."""
    reader, writer = await asyncio.open_connection(host, port)
    client = h11.Connection(our_role=h11.CLIENT)
    fields = [
        *(("Host", host), ("Content-Type", "image/jpeg"), ("Accept", "image/png")),
        *(("Content-Length", str(len(body))), ("Connection", "close")),
        *([("Compute-Budget", budget)] if budget else []),
    ]
    head = client.send(h11.Request(method="POST", target="/segment", headers=fields))
    try:
        writer.write((head or b"") + body)
        status, headers = 0, dict[str, str]()
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA:
                client.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.EndOfMessage):
                return status, headers
    finally:
        writer.close()


if __name__ == "__main__":
    gc.disable()  # a collection would make the client late
    answered = asyncio.run(_all(Load(**json.load(sys.stdin))))
    json.dump([asdict(answer) for answer in answered], sys.stdout)
