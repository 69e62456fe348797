"""The service part of the GPU benchmark: images a second of a real service process, by each
backend.

A closed loop of callers keeps it busy: that is throughput, and the times of requests beside it are
those of a service that is full. 480x360 JPEG in, PNG out, over loopback; the callers share the
machine with the service.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tests.bench.gpu_clock import Setting
from tests.bench.gpu_kernel import Json, short
from tests.bench.gpu_layers import NO_TIME
from tests.bench.latency import only, photos, post
from tests.bench.served import served

# The last one is the CPU, to compare with.
BACKENDS = (
    "onnxruntime-cuda",
    "tensorrt",
    "onnxruntime",
)
GATE = "max-loss=0.01"  # the service's own default: the gate decides
CALLERS, WARM, REQUESTS, SECONDS = 16, 32, 800, 8.0


def steps(setting: Setting) -> dict[str, Callable[[], Json]]:
    root = setting.served.root
    return {name: partial(throughput, root, name, setting.cache, setting.left) for name in BACKENDS}


def throughput(
    bundle: Path, backend: str, cache: Path, left: Callable[[], float], requests: int = REQUESTS
) -> Json:
    """plans: of the cheapest plan, of the full one, and where the gate decides. Or why the service
    did not start."""
    flags = ["--backend", backend, "--image-threads", str(image_threads())]
    flags += ["--engine-cache", str(cache)] if backend == "tensorrt" else []
    images = photos(8)
    try:
        with served(str(bundle), *flags, limit_s=120) as service:
            limits = httpx.Limits(max_connections=CALLERS)
            with httpx.Client(base_url=service.url, timeout=60, limits=limits) as client:
                plans = client.get("/plans").json()["plans"]
                budgets = {
                    plans[0]["name"]: only(plans[0]),
                    plans[-1]["name"]: only(plans[-1]),
                    "gate": GATE,
                }
                found: Json = {"callers": CALLERS, "flags": flags, "plans": {}}
                for name, budget in budgets.items():
                    if (remaining := left()) <= 0:
                        found["plans"][name] = {"not_measured": NO_TIME}
                        continue
                    closed_loop(client, images, budget, WARM, remaining)
                    found["plans"][name] = closed_loop(
                        client, images, budget, requests, min(SECONDS, remaining)
                    )
                return found
    except (RuntimeError, httpx.HTTPError) as error:
        return {"not_measured": last_words(error)}


def image_threads() -> int:
    """Decoding and encoding images must not be what is measured."""
    return min(64, max(2, (os.cpu_count() or 2) - 2))


def closed_loop(
    client: httpx.Client, images: list[bytes], budget: str, requests: int, seconds: float
) -> Json:
    """Each caller sends again once it is answered, until so many were sent or so long has
    passed."""
    numbers: Iterator[int] = itertools.count()
    begun = time.perf_counter()

    def call(_: int) -> list[float]:
        taken = []
        while (number := next(numbers)) < requests and time.perf_counter() - begun < seconds:
            taken.append(post(client, images[number % len(images)], budget)[0])
        return taken

    with ThreadPoolExecutor(CALLERS) as pool:
        times = [ms for each in pool.map(call, range(CALLERS)) for ms in each]
    wall = time.perf_counter() - begun
    found: dict[str, Any] = {"requests": len(times), "images_per_s": short(len(times) / wall)}
    if len(times) > 1:
        found |= {
            "p50_ms": short(statistics.median(times)),
            "p95_ms": short(statistics.quantiles(times, n=20)[-1]),
        }
    return found


def last_words(error: Exception) -> str:
    """What a service that did not start said last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
