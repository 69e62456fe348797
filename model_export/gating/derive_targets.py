"""Step B: the quality of every plan on every image (ECO-M2F, arXiv 2404.15244, section 3, has exits
only).

The targets are counts, from which the quality of any choice of plans follows, and the gate's input,
so that step C needs no images at all.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from model_export.data.augment import jitter, random_crop
from model_export.data.checks import check
from model_export.data.datasets import (
    VOID,
    DataError,
    Dataset,
    Sample,
    open_dataset,
    refuse_shared,
    refuse_unread,
    share_images,
)
from model_export.data.for_network import refuse_misfit
from model_export.gating.partial_results import (
    PartialResults,
    discard_partial,
    key_of,
    partial_files,
)
from model_export.gating.task_gate import derive_tasks
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from model_export.option_types import whole
from model_export.tasks import TASKS
from model_export.training.quality import counts_by_knobs
from model_export.training.run_files import WEIGHTS
from model_export.training.runs import (
    RunError,
    Trained,
    classes_of,
    described,
    load_model,
    read_canvases,
    read_config,
    read_plans,
    trained_on,
    write_targets,
)
from service.bundle import Canvas, is_larger, plain_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run's folder with a trained parent")
    add_data_arguments(parser)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", type=Path, help="folder of the data set (not needed for scenes)")
    add(
        "--fit",
        nargs="+",
        required=True,
        help="data sets that the gate learns from, e.g. camvid:gate scenes:200:3",
    )
    add(
        "--held",
        required=True,
        help="data set that the gate never sees; the quality in the bundle is measured on it",
    )
    add(
        "--views",
        type=whole(),
        default=1,
        help="views of each --fit image; the first is plain, others are zoomed and recoloured, "
        "or, with objects, turned",
    )
    add("--seed", type=whole(0), default=0, help="of the views")


@dataclass(frozen=True, slots=True)
class DataOptions:
    """The arguments above."""

    data: Path | None
    fit: Sequence[str]
    held: str
    views: int
    seed: int


def data_options(args: argparse.Namespace) -> DataOptions:
    """Raises DataError where --data would not be read."""
    refuse_unread(args.data, "--fit", *args.fit, args.held)
    return DataOptions(args.data, args.fit, args.held, args.views, args.seed)


def view_of(
    sample: Sample, view: int, canvases: Sequence[Canvas], rng: np.random.Generator
) -> Sample:
    """View 0 is the image itself. Others stand in for images that the camera did not take.

    Objects must stay whole, so with objects the views are right-angled turns of the image and of
    its mirror image.
    """
    if view == 0:
        return sample
    if sample.instances is not None:
        image, mask, instances = (
            np.ascontiguousarray(np.rot90(plane[:, ::-1] if view % 2 else plane, view // 2))
            for plane in (sample.image, sample.mask, sample.instances)
        )
        return replace(
            sample, name=f"{sample.name}-{view}", image=image, mask=mask, instances=instances
        )
    height, width = sample.mask.shape
    shape = plain_of(canvases)[-1].fitting(width, height)
    image, mask = random_crop(sample, rng, (shape.height, shape.width), scale=(0.8, 2.0))
    return replace(sample, name=f"{sample.name}-{view}", image=jitter(image, rng), mask=mask)


def measure_plans(
    model: Segmenter,
    plans: list[Knobs],
    datasets: Sequence[Dataset],
    spec: str,
    canvases: Sequence[Canvas],
    views: int,
    seed: int,
    results: PartialResults | None = None,
) -> dict[str, np.ndarray]:
    """names, groups, views (N,), sources (N,): index into `datasets`, larger (N,): than the largest
    plain canvas, counts (N, plans, ..), inputs (N, gate inputs).

    All views of an image follow each other, so that contiguous folds of the rows keep them
    together. An image that is all void has no quality and is left out. spec: the data sets as they
    were named. results: of an earlier run that was stopped. Raises RunError where no image is left.
    """
    results = results or PartialResults()
    results.begin(datasets)
    work = [(s, i, v) for s, d in enumerate(datasets) for i in range(len(d)) for v in range(views)]
    for row, (source, index, view) in enumerate(tqdm(work, desc="quality", mininterval=5)):
        if row < len(results.rows):
            continue
        sample = view_of(
            datasets[source][index], view, canvases, np.random.default_rng((seed, row))
        )
        if (sample.mask == VOID).all():
            results.add(None)
            continue
        counts, inputs = counts_by_knobs(model, sample, canvases, plans)
        about = {"names": sample.name, "groups": sample.group, "sources": source, "views": view}
        about |= {"larger": is_larger(canvases, *sample.image.shape[1::-1])}
        results.add(
            {name: np.array(value) for name, value in about.items()}
            | {"counts": counts, "inputs": inputs}
        )
    results.save()
    columns = results.columns()
    if not columns:
        raise RunError(
            f"{spec}: every image is all void; there is nothing to measure the quality on"
        )
    return columns | {"plans": np.array([plan.name for plan in plans])}


def main(args: argparse.Namespace) -> None:
    options = data_options(args)
    config, canvases = read_config(args.run)[0], read_canvases(args.run)
    if config.tasks:
        derive_tasks(args.run, options.fit, options.held)
        return
    model, (plans, _), place = load_model(args.run), read_plans(args.run), args.run / "targets"
    weights = args.run / WEIGHTS
    network = Network(model, canvases, weights, trained_on(args.run), classes_of(args.run))
    parts = measure_parts(network, plans, options, place)
    for part, targets in parts:
        write_targets(args.run, part, targets)
    discard_partial(place)


@dataclass(frozen=True, slots=True)
class Network:
    """What is measured. weights: its file. trained: its data sets, as far as they are known.
    classes: their names, in the order of the labels."""

    model: Segmenter
    canvases: Sequence[Canvas]
    weights: Path
    trained: Sequence[Trained]
    classes: Sequence[str]


def measure_parts(
    network: Network, plans: list[Knobs], options: DataOptions, place: Path
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """("held", targets), then ("fit", targets), of the data sets that the options name, with
    "spec", their names, "specs", each of them, and "seen", (N,): whether the network was trained on
    the image, as far as is known.

    place: where results lie, see `partial_files`, until the caller discards them. Raises
    DataError, RunError.
    """
    model, canvases, trained = network.model, network.canvases, network.trained
    parts = (("held", [options.held], 1), ("fit", options.fit, options.views))
    for spec, root in trained:
        refuse_shared("--held", options.held, options.data, spec, root, "the network")
    for spec in options.fit:
        refuse_shared("--held", options.held, options.data, spec, options.data, "the gate")
    opened = {
        part: [
            open_dataset(spec, options.data, segments=model.config.head == "queries")
            for spec in specs
        ]
        for part, specs, _ in parts
    }
    check_views(options.views, opened["fit"])
    for part, specs, _ in parts:
        for name, data in zip(specs, opened[part], strict=True):
            refuse_misfit(f"--{part} {name}", data, model.config, network.classes)
            check(data, f"--{part} {name}", complete=False)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    root, names = options.data and str(options.data.resolve()), [plan.name for plan in plans]
    partial = partial_files(place)
    for part, specs, views in parts:
        datasets, spec, seed = opened[part], " ".join(specs), options.seed
        lengths = [len(data) for data in datasets]
        key = key_of(network.weights, specs, lengths, root, names, described(canvases), views, seed)
        results = PartialResults(partial[part], key)
        targets = measure_plans(model, plans, datasets, spec, canvases, views, seed, results)
        seen = [
            any(share_images(spec, other, options.data, its_root) for other, its_root in trained)
            for spec in specs
        ]
        named = {"spec": np.array(spec), "specs": np.array(specs)}  # a name may have spaces
        yield part, targets | named | {"seen": np.array(seen)[targets["sources"]]}


def check_views(views: int, datasets: Sequence[Dataset]) -> None:
    """Raises DataError where an image cannot have so many views."""
    limits = [most for data in datasets if (most := TASKS[data.task].views) is not None]
    if views < 1 or any(views > most for most in limits):
        most = f" and, for objects, at most {min(limits)}: turns, mirrored" if limits else ""
        raise DataError(f"--views {views} must be at least 1{most}")
