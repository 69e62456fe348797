"""Step A for several tasks on one encoder: train a network whose encoder and heads can all be cut.

Every step divides its batch among the full network, the smallest one and a random one between: a
depth and width of the encoder, and a width of each head (the sandwich rule, arXiv 1903.05134). The
smaller ones also learn from the full configuration's features and answers: configuration-invariant
distillation (arXiv 2308.11744). A batch is of one canvas, a random one. It can be stopped at any
time: the same command continues from the last checkpoint.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from model_export.data.datasets import Dataset, open_dataset
from model_export.data.several_tasks import TaskBatch, TaskBatches
from model_export.network.backbone import BACKBONES, load_pretrained
from model_export.network.config import Config, streets
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from model_export.option_types import number, whole
from model_export.training.head_losses import LOSSES, agreement
from model_export.training.initial_weights import parse_canvases
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
    Trained,
    cut_log,
    read_config,
    trained_on,
    write_config,
)
from model_export.training.supernet import distillation, token_loss
from model_export.training.task_quality import dev_qualities

HEADS = ("semantic", "detection", "depth")
CANVASES = ("64x96", "96x128", "128x160")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the run's folder; an unfinished run continues")
    add("--train", default="scenes:1500:11", help="scenes:COUNT[:SEED[:BARE]] to train on")
    add("--dev", default="scenes:32:12", help="scenes to watch the quality on, never trained on")
    add("--heads", nargs="+", choices=HEADS, default=HEADS, help="the tasks; default: all")
    add(
        "--canvases",
        nargs="+",
        default=CANVASES,
        metavar="CANVAS",
        help="sizes to look at images, height x width, from small to large",
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
        choices=("sandwich", "full"),
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
    add("--decay", type=number(), default=0.05, help="weight decay; 0 on norms and biases")
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
    heads: Sequence[str]
    canvases: Sequence[str]
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


@dataclass(frozen=True, slots=True)
class Draw:
    """rows: the images of the batch that go through this network. widths: of each head."""

    rows: slice
    knobs: Knobs
    widths: dict[str, float]


def sandwich(config: Config, batch: int, rng: np.random.Generator) -> list[Draw]:
    """Half of the batch for the full network, a quarter each for a random and the smallest one."""
    quarter = batch // 4
    half = batch - 2 * quarter
    knobs = Knobs(int(rng.integers(1, config.exits + 1)), 1.0, float(rng.choice(config.widths)))
    widths = {head.name: float(rng.choice(head.widths)) for head in config.tasks}
    return [
        *full(config, half, rng),
        Draw(slice(half, half + quarter), knobs, widths),
        Draw(
            slice(half + quarter, batch),
            Knobs(1, 1.0, min(config.widths)),
            {head.name: head.widths[0] for head in config.tasks},
        ),
    ]


def full(config: Config, batch: int, rng: np.random.Generator) -> list[Draw]:
    widths = {head.name: 1.0 for head in config.tasks}
    return [Draw(slice(0, batch), Knobs(config.exits), widths)]


SAMPLING = {"sandwich": sandwich, "full": full}


class TaskNet(nn.Module):
    """The network with its losses. balance: of each head the logarithm of its loss's variance,
    learned (arXiv 1705.07115, section 3.2); None: all weights are 1."""

    def __init__(self, model: Segmenter, distill: float, balance: str) -> None:
        super().__init__()
        self.model, self.distill = model, distill
        names = [head.name for head in model.config.tasks]
        self.balance = (
            nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in names})
            if balance == "uncertainty"
            else None
        )

    def forward(self, batch: TaskBatch, draws: list[Draw]) -> dict[str, Tensor]:
        """Weighted terms, scalars; their sum is the loss."""
        lateral, maps = self.model.features(batch.images)
        terms = {"token": token_loss(self.model.front_head(maps), batch.masks)}
        for draw in draws:
            share = (draw.rows.stop - draw.rows.start) / len(batch.images)
            own = [m[draw.rows] for m in maps]
            for name, value in self._terms(lateral[draw.rows], own, batch[draw.rows], draw):
                terms[name] = terms.get(name, 0.0) + share * value
        return terms

    def _terms(
        self, lateral: Tensor, maps: list[Tensor], batch: TaskBatch, draw: Draw
    ) -> list[tuple[str, Tensor]]:
        config, knobs, model = self.model.config, draw.knobs, self.model
        *_, encoded = model.encoder.run(maps, knobs.depth, 1.0, knobs.width)
        smaller = knobs != Knobs(config.exits) or any(w < 1 for w in draw.widths.values())
        teacher = None
        if self.distill and smaller:
            with torch.no_grad():
                teacher = model.encoder(maps, config.exits)
        terms = []
        for head in config.tasks:
            answer = model.heads[head.name](lateral, encoded.maps, draw.widths[head.name])
            loss = LOSSES[head.task](answer, batch)
            if teacher is not None:
                with torch.no_grad():
                    wanted = model.heads[head.name](lateral, teacher)
                loss = loss + self.distill * agreement(head.task, answer, wanted)
            if self.balance is not None:
                spread = self.balance[head.name]
                loss = (-spread).exp() * loss + spread
            terms.append((head.name, loss))
        if teacher is not None:
            scales = config.schedule[knobs.depth - 1]
            terms.append(("features", self.distill * distillation(encoded, teacher, scales)))
        return terms


def main(args: argparse.Namespace) -> None:
    train(Options(**vars(args)))


def config_of(options: Options, channels: int) -> Config:
    """Raises RunError where the options do not fit each other."""
    config = streets(channels, options.heads)
    if options.sampling == "full":
        fixed = tuple(replace(head, widths=(1.0,)) for head in config.tasks)
        config = replace(config, tasks=fixed, widths=(1.0,))
    elif options.batch < 4:
        raise RunError(f"--batch {options.batch} must be at least 4, to be divided")
    if options.backbone is not None:
        config = replace(config, backbone=options.backbone)
    return config


def open_scenes(flag: str, spec: str) -> Dataset:
    """Raises RunError."""
    if spec.partition(":")[0] != "scenes":
        raise RunError(f"{flag} {spec}: only scenes:COUNT[:SEED] have the labels of all tasks")
    return open_dataset(spec, None)


def train(options: Options) -> None:
    """Raises ValueError, before the first step, where options do not fit."""
    resumed = resumed_at(options.out)
    data, dev = open_scenes("--train", options.train), open_scenes("--dev", options.dev)
    canvases, config = parse_canvases(options.canvases), config_of(options, data.channels)
    chances = options.chances or [1.0] * len(canvases)
    if len(chances) != len(canvases) or not min(chances) >= 0 < sum(chances):
        raise RunError(f"--chances {chances} must be one for each of {len(canvases)} canvases")
    torch.manual_seed(options.seed)
    model = Segmenter(config)
    if options.backbone_weights:
        load_pretrained(model.backbone, options.backbone_weights)
    network = TaskNet(model.to(memory_format=torch.channels_last), options.distill, options.balance)
    average = Average(model, options.ema)
    groups = parameter_groups(model, options.lr, options.backbone_lr, options.decay)
    if network.balance is not None:
        rest = {"lr": options.lr, "base": options.lr, "weight_decay": 0.0}
        groups.append({"params": list(network.balance.parameters()), **rest})
    optimizer = torch.optim.AdamW(groups)
    first_step = 0
    seen: list[Trained] = []
    if resumed:
        if read_config(options.out)[:2] != (config, canvases):
            raise RunError(f"{options.out} holds another run: choose another --out or delete it")
        name_changes(options.out, asdict(options))
        first_step = load_checkpoint(options.out, model, optimizer, average)
        cut_log(options.out, first_step)
        seen = trained_on(options.out)
    seen.append((options.train, None))  # who goes on may do so on more scenes, or for more steps
    write_config(options.out, config, canvases, asdict(options), seen, data.classes)
    batches = TaskBatches(data, canvases, options.batch, chances, options.seed, options.cache)
    names = ["token", *options.heads, "features"]
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
