"""Which plans on tiled canvases are worth having: for images that are larger than the largest plain
canvas, and judged by such images alone.

A tiled plan is kept if no plan that costs no more is as good on these images. Its quality on all
others is that of the full plain plan, since they take no tiled plan.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from model_export.data.datasets import Dataset, Sample
from model_export.export.write_bundle import used
from model_export.gating.choose_plans import Candidate, choose_tiled, undominated
from model_export.gating.combinations import combinations_of, full_of
from model_export.gating.derive_targets import measure_plans
from model_export.gating.measure_cost import machine_of, measure_cost
from model_export.gating.partial_results import PartialResults, key_of
from model_export.gating.search_table import CostOptions, print_table, rounded
from model_export.network.config import Config
from model_export.network.segmenter import Segmenter
from model_export.tasks import qualities, task_of
from model_export.training.run_files import WEIGHTS
from model_export.training.runs import (
    RunError,
    described,
    read_config,
    read_plans,
    tiles_of,
    write_plans,
)
from service.bundle import Canvas, is_larger
from service.bundle.checks import check_canvases
from service.errors import BundleError
from service.tasks import TASKS

CACHE = "search-tiles.npz"
OVERLAP = 64
LEAST_IMAGES = 4  # that are large enough: fewer say nothing about tiles
MOST = 3  # tiled plans


@dataclass(frozen=True, slots=True)
class Larger:
    """The images of a data set that are large enough for tiles. spec: as it was named. canvases:
    the run's, then the tiled ones to try."""

    data: Dataset
    places: Sequence[int]
    spec: str
    canvases: Sequence[Canvas]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        return self.data[self.places[index]]


def open_tiles(
    tiles: Sequence[str], config: Config, canvases: Sequence[Canvas], data: Dataset, spec: str
) -> Larger:
    """tiles: as on the command line. Raises RunError or ValueError that says what to change."""
    if config.head == "queries" or not TASKS[config.task].dense:
        raise RunError(
            f"--tiles is for heads that answer maps, which can be joined; this network's answers "
            f"{config.task} by queries"
        )
    every = [*canvases, *sorted((parse_tiles(t, canvases) for t in tiles), key=_area)]
    try:
        check_canvases(every)
    except BundleError as error:
        raise ValueError(f"--tiles {' '.join(tiles)}: {error.detail}") from error
    sizes = (data[i].image.shape for i in range(len(data)))
    places = [i for i, (height, width, _) in enumerate(sizes) if is_larger(every, width, height)]
    if len(places) < LEAST_IMAGES:
        largest = canvases[-1]
        shapes = " or ".join(shape.name for shape in largest.shapes)
        raise RunError(
            f"{spec} has {len(places)} images that are larger than {largest.name} ({shapes}), and "
            f"--tiles needs at least {LEAST_IMAGES} to see what tiles are worth: name a data set "
            f"with more, by --tiles-on, or leave --tiles out"
        )
    return Larger(data, places, spec, every)


def parse_tiles(text: str, canvases: Sequence[Canvas]) -> Canvas:
    """2x2:544x544:96 -> the tiled canvas. Raises ValueError that shows the form."""
    grid, _, rest = text.partition(":")
    shape, _, overlap = rest.partition(":")
    rows, _, columns = grid.partition("x")
    if not (rows.isdecimal() and columns.isdecimal() and shape and (overlap or "0").isdecimal()):
        raise ValueError(
            f"--tiles {text!r} must be GRID:SHAPE or GRID:SHAPE:OVERLAP, e.g. 2x2:544x544:96"
        )
    firsts = {canvas.shapes[0].name: canvas for canvas in canvases}
    if shape not in firsts:
        raise ValueError(
            f"--tiles {text!r}: {shape} is no canvas' first shape: {', '.join(firsts)}"
        )
    return Canvas.tiled(firsts[shape], int(rows), int(columns), int(overlap or OVERLAP))


def search_tiles(
    options: CostOptions,
    model: Segmenter,
    larger: Larger,
    keeps: Sequence[float],
    widths: Sequence[float],
) -> None:
    """Adds the tiled plans that are worth having to plans.json; prints the table of all candidates
    and a JSON line."""
    config, run, task = model.config, options.run, task_of(model.config)
    (plans, report), own = read_plans(run), read_config(run)[1]
    plain = [knobs for knobs in plans if not knobs.tiled]
    named = {canvas.name: canvas for canvas in larger.canvases}
    candidates = [
        replace(knobs, canvas=canvas.name)
        for canvas in larger.canvases
        if canvas.tiles is not None
        for knobs in combinations_of(config, [named[canvas.tiles.of]], keeps, widths)
    ]
    every = [*plain, *candidates]
    about = (larger.spec, list(larger.places), [k.name for k in every], described(larger.canvases))
    results = PartialResults(run / CACHE, key_of(run / WEIGHTS, *about))
    targets = measure_plans(model, every, [larger], larger.spec, larger.canvases, 1, 0, results)
    quality = dict(zip(every, qualities(task, targets["counts"]).mean(0).tolist(), strict=True))
    kept = undominated(candidates, [quality[k] for k in candidates], full_of(config, own))
    tried = [candidates[place] for place in kept]
    gflops, ms = measure_cost(
        model, larger.data, used(larger.canvases, tried), tried, options.threads, options.rounds
    )
    found = [Candidate(*row, quality[row[0]]) for row in zip(tried, gflops, ms, strict=True)]
    known = {row["plan"]: row for row in report["search"]}
    others = [Candidate(k, known[k.name]["gflops"], known[k.name]["ms"], quality[k]) for k in plain]
    chosen = choose_tiled(others, found, MOST)
    table = [
        {"plan": candidate.knobs.name} | rounded(candidate)
        for candidate in sorted((*others, *found), key=lambda candidate: candidate.gflops)
    ]
    in_order = sorted((*others, *chosen), key=lambda candidate: candidate.gflops)
    wanted = {candidate.knobs.canvas for candidate in chosen}
    images = len(targets["names"])
    machine = machine_of(options.threads)
    report |= {
        "tiles": tiles_of([canvas for canvas in larger.canvases if canvas.name in wanted]),
        "search_tiles": {"table": table, "data": larger.spec, "images": images, "machine": machine},
    }
    del report["plans"]
    write_plans(run, [candidate.knobs for candidate in in_order], report)
    names = [candidate.knobs.name for candidate in in_order]
    print_table(table, names, task.measure)
    tiled = [candidate.knobs.name for candidate in chosen]
    summary = {"candidates": len(found), "larger_images": images, "machine": machine}
    print(json.dumps({"plans": names, "tiled": tiled} | summary))


def _area(canvas: Canvas) -> int:
    return canvas.largest.area
