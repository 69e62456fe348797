"""Boxes alone against masks of the same images, and budgets under preferences, over HTTP.

    python tests/bench/tasks.py [--bundle trained_weights/streets-multi] [--turns 30] [--pairs 1000]

The service has one thread for its engine. Photos go in turns to the head of masks and to that of
boxes, with the full plan of each. Then pairs of a random budget and a random preference: every
answer must be within its budget, and what is refused must have no plan that is. Prints a table and
ends in one JSON line. Bars: boxes at most 0.8 x the p50 of masks; the budget kept in every answer.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.latency import photos, stages_of  # noqa: E402
from tests.bench.served import served  # noqa: E402

BUNDLE = "trained_weights/streets-multi"
BAR = 0.8
WARM = 1  # turns that do not count
PHOTOS = 10
KINDS = ("masks", "boxes")
FULL = "max-loss=0, strict"  # nothing else, however many wait


def segment(
    client: httpx.Client, photo: bytes, budget: str, preference: str
) -> tuple[float, httpx.Response]:
    """Milliseconds until the whole answer is there, and the answer."""
    headers = {
        "content-type": "image/jpeg",
        "compute-budget": budget,
        "task-preference": preference,
    }
    began = time.perf_counter()
    response = client.post("/segment", content=photo, headers=headers)
    return 1000 * (time.perf_counter() - began), response


def compare(client: httpx.Client, sent: list[bytes], turns: int) -> list[dict[str, Any]]:
    """Of each kind of answer the median of a request, of its parts, and the plans that ran."""
    heads = {head["gives"]: head["name"] for head in client.get("/plans").json()["heads"]}
    answers: list[tuple[str, float, dict[str, float], str]] = []
    for turn in range(WARM + turns):
        for photo in sent:
            for kind in KINDS:
                ms, response = segment(client, photo, FULL, f"{heads[kind]}=1")
                response.raise_for_status()
                if turn >= WARM:
                    plan = response.json()["usage"]["plan"]
                    answers.append((kind, ms, stages_of(response), plan))
    rows = []
    for kind in KINDS:
        own = [answer for answer in answers if answer[0] == kind]
        parts = {
            name: statistics.median(stages.get(name, 0.0) for _, _, stages, _ in own)
            for name in dict.fromkeys(name for _, _, stages, _ in own for name in stages)
        }
        row = {"answer": kind, "ms": statistics.median(ms for _, ms, _, _ in own), "parts": parts}
        rows.append(row | {"plans": sorted({plan for _, _, _, plan in own})})
    return rows


def keep(client: httpx.Client, photo: bytes, pairs: int) -> dict[str, int]:
    """What came of random pairs of a budget and a preference."""
    rng, found = np.random.default_rng(0), {"answered": 0, "refused": 0, "wrong": 0}
    names = [head["name"] for head in client.get("/plans").json()["heads"]]
    full = client.get("/plans").json()["plans"][-1]["gflops"]
    for _ in range(pairs):
        weights = np.round(rng.dirichlet(np.ones(len(names))), 3) * (rng.random(len(names)) < 0.7)
        weights[rng.integers(len(names))] += 0.1
        asked = [f"{name}={weight:.3f}" for name, weight in zip(names, weights, strict=True)]
        preference, budget = ", ".join(asked), round(full * 10 ** rng.uniform(-1.15, 0.0), 3)
        _, response = segment(client, photo, f"gflops={budget:.3f}", preference)
        plans = client.get("/plans", headers={"task-preference": preference}).json()["plans"]
        affordable = any(plan["gflops"] <= budget for plan in plans)
        if response.status_code == 200:
            (spent,) = re.findall(r"gflops=([\d.]+)", response.headers["compute-used"])
            found["answered" if float(spent) <= budget and affordable else "wrong"] += 1
        else:
            found["refused" if response.status_code == 422 and not affordable else "wrong"] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default=BUNDLE)
    parser.add_argument("--turns", type=int, default=30, help="of all photos to both heads")
    parser.add_argument("--pairs", type=int, default=1000)
    args = parser.parse_args()
    sent = photos(PHOTOS)
    with (
        served(args.bundle, "--threads", "1") as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
    ):
        rows = compare(client, sent, args.turns)
        pairs = keep(client, sent[0], args.pairs)
    print(f"{'answer':<8}{'p50 ms':>8}  parts")
    for row in rows:
        parts = ", ".join(f"{name} {ms:.1f}" for name, ms in row["parts"].items())
        print(f"{row['answer']:<8}{row['ms']:8.1f}  {parts}")
    masks, boxes = (row["ms"] for row in rows)
    print(f"boxes / masks: {boxes / masks:.3f} (bar {BAR})")
    print(f"pairs of budget and preference: {pairs}")
    result = {"bundle": args.bundle, "rows": rows, "ratio": boxes / masks, "pairs": pairs}
    print(json.dumps(result | {"met": boxes <= BAR * masks and not pairs["wrong"]}))


if __name__ == "__main__":
    main()
