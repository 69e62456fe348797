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
from contextlib import ExitStack
from dataclasses import asdict

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from model_export.data.cache import SampleCache
from model_export.data.checks import check
from model_export.data.class_names import refuse_other_classes
from model_export.data.datasets import Dataset, Scenes, open_dataset, refuse_shared, refuse_unread
from model_export.files import alone
from model_export.tasks import TASKS
from model_export.training.batches import StepBatches, chances
from model_export.training.initial_weights import initial_model
from model_export.training.optimizer import parameter_groups, rate
from model_export.training.progress import (
    Progress,
    averaged,
    load_checkpoint,
    name_changes,
    resumed_at,
)
from model_export.training.quality import dev_quality
from model_export.training.runs import (
    Average,
    RunError,
    classes_of,
    cut_log,
    read_config,
    write_config,
)
from model_export.training.supernet import SAMPLING, TERMS, Supernet, Weights, exit_weights
from model_export.training.train_options import SCENES, Options, add_arguments

__all__ = ["add_arguments", "main", "train"]


def main(args: argparse.Namespace) -> None:
    with ExitStack() as held:
        train(Options(**vars(args)), held)


def train(options: Options, held: ExitStack) -> None:
    """held: the run's folder, to the end. Raises ValueError, before the first step, where data or
    options do not fit, and OSError where another command is at work on the run."""
    # The layers behind the drawn exit have no gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[unused])
    resumed, batches = resumed_at(options.out), options.batches()
    data, dev, scenes = open_data(options)
    refuse_shared("--dev", options.dev, options.data, options.train, options.data, "the network")
    often = chances(data, options.balance) if options.balance else None
    # On every process: while one checks alone, the others would wait longer than they may.
    show = accelerator.is_main_process
    check(data, f"--train {options.train}", show=show)
    check(dev, f"--dev {options.dev}", complete=False, show=show)
    first_step = 0
    torch.manual_seed(options.seed)
    model, canvases = initial_model(options, data, resumed)
    seen = options.seen(resumed)
    for spec, root in seen:
        refuse_shared("--dev", options.dev, options.data, spec, root, "the network")
    config = model.config
    model.to(accelerator.device, memory_format=torch.channels_last)
    average = Average(model, options.ema)
    groups = parameter_groups(model, options.lr, options.backbone_lr, options.decay)
    optimizer = torch.optim.AdamW(groups)
    if accelerator.is_main_process:
        options.out.mkdir(parents=True, exist_ok=True)
        held.enter_context(alone(options.out))
    if resumed:
        if read_config(options.out)[:2] != (config, canvases):
            raise RunError(
                f"{options.out} holds a run of another config or of other canvases; choose another "
                f"--out or delete it"
            )
        refuse_other_classes(
            f"--train {options.train}",
            data.classes,
            classes_of(options.out),
            f"the run in {options.out}",
            "choose another --out or delete it",
        )
        first_step = load_checkpoint(options.out, model, optimizer, average, accelerator.device)
        if accelerator.is_main_process:
            name_changes(options.out, asdict(options))
            cut_log(options.out, first_step)
    if accelerator.is_main_process:
        write_config(options.out, config, canvases, asdict(options), seen, data.classes)
    weights = Weights(
        options.points,
        options.pixel_weight,
        options.token_weight,
        options.distill,
        exit_weights(options.exit_weight, config.exits),
        options.pixel_stride,
    )
    wrapped, optimizer = accelerator.prepare(Supernet(model, weights), optimizer)
    begun = time.monotonic()
    progress = Progress(options.out, options.check_every, TERMS, first_step)
    drawn = StepBatches(
        data, scenes, batches, canvases, often, (options.seed, 2 + accelerator.process_index)
    )
    steps = range(first_step, options.steps)
    loader = DataLoader(drawn, batch_size=None, sampler=steps, num_workers=options.workers)
    bar = tqdm(
        zip(steps, loader, strict=True),
        initial=first_step,
        total=options.steps,
        disable=not accelerator.is_main_process,
        mininterval=10,
    )
    for step, batch in bar:
        torch.manual_seed(hash((options.seed, step)))  # the points of the loss
        images, masks, emphasis = (
            part if part is None else part.to(accelerator.device, non_blocking=True)
            for part in batch
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
        progress.add(step, terms)
        bar.set_postfix({k: f"{float(v.detach()):.2f}" for k, v in terms.items()}, refresh=False)
        done = step + 1 == options.steps
        if options.stop_after < math.inf and not done:
            if (time.monotonic() - begun) / 60 > options.stop_after:
                accelerator.set_trigger()
            # True on every process when one says so: clocks differ.
            done = accelerator.check_trigger()
        if progress.due(step) or done:
            if accelerator.is_main_process:
                progress.report(
                    step,
                    model,
                    optimizer,
                    average,
                    lambda: dev_quality(
                        averaged(config, average, accelerator.device), dev, canvases
                    ),
                )
            progress.start_anew()
            accelerator.wait_for_everyone()
            if done:
                break


def open_data(options: Options) -> tuple[Dataset, Dataset, Scenes]:
    """What to train on, the dev set, and the scenes to mix in. Raises DataError, RunError."""
    refuse_unread(options.data, "--train", options.train, options.dev)
    cache = SampleCache(options.cache_mb)
    data = open_dataset(options.train, options.data, cache)
    dev = open_dataset(options.dev, options.data, cache)
    if dev.task != data.task:
        raise RunError(
            f"--dev {options.dev} is of the {dev.task} task, and --train {options.train} of the "
            f"{data.task} task: name a --dev like it"
        )
    refuse_other_classes(
        f"--dev {options.dev}",
        dev.classes,
        data.classes,
        f"--train {options.train}",
        "name a --dev of the same classes, e.g. folder:val",
    )
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
