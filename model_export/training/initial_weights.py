"""What training begins with: the network's config, its canvases and its first weights.

Either a config of its own with the backbone's ImageNet weights, or the end of a finished run or a
bundle (`--start-from`). Then config and canvases are that one's, except for what the command
line changes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from model_export.data.augment import parse_size
from model_export.data.datasets import Dataset
from model_export.network.backbone import BACKBONES, load_pretrained
from model_export.network.config import CONFIGS, STANDARD, Config, proscale
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from model_export.option_types import whole
from model_export.training.bundle_weights import WEIGHTS, read_weights
from model_export.training.runs import (
    RunError,
    Trained,
    classes_of,
    load_model,
    read_config,
    trained_on,
)
from service import bundle
from service.bundle import Canvas, Shape

CANVASES = "384x480"


def add_initial_arguments(parser: argparse.ArgumentParser) -> None:
    add, else_default = parser.add_argument, "default: that of --start-from, else the config's"
    add(
        "--start-from",
        type=Path,
        help="finished run, or bundle, whose weights to start with (fine-tuning)",
    )
    add(
        "--partly",
        action="store_true",
        help="take the weights of --start-from that fit; the others are new",
    )
    add("--config", choices=sorted(CONFIGS), help="default: that of --start-from, else tiny")
    add("--backbone", choices=sorted(BACKBONES), help=else_default)
    add(
        "--backbone-weights",
        type=Path,
        help=".npz with ImageNet weights; without it the backbone starts at random",
    )
    add("--schedule", help=f"standard, or PRO-SCALE's p1,p2,p3, e.g. 2,2,2; {else_default}")
    add(
        "--pause-after",
        type=whole(0),
        metavar="LAYERS",
        help=f"how many layers see every token; {else_default}",
    )
    add("--pixel-embedding", choices=("conv", "light", "depthwise"), help=else_default)
    add("--recalibration", action="store_true", help="PRO-SCALE's token re-calibration")
    add("--matching", choices=("hungarian", "class"), help=else_default)
    add("--queries", type=whole(), help=else_default)
    add(
        "--canvases",
        nargs="+",
        metavar="CANVAS",
        help="sizes to look at images, height x width, from small to large; several shapes of one "
        "with commas, e.g. 192x256,256x192 480x640,640x480; "
        f"default: those of --start-from, else {CANVASES}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialOptions:
    """The arguments above; None: as the source or the named config has it."""

    start_from: Path | None = None
    partly: bool = False
    config: str | None = None
    backbone: str | None = None
    backbone_weights: Path | None = None
    schedule: str | None = None
    pause_after: int | None = None
    pixel_embedding: str | None = None
    recalibration: bool = False
    matching: str | None = None
    queries: int | None = None
    canvases: Sequence[str] | None = None


def initial_model(
    options: InitialOptions, train: Dataset, resumed: Path | None
) -> tuple[Segmenter, tuple[Canvas, ...]]:
    """The network to train with its first weights, and its canvases. Raises RunError or ValueError.

    resumed: the run whose checkpoint will bring the weights, so that what it started from need not
    be there any more; None where there is no checkpoint.
    """
    if options.partly and not options.start_from:
        raise RunError(
            "--partly is about --start-from: name a run or a bundle there, or leave --partly out"
        )
    config, canvases, weights = None, parse_canvases([CANVASES]), None
    if options.start_from and resumed:
        config, canvases, _ = read_config(resumed)
    elif options.start_from:
        weights, canvases = read_trained(options.start_from)
        config = weights.config
        if config.tasks:
            raise RunError(
                f"--start-from {options.start_from} has several heads: train it further with "
                f"train-tasks, or name a network of one task"
            )
    model = Segmenter(config_of(options, train, config))
    if options.backbone_weights:
        if weights and weights.config.backbone == model.config.backbone:
            raise RunError(
                "--start-from brings the backbone's weights, too: leave --backbone-weights out"
            )
        load_pretrained(model.backbone, options.backbone_weights)
    if weights:
        take_weights(model, weights, options.start_from, options.partly)
    return model, parse_canvases(options.canvases) if options.canvases else canvases


def parse_canvases(texts: Sequence[str]) -> tuple[Canvas, ...]:
    """Raises ValueError that shows the form."""
    canvases = tuple(
        Canvas.of([Shape(*parse_size(shape)) for shape in text.split(",")]) for text in texts
    )
    areas = [canvas.largest.area for canvas in canvases]
    if any(a >= b for a, b in pairwise(areas)):
        raise ValueError(f"--canvases {' '.join(texts)} must go from small to large")
    if len({canvas.name for canvas in canvases}) < len(canvases):
        raise ValueError(f"--canvases {' '.join(texts)}: two have the same longest side")
    shapes = [shape for canvas in canvases for shape in canvas.shapes]
    if len({*shapes}) < len(shapes):
        raise ValueError(f"--canvases {' '.join(texts)}: a shape occurs twice")
    return canvases


def read_trained(path: Path) -> tuple[Segmenter, tuple[Canvas, ...]]:
    """A run's averaged weights, or a bundle's, and the canvases. Raises RunError where the path is
    neither."""
    if (path / bundle.FILE).exists():
        weights, _, canvases = read_weights(path / WEIGHTS)
        return weights, canvases
    return load_model(path), read_config(path)[1]


def seen_by(path: Path) -> list[Trained]:
    """What the weights of a run, or of a bundle, were trained on."""
    if (path / bundle.FILE).exists():
        return seen_by_bundle(bundle.load(path).manifest)
    return trained_on(path)


def classes_by(path: Path) -> tuple[str, ...]:
    """The names of the classes of a run or of a bundle."""
    if (path / bundle.FILE).exists():
        return tuple(entry.name for entry in bundle.load(path).manifest.head.classes)
    return classes_of(path)


def seen_by_bundle(manifest: bundle.Manifest) -> list[Trained]:
    """As far as the manifest tells: it leaves out folders of any images, which have no name."""
    return [(spec, None) for spec in manifest.calibration.get("trained_on", ())]


def knobs_of(folder: Path, manifest: bundle.Manifest) -> list[Knobs]:
    """The plans of a bundle. Raises RunError where they have no canvas, as before there were
    several."""
    plans = [Knobs.parse(plan.name) for plan in manifest.encoder_plans]
    if not all(plan.canvas for plan in plans):
        raise RunError(
            f"{folder} is of an older version, whose gate saw less: export its run again"
        )
    return plans


def config_of(options: InitialOptions, train: Dataset, source: Config | None = None) -> Config:
    """Classes and task are the data's; the rest is the source's or the named config's, with the
    changes that the options ask for. Raises RunError or ValueError where these do not fit."""
    if source is None or options.config is not None:
        config = CONFIGS[options.config or "tiny"](train.channels)
    else:
        queries = train.channels if source.matching == "class" else source.queries
        config = replace(source, classes=train.channels, queries=queries)
    changes: dict[str, Any] = {"task": train.task}
    if options.recalibration:
        changes["recalibration"] = True
    if options.schedule is not None:
        changes["schedule"] = parse_schedule(options.schedule)
    for name in ("backbone", "pause_after", "pixel_embedding", "matching", "queries"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    layers = len(changes.get("schedule", config.schedule))
    pause_after = changes.get("pause_after", config.pause_after)
    if pause_after is not None and 0 < layers <= pause_after:
        raise RunError(
            f"an encoder of {layers} layers cannot pause tokens after {pause_after}: name 0 to "
            f"{layers - 1} by --pause-after"
        )
    return replace(config, **changes)


def parse_schedule(text: str) -> tuple[int, ...]:
    """Raises ValueError that shows the form."""
    if text == "standard":
        return STANDARD
    counts = text.split(",")
    if len(counts) != 3 or not all(count.isdecimal() for count in counts):
        raise ValueError(
            f"--schedule {text!r} must be standard or three numbers of layers, e.g. 2,2,2"
        )
    return proscale(*map(int, counts))


def take_weights(model: Segmenter, trained: Segmenter, path: Path, partly: bool) -> None:
    """Give the model the weights of a trained one.

    partly: the trained one may have another config; tensors that it lacks or has in another shape
    stay as they are, and are named. Raises RunError where the config differs without `partly`, or
    where nothing fits. path: for the messages.
    """
    if trained.config != model.config and not partly:
        raise RunError(
            f"--start-from {path} has another config ({trained.config}) than this run "
            f"({model.config}): leave out what changes it, or add --partly to take the weights "
            f"that fit"
        )
    own, theirs = model.state_dict(), trained.state_dict()
    if trained.config.backbone != model.config.backbone:  # what fits by chance means nothing there
        theirs = {n: value for n, value in theirs.items() if not n.startswith("backbone.")}
    fitting = {
        name: value
        for name, value in theirs.items()
        if name in own and own[name].shape == value.shape
    }
    if not fitting:
        raise RunError(f"--start-from {path} --partly: none of its weights fits this network")
    model.load_state_dict(fitting, strict=False)
    new = [name for name in own if name not in fitting]
    if new:
        print(
            f"{path}: {len(fitting)} of {len(own)} tensors fit; "
            f"these are new: {', '.join(in_short(new, list(own)))}",
            flush=True,
        )


def in_short(names: Sequence[str], every: Sequence[str]) -> list[str]:
    """Dotted names, with PREFIX.* in place of all that begin with it: a backbone has hundreds."""
    others, short = set(every) - set(names), dict[str, None]()
    for name in names:
        parts = name.split(".")
        prefixes = (".".join(parts[:length]) + "." for length in range(1, len(parts)))
        whole = (p for p in prefixes if not any(other.startswith(p) for other in others))
        short[next((f"{prefix}*" for prefix in whole), name)] = None
    return list(short)
