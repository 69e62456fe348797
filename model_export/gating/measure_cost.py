"""What plans cost: their encoders are exported, GFLOPs are counted from the graphs, and
milliseconds are measured with the service's own engine, in rounds of all candidates, so that a
drift of the machine affects all of them alike."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tqdm import tqdm

from model_export.data.augment import on_canvases
from model_export.data.datasets import Dataset
from model_export.export.flops import count_gflops
from model_export.export.graphs import heads_of
from model_export.export.weights import write_stages
from model_export.export.write_manifest import cost_of, manifest_of, plan_of
from model_export.network.gate import Gate, gate_inputs
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from service import bundle
from service.bundle import Canvas, plain_of
from service.core import Frames
from service.engines.onnxruntime import OnnxRuntimeBackend
from service.inference.stages import Stages

WARM_UP = 2  # rounds that are not counted


def measure_cost(
    model: Segmenter,
    data: Dataset,
    canvases: Sequence[Canvas],
    plans: list[Knobs],
    threads: int,
    rounds: int,
) -> tuple[list[float], list[float]]:
    """GFLOPs and milliseconds of all that runs for each plan, the glance included, on the largest
    shape of its canvas, which costs most. On a tiled canvas they are those of its tiles, one after
    the other."""
    config = model.config
    canvases = _with_largest_shapes(canvases)
    plain = plain_of(canvases)
    bases = {each.name: each.tiles.of for each in canvases if each.tiles is not None}
    exported = list(
        dict.fromkeys(replace(each, canvas=bases.get(each.canvas, each.canvas)) for each in plans)
    )
    frames = on_canvases(data[0], plain)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Any gate will do: all cost the same.
        gate = Gate(gate_inputs(config.channels, config.glanced), len(exported))
        stages = write_stages(folder, model, gate, plain, exported)
        parts = {stage: count_gflops(folder / f"{stage}.onnx") for stage in stages}
        gflops = [round(cost_of(knobs, canvases, parts), 4) for knobs in plans]
        by_cost = sorted(
            (
                plan_of(knobs, plain, parts, {config.task: np.zeros(1)}, heads_of(config))
                for knobs in exported
            ),
            key=lambda plan: plan.gflops + sum(head.gflops for head in plan.heads.values()),
        )
        manifest = manifest_of(folder, config, plain, data, by_cost, dict.fromkeys(stages, 0.0))
        backend = OnnxRuntimeBackend(bundle.save(folder, manifest), threads=threads)
        try:
            ms = _measure_ms(backend, manifest, frames, rounds)
        finally:
            backend.close()
    return gflops, [cost_of(knobs, canvases, ms) for knobs in plans]


def _with_largest_shapes(canvases: Sequence[Canvas]) -> list[Canvas]:
    """Each with its largest shape alone; a tiled one with what tiles of that shape cover."""
    largest = {canvas.name: canvas.largest for canvas in canvases}
    return [
        replace(
            each,
            shapes=(
                largest[each.name]
                if each.tiles is None
                else each.tiles.covered(largest[each.tiles.of]),
            ),
        )
        for each in canvases
    ]


def _measure_ms(
    backend: OnnxRuntimeBackend, manifest: bundle.Manifest, frames: Frames, rounds: int
) -> dict[str, float]:
    """Medians of each stage for one image. frames: on every canvas that is not tiled."""
    stages, work = Stages(backend, manifest), dict[str, Callable[[], object]]()
    plans = {plan.name: plan for plan in manifest.encoder_plans}
    for frame in frames.values():
        shape = frame.geometry.shape
        graphs, features = manifest.graphs[shape], stages.front([frame])
        work[graphs.front] = partial(stages.front, [frame])
        for name, stage in graphs.encoders.items():
            work[stage] = partial(stages.encode, plans[name], shape, features)
            if (head := graphs.heads[manifest.head.name]) not in work:
                work[head] = partial(
                    stages.head, shape, stages.encode(plans[name], shape, features)
                )
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


def machine_of(threads: int) -> dict[str, Any]:
    """What milliseconds were measured on."""
    engine = f"onnxruntime {onnxruntime.__version__}"
    return {"processor": processor(), "threads": threads, "engine": engine}


def processor() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
