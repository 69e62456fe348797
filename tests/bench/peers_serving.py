"""Goodput, time and quality against offered load: Fathom beside other servers of its full plan.

    python tests/bench/peers_serving.py --out FILE [--only adaptive,litserve,...] [--shares 0.5,0.7]
        [--data FOLDER] [--seconds 20] [--figure docs/serving.png]

The servers have the same graphs, decoding, answers, threads and client (open_loop.py), and get the
same Poisson loads, in multiples of what the full plan can serve. The others run the graphs in ONNX
Runtime's own operators; "our kernel" lends them the service's compiled attention. All are started,
and each runs alone in its turn, load by load: the processes of the others are stopped. The
objective is three times the latency of Fathom's full plan without load. Points are added to FILE
(JSON lines) as they are measured, and those that are there are not measured again: --only and
--shares measure in pieces.

The share 0 is without load: one request and one run of the bare stages in turns, these in the
bench's own process while the server idles. (Stopped, it would wake with its timers overdue; idle or
stopped, the stages take as long.) "Beside" them is the median of the pairs' differences, since a
machine that gets slower does so for both of a pair. It is steadier than the difference of the
medians: 11 to 16 ms against 11 to 19 in eight series of 20 pairs each.

Prints a table and ends in one JSON line. Bars: goodput of the full plan >= 1.1 x that of the best
other server, and its p99 lower; without load at most 6 ms and 8 % over the bare stages.

"adaptive" and "strict" are the service with that objective; strict takes no plan but the full one,
and is refused what would be late. "full plan" and "cheapest plan" are without scheduling by load
(pinned.py), as are the others; "batched" has batches of up to 4 that wait 10 ms, as each server's
guide has it.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from service.engines.cpu_limit import resolve_threads  # noqa: E402
from tests.bench.bare import bare_stages  # noqa: E402
from tests.bench.closed_loop import in_turns  # noqa: E402
from tests.bench.open_loop import Answer, Load, Wrap, poisson, send  # noqa: E402
from tests.bench.peers.full_plan import FullPlan  # noqa: E402
from tests.bench.peers.servers import PEERS, VARIANTS, peer  # noqa: E402
from tests.bench.photos import Photos  # noqa: E402
from tests.bench.points import ADAPTIVE, FLAGS, HEADER, Bench, Point  # noqa: E402
from tests.bench.served import served  # noqa: E402

SHARES = (0.0, 0.5, 0.7, 0.9, 1.2, 1.6)  # of the full plan's capacity
FURTHER = (2.2, 3.0, 4.0)
OURS = ("adaptive", "full plan, strict", "full plan", "cheapest plan")
CHEAPER = ("adaptive", "cheapest plan")  # than the full plan: they get the further loads, too
ALONE = 60  # requests without load, and runs of the bare stages
WARM = 5  # of both, before them
WHO = (*OURS, *(f"{name}, {variant}".rstrip(", ") for name in PEERS for variant in VARIANTS))


class Beside(NamedTuple):
    """Medians without load. bare_ms: of the bare stages; beside_ms: what a request takes more."""

    bare_ms: float
    beside_ms: float

    @classmethod
    def of(cls, pairs: Sequence[tuple[Answer, float]]) -> Beside:
        """pairs: answers, and seconds of the bare stages. Raises RuntimeError if one is no mask."""
        if failed := [answer.status for answer, _ in pairs if answer.status != 200]:
            raise RuntimeError(f"without load, a server answered {failed[0]}")
        more = statistics.median(answer.took_s - bare_s for answer, bare_s in pairs)
        return cls(1000 * statistics.median(bare_s for _, bare_s in pairs), 1000 * more)

    @property
    def percent(self) -> float:
        return 100 * self.beside_ms / self.bare_ms


class Record:
    """The points of a file. figures: what `Bench.measure` found, in seconds. beside: by server."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.figures: dict[str, float] = {}
        self.beside: dict[str, Beside] = {}
        self.points: dict[tuple[str, float], Point] = {}
        for line in path.read_text("utf-8").splitlines() if path.exists() else ():
            row = json.loads(line)
            if "share" in row:
                self.points[row["point"]["who"], row["share"]] = Point(**row["point"])
            elif "beside_ms" in row:
                self.beside[row["who"]] = Beside(row["bare_ms"], row["beside_ms"])
            elif "full_s" in row:
                self.figures = row

    def write(self, row: dict[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def of(self, who: str) -> list[Point]:
        """Under load, the lightest first."""
        return [self.points[key] for key in sorted(self.points) if key[0] == who and key[1]]

    def has(self, who: str, share: float) -> bool:
        """Whether there is nothing left to measure."""
        return (who, share) in self.points and (share > 0 or who in self.beside)


class Contender:
    """A server that runs only while it is measured: between its turns its processes are stopped."""

    def __init__(self, pid: int, url: str, budget: str = "", wrap: Wrap = "body") -> None:
        self.url, self.budget, self.wrap = url, budget, wrap
        self._process = psutil.Process(pid)

    def signal(self, number: signal.Signals) -> None:
        for process in (self._process, *self._process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    @contextmanager
    def turn(self) -> Iterator[None]:
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)


@contextmanager
def contender(bench: Bench, who: str) -> Iterator[Contender]:
    """A server of its own, stopped as soon as it is ready."""
    with ExitStack() as stack:
        if who in OURS:
            scheduled = who in ("adaptive", "full plan, strict")
            target = ("--target-ms", f"{1000 * bench.objective_s:.0f}") if scheduled else ()
            module = "service" if scheduled else "tests.bench.pinned"
            budget = {
                "adaptive": ADAPTIVE,
                "full plan, strict": f"{ADAPTIVE}, strict",
                "full plan": bench.only(bench.plans[-1]),
                "cheapest plan": bench.only(bench.plans[0]),
            }[who]
            ours = stack.enter_context(served(bench.bundle, *FLAGS, *target, module=module))
            found = Contender(ours.pid, ours.url, budget)
        else:
            name, _, variant = who.partition(", ")
            threads, photo = resolve_threads(0), bench.photos.paths[0]
            other = peer(name, bench.bundle, photo, threads=threads, variant=variant)
            theirs = stack.enter_context(other)
            found = Contender(theirs.pid, theirs.url, wrap=PEERS[name][0])
        found.signal(signal.SIGSTOP)
        try:
            yield found
        finally:
            found.signal(signal.SIGCONT)


def measure(bench: Bench, record: Record, chosen: Sequence[str], shares: Sequence[float]) -> None:
    """The points that are not there yet, load by load, each server in its turn."""
    left = [
        (who, share)
        for share in shares
        for who in chosen
        if not record.has(who, share) and (share in SHARES or who in CHEAPER)
    ]
    with ExitStack() as running:
        names = dict.fromkeys(who for who, _ in left)
        servers = {who: running.enter_context(contender(bench, who)) for who in names}
        for who, share in left:
            own = servers[who]
            with own.turn():
                warm = poisson(0.3 / bench.full_s, 3.0, 99)
                send(Load(own.url, warm, bench.photos.paths, own.budget, own.wrap))
                if share:
                    times = poisson(share / bench.full_s, bench.seconds, round(100 * share))
                    point = bench.point(who, own.url, times, own.budget, own.wrap)
                else:
                    point, record.beside[who] = without_load(bench, who, own)
                    record.write({"who": who, **record.beside[who]._asdict()})
            record.points[who, share] = point
            record.write({"share": share, "point": asdict(point)})


def without_load(bench: Bench, who: str, own: Contender) -> tuple[Point, Beside]:
    load = Load(own.url, [], bench.photos.paths, own.budget, own.wrap)
    pairs = in_turns(load, bare(bench, who), WARM + ALONE)[WARM:]
    answers = [answer for answer, _ in pairs]
    seconds = sum(answer.took_s for answer in answers)
    point = bench.summary(who, ALONE / seconds, answers, seconds)
    print(point.row(), flush=True)
    return point, Beside.of(pairs)


def bare(bench: Bench, who: str) -> Callable[[], object]:
    """Runs the stages of a server once, for an image that is decoded already."""
    threads, photo = resolve_threads(0), Path(bench.photos.paths[0])
    if who in OURS:
        return bare_stages(bench.bundle, photo, threads, 0 if who == "cheapest plan" else -1)
    plan = FullPlan(bench.bundle, threads, kernel=who.endswith("our kernel"))
    return partial(plan.predict, plan.decode(photo.read_bytes()).pixels[None])


def draw(record: Record, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(1, 4, figsize=(16, 3.6), layout="constrained")
    wanted = (
        ("goodput", "answers in time, per second"),
        ("p99", "p99, ms"),
        ("miou", "mIoU of the answers"),
        ("gflops", "mean cost, GFLOPs"),
    )
    for axes, (key, label) in zip(grid, wanted, strict=True):
        for who in WHO:
            if not (points := record.of(who)):
                continue
            style = "-" if who in OURS else "--" if ", " in who else ":"
            axes.plot(
                [point.load for point in points],
                [getattr(point, key) for point in points],
                style,
                marker="o",
                markersize=3,
                label=who,
            )
        axes.set_xlabel("requests offered per second")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    grid[1].axhline(1000 * record.figures["objective_s"], color="black", linewidth=0.7)
    grid[1].set_yscale("log")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=100)


def found(record: Record) -> dict[str, Any]:
    """What the bars are about: the most answers in time, and the highest load that is held."""
    measured = [who for who in WHO if record.of(who)]
    best = {who: max(point.goodput for point in record.of(who)) for who in measured}
    held = {
        who: max((point.load for point in record.of(who) if point.held), default=0.0)
        for who in measured
    }
    alone = {who: record.beside[who] for who in WHO if who in record.beside}
    result: dict[str, Any] = {
        "full_ms": round(1000 * record.figures["full_s"], 1),
        "objective_ms": round(1000 * record.figures["objective_s"]),
        "goodput": {who: round(goodput, 2) for who, goodput in best.items()},
        "objective_held_at": {who: round(load, 2) for who, load in held.items()},
        "beside_ms": {who: round(each.beside_ms, 1) for who, each in alone.items()},
        "beside_percent": {who: round(each.percent, 1) for who, each in alone.items()},
    }
    if peers := [who for who in measured if who not in OURS]:
        strongest = result["best_peer"] = max(peers, key=lambda who: best[who])
        result["over_best_peer"] = {
            who: round(best[who] / best[strongest], 3) for who in OURS if who in best
        }
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="trained_weights/camvid-tiny")
    parser.add_argument("--out", type=Path, required=True, help="file of the points")
    parser.add_argument("--only", default=",".join(WHO).replace(", ", "+"))
    parser.add_argument("--shares", default=",".join(map(str, (*SHARES, *FURTHER))), help="loads")
    parser.add_argument("--data", type=Path, help="labelled folder, whose part val is sent")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a point")
    parser.add_argument("--figure", type=Path, help="draw the points (needs matplotlib)")
    asked = parser.parse_args()
    bench = Bench(asked.bundle, asked.seconds, Photos.of(asked.data))
    record = Record(asked.out)
    chosen = [name.replace("+", ", ") for name in asked.only.split(",") if name]
    if unknown := set(chosen) - set(WHO):
        parser.error(f"--only: {', '.join(unknown)} is none of {', '.join(WHO)}")
    if not record.figures:
        with bench.fixed() as url:
            bench.measure(url)
        keys = ("full_s", "cheapest_s", "objective_s")
        record.figures = {key: getattr(bench, key) for key in keys}
        record.write(record.figures)
    bench.full_s, bench.objective_s = record.figures["full_s"], record.figures["objective_s"]
    print(HEADER)
    shares = [float(share) for share in asked.shares.split(",")]
    if unknown_shares := set(shares) - {*SHARES, *FURTHER}:
        parser.error(f"--shares: {unknown_shares} are none of {(*SHARES, *FURTHER)}")
    measure(bench, record, chosen, shares)
    print("\n" + HEADER)
    for who in WHO:
        for point in record.of(who):
            print(point.row())
    if asked.figure:
        draw(record, asked.figure)
    print(json.dumps(found(record)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
