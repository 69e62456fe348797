"""Which plans are worth having: cost and quality of every combination of canvas, depth, keep and
width, and the best of them.

Quality is the mean over the images of a data set that the network was not trained on. Its counts
are saved beside the run, so that a search that was stopped can continue. A combination is left out
if another one on its canvas, with no knob above its own, is as good. Costs are those of serving:
the encoder of every candidate that is left is exported, its GFLOPs are counted from the graph, and
its milliseconds are measured with the service's own engine, in rounds of all candidates, so that a
drift of the machine affects all of them alike.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from model_export.data.checks import check
from model_export.data.datasets import Dataset, refuse_shared, refuse_unread
from model_export.data.for_network import open_samples
from model_export.gating.choose_plans import Candidate, choose_plans, undominated
from model_export.gating.combinations import combinations_of, full_of
from model_export.gating.derive_targets import measure_plans
from model_export.gating.measure_cost import machine_of, measure_cost
from model_export.gating.partial_results import PartialResults, key_of
from model_export.gating.search_table import CostOptions, print_table, rounded
from model_export.gating.search_tiles import OVERLAP, open_tiles, search_tiles
from model_export.gating.task_search import search_tasks
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from model_export.option_types import whole
from model_export.tasks import qualities, task_of
from model_export.training.run_files import WEIGHTS
from model_export.training.runs import (
    RunError,
    classes_of,
    load_model,
    read_config,
    shapes_of,
    trained_on,
    write_plans,
)
from service.bundle import Canvas

CACHE = "search.npz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, help="a run's folder with a trained parent")
    add("--data", type=Path, help="folder of the data set (not needed for scenes)")
    add("--on", default="scenes:32:1", help="data set to measure the quality on, never trained on")
    add(
        "--keeps",
        default="1,0.5,0.25",
        help="shares of stride-8 tokens to try, where the depth can pause any",
    )
    add(
        "--widths",
        help="shares of the FFN channels to try; default: those that the network was trained with",
    )
    add("--most", type=whole(2), default=12, help="plans to choose at most")
    add(
        "--least",
        type=whole(2),
        help="plans to choose at least, if there are as many; default: 8, or --most if less",
    )
    add(
        "--threads",
        type=whole(),
        default=os.cpu_count() or 1,
        help="threads of the engine while milliseconds are measured",
    )
    add("--rounds", type=whole(), default=15, help="rounds of the measurement; medians count")
    tiles = parser.add_argument_group("tiled canvases").add_argument
    tiles(
        "--tiles",
        nargs="+",
        metavar="GRID:SHAPE[:OVERLAP]",
        help="also try canvases of tiles, for images that are larger than the largest canvas: rows "
        "x columns, the first shape of the canvas whose graphs they run, and the pixels that "
        f"neighbours share, default {OVERLAP}, e.g. 2x2:544x544 or 2x2:544x544:96",
    )
    tiles("--tiles-on", help="data set to measure the quality of tiles on; default: that of --on")
    tiles(
        "--only-tiles",
        action="store_true",
        help="keep the other plans of plans.json as they are",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(CostOptions):
    """The arguments above, with least filled in."""

    data: Path | None
    keeps: Sequence[float]
    widths: Sequence[float] | None
    tiles: Sequence[str] | None = None
    tiles_on: str | None = None
    only_tiles: bool = False


def main(args: argparse.Namespace) -> None:
    least = min(8, args.most) if args.least is None else args.least
    if least > args.most:
        raise ValueError(f"--least {least} and --most {args.most} must not cross")
    refuse_unread(args.data, "--on", args.on, args.tiles_on)
    keeps = shares("--keeps", args.keeps)
    widths = None if args.widths is None else shares("--widths", args.widths)
    for flag, given in (("--only-tiles", args.only_tiles), ("--tiles-on", args.tiles_on)):
        if given and not args.tiles:
            raise ValueError(f"{flag} is about tiles: say which --tiles to search")
    if read_config(args.run)[0].tasks:
        if args.tiles:
            raise RunError(f"{args.run} has several heads: --tiles is for a network with one")
        search_tasks(args.run, args.on, widths, args.most)
        return
    search(Options(**vars(args) | {"keeps": keeps, "widths": widths, "least": least}))


def search(options: Options) -> None:
    """Writes plans.json, prints the table of all candidates and a JSON line; then those of tiled
    ones."""
    config, canvases, _ = read_config(options.run)
    for spec, root in trained_on(options.run):
        refuse_shared("--on", options.on, options.data, spec, root, "the network")
    model = load_model(options.run)
    classes = classes_of(options.run)
    data = open_samples("--on", options.on, options.data, config, classes)
    check(data, f"--on {options.on}", complete=False)
    widths = options.widths or config.widths
    tiles = None
    if options.tiles:
        spec, judged = options.tiles_on or options.on, data
        if options.tiles_on:
            for other, root in trained_on(options.run):
                refuse_shared("--tiles-on", spec, options.data, other, root, "the network")
            judged = open_samples("--tiles-on", spec, options.data, config, classes)
            check(judged, f"--tiles-on {spec}", complete=False)
        tiles = open_tiles(options.tiles, config, canvases, judged, spec)
    if not options.only_tiles:
        combinations = combinations_of(config, canvases, options.keeps, widths)
        counts = measure_quality(options.run, model, data, options.on, canvases, combinations)
        choose(options, model, data, canvases, combinations, counts, {"judged_by": "labels"})
    if tiles is not None:
        search_tiles(options, model, tiles, options.keeps, widths)


def choose(
    options: CostOptions,
    model: Segmenter,
    data: Dataset,
    canvases: Sequence[Canvas],
    combinations: Sequence[Knobs],
    counts: NDArray[Any],
    about: dict[str, Any],
) -> list[Knobs]:
    """The plans that are worth having, from the cheapest to the full one; writes and prints them as
    `search` does. counts: (images, combinations, ..). about: what stands in plans.json, too."""
    config, task = model.config, task_of(model.config)
    means = qualities(task, counts).mean(0).tolist()
    kept = undominated(combinations, means, full_of(config, canvases))
    combinations, quality = [combinations[k] for k in kept], [means[k] for k in kept]
    gflops, ms = measure_cost(model, data, canvases, combinations, options.threads, options.rounds)
    candidates = list(map(Candidate, combinations, gflops, ms, quality))
    chosen = choose_plans(candidates, options.most, options.least)
    machine = machine_of(options.threads)
    table = [
        {"plan": candidate.knobs.name} | rounded(candidate)
        for candidate in sorted(candidates, key=lambda candidate: candidate.gflops)
    ]
    plans = [candidate.knobs for candidate in chosen]
    report = {"search": table, "data": options.on, "images": len(counts), "machine": machine}
    write_plans(options.run, plans, report | about)
    names = [plan.name for plan in plans]
    print_table(table, names, task.measure)
    summary = {"candidates": len(candidates), "images": len(counts), "machine": machine}
    print(json.dumps({"plans": names} | summary))
    return plans


# --------------------------------------------------------------------------------------------------
# candidates


def shares(flag: str, text: str) -> tuple[float, ...]:
    """Raises ValueError that names the flag."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(0 < value <= 1 for value in values):
        raise ValueError(f"{flag} {text!r} must be shares in (0, 1] with commas, e.g. 1,0.5,0.25")
    return values


# --------------------------------------------------------------------------------------------------
# quality


def measure_quality(
    run: Path,
    model: Segmenter,
    data: Dataset,
    spec: str,
    canvases: Sequence[Canvas],
    plans: list[Knobs],
) -> NDArray[Any]:
    """(images, plans, ..) counts. Images that are all void have no quality and are left out.

    The counts are saved in the run's folder, and used again for these weights, this data set, as
    long as its files stay what they are, and these plans.
    """
    names = [plan.name for plan in plans]
    key = key_of(run / WEIGHTS, spec, len(data), names, shapes_of(canvases))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    results = PartialResults(run / CACHE, key)
    targets = measure_plans(model, plans, [data], spec, canvases, 1, 0, results)
    model.cpu()
    return targets["counts"]
