"""Latency, start and memory of a real service: one 480x360 JPEG at a time over HTTP, PNG answers.

    python tests/bench/latency.py [--bundle trained_weights/camvid-tiny] [--requests 60]

Prints tables and ends in one JSON line. Where the time beside the engine goes is told by a service
of its own (tests/bench/timed.py), with the CPU time of it, which other work on the machine moves
less. --other FOLDER measures another checkout beside this one, in turns. Bars: beside the engine at
most 6 ms; the full plan >= 5 x the cheapest; ready within 3 s; at most 450 MB resident after 500
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
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from model_export.data import scenes  # noqa: E402
from tests.bench.served import Served, served  # noqa: E402
from tests.bench.timed import FIELD  # noqa: E402

ENGINE = ("glance", "front", "encoder", "decoder")
# Of a request beside the engine: from the client's send to the app, from there to the decoding
# thread (fields, a place in the queue, the body), decoding and scaling to the glance, from there to
# the engine's thread, what the engine does between its stages, from there to the thread of answers,
# the answer (label map, PNG), and from there until the client has it.
PARTS = ("way in", "admission", "decode", "to engine", "decision", "to answer", "answer", "way out")
WARM = 2  # requests that do not count
TURN = 10  # requests of one plan to one service, before the other one's turn


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


@dataclass(frozen=True)
class Side:
    """A service that is measured: ours, or that of another checkout beside it."""

    name: str
    service: Served
    client: httpx.Client
    plans: dict[str, dict[str, Any]]  # of its own bundle, by name


def at_plan(
    side: Side, images: list[bytes], plan: dict[str, Any], requests: int
) -> list[tuple[float, httpx.Response]]:
    """Requests that take a plan, after some that warm it up: milliseconds and answers."""
    found = []
    for i in range(-WARM, requests):
        total, response = post(side.client, images[i % len(images)], only(plan))
        assert abs(float(used(response)["gflops"]) - plan["gflops"]) < 2e-3, response.headers[
            "compute-used"
        ]
        if i >= 0:
            found.append((total, response))
    return found


def row_of(plan: str, found: list[tuple[float, httpx.Response]]) -> dict[str, Any]:
    """Medians over requests, in ms; beside: of what is not the engine's stages."""
    totals = [total for total, _ in found]
    engines = [sum(stages_of(each).get(k, 0.0) for k in ENGINE) for _, each in found]
    return {
        "plan": plan,
        "p50_ms": statistics.median(totals),
        "p95_ms": statistics.quantiles(totals, n=20)[-1],
        "engine_p50_ms": statistics.median(engines),
        "beside_p50_ms": statistics.median(
            total - engine for total, engine in zip(totals, engines, strict=True)
        ),
        "ratio": statistics.median(totals) / statistics.median(engines),
    }


def parts_of(response: httpx.Response, sent: float, received: float) -> dict[str, float]:
    """Where a request's time beside the engine went, in ms: see PARTS.

    sent, received: seconds of time.perf_counter. The service is tests/bench/timed.py.
    """
    marks, spent = json.loads(response.headers[FIELD]), stages_of(response)
    began = {stage: 1000 * at for stage, at in marks["began"].items()}
    arrived, written = 1000 * marks["arrived"], 1000 * marks["written"]
    engine = [stage for stage in ENGINE if stage in began]
    engine_began = min(began[stage] for stage in engine)
    engine_ended = max(began[stage] + spent[stage] for stage in engine)
    return {
        "way in": arrived - 1000 * sent,
        "admission": began["decode"] - arrived,
        "decode": spent["decode"],
        "to engine": engine_began - began["decode"] - spent["decode"],
        "decision": engine_ended - engine_began - sum(spent[stage] for stage in engine),
        "to answer": began["mask"] - engine_ended,
        "answer": spent["mask"],
        "way out": written - began["mask"] - spent["mask"] + 1000 * (received - written / 1000),
    }


def beside_engine(
    bundle: str,
    flags: list[str],
    images: list[bytes],
    plans: list[dict[str, Any]],
    requests: int,
) -> list[dict[str, Any]]:
    """The parts of each plan, medians in ms, and the CPU time beside the engine of a request."""
    rows = []
    with (
        served(bundle, *flags, module="tests.bench.timed") as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
    ):
        for plan in plans:
            parts: list[dict[str, float]] = []
            cpu: list[float] = []
            for i in range(-WARM, requests):
                sent = time.perf_counter()
                taken, response = post(client, images[i % len(images)], only(plan))
                marks = json.loads(response.headers[FIELD])
                cpu.append(1000 * (marks["cpu_s"] - marks["engine_cpu_s"]))
                if i >= 0:
                    parts.append(parts_of(response, sent, sent + taken / 1000))
            medians = {part: statistics.median(each[part] for each in parts) for part in PARTS}
            sums = statistics.median(sum(each.values()) for each in parts)
            spent = statistics.median(after - before for before, after in pairwise(cpu[WARM - 1 :]))
            rows.append({"plan": plan["name"], **medians, "all": sums, "cpu": spent})
    return rows


def memory(
    side: Side, images: list[bytes], plans: list[dict[str, Any]], requests: int
) -> tuple[float, float]:
    """Resident MB after half and after all of the requests, with all plans in turns."""
    process, marks = psutil.Process(side.service.pid), []
    for i in range(requests):
        post(side.client, images[i % len(images)], only(plans[i % len(plans)]))
        if i + 1 in (requests // 2, requests):
            marks.append(process.memory_info().rss / 1e6)
    return marks[0], marks[1]


def starts(
    bundle: Callable[[Path], str], folders: dict[str, Path], flags: list[str], count: int
) -> dict[str, Any]:
    """Process start to ready in s, wall and CPU, and MB resident then: medians, in turns. bundle:
    of a checkout."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in folders}
    for _ in range(count):
        for name, folder in folders.items():
            with served(bundle(folder), *flags, folder=folder) as service:
                process = psutil.Process(service.pid)
                cpu = process.cpu_times()
                megabytes = process.memory_info().rss / 1e6
                found[name].append((service.start_s, cpu.user + cpu.system, megabytes))
    names = ("start_s", "start_cpu_s", "start_mb")
    return {
        name: dict(zip(names, map(statistics.median, zip(*each, strict=True)), strict=True))
        for name, each in found.items()
    }


def show(rows: list[dict[str, Any]], name: str) -> None:
    print(
        f"{name:<20}{'p50 ms':>9}{'p95 ms':>9}{'engine ms':>11}{'beside ms':>11}"
        f"{'p50 / engine':>14}"
    )
    for row in rows:
        print(
            f"{row['plan']:<20}{row['p50_ms']:>9.1f}{row['p95_ms']:>9.1f}"
            f"{row['engine_p50_ms']:>11.1f}{row['beside_p50_ms']:>11.1f}{row['ratio']:>14.3f}"
        )


def show_parts(rows: list[dict[str, Any]]) -> None:
    columns = (*PARTS, "all", "cpu")
    print(f"{'beside, ms':<20}" + "".join(f"{column:>11}" for column in columns))
    for row in rows:
        print(f"{row['plan']:<20}" + "".join(f"{row[column]:>11.2f}" for column in columns))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="default: camvid-tiny as a checkout ships it")
    parser.add_argument("--requests", type=int, default=60, help="counted requests per plan")
    parser.add_argument("--starts", type=int, default=5, help="of the process, each; 0: none")
    parser.add_argument("--resident", type=int, default=500, help="requests before memory is read")
    parser.add_argument("--other", type=Path, help="another checkout, measured in turns with ours")
    parser.add_argument("--plans", nargs="*", help="by name; none: all")
    parser.add_argument("--threads", help="of the engine, as the service has it")
    args = parser.parse_args()
    images = photos(8)

    def bundle(folder: Path) -> str:
        return str((args.bundle or folder / "trained_weights/camvid-tiny").resolve())

    flags = ["--backend", "onnxruntime", *(("--threads", args.threads) if args.threads else ())]
    folders = {"ours": ROOT, **({"other": args.other.resolve()} if args.other else {})}
    started = starts(bundle, folders, flags, args.starts) if args.starts else {}
    with ExitStack() as stack:
        sides = []
        for name, folder in folders.items():
            service = stack.enter_context(served(bundle(folder), *flags, folder=folder))
            client = stack.enter_context(httpx.Client(base_url=service.url, timeout=60))
            own = {plan["name"]: plan for plan in client.get("/plans").json()["plans"]}
            sides.append(Side(name, service, client, own))
        plans = list(sides[0].plans.values())
        if args.plans:
            plans = [plan for plan in plans if plan["name"] in args.plans]
        found: dict[tuple[str, str], list[tuple[float, httpx.Response]]] = {}
        for plan in plans:
            for turn in range(0, args.requests, TURN):
                for side in sides if turn % (2 * TURN) else sides[::-1]:
                    count = min(TURN, args.requests - turn)
                    results = at_plan(side, images, side.plans[plan["name"]], count)
                    found.setdefault((side.name, plan["name"]), []).extend(results)
        rows = {
            side.name: [row_of(plan["name"], found[side.name, plan["name"]]) for plan in plans]
            for side in sides
        }
        middle, end = memory(sides[0], images, plans, args.resident)
    for name, each in rows.items():
        show(each, f"plan, {name}")
    parts = beside_engine(bundle(ROOT), flags, images, plans, args.requests)
    show_parts(parts)
    ours = rows["ours"]
    full = ours[-1]["p50_ms"] / ours[0]["p50_ms"]
    print(f"full plan / cheapest: {full:.2f}")
    for name, each in started.items():
        print(
            f"{name}: start to ready {each['start_s']:.2f} s, {each['start_cpu_s']:.2f} s of CPU "
            f"time, then {each['start_mb']:.0f} MB resident (medians of {args.starts})"
        )
    half = args.resident // 2
    print(f"ours: {middle:.0f} MB after {half} requests, {end:.0f} MB after {args.resident}")
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    result = {
        "machine": machine,
        "plans": rows,
        "beside": parts,
        "full_over_first": full,
        "starts": started,
        "rss_mb": [middle, end],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
