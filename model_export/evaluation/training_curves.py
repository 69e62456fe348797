"""curves.png of a run, from log.csv: the terms of the loss, and the quality on the dev set at some
settings of the knobs."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from model_export.training.runs import read_log
from model_export.training.supernet import TERMS


def plot_run(run: Path) -> None:
    rows = read_log(run)
    steps = [int(row["step"]) for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for term in (name for name in TERMS if name in rows[0]):
        left.plot(steps, [float(row[term]) for row in rows], label=term)
    left.set(xlabel="step", title="training loss, summed over heads", yscale="log")
    left.legend()
    watched = [name for name in rows[0] if name.startswith("dev_")]
    colours = plt.get_cmap("viridis")
    for i, name in enumerate(watched):
        values = [float(row[name]) for row in rows]
        right.plot(
            steps,
            values,
            color=colours(i / max(1, len(watched) - 1)),
            label=name.removeprefix("dev_"),
        )
    right.set(xlabel="step", title="quality on the dev set, averaged weights")
    right.legend(fontsize="small")
    figure.savefig(run / "curves.png", dpi=110)
    plt.close(figure)
