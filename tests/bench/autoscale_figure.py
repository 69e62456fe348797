"""docs/autoscaling.png from the JSON line of autoscale.py: what a day costs, and how many requests
miss the objective.

python tests/bench/autoscale.py | tee day.txt;  python tests/bench/autoscale_figure.py day.txt
docs/autoscaling.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

COLOURS = {"full": "#b23a48", "gate only": "#d98e04", "adaptive": "#1b6ca8", "shallow": "#7a7a7a"}


def main(source: Path, target: Path) -> None:
    rows = json.loads(source.read_text().splitlines()[-1])["rows"]
    figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    for name, colour in COLOURS.items():
        line = sorted(
            (row for row in rows if row["table"] == "cpu" and row["policy"] == name),
            key=lambda row: row["cpu"],
        )
        ends = sorted({f"{row['quality']:.3f}" for row in (line[0], line[-1])})
        hours, missed = (
            [row["replica_hours"] for row in line],
            [100 * row["missed_worst"] for row in line],
        )
        axes.plot(
            hours,
            missed,
            "o-",
            color=colour,
            label=f"{name}, quality {' to '.join(ends)}",
            markersize=4,
        )
        for row, x, y in zip(line, hours, missed, strict=True):
            axes.annotate(
                f"{100 * row['cpu']:.0f}",
                (x, y),
                (3, 3),
                textcoords="offset points",
                fontsize=7,
                color=colour,
            )
    for row in rows:
        if row["table"] == "keda" and row["chosen"]:
            at = (row["replica_hours"], 100 * row["missed_worst"])
            axes.plot(*at, "*", color=COLOURS["adaptive"], markersize=11)
            axes.annotate("KEDA", at, (4, -11), textcoords="offset points", fontsize=7)
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set(
        yscale="log",
        yticks=(0.1, 1, 5),
        yticklabels=("0.1", "1", "5"),
        xlabel="replica-hours a day",
        ylabel="late, shed or lost, % (worst seed)",
    )
    axes.set_title("Figures at the points: the autoscaler's CPU target in %", fontsize=9)
    axes.legend(fontsize=8)
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
