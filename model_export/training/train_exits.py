"""Step A: train one network that can be cut in depth, tokens and width.

Every step draws networks of different sizes and adds up their losses (supernet.py). ECO-M2F's own
way, one random exit per step (arXiv 2404.15244, section 3), is `--sampling exit`. Runs on a CPU or,
through `accelerate launch -m model_export train-exits ...`, on any number of GPUs. It can be
stopped at any time: the same command continues from the last checkpoint, sample for sample.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from tqdm import tqdm

from model_export.data.augment import parse_size
from model_export.data.datasets import SPECS, Dataset, Scenes, open_dataset
from model_export.network.segmenter import Segmenter
from model_export.tasks import TASKS
from model_export.training.batches import Batches, chances, draw_batch
from model_export.training.initial_weights import (
    InitialOptions,
    add_initial_arguments,
    initial_model,
    seen_by,
)
from model_export.training.optimizer import parameter_groups, rate
from model_export.training.quality import dev_quality
from model_export.training.runs import (
    Average,
    RunError,
    Trained,
    append_log,
    cut_log,
    discard_derived,
    read_config,
    save_model,
    write_config,
)
from model_export.training.supernet import SAMPLING, TERMS, Supernet, Weights, exit_weights

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
        type=float,
        default=0.0,
        help="share of generated scenes mixed into every batch (CamVid's classes)",
    )
    add("--crop", default="256x352", help="height x width of the training crops")
    add(
        "--zoom",
        type=float,
        nargs=2,
        default=(0.6, 1.6),
        help="range of the crops' scale relative to that on the canvas",
    )
    add(
        "--balance",
        type=float,
        default=0.0,
        help="draw images of small groups more often: 1 = all groups equally often",
    )
    add(
        "--turn",
        action="store_true",
        help="also turn crops by right angles (microscopy, aerial views)",
    )
    add("--steps", type=int, default=6000)
    add("--batch", type=int, default=4, help="per process")
    add("--lr", type=float, default=4e-4)
    add("--backbone-lr", type=float, default=0.2, help="factor of --lr for the backbone")
    add("--decay", type=float, default=0.05, help="weight decay; 0 on norms, biases and embeddings")
    add("--points", type=int, default=2048, help="sampled points per mask")
    add(
        "--pixel-weight",
        type=float,
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
        type=float,
        default=1.0,
        help="weight in it of the pixels where two objects meet (instance task)",
    )
    add("--token-weight", type=float, default=1.0, help="weight of the token heads' cross-entropy")
    add(
        "--distill",
        type=float,
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
    add("--ema", type=float, default=0.999)
    add("--seed", type=int, default=0)
    add(
        "--check-every",
        type=int,
        default=1000,
        help="steps between checkpoints, each with an evaluation on the dev set",
    )
    add(
        "--stop-after",
        type=float,
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
    steps: int
    batch: int
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
    check_every: int
    stop_after: float

    def batches(self) -> Batches:
        """Raises ValueError that names what is wrong."""
        low, high = self.zoom
        return Batches(
            self.batch, self.scenes, parse_size(self.crop), (low, high), self.turn, self.gap_weight
        )

    def seen(self) -> list[Trained]:
        """All that the weights will have been trained on."""
        start = seen_by(self.start_from) if self.start_from else ()
        scenes = [(f"scenes:{SCENES}:{self.seed + 17}", None)] if self.scenes else []
        return [(self.train, self.data), *start, *scenes]


def main(args: argparse.Namespace) -> None:
    train(Options(**vars(args)))


def train(options: Options) -> None:
    """Raises ValueError, before the first step, where data or options do not fit."""
    # The layers behind the drawn exit have no gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[unused])
    data, dev, scenes = open_data(options)
    batches = options.batches()
    often = chances(data, options.balance) if options.balance else None
    checkpoint, first_step = options.out / "checkpoint.pt", 0
    torch.manual_seed(options.seed)
    resumed = options.out if checkpoint.exists() else None
    model, canvas = initial_model(options, data, resumed)
    config = model.config
    model.to(accelerator.device, memory_format=torch.channels_last)
    average = Average(model, options.ema)
    groups = parameter_groups(model, options.lr, options.backbone_lr, options.decay)
    optimizer = torch.optim.AdamW(groups)
    if resumed:
        if read_config(options.out)[:2] != (config, canvas):
            raise RunError(
                f"{options.out} holds a run of another config or canvas; choose another --out or "
                f"delete it"
            )
        first_step = load(checkpoint, model, optimizer, average, accelerator.device)
        if accelerator.is_main_process:
            cut_log(options.out, first_step)
    elif accelerator.is_main_process:
        write_config(options.out, config, canvas, asdict(options), options.seen())
    weights = Weights(
        options.points,
        options.pixel_weight,
        options.token_weight,
        options.distill,
        exit_weights(options.exit_weight, config.exits),
        options.pixel_stride,
    )
    wrapped, optimizer = accelerator.prepare(Supernet(model, weights), optimizer)
    begun, last, sums = time.monotonic(), time.monotonic(), dict.fromkeys(TERMS, 0.0)
    bar = tqdm(
        range(first_step, options.steps),
        initial=first_step,
        total=options.steps,
        disable=not accelerator.is_main_process,
        mininterval=10,
    )
    for step in bar:
        torch.manual_seed(hash((options.seed, step)))  # the points of the loss
        rng = np.random.default_rng((options.seed, step, 2 + accelerator.process_index))
        images, masks, emphasis = (
            part if part is None else part.to(accelerator.device)
            for part in draw_batch(data, scenes, batches, canvas, rng, often)
        )
        # The same networks on every process, so that no GPU waits for a deeper one.
        draws = SAMPLING[options.sampling](
            config, options.batch, np.random.default_rng((options.seed, step, 1))
        )
        wrapped.train()
        terms: dict[str, Tensor] = wrapped(images, masks, draws, emphasis)
        loss = torch.stack(list(terms.values())).sum()
        accelerator.backward(loss)
        # Against outliers only: a tight clip would undo the weights.
        accelerator.clip_grad_norm_(wrapped.parameters(), 20.0)
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * rate(step, options.steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model, step)
        sums = {k: sums[k] + (float(terms[k].detach()) if k in terms else 0.0) for k in TERMS}
        bar.set_postfix({k: f"{float(v.detach()):.2f}" for k, v in terms.items()}, refresh=False)
        done = step + 1 == options.steps
        if options.stop_after < math.inf and not done:
            if (time.monotonic() - begun) / 60 > options.stop_after:
                accelerator.set_trigger()
            # True on every process when one says so: clocks differ.
            done = accelerator.check_trigger()
        if (step + 1) % options.check_every == 0 or done:
            if accelerator.is_main_process:
                since = (
                    step + 1 - max(first_step, step // options.check_every * options.check_every)
                )
                row = {"step": step + 1, "seconds": round(time.monotonic() - last, 1)}
                row |= {k: round(v / since, 4) for k, v in sums.items()}
                save(options.out, model, optimizer, average, step + 1)
                averaged = Segmenter(config).to(accelerator.device)
                averaged.load_state_dict(average.state)
                row |= dev_quality(averaged.eval(), dev, canvas)
                append_log(options.out, row)
                tqdm.write(str(row))
            last, sums = time.monotonic(), dict.fromkeys(TERMS, 0.0)
            accelerator.wait_for_everyone()
            if done:
                break


def open_data(options: Options) -> tuple[Dataset, Dataset, Scenes]:
    """What to train on, the dev set, and the scenes to mix in. Raises DataError, RunError."""
    data = open_dataset(options.train, options.data)
    dev = open_dataset(options.dev, options.data)
    scenes = Scenes(SCENES, seed=options.seed + 17)
    if options.scenes and data.classes != scenes.classes:
        raise RunError(
            "--scenes mixes in scenes of CamVid's classes; leave it out for a data set of other "
            "classes"
        )
    if options.gap_weight != 1 and not TASKS[data.task].objects:
        raise RunError(
            f"--gap-weight is for objects that touch; {options.train} has none: leave it out"
        )
    return data, dev, scenes


def load(
    checkpoint: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average,
    device: torch.device,
) -> int:
    """Take everything from a checkpoint. Returns how many steps it has seen."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    average.state = {name: value.to(device) for name, value in saved["average"].items()}
    steps: int = saved["step"]
    return steps


def save(
    run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average, step: int
) -> None:
    temporary = run / "checkpoint.pt.new"
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.state,
        "step": step,
    }
    torch.save(state, temporary)
    temporary.replace(run / "checkpoint.pt")
    discard_derived(run)
    save_model(run, average.state)
