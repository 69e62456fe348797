"""One bundle under one load: what is sent, to what, and what came back of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service import bundle as bundles
from service.core import Plan
from tests.bench.open_loop import Answer, Load, Wrap, send
from tests.bench.photos import Photos
from tests.bench.served import served

MISSED = 0.01
FLAGS = ("--max-batch", "1")
ADAPTIVE = "max-loss=0"  # the best plan that load allows


@dataclass(frozen=True)
class Point:
    """What came back of one load. load: requests per second; the times in ms. quality: calibrated,
    of the plans that ran; miou: of the answers, NaN without labels. wasted: share of what ran that
    was late or not answered."""

    who: str
    load: float
    offered: int
    answered: int
    in_time: int
    p50: float
    p99: float
    quality: float
    miou: float
    gflops: float
    thrown_away: float
    client_late_p99: float
    seconds: float

    @property
    def held(self) -> bool:
        return self.offered - self.in_time <= max(1, MISSED * self.offered)

    @property
    def goodput(self) -> float:
        """Answers a second that came in time."""
        return self.in_time / self.seconds

    def row(self) -> str:
        attained = self.in_time / self.offered
        return (
            f"{self.who:<24}{self.load:8.2f}{self.offered:8d}{attained:9.1%}{self.goodput:8.2f}"
            f"{self.p50:8.0f}{self.p99:8.0f}{self.quality:9.4f}{self.miou:8.4f}{self.gflops:8.2f}"
            f"{self.thrown_away:8.1%}{self.client_late_p99:8.1f}"
        )


HEADER = (
    f"{'':<24}{'load/s':>8}{'sent':>8}{'in time':>9}{'good/s':>8}{'p50 ms':>8}{'p99 ms':>8}"
    f"{'quality':>9}{'mIoU':>8}{'GFLOPs':>8}{'wasted':>8}{'late ms':>8}"
)


class Bench:
    """One bundle. seconds: of a point. full_s, cheapest_s, objective_s: once `measure` has run."""

    def __init__(self, bundle: str, seconds: float, photos: Photos) -> None:
        self.bundle, self.seconds, self.photos = bundle, seconds, photos
        self.plans = bundles.load(Path(bundle)).manifest.plans
        self.full_s = self.cheapest_s = self.objective_s = math.nan
        self.points: list[Point] = []

    def only(self, plan: Plan) -> str:
        """The budget at which a pinned service runs this plan."""
        return f"gflops={math.ceil(plan.gflops * 1000) / 1000:g}, max-loss=0"

    @contextmanager
    def fixed(self) -> Iterator[str]:
        """A service without scheduling by load (pinned.py)."""
        with served(self.bundle, *FLAGS, module="tests.bench.pinned") as service:
            yield service.url

    @contextmanager
    def adaptive(self) -> Iterator[str]:
        target = ("--target-ms", f"{1000 * self.objective_s:.0f}")
        with served(self.bundle, *FLAGS, *target) as service:
            yield service.url

    def measure(self, url: str) -> None:
        """The latency of the full and of the cheapest plan, one request at a time."""
        times = []
        for plan in (self.plans[-1], self.plans[0]):
            load = Load(url, [0.0], self.photos.paths, self.only(plan))
            times.append(statistics.median(send(load)[0].took_s for _ in range(7)))
        self.full_s, self.cheapest_s = times
        self.objective_s = 3 * self.full_s

    def point(
        self,
        who: str,
        url: str,
        times: Sequence[float],
        budget: str = "",
        wrap: Wrap = "body",
        seconds: float | None = None,
    ) -> Point:
        """Send a load and wait for all of its answers. wrap: see Load. seconds: of the load; None:
        `seconds` of all."""
        seconds = seconds or self.seconds
        if not times:
            raise ValueError(f"no request falls into {seconds:g} s: raise --seconds")
        answers = send(Load(url, times, self.photos.paths, budget, wrap))
        point = self.summary(who, len(times) / seconds, answers, seconds)
        self.points.append(point)
        print(point.row(), flush=True)
        return point

    def summary(self, who: str, load: float, answers: Sequence[Answer], seconds: float) -> Point:
        """seconds: for which was sent."""
        good = [answer for answer in answers if answer.status == 200]
        took = [1000 * answer.took_s for answer in good] or [math.nan]
        ran = [answer for answer in answers if answer.gflops or answer.status == 200]
        wasted = [a for a in ran if a.status != 200 or a.took_s > self.objective_s]
        return Point(
            who,
            load,
            len(answers),
            len(good),
            sum(answer.took_s <= self.objective_s for answer in good),
            float(np.percentile(took, 50)),
            float(np.percentile(took, 99)),
            self._mean(good, "quality"),
            self.photos.miou(good),
            self._mean(good, "gflops"),
            len(wasted) / max(1, len(ran)),
            1000 * float(np.percentile([answer.late_s for answer in answers], 99)),
            seconds,
        )

    def _mean(self, good: Sequence[Answer], key: str) -> float:
        """Of the plans that ran; servers that do not tell run the full one."""
        prices = [plan.gflops for plan in self.plans]
        told = [answer.gflops or prices[-1] for answer in good]
        ran = [min(self.plans, key=lambda plan: abs(plan.gflops - gflops)) for gflops in told]
        return statistics.fmean(getattr(plan, key) for plan in ran) if ran else math.nan
