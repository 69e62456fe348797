"""Latency, start and memory of a real service: one 480x360 JPEG at a time over HTTP, PNG answers.

    python tests/bench/latency.py [--bundle trained_weights/camvid-tiny] [--requests 60]

Prints a table and ends in one JSON line. Bars: p50 <= 1.15 x the sum of the engine's stages with
every plan; the full plan >= 5 x the cheapest; ready within 3 s; at most 450 MB resident after 500
requests, no growth over the last 250.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import platform
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from model_export.data import scenes  # noqa: E402
from tests.bench.served import Served, served  # noqa: E402

ENGINE = ("glance", "front", "encoder", "decoder")


def photos(count: int) -> list[bytes]:
    """Generated scenes as 480x360 JPEGs of growing clutter."""
    found = []
    for i in range(count):
        file = io.BytesIO()
        Image.fromarray(scenes.render(9000 + i, clutter=i / max(1, count - 1))[0]).save(
            file, "JPEG", quality=92
        )
        found.append(file.getvalue())
    return found


def stages_of(response: httpx.Response) -> dict[str, float]:
    """Server-Timing -> milliseconds per stage."""
    return {
        m[1]: float(m[2])
        for m in re.finditer(r"(\w+);dur=([\d.]+)", response.headers["server-timing"])
    }


def post(client: httpx.Client, photo: bytes, budget: str) -> tuple[float, httpx.Response]:
    headers = {"content-type": "image/jpeg", "accept": "image/png", "compute-budget": budget}
    begun = time.perf_counter()
    response = client.post("/segment", content=photo, headers=headers)
    taken = (time.perf_counter() - begun) * 1000
    response.raise_for_status()
    return taken, response


def used(response: httpx.Response) -> dict[str, str]:
    """Compute-Used as a dictionary."""
    return dict(part.strip().split("=") for part in response.headers["compute-used"].split(","))


def only(plan: dict[str, Any]) -> str:
    """The Compute-Budget under which a plan is the most expensive one allowed, and asked for."""
    return f"gflops={math.ceil(plan['gflops'] * 1000) / 1000:g}, max-loss=0"


def at_plan(
    client: httpx.Client, images: list[bytes], plan: dict[str, Any], requests: int
) -> dict[str, Any]:
    """Medians over requests, in ms; ratio: of the request to its own engine stages."""
    totals, engines = [], []
    for i in range(requests + 5):
        total, response = post(client, images[i % len(images)], only(plan))
        assert abs(float(used(response)["gflops"]) - plan["gflops"]) < 2e-3, response.headers[
            "compute-used"
        ]
        engine = sum(v for k, v in stages_of(response).items() if k in ENGINE)
        if i >= 5:  # warm
            totals.append(total)
            engines.append(engine)
    return {
        "plan": plan["name"],
        "p50_ms": statistics.median(totals),
        "p95_ms": statistics.quantiles(totals, n=20)[-1],
        "engine_p50_ms": statistics.median(engines),
        "ratio": statistics.median(totals) / statistics.median(engines),
    }


def memory(
    client: httpx.Client, service: Served, images: list[bytes], plans: list[dict[str, Any]]
) -> tuple[float, float]:
    """Resident MB after 250 and after 500 requests with all plans."""
    process, marks = psutil.Process(service.pid), []
    for i in range(500):
        post(client, images[i % len(images)], only(plans[i % len(plans)]))
        if i + 1 in (250, 500):
            marks.append(process.memory_info().rss / 1e6)
    return marks[0], marks[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default=str(ROOT / "trained_weights/camvid-tiny"))
    parser.add_argument("--requests", type=int, default=60, help="counted requests per plan")
    args = parser.parse_args()
    images = photos(8)
    with served(args.bundle) as service, httpx.Client(base_url=service.url, timeout=60) as client:
        plans = client.get("/plans").json()["plans"]
        rows = [at_plan(client, images, plan, args.requests) for plan in plans]
        middle, end = memory(client, service, images, plans)
    print(f"{'plan':<20}{'p50 ms':>9}{'p95 ms':>9}{'engine ms':>11}{'p50 / engine':>14}")
    for row in rows:
        print(
            f"{row['plan']:<20}{row['p50_ms']:>9.1f}{row['p95_ms']:>9.1f}{row['engine_p50_ms']:>11.1f}{row['ratio']:>14.3f}"
        )
    full = rows[-1]["p50_ms"] / rows[0]["p50_ms"]
    print(
        f"full plan / cheapest: {full:.2f}; start to ready {service.start_s:.2f} s; "
        f"resident {middle:.0f} MB after 250 requests, {end:.0f} MB after 500"
    )
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    result = {
        "machine": machine,
        "plans": rows,
        "full_over_first": full,
        "start_s": service.start_s,
        "rss_mb": [middle, end],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
