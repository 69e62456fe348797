"""What a bundle with several heads is worth: every head at every width behind every encoder plan,
with GFLOPs and ms of the engine, and what `max-loss` comes to under each preference of a grid.

The graphs run as the service runs them, on generated streets, image by image.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from model_export.data.augment import on_canvases
from model_export.data.datasets import Dataset, refuse_shared
from model_export.data.sample import Sample
from model_export.gating.plain_json import plain
from model_export.gating.policies import by_margin
from model_export.gating.preferences import preference_grid, weighted
from model_export.tasks.heads import JUDGES, Counts
from model_export.training.initial_weights import seen_by_bundle
from model_export.training.train_tasks import open_scenes
from service import bundle
from service.bundle import Manifest, complete_plans
from service.core import Frames
from service.engines.onnxruntime import OnnxRuntimeBackend
from service.inference.stages import Stages

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Results:
    """scores, quality: (N, encoder plans, heads at widths). counts: of each image, in the same
    order. glance: ms of it; before (plans,), after (plans, heads at widths): of what an encoder
    plan adds up to the heads, and of each head: medians."""

    scores: Floats
    quality: Floats
    counts: list[list[list[Counts]]]
    glance: float
    before: Floats
    after: Floats

    def set_quality(self, task: str, row: int, column: int) -> float:
        return JUDGES[task].of_set([image[row][column] for image in self.counts])


def measure_heads(manifest: Manifest, backend: OnnxRuntimeBackend, data: Dataset) -> Results:
    stages, keys = Stages(backend, manifest), manifest.head_keys
    scores, counts, times = [], [], []
    for index in tqdm(range(len(data)), desc="images", mininterval=5):
        sample = data[index]
        frames = on_canvases(sample, manifest.input.canvases)
        if not index:  # the first run of a graph reserves memory
            one_image(stages, frames, sample)
        seen, own, took = one_image(stages, frames, sample)
        scores.append(seen.reshape(len(manifest.encoder_plans), len(keys)))
        counts.append(own)
        times.append(took)
    tasks = [head.task for head in manifest.heads for _ in head.widths]
    quality = [
        [[JUDGES[task].of_image(c) for task, c in zip(tasks, plan, strict=True)] for plan in image]
        for image in counts
    ]
    glance, before, after = (np.median([t[part] for t in times], 0) for part in range(3))
    return Results(
        np.array(scores, np.float64), np.array(quality), counts, float(glance), before, after
    )


def one_image(
    stages: Stages, frames: Frames, sample: Sample
) -> tuple[NDArray[np.float32], list[list[Counts]], tuple[float, Floats, Floats]]:
    """Scores, counts of each plan and head at a width, and ms, see Results."""
    manifest, clock = stages.manifest, time.perf_counter
    glance_at = manifest.glance.name
    began = clock()
    seen, scores = stages.glance([frames[glance_at]])
    glance = clock() - began
    features, took = {glance_at: seen}, {glance_at: 0.0}
    before, after, counts = [], [], []
    for plan in manifest.encoder_plans:
        frame = frames[plan.canvas]
        shape = frame.geometry.shape
        if plan.canvas not in features:
            began = clock()
            features[plan.canvas] = stages.front([frame])
            took[plan.canvas] = clock() - began
        began = clock()
        encoded = stages.encode(plan, shape, features[plan.canvas])
        before.append(took[plan.canvas] + clock() - began)
        ms, own = [], []
        for head in manifest.heads:
            for width in head.at_widths():
                began = clock()
                tensors = stages.head(shape, encoded, width.key)
                ms.append(clock() - began)
                one = {name: torch.from_numpy(value) for name, value in tensors.items()}
                own.append(JUDGES[head.task].judged(one, frame.geometry, sample))
        after.append(ms)
        counts.append(own)
    return scores[0], counts, (1e3 * glance, 1e3 * np.array(before), 1e3 * np.array(after))


def evaluate_tasks(folder: Path, on: str, threads: int) -> None:
    """Prints the tables and one JSON line. Raises RunError, DataError."""
    opened = bundle.load(folder)
    manifest, data = opened.manifest, open_scenes("--on", on)
    for spec, root in seen_by_bundle(manifest):
        refuse_shared("--on", on, None, spec, root, "the network")
    backend = OnnxRuntimeBackend(opened, threads=threads)
    try:
        results = measure_heads(manifest, backend, data)
    finally:
        backend.close()
    rows, promises = list(plan_rows(manifest, results)), list(promise_rows(manifest, results))
    print(f"{'encoder plan':<14}{'head':<16}{'GFLOPs':>8}{'ms':>8}{'quality':>9}{'of the set':>12}")
    for row in rows:
        print(
            f"{row['plan']:<14}{row['head']:<16}{row['gflops']:8.3f}{row['ms']:8.2f}"
            f"{row['quality']:9.4f}{row['of_set']:12.4f}"
        )
    print(f"{'max-loss':<10}{'lost':>9}{'GFLOPs':>8}  preference")
    for row in promises:
        asked = ", ".join(f"{name}={weight:g}" for name, weight in row["preference"].items())
        print(f"{row['asked']:<10g}{row['lost']:9.4f}{row['gflops']:8.3f}  {asked}")
    result = {"bundle": manifest.name, "on": on, "images": len(data), "threads": threads}
    result |= {"measures": {head.name: JUDGES[head.task].measure for head in manifest.heads}}
    print(json.dumps(result | {"plans": rows, "promises": promises}))


def plan_rows(manifest: Manifest, results: Results) -> Iterator[dict[str, Any]]:
    """A row for each head at each width behind each encoder plan; cost of that head alone."""
    tasks = [head.task for head in manifest.heads for _ in head.widths]
    for row, plan in enumerate(manifest.encoder_plans):
        for column, key in enumerate(manifest.head_keys):
            ms = results.glance + results.before[row] + results.after[row, column]
            yield plain(
                {
                    "plan": plan.name,
                    "head": key,
                    "gflops": plan.gflops + plan.heads[key].gflops,
                    "ms": float(ms),
                    "quality": float(results.quality[:, row, column].mean()),
                    "of_set": results.set_quality(tasks[column], row, column),
                }
            )


def promise_rows(manifest: Manifest, results: Results) -> Iterator[dict[str, Any]]:
    """Of each preference and max-loss what was lost against the full plan, and the mean GFLOPs."""
    names = [plan.name for plan in manifest.encoder_plans]
    for preference in preference_grid([head.name for head in manifest.heads]):
        plans = complete_plans(manifest.encoder_plans, manifest.heads, preference)
        scores, truth = (
            weighted(table, plans, preference, names, manifest.head_keys)
            for table in (results.scores, results.quality)
        )
        cost = np.array([plan.gflops for plan in plans])
        for margin in manifest.margins:
            shares = by_margin(scores, margin.margin)
            lost = (truth[:, -1] - (shares * truth).sum(1)).mean()
            row: dict[str, Any] = {"preference": preference, "asked": margin.asked}
            yield plain(row | {"lost": float(lost), "gflops": float((shares @ cost).mean())})
