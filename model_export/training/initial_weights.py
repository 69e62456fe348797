"""What a training starts with: the network's config, its canvas and its first weights.

Either a config of its own with the backbone's ImageNet weights, or where a finished run or a bundle
ended (`--start-from`): then config and canvas are that one's, but for what the command line
changes.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from model_export.data.augment import parse_size
from model_export.data.datasets import Dataset
from model_export.network.backbone import load_pretrained
from model_export.network.config import CONFIGS, STANDARD, Config, proscale
from model_export.network.segmenter import Segmenter
from model_export.training.bundle_weights import WEIGHTS, read_weights
from model_export.training.runs import RunError, Trained, load_model, read_config, trained_on
from service import bundle

CANVAS = (384, 480)


def add_start_arguments(parser: argparse.ArgumentParser) -> None:
    add, else_default = parser.add_argument, "default: that of --start-from, else the config's"
    add(
        "--start-from",
        type=Path,
        help="finished run, or bundle, whose weights to start with (fine-tuning)",
    )
    add(
        "--partly",
        action="store_true",
        help="of --start-from take the weights that fit; the others start anew",
    )
    add("--config", choices=sorted(CONFIGS), help="default: that of --start-from, else tiny")
    add("--backbone", choices=("mobilenet_v1", "mobilenet_v2"), help=else_default)
    add(
        "--backbone-weights",
        type=Path,
        help=".npz with ImageNet weights; without it the backbone starts at random",
    )
    add("--schedule", help=f"standard, or PRO-SCALE's p1,p2,p3, e.g. 2,2,2; {else_default}")
    add(
        "--pause-after",
        type=int,
        metavar="LAYERS",
        help=f"how many layers see every token; {else_default}",
    )
    add("--pixel-embedding", choices=("conv", "light", "depthwise"), help=else_default)
    add("--recalibration", action="store_true", help="PRO-SCALE's token re-calibration")
    add("--matching", choices=("hungarian", "class"), help=else_default)
    add("--queries", type=int, help=else_default)
    add(
        "--canvas",
        help="height x width that the model is made for; "
        "default: that of --start-from, else 384x480",
    )


def begin(
    args: argparse.Namespace, train: Dataset, resumed: bool
) -> tuple[Segmenter, tuple[int, int]]:
    """The network to train with its first weights, and the canvas (height, width). Raises RunError
    or ValueError.

    resumed: the weights will come from the checkpoint in args.out, so what the run started from
    need not be there.
    """
    if args.partly and not args.start_from:
        raise RunError(
            "--partly is about --start-from: name a run or a bundle there, or leave --partly out"
        )
    if args.start_from and args.backbone_weights:
        raise RunError(
            "--start-from brings the backbone's weights, too: leave --backbone-weights out"
        )
    config, canvas, weights = None, CANVAS, None
    if args.start_from and resumed:
        config, canvas, _ = read_config(args.out)
    elif args.start_from:
        weights, canvas = read_trained(args.start_from)
        config = weights.config
    model = Segmenter(config_of(args, train, config))
    if args.backbone_weights:
        load_pretrained(model.backbone, args.backbone_weights)
    if weights:
        take_weights(model, weights, args.start_from, args.partly)
    return model, parse_size(args.canvas) if args.canvas else canvas


def read_trained(path: Path) -> tuple[Segmenter, tuple[int, int]]:
    """A run's averaged weights, or a bundle's, and the canvas. Raises RunError where the path is
    neither."""
    if (path / bundle.FILE).exists():
        weights, _, canvas = read_weights(path / WEIGHTS)
        return weights, canvas
    return load_model(path), read_config(path)[1]


def seen_by(path: Path) -> list[Trained]:
    """What the weights of a run, or of a bundle, were trained on."""
    if (path / bundle.FILE).exists():
        return seen_by_bundle(bundle.load(path).manifest)
    return trained_on(path)


def seen_by_bundle(manifest: bundle.Manifest) -> list[Trained]:
    """As far as it can be told: a folder without a name of its own is known only where it lies."""
    return [(spec, None) for spec in manifest.calibration.get("trained_on", ())]


def config_of(args: argparse.Namespace, train: Dataset, source: Config | None = None) -> Config:
    """Classes and task are the data's; the rest is the source's or the named config's, as the
    arguments change it."""
    if source is None or args.config is not None:
        config = CONFIGS[args.config or "tiny"](train.channels)
    else:
        queries = train.channels if source.matching == "class" else source.queries
        config = replace(source, classes=train.channels, queries=queries)
    changes: dict[str, Any] = {"task": train.task}
    if args.recalibration:
        changes["recalibration"] = True
    if args.schedule is not None:
        counts = args.schedule.split(",")
        if args.schedule != "standard" and (
            len(counts) != 3 or not all(count.isdecimal() for count in counts)
        ):
            raise ValueError(
                f"--schedule {args.schedule!r} must be standard or three numbers of layers, e.g. "
                f"2,2,2"
            )
        changes["schedule"] = (
            STANDARD if args.schedule == "standard" else proscale(*map(int, counts))
        )
    for name in ("backbone", "pause_after", "pixel_embedding", "matching", "queries"):
        if getattr(args, name) is not None:
            changes[name] = getattr(args, name)
    return replace(config, **changes)


def take_weights(model: Segmenter, trained: Segmenter, path: Path, partly: bool) -> None:
    """Give the model the weights of a trained one.

    partly: one of another config will do; tensors that it lacks or has in another shape stay as
    they are, and are named. Raises RunError where the config differs without `partly`, or nothing
    fits. path: for the messages.
    """
    if trained.config != model.config and not partly:
        raise RunError(
            f"--start-from {path} is of another config ({trained.config}); this run's is "
            f"{model.config}: "
            "leave out what changes it, or add --partly to take the weights that fit"
        )
    own, theirs = model.state_dict(), trained.state_dict()
    fitting = {
        name: value
        for name, value in theirs.items()
        if name in own and own[name].shape == value.shape
    }
    if not fitting:
        raise RunError(f"--start-from {path} --partly: none of its weights fits this network")
    model.load_state_dict(fitting, strict=False)
    anew = [name for name in own if name not in fitting]
    if anew:
        print(
            f"{path}: {len(fitting)} of {len(own)} tensors fit; these start anew: "
            f"{', '.join(anew)}",
            flush=True,
        )
