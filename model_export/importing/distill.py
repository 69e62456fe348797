"""Teach an imported network its early exits, by its own full depth and without labels.

Nothing of the checkpoint is changed: what learns is an adapter behind every exit but the last
(network.encoder.ExitAdapter) and the front head that the gate looks at. So the full plan stays
bit-equal. The teacher is the last exit on the same pixels (self-distillation: Zhang et al. 2019,
arXiv 1905.08094): its features for every adapter, and, through the decoder, its answer for one exit
per step. The encoder runs once per step, for all exits and without gradients.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from model_export.data.augment import random_crop
from model_export.data.datasets import Dataset
from model_export.files import replacing
from model_export.network.decoder import Prediction
from model_export.network.segmenter import Segmenter, semantic_probabilities
from model_export.tasks import VOID
from model_export.training.progress import Progress
from model_export.training.run_files import reading
from model_export.training.runs import (
    TEACHING,
    RunError,
    classes_of,
    discard_derived,
    read_config,
    trained_on,
    write_config,
)
from model_export.training.supernet import token_loss
from service.bundle import Canvas

TERMS = ("features", "classes", "masks", "front")
UNSURE = 0.5  # a cell of which the teacher is less sure has no class for the front head


@dataclass(frozen=True, slots=True)
class DistillOptions:
    """steps: each with `batch` crops of photos on one canvas. minutes: after which it stops, to be
    continued by the same command."""

    steps: int
    batch: int
    rate: float
    seed: int
    minutes: float = math.inf
    save_every: int = 50


class Distiller(nn.Module):
    """The network with its losses. Only the adapters and the front head have gradients."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        for part in taught(model).values():
            part.requires_grad_(True)

    def forward(self, images: Tensor, exit: int, glance: bool) -> dict[str, Tensor]:
        """images: (B, H, W, 3) uint8. exit: whose answer is compared, before the last. glance:
        whether the front head sees such a canvas. Returns weighted terms; their sum is the loss."""
        model, adapters = self.model, self.model.encoder.adapters
        assert adapters is not None
        assert model.front_head is not None
        with torch.no_grad():
            lateral, maps = model.features(images)
            every = [e.maps for e in model.encoder.layered(maps, model.config.exits)]
            teacher: Prediction = model.decoder(lateral, every[-1])[-1]
        adapted = [adapt(own) for adapt, own in zip(adapters, every, strict=False)]
        features = [
            F.mse_loss(ours, theirs)
            for own in adapted
            for ours, theirs in zip(own, every[-1], strict=True)
        ]
        student: Prediction = model.decoder(lateral, adapted[exit - 1])[-1]
        terms = {"features": torch.stack(features).mean()} | answer_terms(student, teacher)
        if glance:
            logits = model.front_head(maps)
            terms["front"] = token_loss(logits, labels_of(teacher, images.shape[1:3]))
        return terms


def taught(model: Segmenter) -> dict[str, nn.Parameter]:
    """The parameters that learn, by their names."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith(("encoder.adapters.", "front_head."))
    }


def answer_terms(student: Prediction, teacher: Prediction) -> dict[str, Tensor]:
    """Query by query: cross-entropy with the teacher's classes, and of each cell with its masks.
    Both are 0 where the answers are the same."""
    target, sure = teacher.classes.softmax(-1), teacher.masks.sigmoid()
    classes = F.kl_div(student.classes.log_softmax(-1), target, reduction="none").sum(-1).mean()
    masks = F.binary_cross_entropy_with_logits(student.masks, sure)
    least = F.binary_cross_entropy(sure, sure)
    return {"classes": classes, "masks": masks - least}


def labels_of(teacher: Prediction, size: Sequence[int]) -> Tensor:
    """(B, H, W) uint8: the class of each pixel in the teacher's answer, VOID where it is unsure."""
    best, labels = semantic_probabilities(teacher).max(1)
    labels = labels.to(torch.uint8).masked_fill(best < UNSURE, VOID)
    return F.interpolate(labels[:, None].float(), tuple(size), mode="nearest")[:, 0].to(torch.uint8)


def teach(
    run: Path,
    model: Segmenter,
    photos: Dataset,
    canvases: Sequence[Canvas],
    options: DistillOptions,
) -> bool:
    """Whether all steps are done: then the run has the network with adapters and front head, and
    nothing else of it has changed. Before that it has a checkpoint from which the same call goes
    on. photos: those to learn from; model: the run's, without adapters. Raises RunError."""
    if model.config.exits < 2:
        raise RunError(f"{run} has one encoder layer, and so no early exit to teach")
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    if accelerator.num_processes > 1:
        raise RunError("adapt runs as one process: start it with python, not with several")
    config = replace(model.config, front_head=True, exit_adapters=True)
    torch.manual_seed(options.seed)
    student = Segmenter(config)
    student.load_state_dict(model.state_dict(), strict=False)
    optimizer = torch.optim.AdamW(taught(student).values(), options.rate, weight_decay=0.01)
    first = _load(run, student, optimizer, options)
    wrapped, optimizer = accelerator.prepare(Distiller(student), optimizer)
    began = time.monotonic()
    progress = Progress(run, options.save_every, TERMS, first, TEACHING, "--rate")
    steps = range(first, options.steps)
    for step in tqdm(steps, "teach", initial=first, total=options.steps, mininterval=5):
        images, exit, glance = _drawn(photos, canvases, config.exits, options, step)
        terms = wrapped(images.to(accelerator.device), exit, glance)
        accelerator.backward(torch.stack(list(terms.values())).sum())
        accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = options.rate * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.add(step, terms)
        done = step + 1 == options.steps
        late = (time.monotonic() - began) / 60 > options.minutes
        if progress.due(step) or done or late:
            progress.check(step, taught(student))
            _save(run, student, optimizer, options, step + 1)
            tqdm.write(json.dumps({"step": step + 1} | progress.means(step)))
            progress.start_anew()
            if late and not done:
                return False
    _, _, arguments = read_config(run)
    arguments |= {"taught": key_of(options)}
    about = trained_on(run), classes_of(run)
    write_config(run, config, canvases, arguments, *about, student.state_dict())
    discard_derived(run)
    return True


def _drawn(
    photos: Dataset,
    canvases: Sequence[Canvas],
    exits: int,
    options: DistillOptions,
    step: int,
) -> tuple[Tensor, int, bool]:
    """(B, H, W, 3) crops for one canvas, an exit, and whether the gate looks at that canvas. Of a
    step always the same."""
    rng = np.random.default_rng((options.seed, step))
    canvas = canvases[rng.integers(len(canvases))]
    shape = canvas.shapes[rng.integers(len(canvas.shapes))]
    size = (shape.height, shape.width)
    chosen = rng.integers(0, len(photos), options.batch)
    crops = [random_crop(photos[int(i)], rng, size, (0.8, 1.6), size)[0] for i in chosen]
    exit = int(rng.integers(1, exits))
    return torch.from_numpy(np.stack(crops)), exit, canvas is canvases[0]


def _save(
    run: Path,
    student: Segmenter,
    optimizer: torch.optim.Optimizer,
    options: DistillOptions,
    step: int,
) -> None:
    state = {
        "taught": {name: value.detach().cpu() for name, value in taught(student).items()},
        "optimizer": optimizer.state_dict(),
        "options": key_of(options),
        "step": step,
    }
    with replacing(run / TEACHING) as temporary:
        torch.save(state, temporary)


def _load(
    run: Path, student: Segmenter, optimizer: torch.optim.Optimizer, options: DistillOptions
) -> int:
    """The first step to do. Raises RunError where the checkpoint is damaged or of other options."""
    if not (run / TEACHING).exists():
        return 0
    with reading(run / TEACHING, "delete it: the teaching then begins anew"):
        state = torch.load(run / TEACHING, map_location="cpu", weights_only=True)
        if state["options"] != key_of(options):
            raise RunError(
                f"{run / TEACHING} was begun with {state['options']}: repeat them, or delete it"
            )
        student.load_state_dict(state["taught"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])


def key_of(options: DistillOptions) -> dict[str, float]:
    """What every step depends on, as run.json keeps it when all are done."""
    return {
        "steps": options.steps,
        "batch": options.batch,
        "rate": options.rate,
        "seed": options.seed,
    }
