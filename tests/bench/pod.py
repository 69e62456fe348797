"""What a pod needs: CPU seconds an image, alone and in batches, and memory at rest and with the
largest images.

    python tests/bench/pod.py [--bundle trained_weights/camvid-tiny] [--requests 24]

Four callers at a time keep a real service busy. Run it on a machine that has nothing else to do:
shared caches make CPU seconds grow, too. Prints a table and ends in one JSON line; k8s/overlays/cpu
and docs/autoscaling.md go by it.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.latency import only, photos, post  # noqa: E402
from tests.bench.served import Served, served  # noqa: E402

CALLERS, CORES = 4, 2
WIDE = ((1, 24), (4, 18))  # batch, width of its column
MEASURED = 4  # plans of the bundle: the cheapest, the most expensive, and two between


def cpu_seconds(
    client: httpx.Client, service: Served, images: list[bytes], plan: dict[str, Any], requests: int
) -> tuple[float, float]:
    """Of the whole process: CPU seconds per request, and the share of the engine's cores that it
    used meanwhile."""
    process = psutil.Process(service.pid)
    post(client, images[0], only(plan))
    before, begun = process.cpu_times(), time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(lambda i: post(client, images[i % len(images)], only(plan)), range(requests)))
    after, wall = process.cpu_times(), time.perf_counter() - begun
    used = after.user + after.system - before.user - before.system
    return used / requests, used / (wall * CORES)


def spread(names: list[str]) -> list[str]:
    """Of names from the cheapest on, MEASURED that are evenly apart; all where they are fewer."""
    last, steps = len(names) - 1, MEASURED - 1
    return [names[i] for i in sorted({round(last * step / steps) for step in range(MEASURED)})]


def largest() -> bytes:
    """25 megapixels of noise as WebP: of the formats, the one that takes most memory to decode."""
    file = io.BytesIO()
    Image.effect_noise((5000, 5000), 60).convert("RGB").save(file, "WEBP", quality=50)
    return file.getvalue()


def memory(client: httpx.Client, service: Served) -> dict[str, float]:
    """MiB resident: at rest, at the peak while largest images come four at a time, and after
    that."""
    process, image, stop, peak = psutil.Process(service.pid), largest(), threading.Event(), [0]
    rest = process.memory_info().rss

    def watch() -> None:
        while not stop.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    def send(number: int) -> None:
        accept = ("image/png", "application/json")[number % 2]
        client.post(
            "/segment", content=image, headers={"content-type": "image/webp", "accept": accept}
        ).raise_for_status()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(send, range(2 * CALLERS)))
    finally:
        stop.set()
        watcher.join()
    return {
        "rest": rest / 2**20,
        "peak": peak[0] / 2**20,
        "after": process.memory_info().rss / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default=str(ROOT / "trained_weights/camvid-tiny"))
    parser.add_argument("--requests", type=int, default=24, help="counted requests per plan")
    args = parser.parse_args()
    images, spent, mib = photos(6), {}, {}
    for batch in (1, 4):
        flags = ("--threads", str(CORES), "--max-batch", str(batch))
        with (
            served(args.bundle, *flags, limit_s=300) as service,
            httpx.Client(base_url=service.url, timeout=120) as client,
        ):
            plans = {plan["name"]: plan for plan in client.get("/plans").json()["plans"]}
            names = spread(list(plans))
            spent[batch] = {
                name: cpu_seconds(client, service, images, plans[name], args.requests)
                for name in names
            }
            mib[batch] = memory(client, service)
    print(
        f"{'plan':<10}{'CPU s an image, alone':>24}{'of two cores':>14}"
        f"{'in batches of 4':>18}{'of two cores':>14}"
    )
    for name in names:
        cells = "".join(
            f"{spent[batch][name][0]:>{wide}.3f}{spent[batch][name][1]:>14.0%}"
            for batch, wide in WIDE
        )
        print(f"{name:<10}{cells}")
    for batch, found in mib.items():
        figures = (
            f"{found['rest']:.0f} MiB at rest, {found['peak']:.0f} at the peak, "
            f"{found['after']:.0f} after it"
        )
        print(f"memory, batches of {batch}: {figures}")
    print(json.dumps({"cpu_s": spent, "mib": mib}))


if __name__ == "__main__":
    main()
