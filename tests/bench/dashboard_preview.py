"""docs/dashboard.png: every panel of the Grafana dashboard, asked of a real Prometheus and drawn
with matplotlib.

    python tests/bench/dashboard_preview.py [--seconds 150]

Starts the service with the shipped bundle and Prometheus with the project's config (a scrape each
second, alerts without their `for`), sends calm traffic, too much of it, a low node budget and calm
traffic again, and puts the panels' own queries to Prometheus. The layout is the dashboard's; the
look is not Grafana's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.dashboard_draw import draw  # noqa: E402
from tests.observed import Prometheus, board, free_port, prometheus  # noqa: E402
from tests.processes import until  # noqa: E402
from tests.traffic import PHOTOS, Traffic, service  # noqa: E402

VARIED = (
    "",
    "",
    "max-loss=0.02",
    "",
    "depth=3",
    "",
    "max-loss=0",
    "ms=3000",
    "",
    "gflops=6.6",
    "max-loss=0.05",
    "",
)
BUSY = ("", "ms=2500", "", "max-loss=0", "ms=1200", "")


def phase(
    traffic: Traffic, callers: int, budgets: tuple[str, ...], until: float, pause_s: float = 0.0
) -> None:
    """Send until that time of the epoch. pause_s: what each caller waits between two requests."""

    def request(number: int) -> tuple[bytes, str]:
        time.sleep(pause_s)
        return PHOTOS[number % 2], budgets[number % len(budgets)]

    with traffic.running(callers, request):
        time.sleep(max(0.0, until - time.time()))


def two_minutes(url: str, budget: Path, seconds: float) -> None:
    """The day of a service in short; the shares of `seconds` are the phases' ends."""
    begun = time.time()
    with closing(Traffic(url)) as traffic:
        phase(traffic, 1, VARIED, begun + 0.25 * seconds, pause_s=0.15)
        phase(traffic, 16, BUSY, begun + 0.45 * seconds, pause_s=0.2)
        phase(traffic, 1, VARIED, begun + 0.6 * seconds, pause_s=0.15)
        budget.write_text("gflops=5.45")
        phase(traffic, 2, VARIED, begun + 0.8 * seconds, pause_s=0.15)
        budget.write_text("")
        phase(traffic, 1, VARIED, begun + seconds, pause_s=0.15)


@contextmanager
def watched(folder: Path) -> Iterator[tuple[Prometheus, str, Path]]:
    """Prometheus, the URL of the service that it watches, and the file with that service's node
    budget."""
    budget, port = folder / "node-budget", free_port()
    budget.write_text("")
    flags = ("--node-budget-file", str(budget), "--queue-size", "12")
    with (
        service(port, folder / "service.log", *flags),
        prometheus(folder, [f"127.0.0.1:{port}"]) as api,
    ):
        until(lambda: bool(api.query('up{job="fathom"} == 1')), 30, "the first scrape")
        yield api, f"http://127.0.0.1:{port}", budget


def answered(
    api: Prometheus, panel: dict[str, Any], start: float, end: float
) -> list[tuple[str, Any]]:
    """Legend and series of every query of a panel; a series has `value` or `values`, as Prometheus'
    API has it."""
    found = []
    for target in panel["targets"]:
        for series in api.ask(target, start, end, window="10s"):
            legend = target.get("legendFormat", "")
            for label, text in series["metric"].items():
                legend = legend.replace("{{" + label + "}}", text)
            found.append((legend, series))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=150, help="length of the traffic")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "dashboard.png")
    args = parser.parse_args()
    shown = [panel for panel in board()["panels"] if not panel.get("collapsed")]
    with tempfile.TemporaryDirectory() as folder, watched(Path(folder)) as (api, url, budget):
        time.sleep(5)  # rates look back
        start = time.time()
        two_minutes(url, budget, args.seconds)
        end = time.time()
        data = {
            panel["id"]: answered(api, panel, start, end) for panel in shown if panel.get("targets")
        }
    empty = [panel["title"] for panel in shown if panel.get("targets") and not data[panel["id"]]]
    print(f"panels without data: {', '.join(empty) or 'none'}")
    figure = draw(shown, data, start, end)
    figure.savefig(args.out, dpi=80)
    plt.close(figure)
    with Image.open(args.out) as drawn:
        few = drawn.convert("RGB").quantize(256)  # a third of the size, and no eye sees it
    few.save(args.out, optimize=True)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
