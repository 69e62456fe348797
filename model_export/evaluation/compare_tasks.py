"""What several tasks on one encoder are worth against other networks of the same cost: separate
ones for each task, and one whose widths are fixed.

All are measured on the same images, in torch, by each image's quality; GFLOPs are those of the
exported graphs. Controllability is the hypervolume of what a caller can get: quality of each task,
0 where its head does not run, and what is saved of the full plan's cost. Intervals are 95 %
bootstraps over images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.data.datasets import refuse_shared
from model_export.evaluation.figures import draw_tasks
from model_export.evaluation.hypervolume import hypervolume
from model_export.export.graphs import heads_of
from model_export.export.write_manifest import several_heads
from model_export.gating.plain_json import plain
from model_export.gating.policies import interval, resample
from model_export.gating.preferences import STRONG, under
from model_export.gating.task_search import encoder_plans, load_tasks, measured, stage_costs
from model_export.network.knobs import Knobs
from model_export.option_types import number
from model_export.training.run_files import PLANS, refuse_unwritable
from model_export.training.runs import RunError, read_config, read_plans, trained_on
from model_export.training.train_tasks import open_scenes
from service.bundle import EncoderPlan, Head, complete_plans
from service.core import Plan

Floats = NDArray[np.float64]
DRAWS = 200  # of the hypervolume, which takes longer than a mean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, help="a run of train-tasks with plans")
    add("--fixed", type=Path, help="a run of the same heads, trained with --sampling full")
    add("--separate", type=Path, nargs="+", default=[], help="runs with one head each")
    add("--on", default="scenes:120:31", help="scenes to judge on, never trained on")
    add(
        "--share",
        type=number(0, 1),
        default=0.5,
        help="of the full plan's cost: the budget at which preferences are compared [%(default)s]",
    )
    add("--figures", type=Path, help="folder for the figure")


@dataclass(frozen=True, slots=True)
class Measured:
    """One network. plans: with their quality on these images; known: with that on the images of the
    search, by which plans are chosen. quality: (N, encoder plans, heads at widths)."""

    name: str
    plans: list[EncoderPlan]
    known: list[EncoderPlan]
    heads: list[Head]
    keys: list[str]
    quality: Floats

    @property
    def full(self) -> float:
        """GFLOPs of everything in full."""
        plan = self.plans[-1]
        return plan.gflops + sum(plan.heads[head.name].gflops for head in self.heads)

    def of(self, encoder: str, key: str) -> Floats:
        """(N,): of each image."""
        row = [plan.name for plan in self.plans].index(encoder)
        return self.quality[:, row, self.keys.index(key)]

    def points(self) -> Iterator[tuple[float, dict[str, tuple[int, int]]]]:
        """Every way to run it: GFLOPs, and of each head that runs its place in `quality`."""
        for row, plan in enumerate(self.plans):
            for widths in product(*([None, *head.at_widths()] for head in self.heads)):
                own = [width for width in widths if width is not None]
                cost = plan.gflops + sum(plan.heads[width.key].gflops for width in own)
                yield cost, {width.name: (row, self.keys.index(width.key)) for width in own}


def measure(run: Path, on: str) -> Measured:
    """Raises RunError, DataError."""
    for spec, root in trained_on(run):
        refuse_shared("--on", on, None, spec, root, "the network")
    config, canvases, _ = read_config(run)
    model = load_tasks(run)
    plans = [Knobs(config.exits, canvas=canvas.name) for canvas in canvases]
    rows: dict[str, Any] = {}
    if (run / PLANS).exists():
        plans, search = read_plans(run)
        parts: dict[str, float] = search["gflops"]
        rows = {row["plan"]: row for row in search["search"]}
    else:  # widths and depth are fixed, its canvases are not
        parts = stage_costs(run, model, canvases, plans)
    quality = measured(run, model, plans, [on], canvases, "compare.npz")["quality"]
    every = encoder_plans(config, canvases, plans, parts, quality)
    heads = list(several_heads(config, open_scenes("--on", on)))
    known = [as_known(plan, rows[plan.name]) if rows else plan for plan in every]
    return Measured(run.name, every, known, heads, list(heads_of(config)), quality)


def as_known(plan: EncoderPlan, row: Mapping[str, Any]) -> EncoderPlan:
    """row: of the search."""
    worth = {
        key: replace(own, quality=row[key][1], quality_quantiles=(row[key][1],) * 5)
        for key, own in plan.heads.items()
    }
    return replace(plan, heads=worth)


def volume(network: Measured, heads: Sequence[str], full: float, weights: Floats) -> float:
    """weights: (N,), how often each image counts. full: GFLOPs that are one unit of cost."""
    means = np.tensordot(weights / weights.sum(), network.quality, 1)
    points = [
        [*(means[own[head]] if head in own else 0.0 for head in heads), 1 - cost / full]
        for cost, own in network.points()
    ]
    # A little of a head that does not run, so that what the others reach has a volume.
    return hypervolume(np.maximum(np.array(points), [*[1e-3] * len(heads), 0.0]))


def by_preference(network: Measured, budget: float, weights: Floats) -> list[dict[str, Any]]:
    """For each pair of heads what preferring one over the other gains it at a budget in GFLOPs,
    with intervals, and the most that any choice of plans could. weights: (draws, N)."""
    rows = []
    for one, other in permutations([head.name for head in network.heads], 2):
        chosen = [
            preferred(network, {a: STRONG, b: 1 - STRONG}, budget)
            for a, b in ((one, other), (other, one))
        ]
        gain = np.subtract(*(of_head(network, plan, one) for plan in chosen))
        row = {"preferred": one, "over": other, "plans": [plan.name for plan in chosen]}
        row |= {"gflops": [plan.gflops for plan in chosen], "gain": float(gain.mean())}
        row["limit"] = limit(network, one, other, budget)
        draws = weights @ gain / weights.sum(1)
        rows.append(plain(row | {"interval": interval(draws)}))
    return rows


def limit(network: Measured, one: str, other: str, budget: float) -> float:
    """Quality of a head with the plan that is best for it on these very images, over that with the
    plan that is best for the other; both heads run."""
    means = network.quality.mean(0)
    pairs = [
        (means[own[one]], means[own[other]])
        for cost, own in network.points()
        if own.keys() == {one, other} and cost <= budget
    ]
    if not pairs:  # the cheapest plan is all that there is
        return 0.0
    ours, theirs = max(pairs), max(pairs, key=lambda pair: pair[::-1])
    return float(ours[0] - theirs[0])


def preferred(network: Measured, preference: Mapping[str, float], budget: float) -> Plan:
    return under(complete_plans(network.known, network.heads, preference), budget)


def of_head(network: Measured, plan: Plan, head: str) -> Floats:
    """(N,)."""
    (key,) = (each.key for each in plan.heads if each.name == head)
    return network.of(plan.encoder, key)


def main(args: argparse.Namespace) -> None:
    if args.figures:
        refuse_unwritable(args.figures)
    network = measure(args.run, args.on)
    others = [measure(run, args.on) for run in args.separate]
    fixed = None if args.fixed is None else measure(args.fixed, args.on)
    names = [head.name for head in network.heads]
    if fixed is not None and [head.name for head in fixed.heads] != names:
        raise RunError(f"--fixed {args.fixed} has other heads than {args.run}")
    weights = resample(np.arange(len(network.quality)))
    result: dict[str, Any] = {"on": args.on, "images": len(network.quality)}
    result["networks"] = list(in_full([network, *others, *([fixed] if fixed else [])]))
    if others:
        result["against_separate"] = list(against(network, others, weights))
    result["by_preference"] = by_preference(network, network.full * args.share, weights)
    if fixed is not None:
        cases = np.concatenate((np.ones((1, weights.shape[1])), weights[:DRAWS]))
        volumes = [
            [volume(each, names, network.full, case) for each in (network, fixed)] for case in cases
        ]
        ratios = np.array([ours / theirs for ours, theirs in volumes])
        result["hypervolume"] = plain(
            {
                "adaptive": volumes[0][0],
                "fixed": volumes[0][1],
                "ratio": float(ratios[0]),
                "interval": interval(ratios[1:]),
            }
        )
    if args.figures:
        draw_tasks(fronts_of(network), fronts_of(fixed) if fixed else {}, args.figures)
    for row in [*result["networks"], *result.get("against_separate", []), *result["by_preference"]]:
        print(row)
    print(json.dumps(result))


def in_full(networks: Sequence[Measured]) -> Iterator[dict[str, Any]]:
    for network in networks:
        plan = network.plans[-1]
        own = {head.name: float(network.of(plan.name, head.name).mean()) for head in network.heads}
        yield plain({"network": network.name, "gflops": network.full, "quality": own})


def against(
    network: Measured, others: Sequence[Measured], weights: Floats
) -> Iterator[dict[str, Any]]:
    """Of each head what the full plan has more than the separate networks, with intervals; with the
    cost of all, and the cheapest plan that is within half a point of each."""
    total, plan = sum(other.full for other in others), network.plans[-1]
    single = {head.name: other for other in others for head in other.heads}
    near = None
    for cost, places in sorted(network.points(), key=lambda point: point[0]):
        if len(places) == len(single) and all(
            network.quality[:, *place].mean() >= single[head].quality[:, -1, -1].mean() - 0.005
            for head, place in places.items()
        ):
            near = cost / total
            break
    for name, other in single.items():
        gain = network.of(plan.name, name) - other.quality[:, -1, -1]
        row = {"head": name, "gain": float(gain.mean())}
        row |= {"interval": interval(weights @ gain / weights.sum(1))}
        yield plain(row | {"cost_share": network.full / total, "within_half_a_point_at": near})


def fronts_of(network: Measured) -> dict[str, list[tuple[float, float]]]:
    """Of each head alone: (GFLOPs, quality) of its complete plans."""
    return {
        head.name: [
            (plan.gflops, plan.quality)
            for plan in complete_plans(network.plans, network.heads, {head.name: 1.0})
        ]
        for head in network.heads
    }
