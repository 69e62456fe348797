"""The search for a network with several heads: what every encoder costs up to the heads, what each
head costs at each width, and how good each is behind each encoder.

The rule of Efficient Controllable Multi-Task Architectures (arXiv 2308.11744) is then a look into
this table (service.bundle.complete_plans): a budget and a preference give an encoder and a width
for each head. Of all encoders those stay that serve a grid of preferences best (preferences.py).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model_export.data.datasets import Dataset, refuse_shared
from model_export.export.flops import count_gflops
from model_export.export.graphs import heads_of
from model_export.export.weights import write_stages
from model_export.export.write_manifest import plan_of, several_heads
from model_export.gating.partial_results import PartialResults, key_of
from model_export.gating.preferences import worth_having
from model_export.network.config import Config
from model_export.network.gate import Gate, gate_inputs
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from model_export.training.run_files import WEIGHTS, read_json, write_json
from model_export.training.runs import (
    RunError,
    load_model,
    read_config,
    shapes_of,
    trained_on,
    write_plans,
)
from model_export.training.task_quality import judges_of, settings_of, task_counts
from model_export.training.train_tasks import open_scenes
from service import bundle
from service.bundle import Canvas


def measure_heads(
    model: Segmenter,
    plans: Sequence[Knobs],
    datasets: Sequence[Dataset],
    canvases: Sequence[Canvas],
    results: PartialResults | None = None,
) -> dict[str, NDArray[Any]]:
    """names, groups, sources (N,): index into `datasets`, inputs (N, gate inputs), and quality (N,
    plans, heads at widths), 0..1, in the order of the gate. results: of a run that was stopped."""
    results = results or PartialResults()
    results.begin(datasets)
    settings = settings_of(model.config, plans)
    judges = judges_of(model.config)
    work = [(source, i) for source, data in enumerate(datasets) for i in range(len(data))]
    for row, (source, index) in enumerate(tqdm(work, desc="quality", mininterval=10)):
        if row < len(results.rows):
            continue
        sample = datasets[source][index]
        counts, inputs = task_counts(model, sample, canvases, settings)
        quality = [judges[setting[1].name].of_image(counts[setting]) for setting in settings]
        about = {"names": sample.name, "groups": sample.group, "sources": source}
        results.add(
            {name: np.array(value) for name, value in about.items()}
            | {"quality": np.array(quality).reshape(len(plans), -1), "inputs": inputs}
        )
    results.save()
    return results.columns()


def measured(
    run: Path,
    model: Segmenter,
    plans: Sequence[Knobs],
    specs: Sequence[str],
    canvases: Sequence[Canvas],
    place: str,
) -> dict[str, NDArray[Any]]:
    """The same for scenes, as they were named; kept in the run's folder, and used again for these
    weights, scenes and plans."""
    datasets = [open_scenes("--on", spec) for spec in specs]
    lengths, names = [len(data) for data in datasets], [plan.name for plan in plans]
    key = key_of(run / WEIGHTS, list(specs), lengths, names, shapes_of(canvases))
    return measure_heads(model, plans, datasets, canvases, PartialResults(run / place, key))


def stage_costs(
    run: Path, model: Segmenter, canvases: Sequence[Canvas], plans: Sequence[Knobs]
) -> dict[str, float]:
    """GFLOPs of every stage, counted from its graph. They do not depend on the weights, and are
    kept in the run's folder: further training changes nothing."""
    config, file = model.config, run / "costs.json"
    about = [config.as_dict(), shapes_of(canvases), [plan.name for plan in plans]]
    key = json.loads(json.dumps(about))
    known = read_json(file, "delete it: it is made anew") if file.exists() else {}
    if known.get("of") == key:
        gflops: dict[str, float] = known["gflops"]
        return gflops
    columns = len(plans) * sum(len(head.widths) for head in config.tasks)
    gate = Gate(gate_inputs(config.channels, config.classes), columns)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stages = write_stages(folder, model, gate, canvases, plans)
        gflops = {stage: count_gflops(folder / f"{stage}.onnx") for stage in stages}
    write_json(file, {"of": key, "gflops": gflops})
    return gflops


def cheapest_first(plans: Sequence[bundle.EncoderPlan], config: Config) -> list[bundle.EncoderPlan]:
    """In the order of cost with all heads in full, as a manifest has them."""
    names = [head.name for head in config.tasks]
    return sorted(
        plans,
        key=lambda plan: round(plan.gflops + sum(plan.heads[n].gflops for n in names), 4),
    )


def encoder_plans(
    config: Config,
    canvases: Sequence[Canvas],
    plans: Sequence[Knobs],
    parts: dict[str, float],
    quality: NDArray[np.float64],
) -> list[bundle.EncoderPlan]:
    """In the order of `plans`. quality: (N, plans, heads at widths)."""
    keys = list(heads_of(config))
    return [
        plan_of(
            knobs,
            canvases,
            parts,
            {key: quality[:, row, column] for column, key in enumerate(keys)},
            heads_of(config),
        )
        for row, knobs in enumerate(plans)
    ]


def search_tasks(run: Path, on: str, widths: Sequence[float] | None, most: int) -> None:
    """Writes plans.json, prints the table of all encoders and a JSON line. widths: of encoders to
    try; None: all that the network was trained with."""
    config, canvases, _ = read_config(run)
    for spec, root in trained_on(run):
        refuse_shared("--on", on, None, spec, root, "the network")
    model = load_tasks(run)
    plans = [
        Knobs(depth, 1.0, width, canvas.name)
        for canvas in canvases
        for depth in range(1, config.exits + 1)
        for width in sorted({*(widths or config.widths), 1.0})
    ]
    columns = measured(run, model, plans, [on], canvases, "search.npz")
    parts = stage_costs(run, model, canvases, plans)
    every = cheapest_first(
        encoder_plans(config, canvases, plans, parts, columns["quality"]), config
    )
    heads = list(several_heads(config, open_scenes("--on", on)))
    chosen = worth_having(every, heads, most)
    table = [
        {"plan": plan.name, "gflops": plan.gflops}
        | {key: [own.gflops, own.quality] for key, own in plan.heads.items()}
        for plan in every
    ]
    report = {"search": table, "data": on, "images": len(columns["names"]), "gflops": parts}
    write_plans(run, [Knobs.parse(plan.name) for plan in chosen], report)
    names = [plan.name for plan in chosen]
    print(f"{'encoder':<16}{'GFLOPs':>8}  quality of each head at each width")
    for plan in every:
        worth = "".join(f" {key} {100 * own.quality:.1f}" for key, own in plan.heads.items())
        print(f"{plan.name:<16}{plan.gflops:8.3f} {worth}{' *' if plan.name in names else ''}")
    print(json.dumps({"plans": names, "candidates": len(every), "images": report["images"]}))


def load_tasks(run: Path) -> Segmenter:
    """Raises RunError where the run has one task."""
    from_run = read_config(run)[0]
    if not from_run.tasks:
        raise RunError(f"{run} is of one task: make one of several with train-tasks")
    return load_model(run)
