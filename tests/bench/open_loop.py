"""An open-loop HTTP client: requests are sent at times that were planned before, whatever has been
answered by then, and latency counts from the planned time (wrk2's remedy for coordinated omission).

`python -m tests.bench.open_loop` reads a Load as JSON from standard input, in a process of its own,
and writes the answers as JSON; their bodies, of which many are the same, are written once each.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

import h11
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
Wrap: TypeAlias = Literal["body", "form", "json"]
Request: TypeAlias = tuple[h11.Request, bytes]  # its head and its body
LIMIT_S = 60.0  # for one answer


@dataclass(frozen=True)
class Load:
    """times: when to send, in seconds from the start. photos: paths of JPEGs, sent in turn. wrap:
    how: as a request's body, or as "image" in a multipart form, or so in JSON, in base64."""

    url: str
    times: Sequence[float]
    photos: Sequence[str]
    budget: str = ""
    wrap: Wrap = "body"


@dataclass(frozen=True)
class Answer:
    """planned, late_s, took_s: in seconds; late_s: of the client itself; took_s: from the planned
    time. status 0: no answer. gflops: of the plan that ran, 0 if none did. retry_s: Retry-After.
    photo: which one was sent. body: of a 200."""

    planned: float
    late_s: float
    took_s: float
    status: int
    gflops: float = 0.0
    retry_s: float = 0.0
    photo: int = 0
    body: bytes = b""


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


def replay(file: Path, seconds: float) -> list[float]:
    """Times of a recorded trace, as far as it lasts and no longer than that.

    file: as of `perf_analyzer --request-intervals` (Triton): one interval between two requests on
    each line, in microseconds. Raises ValueError that names the line.
    """
    times, at = list[float](), 0.0
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        if not line.strip().isdecimal():
            raise ValueError(f"{file}, line {number}: {line!r} is no interval in microseconds")
        at += int(line) / 1e6
        if at >= seconds:
            break
        times.append(at)
    if not times:
        raise ValueError(f"{file}: it has no request within {seconds:g} s")
    return times


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
    found = json.loads(run.stdout)
    bodies = [base64.b64decode(body) for body in found["bodies"]]
    return [Answer(**{**row, "body": bodies[row["body"]]}) for row in found["answers"]]


async def _all(load: Load) -> list[Answer]:
    requests = requests_of(load)
    begin = time.perf_counter() + 0.5

    async def one(index: int, planned: float) -> Answer:
        await asyncio.sleep(max(0.0, begin + planned - time.perf_counter()))
        return await ask(load.url, requests, index, begin, planned)

    return list(await asyncio.gather(*(one(i, at) for i, at in enumerate(load.times))))


async def ask(
    url: str, requests: Sequence[Request], index: int, begin: float, planned: float
) -> Answer:
    """One request, at once. index: its number in the load, whose photos are sent in turn; begin: of
    the load, by time.perf_counter; planned: the seconds from there until it was due."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    photo = index % len(requests)
    sent = time.perf_counter() - begin
    try:
        async with asyncio.timeout(LIMIT_S):
            found = await _post(host or "", port or 0, *requests[photo])
    except (OSError, TimeoutError, h11.RemoteProtocolError):
        found = (0, {}, b"")
    status, headers, body = found
    gflops = re.search(r"gflops=([\d.]+)", headers.get("compute-used", ""))
    return Answer(
        planned,
        sent - planned,
        time.perf_counter() - begin - planned,
        status,
        float(gflops[1]) if gflops else 0.0,
        float(headers.get("retry-after", 0)),
        photo,
        body if status == 200 else b"",
    )


def requests_of(load: Load) -> list[Request]:
    """One for each of a load's photos."""
    return [_request(Path(photo).read_bytes(), load) for photo in load.photos]


def _request(photo: bytes, load: Load) -> Request:
    media, body = "image/jpeg", photo
    if load.wrap == "form":
        media, edge = "multipart/form-data; boundary=b7c2d9e5f1a3", "--b7c2d9e5f1a3"
        named = 'Content-Disposition: form-data; name="image"; filename="photo.jpg"'
        head = f"{edge}\r\n{named}\r\nContent-Type: image/jpeg\r\n\r\n"
        body = b"".join((head.encode(), photo, f"\r\n{edge}--\r\n".encode()))
    elif load.wrap == "json":
        media = "application/json"
        body = json.dumps({"image": base64.b64encode(photo).decode()}).encode()
    fields = [
        *(("Host", urlsplit(load.url).netloc), ("Content-Type", media), ("Accept", "image/png")),
        *(("Content-Length", str(len(body))), ("Connection", "close")),
        *([("Compute-Budget", load.budget)] if load.budget else []),
    ]
    return h11.Request(method="POST", target="/segment", headers=fields), body


async def _post(
    host: str, port: int, request: h11.Request, body: bytes
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer that was read to its end."""
    reader, writer = await asyncio.open_connection(host, port)
    client = h11.Connection(our_role=h11.CLIENT)
    head = client.send(request)
    try:
        writer.write((head or b"") + body)
        status, headers, read = 0, dict[str, str](), bytearray()
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA:
                client.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                read += event.data
            elif isinstance(event, h11.EndOfMessage):
                return status, headers, bytes(read)
    finally:
        writer.close()


if __name__ == "__main__":
    gc.disable()  # a collection would make the client late
    answered = asyncio.run(_all(Load(**json.load(sys.stdin))))
    indices: dict[bytes, int] = {}
    rows = []
    for answer in answered:
        index = indices.setdefault(answer.body, len(indices))
        rows.append({**asdict(answer), "body": index})
    told = [base64.b64encode(body).decode() for body in indices]
    json.dump({"answers": rows, "bodies": told}, sys.stdout)
