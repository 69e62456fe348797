"""Figures of an evaluation: quality against GFLOPs and against ms, and how often each depth is
chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from model_export.evaluation.bundle_results import LOSSES, BundleResults
from model_export.gating.policies import Shares, by_beta

# Betas: from the best plan of each image to the cheapest.
CURVE = (0.0, *np.geomspace(3e-4, 1.0, 60))
# Colour-blind readers can tell these apart.
GATE, ORACLE, FIXED, OTHER = "#0072b2", "#009e73", "#444444", "#d55e00"
AXES = {
    "gflops": "GFLOPs per image, mean",
    "ms": "ms per image in the engine, mean",
}


def draw(all_results: Sequence[BundleResults], folder: Path) -> list[Path]:
    """all_results: the bundle's, then those of the bundle to compare with, if any. Returns the
    files that were written."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [_against_cost(all_results, cost, folder / f"quality_{cost}.png") for cost in AXES]
    return [*files, _depths(all_results[0], folder / "depths.png")]


def _against_cost(all_results: Sequence[BundleResults], cost: str, path: Path) -> Path:
    first, *others = all_results
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    name = first.measured.task.measure
    for axes, of_set in ((left, False), (right, True)):
        _points(axes, first, cost, of_set)
        for other in others:
            plans = len(other.measured.quality[0])
            x, y = _curve(other, cost, of_set, _fixed(other))
            label = f"{other.measured.bundle.manifest.name}, fixed plans"
            axes.plot(x, y, "D-", color=OTHER, markersize=5, linewidth=1, label=label)
            axes.annotate(
                "full",
                (x[plans - 1], y[plans - 1]),
                textcoords="offset points",
                xytext=(5, -10),
                color=OTHER,
            )
        axes.set(
            xlabel=AXES[cost],
            ylabel=f"{name} of the set" if of_set else f"{name}, mean over images",
        )
        axes.grid(alpha=0.25)
    left.legend(fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _points(axes: Axes, results: BundleResults, cost: str, of_set: bool) -> None:
    measured = results.measured
    gate = [by_beta(measured.scores, results.costs.gflops, beta) for beta in CURVE]
    oracle = [by_beta(measured.quality, results.costs.gflops, beta) for beta in CURVE]
    axes.plot(*_curve(results, cost, of_set, oracle), "-", color=ORACLE, label="oracle, every beta")
    axes.plot(*_curve(results, cost, of_set, gate), "-", color=GATE, label="gate, every beta")
    promised = [results.policies[f"gate max-loss {asked:g}"] for asked in LOSSES]
    axes.plot(
        *_curve(results, cost, of_set, promised),
        "o",
        color=GATE,
        markersize=5,
        label="gate, max-loss",
    )
    x, y = _curve(results, cost, of_set, _fixed(results))
    axes.plot(x, y, "s--", color=FIXED, markersize=5, linewidth=1, label="fixed plans")
    for plan, *at in zip(measured.bundle.manifest.plans, x, y, strict=True):
        axes.annotate(
            plan.name,
            at,
            textcoords="offset points",
            xytext=(4, -11),
            fontsize="x-small",
            color=FIXED,
        )


def _fixed(results: BundleResults) -> list[Shares]:
    return [
        results.policies[f"fixed {plan.name}"] for plan in results.measured.bundle.manifest.plans
    ]


def _curve(
    results: BundleResults, cost: str, of_set: bool, policies: Sequence[Shares]
) -> tuple[list[float], list[float]]:
    x = [results.costs.of(shares)[cost] for shares in policies]
    if not of_set:
        return x, [float((shares * results.measured.quality).sum(1).mean()) for shares in policies]
    counts = results.measured.counts
    return x, [
        results.measured.task.of_set(np.einsum("np,np...->...", shares, counts))
        for shares in policies
    ]


def _depths(results: BundleResults, path: Path) -> Path:
    """Share of the images per depth, for each max-loss."""
    depths = np.array([plan.depth for plan in results.measured.bundle.manifest.plans])
    layers = np.arange(1, depths.max() + 1)
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    colours, width = plt.get_cmap("viridis"), 0.8 / len(LOSSES)
    for place, asked in enumerate(LOSSES):
        plans = results.policies[f"gate max-loss {asked:g}"].mean(0)
        shares = [plans[depths == layer].sum() for layer in layers]
        offset = (place - (len(LOSSES) - 1) / 2) * width
        colour = colours(0.9 - 0.8 * place / (len(LOSSES) - 1))
        axes.bar(layers + offset, shares, width, color=colour, label=f"max-loss {asked:g}")
    axes.set(xlabel="encoder layers", ylabel="share of the images", xticks=layers, ylim=(0, 1))
    axes.legend(fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def draw_tasks(
    adaptive: Mapping[str, Sequence[tuple[float, float]]],
    fixed: Mapping[str, Sequence[tuple[float, float]]],
    folder: Path,
) -> None:
    """tasks.png: of each head alone quality against GFLOPs, of plans whose widths can be chosen and
    of those whose cannot."""
    folder.mkdir(parents=True, exist_ok=True)
    figure, places = plt.subplots(
        1, len(adaptive), figsize=(3.2 * len(adaptive), 2.8), layout="constrained", squeeze=False
    )
    for axes, (head, points) in zip(places[0], adaptive.items(), strict=True):
        for name, own, colour in (
            ("adaptive", points, GATE),
            ("fixed widths", fixed.get(head, ()), FIXED),
        ):
            if own:
                axes.plot(*zip(*own, strict=True), "o-", color=colour, label=name)
        axes.set(title=head, xlabel="GFLOPs", ylabel="quality")
        axes.legend(fontsize="small")
    figure.savefig(folder / "tasks.png", dpi=110)
    plt.close(figure)
