"""A day of replicas under the autoscaler: adaptive depth against fixed plans, and the thresholds of
k8s/.

    python tests/bench/autoscale.py [--bundle trained_weights/camvid-tiny] [--mean 25] [--seeds 3]
    [--jobs 2]

Simulated, request by request, with the service times that the bundle's manifest has measured and
the autoscaler's own algorithm (autoscaler.py, fleet.py, day.py say what is assumed). Prints tables,
the manifests' settings marked with *, and ends in one JSON line. The bar of a row: p99 <= 0.5 s and
at most 1 % of requests late, shed or lost, in every seed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from service import bundle  # noqa: E402
from service.bundle import Manifest  # noqa: E402
from service.command_line import load  # noqa: E402
from service.settings import Settings  # noqa: E402
from tests.bench import autoscaler, fleet  # noqa: E402
from tests.bench.day import SLO_S, Day, Scaling, World, simulate  # noqa: E402

MISSED = 0.01


@dataclass(frozen=True, slots=True)
class Case:
    """One row: what a replica does, how it is scaled, and in what world. table: where it is
    printed."""

    table: str
    policy: fleet.Policy
    scaling: Scaling
    world: World
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """Means over the seeds; missed_worst and p99_worst: of the worst one."""

    case: Case
    day: Day
    p99_worst: float
    missed_worst: float

    @property
    def kept(self) -> bool:
        return self.p99_worst <= SLO_S and self.missed_worst <= MISSED


def manifests(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "k8s" / name).read_text())
    return found


def settings() -> Settings:
    """What the CPU overlay sets."""
    pod = manifests("overlays/cpu/resources.yaml")["spec"]["template"]["spec"]
    return load([], {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]})


def behaviour(spec: dict[str, Any]) -> autoscaler.Behaviour:
    """spec.behavior as the simulation takes it."""
    up, down = (
        tuple(
            autoscaler.Policy(each["type"], each["value"], each["periodSeconds"])
            for each in spec[way]["policies"]
        )
        for way in ("scaleUp", "scaleDown")
    )
    windows = (spec[way]["stabilizationWindowSeconds"] for way in ("scaleUp", "scaleDown"))
    return autoscaler.Behaviour(up, down, *windows)


def hpa() -> Scaling:
    """The HorizontalPodAutoscaler of the base."""
    spec = manifests("base/autoscaler.yaml")["spec"]
    cpu = spec["metrics"][0]["containerResource"]["target"]["averageUtilization"] / 100
    return Scaling(cpu=cpu, behaviour=behaviour(spec["behavior"]))


def keda() -> Scaling:
    """The ScaledObject of the component."""
    spec = manifests("components/keda/scaled-object.yaml")["spec"]
    triggers = {each.get("name", each["type"]): each["metadata"] for each in spec["triggers"]}
    return Scaling(
        cpu=int(triggers["cpu"]["value"]) / 100,
        wait_s=float(triggers["queue-wait"]["threshold"]),
        given_up=float(triggers["compute-given-up"]["threshold"]),
        behaviour=behaviour(spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]),
    )


def cases(manifest: Manifest) -> Iterator[Case]:
    ours, base, object_, usual = settings(), hpa(), keda(), World()

    def adaptive(
        queue_size: int = ours.queue_size, target_ms: float = ours.target_ms
    ) -> fleet.Policy:
        return fleet.policy(
            f"queue {queue_size}, objective {target_ms:g} ms",
            manifest,
            queue_size=queue_size,
            target_s=target_ms / 1000,
            max_loss=Settings().max_loss,
        )

    def fixed(name: str, max_loss: float, depth: int | None = None) -> fleet.Policy:
        """With the longest queue whose last image keeps the objective: it waits for one that runs
        and for the rest. One image may wait in any case."""
        make = partial(fleet.policy, name, manifest, max_loss=max_loss, depth=depth)
        longest = math.floor(SLO_S / make(queue_size=1).seconds[0]) - 1
        return make(queue_size=max(1, longest))

    named = replace(adaptive(), name="adaptive")
    gate, full, shallow = (
        fixed("gate only", Settings().max_loss),
        fixed("full", 0.0),
        fixed("shallow", 0.0, 1),
    )
    shipped = (ours.queue_size, ours.target_ms)
    for pair in ((5, 500), (8, 500), shipped, (32, 300), (32, 400), (32, 700), (32, 1000)):
        yield Case("queue", adaptive(*pair), base, usual, chosen=pair == shipped)
    for policy, percents in (
        (named, (30, 35, 40, 45, 50, 55, 60)),
        (gate, (20, 25, 30, 35, 40, 50)),
        (full, (20, 25, 30, 35, 40, 50)),
        (shallow, (30, 40, 45, 50, 60)),
    ):
        for percent in percents:
            same = policy is named and math.isclose(percent / 100, base.cpu or 0)
            yield Case("cpu", policy, replace(base, cpu=percent / 100), usual, chosen=same)
    for cpu, wait_s, given_up in (
        (None, 0.1, None),
        (None, 0.1, 0.1),
        (None, 0.25, 0.2),
        *((object_.cpu, *pair) for pair in ((0.1, None), (0.25, None))),
        *((object_.cpu, None, share) for share in (0.05, 0.1, 0.15, 0.2)),
        *((object_.cpu, *pair) for pair in ((0.1, 0.1), (0.25, 0.2), (0.4, 0.25))),
        *((0.55, *pair) for pair in ((None, None), (0.25, None), (None, 0.1), (None, 0.2))),
        (0.55, 0.25, 0.2),
    ):
        scaling = replace(object_, cpu=cpu, wait_s=wait_s, given_up=given_up)
        yield Case("keda", named, scaling, usual, chosen=scaling == object_)
    yield Case("keda", named, replace(object_, behaviour=base.behaviour), usual)
    for start_s in (60.0, 120.0):
        for policy, scaling in (
            (named, base),
            (named, object_),
            (full, base),
            (full, replace(base, cpu=0.25)),
        ):
            yield Case("start", policy, scaling, World(start_s=start_s))


@lru_cache(maxsize=1)
def arrivals(seed: int, mean: float) -> NDArray[np.float64]:
    return fleet.traffic(np.random.default_rng(seed), mean)


def run(job: tuple[Case, int, float]) -> Day:
    case, seed, mean = job
    return simulate(
        case.policy,
        case.scaling,
        arrivals(seed, mean),
        np.random.default_rng(1000 + seed),
        case.world,
    )


def row(case: Case, days: Sequence[Day]) -> Row:
    means = {name: statistics.fmean(asdict(day)[name] for day in days) for name in asdict(days[0])}
    for whole in ("most", "bad_minutes"):
        means[whole] = round(means[whole])
    return Row(case, Day(**means), max(day.p99_s for day in days), max(day.missed for day in days))  # type: ignore[arg-type]


def text(each: Row) -> str:
    scaling, day = each.case.scaling, each.day
    targets = " ".join(
        f"{name}={value:g}"
        for name, value in (
            ("cpu", scaling.cpu),
            ("wait", scaling.wait_s),
            ("given-up", scaling.given_up),
        )
        if value is not None
    )
    if each.case.table == "start":
        targets += f" start={each.case.world.start_s:g}"
    return (
        f"{'*' if each.case.chosen else ' '}{'' if each.kept else 'x':1} "
        f"{each.case.policy.name:<28}{targets:<42}"
        f"{day.replica_hours:>7.0f}{day.most:>5}{1000 * day.p99_s:>7.0f}"
        f"{day.late:>8.2%}{day.shed:>8.2%}"
        f"{day.missed:>8.2%}{each.missed_worst:>8.2%}{day.bad_minutes:>6}{day.quality:>9.4f}{day.depth:>7.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=ROOT / "trained_weights/camvid-tiny")
    parser.add_argument("--mean", type=float, default=25.0, help="requests a second, over the day")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    args = parser.parse_args()
    begun = time.monotonic()
    todo = list(cases(bundle.load(args.bundle).manifest))
    jobs = [(case, seed, args.mean) for seed in range(args.seeds) for case in todo]
    with ProcessPoolExecutor(args.jobs) as pool:
        days = list(pool.map(run, jobs, chunksize=len(todo)))
    rows = [row(case, days[index :: len(todo)]) for index, case in enumerate(todo)]
    head = f"{'':3}{'policy':<28}{'targets':<42}{'hours':>7}{'most':>5}{'p99 ms':>7}"
    head += f"{'late':>8}{'shed':>8}{'missed':>8}"
    head += f"{'worst':>8}{'bad':>6}{'quality':>9}{'depth':>7}"
    for table in dict.fromkeys(case.table for case in todo):
        print(f"\n{table}: * as in k8s/, x misses the bar\n{head}")
        print("\n".join(text(each) for each in rows if each.case.table == table))
    best: dict[str, Row] = {}
    for each in rows:
        if each.case.table == "cpu" and each.kept:
            name = each.case.policy.name
            best[name] = min(best.get(name, each), each, key=lambda known: known.day.replica_hours)
    print(f"\ncheapest CPU target that keeps the bar\n{head}")
    print("\n".join(map(text, best.values())))
    print(f"{len(jobs)} days in {time.monotonic() - begun:.0f} s")
    result = [
        {
            "table": each.case.table,
            "policy": each.case.policy.name,
            "chosen": each.case.chosen,
            "kept": each.kept,
            "cpu": each.case.scaling.cpu,
            "wait_s": each.case.scaling.wait_s,
            "given_up": each.case.scaling.given_up,
            "start_s": each.case.world.start_s,
            "missed_worst": each.missed_worst,
            **asdict(each.day),
        }
        for each in rows
    ]
    print(
        json.dumps(
            {
                "mean_per_s": args.mean,
                "seeds": args.seeds,
                "bundle": args.bundle.name,
                "rows": result,
            }
        )
    )


if __name__ == "__main__":
    main()
