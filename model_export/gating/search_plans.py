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
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from model_export.data.augment import on_canvases
from model_export.data.checks import check
from model_export.data.datasets import Dataset, refuse_shared
from model_export.export.flops import count_gflops
from model_export.export.graphs import heads_of
from model_export.export.weights import write_stages
from model_export.export.write_bundle import open_samples
from model_export.export.write_manifest import cost_of, manifest_of, plan_of
from model_export.gating.choose_plans import Candidate, choose_plans, undominated
from model_export.gating.derive_targets import measure_plans
from model_export.gating.partial_results import PartialResults, key_of
from model_export.gating.task_search import search_tasks
from model_export.network.config import Config
from model_export.network.gate import Gate, gate_inputs
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from model_export.tasks import qualities, task_of
from model_export.training.runs import (
    classes_of,
    load_model,
    read_config,
    shapes_of,
    trained_on,
    write_plans,
)
from service import bundle
from service.bundle import Canvas
from service.core import Frames
from service.engines.onnxruntime import OnnxRuntimeBackend
from service.inference.stages import Stages

CACHE = "search.npz"
MOST_CHOSEN = 3840  # by TensorRT's TopK
WARM_UP = 2  # rounds that are not counted


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
    add("--most", type=int, default=12, help="plans to choose at most")
    add(
        "--least",
        type=int,
        help="plans to choose at least, if there are as many; default: 8, or --most if less",
    )
    add(
        "--threads",
        type=int,
        default=os.cpu_count() or 1,
        help="threads of the engine while milliseconds are measured",
    )
    add("--rounds", type=int, default=15, help="rounds of the measurement; medians count")


@dataclass(frozen=True, slots=True, kw_only=True)
class CostOptions:
    """Those of the arguments above that say how costs are measured and plans are chosen."""

    run: Path
    on: str
    most: int
    least: int
    threads: int
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(CostOptions):
    """The arguments above, with least filled in."""

    data: Path | None
    keeps: Sequence[float]
    widths: Sequence[float] | None


def main(args: argparse.Namespace) -> None:
    least = min(8, args.most) if args.least is None else args.least
    if not 2 <= least <= args.most or args.rounds < 1 or args.threads < 1:
        raise ValueError(
            "--least and --most must be at least 2 (the cheapest and the full plan) and not cross, "
            "--rounds and --threads at least 1"
        )
    keeps = shares("--keeps", args.keeps)
    widths = None if args.widths is None else shares("--widths", args.widths)
    if read_config(args.run)[0].tasks:
        search_tasks(args.run, args.on, widths, args.most)
        return
    search(Options(**vars(args) | {"keeps": keeps, "widths": widths, "least": least}))


def search(options: Options) -> None:
    """Writes plans.json, prints the table of all candidates and a JSON line."""
    config, canvases, _ = read_config(options.run)
    for spec, root in trained_on(options.run):
        refuse_shared("--on", options.on, options.data, spec, root, "the network")
    model = load_model(options.run)
    data = open_samples(options.on, options.data, config, classes_of(options.run))
    check(data, f"--on {options.on}", complete=False)
    combinations = combinations_of(config, canvases, options.keeps, options.widths or config.widths)
    counts = measure_quality(options.run, model, data, options.on, canvases, combinations)
    choose(options, model, data, canvases, combinations, counts, {"judged_by": "labels"})


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
    machine = {
        "processor": processor(),
        "threads": options.threads,
        "engine": f"onnxruntime {onnxruntime.__version__}",
    }
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


def print_table(table: Sequence[dict[str, Any]], chosen: Sequence[str], measure: str) -> None:
    print(f"{'plan':<20}{'GFLOPs':>8}{'ms':>9}{measure:>9}")
    for row in table:
        mark = " *" if row["plan"] in chosen else ""
        print(
            f"{row['plan']:<20}{row['gflops']:8.3f}{row['ms']:9.2f}"
            f"{100 * row['quality']:9.2f}{mark}"
        )


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


def combinations_of(
    config: Config,
    canvases: Sequence[Canvas],
    keeps: Sequence[float],
    widths: Sequence[float],
) -> list[Knobs]:
    """All settings of the knobs, the full plan included. Where nothing can be paused, keep is 1.

    Plans that pause, but keep more tokens than TensorRT can choose, are left out.
    """
    first = config.pauses_from or config.exits + 1
    combinations = {full_of(config, canvases)}
    depths = range(1, config.exits + 1)
    for canvas, depth, keep, width in product(canvases, depths, keeps, widths):
        tokens = max((shape.height // 8) * (shape.width // 8) for shape in canvas.shapes)
        if depth < first or keep == 1:
            combinations.add(Knobs(depth, 1.0, width, canvas.name))
        elif round(keep * tokens) <= MOST_CHOSEN:
            combinations.add(Knobs(depth, keep, width, canvas.name))
    return sorted(combinations)


def full_of(config: Config, canvases: Sequence[Canvas]) -> Knobs:
    """The full plan: everything on the largest canvas."""
    return Knobs(config.exits, canvas=canvases[-1].name)


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

    The counts are saved in the run's folder, and used again for these weights, this data set and
    these plans.
    """
    names = [plan.name for plan in plans]
    key = key_of(run / "model.safetensors", spec, len(data), names, shapes_of(canvases))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    results = PartialResults(run / CACHE, key)
    targets = measure_plans(model, plans, [data], spec, canvases, 1, 0, results)
    model.cpu()
    return targets["counts"]


# --------------------------------------------------------------------------------------------------
# cost


def measure_cost(
    model: Segmenter,
    data: Dataset,
    canvases: Sequence[Canvas],
    plans: list[Knobs],
    threads: int,
    rounds: int,
) -> tuple[list[float], list[float]]:
    """GFLOPs and milliseconds of all that runs for each plan, the glance included, on the largest
    shape of its canvas, which costs most."""
    config = model.config
    canvases = [Canvas(canvas.name, (canvas.largest,)) for canvas in canvases]
    frames = on_canvases(data[0], canvases)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Any gate will do: all cost the same.
        gate = Gate(gate_inputs(config.channels, config.glanced), len(plans))
        stages = write_stages(folder, model, gate, canvases, plans)
        parts = {stage: count_gflops(folder / f"{stage}.onnx") for stage in stages}
        gflops = [round(cost_of(knobs, canvases, parts), 4) for knobs in plans]
        by_cost = [
            plan_of(plans[i], canvases, parts, {config.task: np.zeros(1)}, heads_of(config))
            for i in np.argsort(gflops, kind="stable")
        ]
        manifest = manifest_of(folder, config, canvases, data, by_cost, dict.fromkeys(stages, 0.0))
        backend = OnnxRuntimeBackend(bundle.save(folder, manifest), threads=threads)
        try:
            ms = _measure_ms(backend, manifest, frames, rounds)
        finally:
            backend.close()
    return gflops, [cost_of(knobs, canvases, ms) for knobs in plans]


def _measure_ms(
    backend: OnnxRuntimeBackend, manifest: bundle.Manifest, frames: Frames, rounds: int
) -> dict[str, float]:
    """Medians of each stage for one image. frames: on every canvas, each of which has a plan."""
    stages, work = Stages(backend, manifest), dict[str, Callable[[], object]]()
    for canvas, frame in frames.items():
        shape = frame.geometry.shape
        graphs, features = manifest.graphs[shape], stages.front([frame])
        own = [plan for plan in manifest.encoder_plans if plan.canvas == canvas]
        encoded = stages.encode(own[0], shape, features)
        work[graphs.front] = partial(stages.front, [frame])
        work[graphs.heads[manifest.head.name]] = partial(stages.head, shape, encoded)
        for plan in own:
            work[graphs.encoders[plan.name]] = partial(stages.encode, plan, shape, features)
    taken: dict[str, list[float]] = {name: [] for name in work}
    order, rng = list(work), np.random.default_rng(0)
    for turn in tqdm(range(WARM_UP + rounds), desc="milliseconds", mininterval=5):
        rng.shuffle(order)  # what ran before leaves its traces in the caches
        for name in order:
            start = time.perf_counter()
            work[name]()
            if turn >= WARM_UP:
                taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in taken.items()}


def processor() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def rounded(candidate: Candidate) -> dict[str, float]:
    """As plans.json and the table have it."""
    return {
        "gflops": candidate.gflops,
        "ms": round(candidate.ms, 3),
        "quality": round(candidate.quality, 5),
    }
