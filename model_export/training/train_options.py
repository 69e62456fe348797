"""The arguments of `train-exits`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model_export.data.augment import parse_size
from model_export.data.cache import CACHE_MB
from model_export.data.datasets import SPECS, absolute
from model_export.option_types import number, whole
from model_export.training.batches import Batches
from model_export.training.initial_weights import (
    InitialOptions,
    add_initial_arguments,
    seen_by,
)
from model_export.training.runs import RunError, Trained
from model_export.training.supernet import SAMPLING

SCENES = 100_000  # to draw from, with --scenes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        required=True,
        help="the run's folder; an unfinished run continues",
    )
    add("--data", type=Path, help="folder of the data set (not needed for scenes)")
    add("--train", default="scenes:256", help=f"data set to train on: {SPECS}")
    add("--dev", default="scenes:32:1", help="data set to watch the quality on, never trained on")
    add_initial_arguments(parser)
    add(
        "--scenes",
        type=number(0, 1),
        default=0.0,
        help="share of generated scenes mixed into every batch (CamVid's classes)",
    )
    add("--crop", default="256x352", help="height x width of the training crops")
    add(
        "--zoom",
        type=number(0.01, 100),
        nargs=2,
        default=(0.6, 1.6),
        help="range of the crops' scale relative to that on the canvas",
    )
    add(
        "--balance",
        type=number(0, 1),
        default=0.0,
        help="draw images of small groups more often: 1 = all groups equally often",
    )
    add(
        "--turn",
        action="store_true",
        help="also turn crops by right angles (microscopy, aerial views)",
    )
    add(
        "--weather",
        type=number(0, 1),
        default=0.0,
        help="share of crops in other light or weather: haze, dusk, glare, blur (outdoor scenes)",
    )
    add("--steps", type=whole(), default=6000, help="of the whole training")
    add("--batch", type=whole(), default=4, help="per process")
    add(
        "--workers",
        type=whole(0),
        default=0,
        help="processes that draw batches ahead, for a GPU; each has --cache-mb of its own",
    )
    add("--lr", type=number(), default=4e-4, help="learning rate, after a warm-up the largest")
    add("--backbone-lr", type=number(), default=0.2, help="factor of --lr for the backbone")
    about = "weight decay; 0 on norms, biases, embeddings and queries"
    add("--decay", type=number(), default=0.05, help=about)
    add("--points", type=whole(), default=2048, help="sampled points per mask")
    add(
        "--pixel-weight",
        type=number(),
        default=2.0,
        help="weight of the semantic cross-entropy; 0 = Mask2Former's loss",
    )
    add(
        "--pixel-stride",
        type=int,
        choices=(1, 2, 4),
        default=4,
        help="stride of the labels in the semantic cross-entropy",
    )
    add(
        "--gap-weight",
        type=number(),
        default=1.0,
        help="weight in it of the pixels where two objects meet (instance task)",
    )
    about = "weight of the token heads' cross-entropy"
    add("--token-weight", type=number(), default=1.0, help=about)
    add(
        "--distill",
        type=number(),
        default=1.0,
        help="weight of distillation from the full encoder; 0 = none",
    )
    add(
        "--sampling",
        choices=sorted(SAMPLING),
        default="sandwich",
        help="which networks a step trains",
    )
    add(
        "--exit-weight",
        choices=("linear", "uniform"),
        default="uniform",
        help="loss weight by depth, mean 1",
    )
    add("--ema", type=number(0, 1), default=0.999, help="decay of the averaged weights")
    add("--seed", type=whole(0), default=0, help="of new weights and of all that is drawn")
    add(
        "--cache-mb",
        type=number(),
        default=CACHE_MB,
        help="memory for decoded images, in MiB per process; more than fit are decoded again",
    )
    add(
        "--check-every",
        type=whole(),
        default=1000,
        help="steps between checkpoints, each with an evaluation on the dev set",
    )
    add(
        "--stop-after",
        type=number(0, math.inf),
        default=math.inf,
        help="minutes after which to write a checkpoint and stop; run it again to continue",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(InitialOptions):
    """The arguments above."""

    out: Path
    data: Path | None
    train: str
    dev: str
    scenes: float
    crop: str
    zoom: Sequence[float]
    balance: float
    turn: bool
    weather: float
    steps: int
    batch: int
    workers: int
    lr: float
    backbone_lr: float
    decay: float
    points: int
    pixel_weight: float
    pixel_stride: int
    gap_weight: float
    token_weight: float
    distill: float
    sampling: str
    exit_weight: str
    ema: float
    seed: int
    cache_mb: float
    check_every: int
    stop_after: float

    def batches(self) -> Batches:
        """Raises ValueError that names what is wrong."""
        low, high = self.zoom
        if low > high:
            raise RunError(f"--zoom {low:g} {high:g} must go from small to large")
        return Batches(
            self.batch,
            self.scenes,
            parse_size(self.crop),
            (low, high),
            self.turn,
            self.weather,
            self.gap_weight,
        )

    def seen(self, resumed: Path | None) -> list[Trained]:
        """All that the weights will have been trained on. resumed: the run that goes on, maybe with
        other data than it began with."""
        source = resumed or self.start_from
        start = seen_by(source) if source else ()
        scenes = [(f"scenes:{SCENES}:{self.seed + 17}", None)] if self.scenes else []
        return [(absolute(self.train, self.data), self.data), *start, *scenes]
