"""Step B: the quality of every plan on every image (ECO-M2F, arXiv 2404.15244, section 3, has exits
only).

Kept are counts, from which the quality of any choice of plans follows, and the gate's input, so
that step C needs no images at all.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from model_export.data.augment import jitter, random_crop
from model_export.data.datasets import (
    VOID,
    DataError,
    Dataset,
    Sample,
    open_dataset,
    refuse_shared,
    share_images,
)
from model_export.gating.partial_results import Kept, key_of
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from model_export.tasks import TASKS
from model_export.training.quality import counts_by_knobs
from model_export.training.runs import (
    RunError,
    Trained,
    load_model,
    read_config,
    read_plans,
    trained_on,
    write_targets,
)


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
        help="data set that the gate never sees: the quality in the bundle is measured on it",
    )
    add(
        "--views",
        type=int,
        default=1,
        help="views of each --fit image; the first is plain, others zoomed and recoloured, "
        "or, with objects, turned",
    )
    add("--seed", type=int, default=0)


def view_of(sample: Sample, view: int, canvas: tuple[int, int], rng: np.random.Generator) -> Sample:
    """View 0 is the image itself. Others stand in for images that the camera did not take.

    Objects must stay whole, so those of an instance data set are the mirror image and right-angled
    turns of both.
    """
    if view == 0:
        return sample
    if sample.instances is not None:
        image, mask, instances = (
            np.ascontiguousarray(np.rot90(each[:, ::-1] if view % 2 else each, view // 2))
            for each in (sample.image, sample.mask, sample.instances)
        )
        return replace(
            sample, name=f"{sample.name}-{view}", image=image, mask=mask, instances=instances
        )
    image, mask = random_crop(sample, rng, canvas, scale=(0.8, 2.0))
    return replace(sample, name=f"{sample.name}-{view}", image=jitter(image, rng), mask=mask)


def measure(
    model: Segmenter,
    plans: list[Knobs],
    datasets: Sequence[Dataset],
    spec: str,
    canvas: tuple[int, int],
    views: int,
    seed: int,
    kept: Kept | None = None,
) -> dict[str, np.ndarray]:
    """names, groups, views (N,), sources (N,): index into `datasets`, counts (N, plans, ..), inputs
    (N, gate inputs).

    All views of an image follow each other, so that contiguous folds of the rows keep them
    together. An image that is all void has no quality and is left out. spec: the data sets as they
    were named. kept: goes on from there. Raises RunError where nothing is left.
    """
    kept = kept or Kept()
    work = [(s, i, v) for s, d in enumerate(datasets) for i in range(len(d)) for v in range(views)]
    for row, (source, index, view) in enumerate(tqdm(work, desc="quality", mininterval=5)):
        if row < len(kept.rows):
            continue
        sample = view_of(datasets[source][index], view, canvas, np.random.default_rng((seed, row)))
        if (sample.mask == VOID).all():
            kept.add(None)
            continue
        counts, inputs = counts_by_knobs(model, sample, canvas, plans)
        about = {"names": sample.name, "groups": sample.group, "sources": source, "views": view}
        kept.add(
            {name: np.array(value) for name, value in about.items()}
            | {"counts": counts, "inputs": inputs}
        )
    kept.save()
    found = kept.columns()
    if not found:
        raise RunError(
            f"{spec}: every image is all void; there is nothing to measure the quality on"
        )
    return found | {"plans": np.array([plan.name for plan in plans])}


def main(args: argparse.Namespace) -> None:
    _, canvas, _ = read_config(args.run)
    model, (plans, _), place = load_model(args.run), read_plans(args.run), args.run / "targets"
    weights = args.run / "model.safetensors"
    for part, targets in both_parts(
        model, plans, canvas, args, trained_on(args.run), weights, place
    ):
        write_targets(args.run, part, targets)


def both_parts(
    model: Segmenter,
    plans: list[Knobs],
    canvas: tuple[int, int],
    args: argparse.Namespace,
    trained: Sequence[Trained],
    weights: Path,
    place: Path,
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """("held", targets), then ("fit", targets), of the data sets that the arguments name, with
    "spec", their names, and "seen", (N,): whether the network was trained on the image, as far as
    `trained`, its data sets, tells.

    weights: the network's file. place: where what was measured lies until all is;
    PLACE-held.partial.npz, PLACE-fit.partial.npz.
    """
    parts = (("held", [args.held], 1), ("fit", args.fit, args.views))
    for each in trained:
        refuse_shared("--held", args.held, args.data, *each, "the network")
    for spec in args.fit:
        refuse_shared("--held", args.held, args.data, spec, args.data, "the gate")
    opened = {part: [open_dataset(spec, args.data) for spec in specs] for part, specs, _ in parts}
    if args.views < 1:
        raise DataError(f"--views {args.views} must be at least 1")
    for dataset in opened["fit"]:
        most = TASKS[dataset.task].views
        if most is not None and args.views > most:
            raise DataError(
                f"--views {args.views} must be at most {most} for objects: turns, mirrored"
            )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    root, names = args.data and str(args.data.resolve()), [plan.name for plan in plans]
    partial = {part: place.with_name(f"{place.name}-{part}.partial.npz") for part, _, _ in parts}
    for part, specs, views in parts:
        datasets, spec = opened[part], " ".join(specs)
        key = key_of(
            weights, specs, [len(each) for each in datasets], root, names, canvas, views, args.seed
        )
        found = measure(
            model, plans, datasets, spec, canvas, views, args.seed, Kept(partial[part], key)
        )
        seen = [
            any(share_images(each, other, args.data, its_root) for other, its_root in trained)
            for each in specs
        ]
        yield part, found | {"spec": np.array(spec), "seen": np.array(seen)[found["sources"]]}
    for file in partial.values():
        file.unlink()
