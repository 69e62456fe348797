"""Write generated scenes as a labelled folder: for `evaluate`, for `train-exits --train folder`, or
to look at.

Their difficulty is known, so they show whether a gate follows it. A scene's group is its fifth of
the range of clutter.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from model_export.data.datasets import BARE, Scenes
from model_export.data.sample import DataError
from model_export.files import naming, replacing
from model_export.option_types import number, whole

FIFTHS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("out", type=Path, help="new folder, with images/, masks/ and meta.json")
    add("--count", type=whole(), default=200, help="how many")
    add(
        "--seed",
        type=whole(0),
        default=0,
        help="the scenes of a seed are always the same: take another seed to train on",
    )
    levels = "its range: -1 is a bare street, 0 a quiet one, 1 rain at dusk"
    add("--clutter", type=number(-1, 1), nargs=2, default=(0.0, 1.0), help=levels)
    add(
        "--bare",
        type=number(0, 1),
        default=0.0,
        help="share of bare streets (clutter -1), on which depth cannot pay",
    )


def main(args: argparse.Namespace) -> None:
    low, high = args.clutter
    if low > high:
        raise DataError(f"--clutter {low:g} {high:g} must go from small to large")
    if args.bare == 1:
        raise DataError("--bare must be below 1: --clutter -1 -1 draws nothing but bare streets")
    if args.out.exists() and any(args.out.iterdir()):
        raise DataError(f"{args.out} is not empty; choose another folder or delete it")
    scenes = Scenes(args.count, args.seed, (low, high), bare=args.bare)
    for part in ("images", "masks"):
        (args.out / part).mkdir(parents=True, exist_ok=True)
    entries = []
    for index in tqdm(range(len(scenes))):
        sample, clutter = scenes[index], scenes.clutter_of(index)
        fifth = min(math.floor(clutter * FIFTHS), FIFTHS - 1)
        group = (
            "bare"
            if clutter == BARE
            else f"clutter {fifth / FIFTHS:.1f} to {(fifth + 1) / FIFTHS:.1f}"
        )
        entries.append({"id": sample.name, "seq": group, "clutter": round(clutter, 4)})
        for part, pixels in (("images", sample.image), ("masks", sample.mask)):
            file = args.out / part / f"{sample.name}.png"
            with naming(file):
                Image.fromarray(np.asarray(pixels)).save(file)
    document = {"classes": scenes.classes, "colors": scenes.palette, "splits": {"all": entries}}
    with replacing(args.out / "meta.json") as file:
        file.write_text(json.dumps(document, indent=1) + "\n")
