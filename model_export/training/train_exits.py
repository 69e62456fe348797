"""Step A: train one network that can be cut in depth, tokens and width.

Every step draws networks of different size and adds up their losses (supernet.py); ECO-M2F's own
way, one random exit a step (arXiv 2404.15244, section 3), is `--sampling exit`. Runs on a CPU or,
through `accelerate launch -m model_export train-exits ...`, on any number of GPUs. Stop it whenever
you like: the same command goes on from the last checkpoint, sample for sample.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from tqdm import tqdm

from model_export.data.datasets import SPECS, Dataset, Scenes, open_dataset
from model_export.network.config import Config
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from model_export.tasks import TASKS
from model_export.training.batches import chances, draw_batch
from model_export.training.initial_weights import add_start_arguments, begin, seen_by
from model_export.training.quality import counts_by_knobs
from model_export.training.runs import (
    Average,
    RunError,
    append_log,
    cut_log,
    discard_derived,
    read_config,
    save_model,
    write_config,
)
from model_export.training.supernet import SAMPLING, TERMS, Supernet, Weights, exit_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the run's folder; an unfinished run there goes on")
    add("--data", type=Path, help="folder of the data set (not needed for scenes)")
    add("--train", default="scenes:256", help=f"data set to train on: {SPECS}")
    add("--dev", default="scenes:32:1", help="data set to watch the quality on, never trained on")
    add_start_arguments(parser)
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
        help="range of the crops' scale against that on the canvas",
    )
    add(
        "--balance",
        type=float,
        default=0.0,
        help="draw images of small groups more often: 1 = every group alike",
    )
    add(
        "--turn",
        action="store_true",
        help="also turn crops by right angles (microscopy, aerial views)",
    )
    add("--steps", type=int, default=6000)
    add("--batch", type=int, default=4, help="per process")
    add("--lr", type=float, default=4e-4)
    add("--backbone-lr", type=float, default=0.2, help="factor on --lr for the backbone")
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
        help="of the labels in the semantic cross-entropy",
    )
    add(
        "--gap-weight",
        type=float,
        default=1.0,
        help="weight in it of the pixels where two objects meet (instances)",
    )
    add("--token-weight", type=float, default=1.0, help="weight of the token heads' cross-entropy")
    add(
        "--distill",
        type=float,
        default=1.0,
        help="weight of the distillation from the full encoder; 0 = none",
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
        help="steps between a checkpoint with a look at the dev set",
    )
    add(
        "--stop-after",
        type=float,
        default=math.inf,
        help="minutes after which to checkpoint and stop; run again to go on",
    )


def parameter_groups(
    model: Segmenter, lr: float, backbone: float, decay: float
) -> list[dict[str, Any]]:
    groups = []
    for factor, inside in ((1.0, False), (backbone, True)):
        named = [(n, p) for n, p in model.named_parameters() if n.startswith("backbone.") == inside]
        plain = [
            p
            for n, p in named
            if p.ndim < 2 or ("embedding" in n and "pixel" not in n) or "quer" in n.split(".")[1]
        ]
        matrices = [p for n, p in named if not any(p is q for q in plain)]
        groups += [
            {"params": matrices, "lr": lr * factor, "base": lr * factor, "weight_decay": decay},
            {"params": plain, "lr": lr * factor, "base": lr * factor, "weight_decay": 0.0},
        ]
    return groups


def rate(step: int, steps: int, warmup: int = 200) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def watched(config: Config) -> list[Knobs]:
    """Every exit, and what pausing and narrowing alone and together cost the deepest one."""
    least, few = min(config.widths), 1.0 if config.pauses_from is None else 0.25
    cuts = {Knobs(config.exits, k, w) for k, w in ((few, 1.0), (1.0, least), (few, least))}
    return [Knobs(d) for d in range(1, config.exits + 1)] + sorted(
        cuts - {Knobs(config.exits)}, reverse=True
    )


def look(model: Segmenter, dev: Dataset, canvas: tuple[int, int]) -> dict[str, float]:
    """Quality on the dev set at some settings of the knobs."""
    task, knobs = TASKS[model.config.task], watched(model.config)
    total = sum(counts_by_knobs(model, dev[i], canvas, knobs)[0] for i in range(len(dev)))
    return {
        f"dev_{k.name}": round(task.of_set(part), 4) for k, part in zip(knobs, total, strict=True)
    }


def main(args: argparse.Namespace) -> None:
    unused = DistributedDataParallelKwargs(
        find_unused_parameters=True
    )  # the layers behind the drawn exit
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[unused])
    train, dev = open_dataset(args.train, args.data), open_dataset(args.dev, args.data)
    scenes = Scenes(100_000, seed=args.seed + 17)
    if args.scenes and train.classes != scenes.classes:
        raise RunError(
            "--scenes mixes in scenes of CamVid's classes; leave it out for a data set of other "
            "classes"
        )
    if args.gap_weight != 1 and not TASKS[train.task].objects:
        raise RunError(
            f"--gap-weight is for objects that touch; {args.train} has none: leave it out"
        )
    often = chances(train, args.balance) if args.balance else None
    checkpoint, start = args.out / "checkpoint.pt", 0
    torch.manual_seed(args.seed)
    model, canvas = begin(args, train, resumed=checkpoint.exists())
    config = model.config
    model.to(accelerator.device, memory_format=torch.channels_last)
    average = Average(model, args.ema)
    optimizer = torch.optim.AdamW(parameter_groups(model, args.lr, args.backbone_lr, args.decay))
    if checkpoint.exists():
        if read_config(args.out)[:2] != (config, canvas):
            raise RunError(
                f"{args.out} holds a run of another config or canvas; choose another --out or "
                f"delete it"
            )
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average.state = {
            name: value.to(accelerator.device) for name, value in saved["average"].items()
        }
        start = saved["step"]
        if accelerator.is_main_process:
            cut_log(args.out, start)
    elif accelerator.is_main_process:
        seen = [(args.train, args.data), *(seen_by(args.start_from) if args.start_from else ())]
        if args.scenes:
            seen.append((f"scenes:{len(scenes)}:{scenes.seed}", None))
        write_config(args.out, config, canvas, vars(args), seen)
    alphas = exit_weights(args.exit_weight, config.exits)
    weights = Weights(
        args.points, args.pixel_weight, args.token_weight, args.distill, alphas, args.pixel_stride
    )
    wrapped, optimizer = accelerator.prepare(Supernet(model, weights), optimizer)
    begun, last, sums = time.monotonic(), time.monotonic(), dict.fromkeys(TERMS, 0.0)
    bar = tqdm(
        range(start, args.steps),
        initial=start,
        total=args.steps,
        disable=not accelerator.is_main_process,
        mininterval=10,
    )
    for step in bar:
        torch.manual_seed(hash((args.seed, step)))  # the points of the loss
        rng = np.random.default_rng((args.seed, step, 2 + accelerator.process_index))
        drawn = draw_batch(train, scenes, args, canvas, rng, often)
        images, masks, emphasis = (
            each if each is None else each.to(accelerator.device) for each in drawn
        )
        # the same networks on every process, so that no GPU waits for a deeper one
        draws = SAMPLING[args.sampling](
            config, args.batch, np.random.default_rng((args.seed, step, 1))
        )
        wrapped.train()
        terms: dict[str, Tensor] = wrapped(images, masks, draws, emphasis)
        loss = torch.stack(list(terms.values())).sum()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(
            wrapped.parameters(), 20.0
        )  # against outliers only: a tight clip undoes the weights
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * rate(step, args.steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model, step)
        sums = {k: sums[k] + (float(terms[k].detach()) if k in terms else 0.0) for k in TERMS}
        bar.set_postfix({k: f"{float(v.detach()):.2f}" for k, v in terms.items()}, refresh=False)
        done = step + 1 == args.steps
        if args.stop_after < math.inf and not done:
            if (time.monotonic() - begun) / 60 > args.stop_after:
                accelerator.set_trigger()
            done = (
                accelerator.check_trigger()
            )  # true on every process when one says so: clocks differ
        if (step + 1) % args.check_every == 0 or done:
            if accelerator.is_main_process:
                since = step + 1 - max(start, (step // args.check_every) * args.check_every)
                row = {"step": step + 1, "seconds": round(time.monotonic() - last, 1)}
                row |= {k: round(v / since, 4) for k, v in sums.items()}
                save(args.out, model, optimizer, average, step + 1)
                averaged = Segmenter(config).to(accelerator.device)
                averaged.load_state_dict(average.state)
                row |= look(averaged.eval(), dev, canvas)
                append_log(args.out, row)
                tqdm.write(str(row))
            last, sums = time.monotonic(), dict.fromkeys(TERMS, 0.0)
            accelerator.wait_for_everyone()
            if done:
                break


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
