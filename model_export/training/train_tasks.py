"""Step A for several tasks on one encoder: train a network whose encoder and heads can all be cut.

What a step trains is said in task_net.py. A batch is of one canvas, a random one. It can be stopped
at any time: the same command continues from the last checkpoint.

Heads of a network that is there can also be given other sizes and trained alone (`--only`): all
else stays what it is.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from model_export.data.datasets import Dataset, open_dataset, refuse_shared
from model_export.data.several_tasks import TaskBatches
from model_export.files import alone
from model_export.network.backbone import BACKBONES, load_pretrained
from model_export.network.config import Config, streets
from model_export.network.heads import HEADS
from model_export.network.segmenter import Segmenter
from model_export.option_types import number, whole
from model_export.training.initial_weights import parse_canvases, read_trained, seen_by
from model_export.training.optimizer import parameter_groups, rate
from model_export.training.progress import (
    Progress,
    averaged,
    load_checkpoint,
    name_changes,
    resumed_at,
)
from model_export.training.runs import (
    Average,
    RunError,
    cut_log,
    read_config,
    write_config,
)
from model_export.training.task_net import SAMPLING, TaskNet, are_all_that_see_lateral
from model_export.training.task_quality import dev_qualities
from service.bundle import Canvas

CANVASES = ("64x96", "96x128", "128x160")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the run's folder; an unfinished run continues")
    add("--train", default="scenes:1500:11", help="scenes:COUNT[:SEED[:BARE]] to train on")
    add("--dev", default="scenes:32:12", help="scenes to watch the quality on, never trained on")
    add("--heads", nargs="+", choices=HEADS, help="the tasks; default: all")
    add(
        "--canvases",
        nargs="+",
        metavar="CANVAS",
        help="sizes to look at images, height x width, from small to large; default: "
        + " ".join(CANVASES),
    )
    add("--start-from", type=Path, help="with --only: finished run or bundle to begin with")
    add(
        "--only",
        nargs="+",
        choices=HEADS,
        help="train these heads of --start-from alone, made as large as in the recipe, on features "
        "that are computed once; all else stays as it is",
    )
    add(
        "--chances",
        type=number(),
        nargs="+",
        help="how often each canvas is trained on, in proportion; default: all alike",
    )
    add("--backbone", choices=sorted(BACKBONES), help="default: the config's, mobilenet_v2")
    add("--backbone-weights", type=Path, help=".npz with ImageNet weights; default: random")
    add(
        "--sampling",
        choices=sorted(SAMPLING),
        default="sandwich",
        help="full: the whole batch is the full network's, which then has one width",
    )
    add(
        "--balance",
        choices=("equal", "uncertainty"),
        default="equal",
        help="of the tasks' losses; uncertainty: learned weights (arXiv 1705.07115)",
    )
    add("--distill", type=number(), default=1.0, help="weight of the distillation; 0 = none")
    add("--steps", type=whole(), default=4000, help="of the whole training")
    add("--batch", type=whole(), default=8, help="images in each step")
    add("--lr", type=number(), default=1e-3, help="learning rate, after a warm-up the largest")
    add("--backbone-lr", type=number(), default=0.3, help="factor of --lr for the backbone")
    about = "weight decay; 0 on norms, biases, embeddings and queries"
    add("--decay", type=number(), default=0.05, help=about)
    add("--ema", type=number(0, 1), default=0.998, help="decay of the averaged weights")
    add("--seed", type=whole(0), default=0, help="of new weights and of all that is drawn")
    add("--cache", type=Path, help="folder for prepared scenes, which runs on the same ones share")
    add("--check-every", type=whole(), default=500, help="steps between checkpoints")
    add(
        "--stop-after",
        type=number(0, math.inf),
        default=math.inf,
        help="minutes, then a checkpoint and an end",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The arguments above."""

    out: Path
    train: str
    dev: str
    heads: Sequence[str] | None
    canvases: Sequence[str] | None
    start_from: Path | None
    only: Sequence[str] | None
    chances: Sequence[float] | None
    backbone: str | None
    backbone_weights: Path | None
    sampling: str
    balance: str
    distill: float
    steps: int
    batch: int
    lr: float
    backbone_lr: float
    decay: float
    ema: float
    seed: int
    cache: Path | None
    check_every: int
    stop_after: float


def main(args: argparse.Namespace) -> None:
    with ExitStack() as held:
        train(Options(**vars(args)), held)


def config_of(options: Options, channels: int) -> Config:
    config = streets(channels, options.heads or tuple(HEADS))
    if options.sampling == "full":
        fixed = tuple(replace(head, widths=(1.0,)) for head in config.tasks)
        config = replace(config, tasks=fixed, widths=(1.0,))
    if options.backbone is not None:
        config = replace(config, backbone=options.backbone)
    return config


def initial_network(
    options: Options, channels: int, resumed: Path | None
) -> tuple[Segmenter, tuple[Canvas, ...]]:
    """The network with its first weights, and its canvases. Raises RunError where the options do
    not fit each other. resumed: the run whose checkpoint will bring the weights."""
    if options.sampling != "full" and options.batch < 4:
        raise RunError(f"--batch {options.batch} must be at least 4, to be divided")
    if (options.start_from is None) != (options.only is None):
        raise RunError(
            "--start-from and --only go together: a network, and the head of it to train"
        )
    if options.start_from is None:
        model = Segmenter(config_of(options, channels))
        if options.backbone_weights:
            load_pretrained(model.backbone, options.backbone_weights)
        return model, parse_canvases(options.canvases or CANVASES)
    brought = (options.heads, options.canvases, options.backbone, options.backbone_weights)
    if any(value is not None for value in brought) or options.sampling == "full":
        raise RunError(
            "--start-from brings heads with their widths, canvases and backbone: leave --heads, "
            "--canvases, --backbone, --backbone-weights and --sampling out"
        )
    if resumed:
        config, canvases, _ = read_config(resumed)
        return Segmenter(config), canvases
    return resized(options.start_from, options.only, channels)


def resized(
    path: Path, names: Sequence[str], channels: int
) -> tuple[Segmenter, tuple[Canvas, ...]]:
    """The network of a run or a bundle with these heads in the recipe's sizes, and its canvases.

    They have the first channels of each weight (network.slimmable), and those again for every part
    of a cell, so that a finer head begins with the answers of the coarser one. Raises RunError.
    """
    source, canvases = read_trained(path)
    recipe = streets(channels, names)
    heads = {head.name: head for head in recipe.tasks}
    before = {head.name: head for head in source.config.tasks}
    for name in names:
        if name not in before:
            raise RunError(f"--only {name}: {path} has no head of this name")
    tasks = tuple(heads.get(name, head) for name, head in before.items())
    learns = are_all_that_see_lateral(source.config, names)
    detail = source.config.detail or (recipe.detail and learns)
    model = Segmenter(replace(source.config, tasks=tasks, detail=detail))
    state = source.state_dict()
    for name, head in heads.items():
        if head.fine > before[name].fine:
            parts = (head.fine // before[name].fine) ** 2
            for key in (f"heads.{name}.embed_mask.{kind}" for kind in ("weight", "bias")):
                state[key] = torch.cat([state[key]] * parts)
    own = model.state_dict()
    if source.detail is None:
        state |= {key: value for key, value in own.items() if key.startswith("detail.")}
    try:
        model.load_state_dict(
            {
                key: state[key][tuple(slice(length) for length in value.shape)]
                for key, value in own.items()
            }
        )
    except (KeyError, RuntimeError) as error:
        raise RunError(
            f"--only {' '.join(names)}: in {path} they are smaller than the recipe's: {error}"
        ) from error
    return model, canvases


def open_scenes(flag: str, spec: str) -> Dataset:
    """Raises RunError."""
    if spec.partition(":")[0] != "scenes":
        raise RunError(f"{flag} {spec}: only scenes:COUNT[:SEED] have the labels of all tasks")
    return open_dataset(spec, None)


def train(options: Options, held: ExitStack) -> None:
    """held: the run's folder, to the end. Raises ValueError, before the first step, where options
    do not fit, and OSError where another command is at work on the run."""
    resumed = resumed_at(options.out)
    data, dev = open_scenes("--train", options.train), open_scenes("--dev", options.dev)
    torch.manual_seed(options.seed)
    model, canvases = initial_network(options, data.channels, resumed)
    source = resumed or options.start_from
    # Who goes on may do so on more scenes, or for more steps.
    seen = [*(seen_by(source) if source else ()), (options.train, None)]
    for spec, root in seen:
        refuse_shared("--dev", options.dev, None, spec, root, "the network")
    config = model.config
    chances = options.chances or [1.0] * len(canvases)
    if len(chances) != len(canvases) or not min(chances) >= 0 < sum(chances):
        raise RunError(f"--chances {chances} must be one for each of {len(canvases)} canvases")
    model = model.to(memory_format=torch.channels_last)
    network = TaskNet(model, options.distill, options.balance, options.only)
    average = Average(model, options.ema)
    groups = parameter_groups(model, options.lr, options.backbone_lr, options.decay)
    if network.balance is not None:
        rest = {"lr": options.lr, "base": options.lr, "weight_decay": 0.0}
        groups.append({"params": list(network.balance.parameters()), **rest})
    optimizer = torch.optim.AdamW(groups)
    first_step = 0
    options.out.mkdir(parents=True, exist_ok=True)
    held.enter_context(alone(options.out))
    if resumed:
        if read_config(options.out)[:2] != (config, canvases):
            raise RunError(f"{options.out} holds another run: choose another --out or delete it")
        name_changes(options.out, asdict(options))
        first_step = load_checkpoint(options.out, model, optimizer, average)
        cut_log(options.out, first_step)
    write_config(options.out, config, canvases, asdict(options), seen, data.classes)
    batches = TaskBatches(
        data,
        canvases,
        options.batch,
        chances,
        options.seed,
        options.cache,
        colours_stay=options.only is not None,
    )
    names = ["token", *(head.name for head in config.tasks), "features"]
    begun = time.monotonic()
    progress = Progress(options.out, options.check_every, names, first_step)
    bar = tqdm(range(first_step, options.steps), mininterval=10)
    for step in bar:
        torch.manual_seed(hash((options.seed, step)))  # the points of the loss
        rng = np.random.default_rng((options.seed, step, 1))
        network.train()
        draws = SAMPLING[options.sampling](config, options.batch, rng)
        terms = network(batches.batch(step), draws)
        torch.stack(list(terms.values())).sum().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * rate(step, options.steps, min(200, options.steps // 10))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model, step)
        progress.add(step, terms)
        done = step + 1 == options.steps or (time.monotonic() - begun) / 60 > options.stop_after
        if progress.due(step) or done:
            progress.report(
                step,
                model,
                optimizer,
                average,
                lambda: dev_qualities(averaged(config, average), dev, canvases),
            )
            progress.start_anew()
        if done:
            break
