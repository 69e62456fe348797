"""Step B: the quality of every exit on every image (ECO-M2F, arXiv 2404.15244, section 3).

Backbone and encoder layers run once an image; only the decoder runs once an exit. Kept are confusion matrices, from
which the quality of any choice of exits follows, and the gate's input, so that step C needs no images at all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from model_export.network.segmenter import Segmenter
from model_export.recipe.augment import jitter, random_crop
from model_export.recipe.datasets import VOID, Dataset, Sample, open_dataset
from model_export.recipe.quality import confusions_and_pooled
from model_export.recipe.runs import load_model, read_config, write_targets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, help="a run's folder with a trained parent")
    add("--data", type=Path, help="folder of the data set (not needed for scenes)")
    add("--fit", nargs="+", required=True, help="data sets that the gate learns from, e.g. camvid:gate scenes:200:3")
    add("--held", required=True, help="data set that the gate never sees: the quality in the bundle is measured on it")
    add(
        "--views",
        type=int,
        default=1,
        help="views of each --fit image; the first is plain, others zoomed and recoloured",
    )
    add("--seed", type=int, default=0)


def view_of(sample: Sample, view: int, canvas: tuple[int, int], rng: np.random.Generator) -> Sample:
    """View 0 is the image itself. Others stand in for images that the camera did not take."""
    if view == 0:
        return sample
    image, mask = random_crop(sample, rng, canvas, scale=(0.8, 2.0))
    return Sample(f"{sample.name}-{view}", jitter(image, rng), mask)


@torch.inference_mode()
def measure(
    model: Segmenter, datasets: list[Dataset], canvas: tuple[int, int], views: int, seed: int
) -> dict[str, np.ndarray]:
    """names (N,), confusions (N, exits, C, C), pooled (N, 2 * channels): the gate's input.

    All views of an image follow each other, so that contiguous folds of the rows keep them together. An image that is
    all void has no quality and is left out.
    """
    names, confusions, pooled = [], [], []
    exits = list(range(1, model.config.exits + 1))
    work = [(d, i, v) for d in datasets for i in range(len(d)) for v in range(views)]
    for row, (dataset, index, view) in enumerate(tqdm(work, mininterval=5)):
        sample = view_of(dataset[index], view, canvas, np.random.default_rng((seed, row)))
        if (sample.mask == VOID).all():
            continue
        matrices, features = confusions_and_pooled(model, sample, canvas, exits)
        names.append(sample.name)
        confusions.append(matrices)
        pooled.append(features)
    return {"names": np.array(names), "confusions": np.stack(confusions), "pooled": np.stack(pooled)}


def main(args: argparse.Namespace) -> None:
    _, canvas, _ = read_config(args.run)
    model = load_model(args.run)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    fit = [open_dataset(spec, args.data) for spec in args.fit]
    held = open_dataset(args.held, args.data)
    write_targets(args.run, "held", args.held, measure(model, [held], canvas, 1, args.seed))
    write_targets(args.run, "fit", " ".join(args.fit), measure(model, fit, canvas, args.views, args.seed))
