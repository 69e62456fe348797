"""Which plans are worth having: cost and quality of every combination of depth, keep and width, and
the best of them.

Costs are what is served: every candidate's encoder is exported, its GFLOPs are counted from the
graph, and its milliseconds measured with the service's own engine, in rounds of all candidates, so
that a drift of the machine hits all alike. Quality is the mean over the images of a data set that
the network was not trained on; its counts are kept beside the run, so that a search that was
stopped goes on.
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
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from model_export.data.augment import on_canvas
from model_export.data.datasets import Dataset, refuse_shared
from model_export.export.flops import count_gflops
from model_export.export.weights import write_stages
from model_export.export.write_bundle import open_samples
from model_export.export.write_manifest import manifest_of, plan_of
from model_export.gating.derive_targets import measure
from model_export.gating.partial_results import Kept, key_of
from model_export.network.config import Config
from model_export.network.gate import Gate, gate_inputs
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from model_export.tasks import TASKS, qualities
from model_export.training.runs import load_model, read_config, trained_on, write_plans
from service import bundle
from service.engines.onnxruntime import OnnxRuntimeBackend
from service.inference.stages import Stages

CACHE = "search.npz"
NOISE = 0.001  # of quality: a plan that is dearer must be better by this much
WARM_UP = 2  # rounds that are not counted


@dataclass(frozen=True, slots=True)
class Found:
    """One candidate. gflops, ms: of front, encoder and decoder together. quality: mean over images,
    0..1."""

    knobs: Knobs
    gflops: float
    ms: float
    quality: float


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
    add("--most", type=int, default=10, help="plans to choose at most")
    add(
        "--least",
        type=int,
        help="plans to choose at least, where there are so many; default: 6, or --most if less",
    )
    add(
        "--threads",
        type=int,
        default=os.cpu_count() or 1,
        help="of the engine, while milliseconds are measured",
    )
    add("--rounds", type=int, default=15, help="of the measurement; medians count")


def main(args: argparse.Namespace) -> None:
    config, canvas, _ = read_config(args.run)
    for each in trained_on(args.run):
        refuse_shared("--on", args.on, args.data, *each, "the network")
    model, data = load_model(args.run), open_samples(args.on, args.data, config)
    widths = config.widths if args.widths is None else shares("--widths", args.widths)
    plans = candidates(config, shares("--keeps", args.keeps), widths)
    least = min(6, args.most) if args.least is None else args.least
    if not 2 <= least <= args.most or args.rounds < 1 or args.threads < 1:
        raise ValueError(
            "--least and --most must be at least 2 (the cheapest and the full plan) and not cross, "
            "--rounds and --threads at least 1"
        )
    counts = measure_quality(args.run, model, data, args.on, canvas, plans)
    quality = qualities(TASKS[config.task], counts).mean(0)
    gflops, ms = measure_cost(model, data, canvas, plans, args.threads, args.rounds)
    found = [Found(*each) for each in zip(plans, gflops, ms, quality.tolist(), strict=True)]
    chosen = choose(found, args.most, least)
    machine = {
        "processor": processor(),
        "threads": args.threads,
        "engine": f"onnxruntime {onnxruntime.__version__}",
    }
    table = [
        {"plan": each.knobs.name} | rounded(each) for each in sorted(found, key=lambda f: f.gflops)
    ]
    write_plans(
        args.run,
        [each.knobs for each in chosen],
        {"search": table, "data": args.on, "images": len(counts), "machine": machine},
    )
    print(f"{'plan':<14}{'GFLOPs':>8}{'ms':>9}{TASKS[config.task].measure:>9}")
    names = [each.knobs.name for each in chosen]
    for row in table:
        mark = " *" if row["plan"] in names else ""
        print(
            f"{row['plan']:<14}{row['gflops']:8.3f}{row['ms']:9.2f}"
            f"{100 * row['quality']:9.2f}{mark}"
        )
    print(
        json.dumps(
            {"plans": names, "candidates": len(found), "images": len(counts), "machine": machine}
        )
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


def candidates(config: Config, keeps: Sequence[float], widths: Sequence[float]) -> list[Knobs]:
    """All combinations, the full plan included. Where nothing can be paused, keep is 1."""
    first = config.pauses_from or config.exits + 1
    found = {Knobs(config.exits)}
    for depth, keep, width in product(range(1, config.exits + 1), keeps, widths):
        found.add(Knobs(depth, keep if depth >= first else 1.0, width))
    return sorted(found)


# --------------------------------------------------------------------------------------------------
# quality


def measure_quality(
    run: Path,
    model: Segmenter,
    data: Dataset,
    spec: str,
    canvas: tuple[int, int],
    plans: list[Knobs],
) -> NDArray[Any]:
    """(images, plans, ..) counts. Images that are all void have no quality and are left out.

    What was counted is kept in the run's folder, and counts again for these weights, this data set
    and these plans.
    """
    key = key_of(run / "model.safetensors", spec, len(data), [plan.name for plan in plans])
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    found = measure(model, plans, [data], spec, canvas, 1, 0, Kept(run / CACHE, key))
    model.cpu()
    return found["counts"]


# --------------------------------------------------------------------------------------------------
# cost


def measure_cost(
    model: Segmenter,
    data: Dataset,
    canvas: tuple[int, int],
    plans: list[Knobs],
    threads: int,
    rounds: int,
) -> tuple[list[float], list[float]]:
    """GFLOPs and milliseconds of front, encoder and decoder for each plan."""
    config = model.config
    images = np.stack([on_canvas(data[i], canvas)[0] for i in range(2)])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gate = Gate(
            gate_inputs(config.channels, config.classes), len(plans)
        )  # any will do: all cost the same
        stages = write_stages(folder, model, gate, plans, images)
        parts = {stage: count_gflops(folder / f"{stage}.onnx") for stage in stages}
        shown = [plan_of(knobs, parts, np.zeros(1)) for knobs in plans]
        by_cost = sorted(shown, key=lambda plan: plan.gflops)
        manifest = manifest_of(folder, config, canvas, data, by_cost, dict.fromkeys(stages, 0.0))
        backend = OnnxRuntimeBackend(bundle.save(folder, manifest), threads=threads)
        try:
            ms = _measure_ms(backend, manifest, images[:1], rounds)
        finally:
            backend.close()
    return [plan.gflops for plan in shown], [
        ms["front"] + ms[plan.name] + ms["decoder"] for plan in shown
    ]


def _measure_ms(
    backend: OnnxRuntimeBackend, manifest: bundle.Manifest, image: NDArray[np.uint8], rounds: int
) -> dict[str, float]:
    """Medians for one image: of the front, of each plan's encoder, of the decoder."""
    stages = Stages(backend, manifest)
    features, _ = stages.front(image)
    encoded = stages.encode(manifest.plans[0], features)
    work: dict[str, Callable[[], object]] = {
        "front": partial(stages.front, image),
        "decoder": partial(stages.head, encoded),
        **{plan.name: partial(stages.encode, plan, features) for plan in manifest.plans},
    }
    taken: dict[str, list[float]] = {name: [] for name in work}
    order, rng = list(work), np.random.default_rng(0)
    for turn in tqdm(range(WARM_UP + rounds), desc="milliseconds", mininterval=5):
        rng.shuffle(order)  # what ran before leaves the caches as they are
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


# --------------------------------------------------------------------------------------------------
# choice


def choose(found: list[Found], most: int, least: int = 2) -> list[Found]:
    """At most `most` plans, from cheap to dear; the last one is the full plan.

    Kept is the Pareto front in quality and cost, where a plan is cheaper than another only if it is
    by GFLOPs and by milliseconds: what is no better than one that is kept and no dearer in either
    is out. So both measures order the chosen plans alike. A dearer one must be better by noise. The
    full plan is always in, and nothing as dear as it. Of a longer front those stay that serve most:
    a plan is for budgets from its cost to that of the next one, and there gains what it is better
    than all that are cheaper; cost here is the mean of both, as shares of the full plan's. The
    cheapest one always stays. A shorter front than `least` is filled up where the steps in cost are
    widest, with the best plan in between: it is of these images, and on others what is in between
    may be worth having.
    """
    full = max(found, key=lambda f: (f.knobs.depth, f.knobs.keep, f.knobs.width))

    def cost(each: Found) -> float:
        return each.gflops / full.gflops + each.ms / full.ms

    def cheaper(low: Found, high: Found) -> bool:
        return low.gflops < high.gflops and low.ms < high.ms

    chain: list[Found] = []
    for each in sorted((f for f in found if cheaper(f, full)), key=lambda f: (-f.quality, cost(f))):
        if not chain or cheaper(each, chain[0]):
            chain.insert(0, each)
    front: list[Found] = []
    for each in chain:
        if not front or each.quality - front[-1].quality >= NOISE:
            front.append(each)
    while len(front) >= most:
        gains = np.diff([each.quality for each in front])
        gaps = np.diff([cost(each) for each in (*front, full)])
        front.pop(1 + int(np.argmin(gains * gaps[1:])))
    while len(front) + 1 < least:
        between = [
            [f for f in found if cheaper(low, f) and cheaper(f, high)]
            for low, high in sorted(
                pairwise([*front, full]), key=lambda step: cost(step[0]) - cost(step[1])
            )
        ]
        widest = next((inside for inside in between if inside), None)
        if widest is None:
            break
        front.append(max(widest, key=lambda f: f.quality))
        front.sort(key=cost)
    return [*front, full]


def rounded(found: Found) -> dict[str, float]:
    return {"gflops": found.gflops, "ms": round(found.ms, 3), "quality": round(found.quality, 5)}
