"""Load against quality and time: Fathom, adaptive, beside Fathom with one plan for all.

    python tests/bench/serving.py [--bundle trained_weights/camvid-tiny] [--quick] [--seconds 120]

An open-loop client (open_loop.py) sends Poisson loads to a real service on the same machine. The
objective is three times the latency of the full plan without load; it is held if at most 1 % of
what was offered is late, refused or failed. Quality is the calibrated one of the plans that ran;
with --data FOLDER, mIoU is that of the answers that came back, on its photos. --trace FILE: also
send at recorded times; FILE is what Triton's `perf_analyzer --request-intervals` reads.
`fixed` is the service without scheduling by load (pinned.py), every request at one plan. The last
part has deadlines (`ms`). Prints tables and ends in one JSON line. --quick: short points, whose p99
is the largest of some dozens of answers; those of the full plan for all are longer, since a queue
needs time to grow: 10 s at 98 % of what it can serve are held one time in ten, 60 s never.

Bars: adaptive_over_fixed_deepest >= 3, with adaptive_quality_fraction >= 0.97;
adaptive_over_best_fixed >= 1.2; burst_attained >= 0.97; goodput with deadlines that never falls and
is >= 0.95 x that of the cheapest plan; thrown_away <= 0.01; full_again_s <= 3.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.open_loop import Answer, Load, bursts, poisson, replay, send, step  # noqa: E402
from tests.bench.photos import Photos  # noqa: E402
from tests.bench.points import ADAPTIVE, HEADER, Bench, Point  # noqa: E402

SHARES = {True: (0.6, 0.85), False: (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)}
QUICK_S, LONG_S = 10.0, 30.0  # of a quick point, and of one of the full plan for all


def sweep(
    bench: Bench,
    who: str,
    url: str,
    loads: Sequence[float],
    budget: str,
    seconds: float | None = None,
) -> Point | None:
    """The highest load at which the objective is held, of a rising row of loads."""
    best = None
    for seed, load in enumerate(loads):
        times = poisson(load, seconds or bench.seconds, seed)
        point = bench.point(who, url, times, budget, seconds=seconds)
        if not point.held:
            break
        best = point
    return best


def full_again_s(
    bench: Bench, answers: Sequence[Answer], burst_ended: float
) -> tuple[float, float]:
    """Seconds from the burst's end until the first image of 99.5 % of the full plan's quality, and
    until the last one below that."""
    enough = 0.995 * bench.plans[-1].quality
    cheap = max(plan.gflops for plan in bench.plans if plan.quality < enough)
    after = [answer for answer in answers if answer.planned >= burst_ended and answer.gflops]
    first = min((a.planned for a in after if a.gflops > cheap + 0.001), default=math.inf)
    last = max((a.planned for a in after if a.gflops <= cheap + 0.001), default=burst_ended)
    return first - burst_ended, last - burst_ended


def burst(bench: Bench, url: str, who: str, budget: str, seed: int) -> tuple[float, float, float]:
    """Ten seconds at three times the full plan's capacity. Share in time, and `full_again_s`."""
    low, high = 0.4 / bench.full_s, 3 / bench.full_s
    # After it, an image now and then, to see what it gets.
    after = np.arange(13.0, 19.0, 2 * bench.full_s).tolist()
    times = [*step(low, high, 3.0, 10.0, seed), *after]
    answers = send(Load(url, times, bench.photos.paths, budget))
    during = [answer for answer in answers if 3.0 <= answer.planned < 13.0]
    point = bench.summary(f"{who}, burst", high, during, 10.0)
    print(point.row(), flush=True)
    first, last = full_again_s(bench, answers, 13.0)
    return point.in_time / point.offered, first, last


def deadlines(bench: Bench, adaptive: str, fixed: str, shares: Sequence[float]) -> dict[str, Any]:
    """Goodput with deadlines of the objective, against the cheapest plan for all."""
    ms = f"ms={1000 * bench.objective_s:.0f}"
    ours, theirs, wasted = [], [], []
    for seed, share in enumerate(shares):
        times = poisson(share / bench.cheapest_s, bench.seconds, 50 + seed)
        mine = bench.point(f"adaptive, {ms}", adaptive, times, f"{ADAPTIVE}, {ms}")
        cheap = bench.point(f"cheapest, {ms}", fixed, times, f"{bench.only(bench.plans[0])}, {ms}")
        ours.append(mine.goodput)
        theirs.append(cheap.goodput)
        wasted.append(mine.thrown_away)
    return {
        "goodput": [round(each, 2) for each in ours],
        "goodput_cheapest": [round(each, 2) for each in theirs],
        "goodput_over_cheapest": round(min(a / b for a, b in zip(ours, theirs, strict=True)), 3),
        "goodput_falls": round(max(0.0, *(1 - b / a for a, b in itertools.pairwise(ours))), 3),
        "thrown_away": round(max(wasted), 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="trained_weights/camvid-tiny")
    parser.add_argument("--seconds", type=float, default=120.0, help="of a point")
    parser.add_argument("--data", type=Path, help="labelled folder, whose part val is sent")
    parser.add_argument("--trace", type=Path, help="recorded intervals, one a line, in us")
    parser.add_argument("--quick", action="store_true", help="at most five minutes")
    asked = parser.parse_args()
    quick: bool = asked.quick
    bench = Bench(asked.bundle, QUICK_S if quick else asked.seconds, Photos.of(asked.data))
    trace = replay(asked.trace, bench.seconds) if asked.trace else []
    with bench.fixed() as fixed:
        bench.measure(fixed)
        full = 1 / bench.full_s
        print(
            f"without load: full plan {1000 * bench.full_s:.0f} ms, cheapest "
            f"{1000 * bench.cheapest_s:.0f} ms; objective {1000 * bench.objective_s:.0f} ms"
        )
        print(HEADER)
        shares = (0.3, 0.45, 0.6, 0.75) if quick else (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
        only_full = bench.only(bench.plans[-1])
        loads = [share * full for share in shares]
        long_s = max(LONG_S, bench.seconds)
        deepest = sweep(bench, "fixed, full plan", fixed, loads, only_full, long_s)
        with bench.adaptive() as adaptive:
            steps = (1.0, 1.5, 2.0, 3.0, 4.0) if quick else (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6)
            loads = [s * full for s in steps]
            ours = sweep(bench, "adaptive", adaptive, loads, ADAPTIVE)
            ratios = (0.5, 1.0, 2.0) if quick else (0.5, 1.0, 1.5, 2.0)
            with_deadlines = deadlines(bench, adaptive, fixed, ratios)
            attained, again_s, below_s = burst(bench, adaptive, "adaptive", ADAPTIVE, 90)
            fixed_attained, *_ = burst(bench, fixed, "fixed, full plan", only_full, 90)
            if trace:
                bench.point("adaptive, trace", adaptive, trace, ADAPTIVE)
                bench.point("fixed, trace", fixed, trace, only_full)
            if not quick:
                swings = bursts((0.5 * full, 3 * full), (20.0, 5.0), bench.seconds, 91)
                bench.point("adaptive, two states", adaptive, swings, ADAPTIVE)
        equal = next(
            (plan for plan in bench.plans if ours and plan.quality >= ours.quality),
            bench.plans[-1],
        )
        rising = [share * (ours.load if ours else full) for share in SHARES[quick]]
        best = sweep(bench, f"fixed, {equal.name}", fixed, rising, bench.only(equal))
    late_ms = max(point.client_late_p99 for point in bench.points)
    if late_ms > 5:
        print(f"the client itself was up to {late_ms:.1f} ms late (p99 of a point)")
    adaptive_points = [each for each in bench.points if each.who == "adaptive" and each.held]
    full_quality = bench.plans[-1].quality

    def at_quality(share: float) -> float | None:
        """The same ratio, with at least that share of the full plan's quality."""
        enough = [each for each in adaptive_points if each.quality >= share * full_quality]
        return ratio(max(enough, key=lambda each: each.load, default=None), deepest)

    found = {
        "full_ms": round(1000 * bench.full_s, 1),
        "cheapest_ms": round(1000 * bench.cheapest_s, 1),
        "objective_ms": round(1000 * bench.objective_s),
        "adaptive_over_fixed_deepest": ratio(ours, deepest),
        "adaptive_over_best_fixed": ratio(ours, best),
        "adaptive_quality_fraction": round(ours.quality / full_quality, 4) if ours else None,
        "adaptive_miou": round(ours.miou, 4) if ours and asked.data else None,
        "full_plan_miou": round(bench.points[0].miou, 4) if asked.data else None,
        "over_fixed_deepest_at_97_percent": at_quality(0.97),
        "over_fixed_deepest_at_98.5_percent": at_quality(0.985),
        "burst_attained": round(attained, 4),
        "burst_attained_fixed": round(fixed_attained, 4),
        "full_again_s": round(again_s, 2),
        "last_below_full_s": round(below_s, 2),
        **with_deadlines,
        "client_late_p99_ms": round(late_ms, 2),
        "seconds": bench.seconds,
    }
    print(json.dumps(found))
    return 0


def ratio(ours: Point | None, theirs: Point | None) -> float | None:
    """Of the highest loads at which the objective was held; None if one never was."""
    return round(ours.load / theirs.load, 3) if ours and theirs else None


if __name__ == "__main__":
    sys.exit(main())
