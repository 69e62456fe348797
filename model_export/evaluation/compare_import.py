"""An imported checkpoint beside others that run it: milliseconds, and how far the answers differ.

All see the same pixels, photo by photo in turns, on the canvas of the full plan: transformers as it
is (eager), torch.compile, ONNX Runtime on transformers' own export, and the bundle: in torch, and
every plan on each engine. Errors are against transformers: of class and mask logits, or, where a
bundle gives the probabilities of classes, of those. Times are of the network alone, for one image.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from model_export.data.augment import on_canvases
from model_export.data.unlabelled import photos_in
from model_export.evaluation.measure_bundle import EngineOptions
from model_export.importing import mask2former
from model_export.importing.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from model_export.network.decoder import Prediction
from model_export.network.knobs import Knobs
from model_export.network.segmenter import semantic_probabilities
from model_export.option_types import whole
from model_export.tasks.segments import labels_of
from model_export.training.bundle_weights import WEIGHTS, read_weights
from service import bundle
from service.core import Frames, Plan
from service.engines.choice import BACKENDS
from service.inference.stages import Stages
from service.tasks import tasks_of

Arrays = Mapping[str, NDArray[Any]]
LOGITS = ("class_logits", "mask_logits")
OTHERS = ("compile", "onnx")
PHOTOS, ROUNDS = 10, 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("bundle", type=Path, help="folder of a bundle that `export` made of the checkpoint")
    add("--checkpoint", type=Path, required=True, help="the folder that was imported")
    add("--weights", type=Path, help="the state dict of other code that was imported with it")
    add("--images", type=Path, required=True, help="folder of photos, also in subfolders")
    add("--most", type=whole(), default=PHOTOS, help="photos to look at")
    add("--rounds", type=whole(), default=ROUNDS, help="of the measurement")
    add("--threads", type=whole(), default=os.cpu_count() or 1, help="of every engine; default all")
    add("--backends", nargs="+", choices=BACKENDS, default=["onnxruntime"], help="of the bundle")
    add(
        "--others",
        nargs="*",
        choices=OTHERS,
        default=OTHERS,
        help="beside transformers eager: torch.compile, ONNX Runtime on transformers' own export",
    )


@dataclass(slots=True)
class Runner:
    """One row of the table. run: number of a photo -> the head's tensors, without the batch, or
    None where only the time counts. full: whether it should answer as the checkpoint does."""

    name: str
    run: Callable[[int], Arrays]
    full: bool
    ms: list[float] = field(default_factory=list)
    error: float = 0.0
    equal: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Case:
    """frames: of each photo. pixels: of each what transformers gets, (1, 3, H, W), normalised by
    its own processor."""

    opened: bundle.Bundle
    theirs: nn.Module
    frames: Sequence[Frames]
    pixels: Sequence[Tensor]
    threads: int

    @property
    def queries(self) -> bool:
        """Whether the bundle's head gives logits of queries, and not probabilities."""
        return self.opened.manifest.head.thresholds is not None

    @property
    def full(self) -> Plan:
        return self.opened.manifest.plans[-1]

    def labels(self, tensors: Arrays, index: int) -> NDArray[np.integer]:
        """(H, W) the class of each pixel of a photo; of segments, and -1 for none."""
        geometry = self.frames[index][self.full.canvas].geometry
        task = tasks_of(self.opened)[self.opened.manifest.head.name]
        masks = task.read(tensors, geometry)
        if not self.queries:
            return masks.labels.astype(np.int64)
        labels = labels_of(masks.runs, masks.regions).astype(np.int64)
        return np.where(labels > 0, labels >> 16, -1)

    def expected(self, tensors: Arrays) -> Arrays:
        """transformers' logits as the bundle's head would give them."""
        if self.queries:
            return tensors
        classes, masks = (torch.from_numpy(tensors[name])[None] for name in LOGITS)
        return {"probabilities": semantic_probabilities(Prediction(classes, masks))[0].numpy()}


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    case = open_case(args)
    runners = [Runner("transformers, eager", eager(case, case.theirs), False)]
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        makers: dict[str, tuple[str, Callable[[], Callable[[int], Arrays]]]] = {
            "compile": (
                "transformers, torch.compile",
                lambda: eager(case, torch.compile(case.theirs)),
            ),
            "onnx": (
                "transformers' export, ONNX Runtime",
                lambda: exported(case, Path(folder)),
            ),
        }
        for name, make in (makers[other] for other in args.others):
            try:
                run = make()
                run(0)
            except Exception as error:  # noqa: BLE001  # whatever stops another is its row
                said = [*str(error).strip().splitlines(), ""][0]
                failed[name] = f"{type(error).__name__}: {said[:80]}"
            else:
                runners.append(Runner(name, run, True))
        runners.append(Runner("this network, torch", in_torch(case, args.bundle), True))
        for backend in args.backends:
            runners += on_engine(case, backend)
        measure(case, runners, args.rounds)
    print_table(case, runners, failed)


def open_case(args: argparse.Namespace) -> Case:
    """Raises ValueError, FathomError."""
    checkpoint = open_checkpoint(args.checkpoint, args.weights)
    opened = bundle.load(args.bundle)
    theirs = mask2former.load(checkpoint)
    theirs.config.use_auxiliary_loss = True  # without it transformers' forward fails
    theirs.config.return_dict = True
    model, _, canvases = read_weights(args.bundle / WEIGHTS)
    classes = [entry.name for entry in opened.manifest.head.classes]
    if len(classes) != theirs.config.num_labels or model.config.imported is None:
        raise CheckpointError(f"{args.bundle} is no bundle of {args.checkpoint}")
    photos = photos_in(args.images, model.config, classes)
    frames = [on_canvases(photos[i], canvases) for i in range(min(args.most, len(photos)))]
    processor = processor_of(checkpoint)
    pixels = []
    for each in frames:
        shown = each[opened.manifest.plans[-1].canvas].pixels
        batch = processor(images=[shown], do_resize=False, return_tensors="pt")
        pixels.append(batch["pixel_values"].float())  # raw ones are bytes
    return Case(opened, theirs, frames, pixels, args.threads)


def processor_of(checkpoint: Checkpoint) -> Any:
    """transformers' own image processor, the one without torchvision."""
    module = mask2former.transformers().models.mask2former.image_processing_pil_mask2former
    made = module.Mask2FormerImageProcessorPil.from_pretrained(
        checkpoint.folder, local_files_only=True
    )
    made.pad_size = None  # what it gets is a canvas already
    return made


# --------------------------------------------------------------------------------------------------
# what runs it


def eager(case: Case, model: Callable[..., Any]) -> Callable[[int], Arrays]:
    @torch.inference_mode()
    def run(index: int) -> Arrays:
        given = model(pixel_values=case.pixels[index])
        return named(given.class_queries_logits, given.masks_queries_logits)

    return run


def named(classes: Tensor, masks: Tensor) -> Arrays:
    """Of one image."""
    return dict(zip(LOGITS, (classes[0].numpy(), masks[0].numpy()), strict=True))


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        given = self.model(pixel_values=pixels)
        return given.class_queries_logits, given.masks_queries_logits


def exported(case: Case, folder: Path) -> Callable[[int], Arrays]:
    """As anybody would export it: the whole model at one size."""
    file = folder / "theirs.onnx"
    program = torch.onnx.export(
        _Logits(case.theirs).eval(), (case.pixels[0],), dynamo=True, verbose=False
    )
    assert program is not None  # dynamo gives one
    program.save(file, external_data=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(index: int) -> Arrays:
        classes, masks = session.run(None, {name: case.pixels[index].numpy()})
        return dict(zip(LOGITS, (classes[0], masks[0]), strict=True))

    return run


def in_torch(case: Case, folder: Path) -> Callable[[int], Arrays]:
    model, _, _ = read_weights(folder / WEIGHTS)
    knobs = Knobs.parse(case.full.name)

    @torch.inference_mode()
    def run(index: int) -> Arrays:
        frame = case.frames[index][case.full.canvas]
        (given,) = model(torch.from_numpy(frame.pixels)[None], knobs)
        return named(given.classes, given.masks)

    return run


def on_engine(case: Case, backend: str) -> list[Runner]:
    """Every plan of the bundle, from the cheapest to the full one; the gate's glance included."""
    manifest = case.opened.manifest
    stages = Stages(EngineOptions(backend, case.threads).open(case.opened), manifest)

    def runner(plan: Plan) -> Runner:
        def run(index: int) -> Arrays:
            frames = case.frames[index]
            seen, _ = stages.glance([frames[manifest.glance.name]])
            frame = frames[plan.canvas]
            features = seen if plan.canvas == manifest.glance.name else stages.front([frame])
            shape = frame.geometry.shape
            head = stages.head(shape, stages.encode(plan, shape, features))
            return {name: values[0] for name, values in head.items()}

        return Runner(f"{plan.name}, {backend}", run, plan == case.full)

    return [runner(plan) for plan in manifest.plans]


# --------------------------------------------------------------------------------------------------
# measuring


def measure(case: Case, runners: Sequence[Runner], rounds: int) -> None:
    """Fills in the rows. Whose turn it is first changes, so that a drift affects all alike."""
    for index in range(len(case.frames)):
        logits = runners[0].run(index)
        truth = case.labels(case.expected(logits), index)
        for runner in runners[1:]:
            tensors = runner.run(index)
            if not runner.full:
                continue
            raw = LOGITS[0] in tensors
            wanted = logits if raw else case.expected(logits)
            errors = [np.abs(tensors[name] - wanted[name]).max() for name in tensors]
            runner.error = max(runner.error, *map(float, errors))
            shown = case.expected(tensors) if raw else tensors
            runner.equal.append(float((case.labels(shown, index) == truth).mean()))
    for turn in tqdm(range(rounds * len(case.frames)), desc="milliseconds", mininterval=5):
        for runner in [*runners[turn % len(runners) :], *runners[: turn % len(runners)]]:
            began = time.perf_counter()
            runner.run(turn % len(case.frames))
            runner.ms.append(1e3 * (time.perf_counter() - began))


def print_table(case: Case, runners: Sequence[Runner], failed: Mapping[str, str]) -> None:
    size = "x".join(map(str, case.pixels[0].shape[2:]))
    print(f"{len(case.frames)} photos at {size}, batch 1, {case.threads} threads\n")
    print("| what runs it | ms, median | of eager | largest error | pixels of the same class |")
    print("|---|---|---|---|---|")
    first, rows = float(np.median(runners[0].ms)), []
    for runner in runners:
        ms = float(np.median(runner.ms))
        error = f"{runner.error:.1e}" if runner.full else ""
        equal = f"{100 * np.mean(runner.equal):.3f} %" if runner.full else ""
        print(f"| {runner.name} | {ms:.1f} | {ms / first:.2f} | {error} | {equal} |")
        row: dict[str, Any] = {"name": runner.name, "ms": round(ms, 2)}
        if runner.full:
            row |= {"error": runner.error, "equal": round(float(np.mean(runner.equal)), 6)}
        rows.append(row)
    for name, why in failed.items():
        print(f"| {name} | fails: {why} | | | |")
    print(json.dumps({"photos": len(case.frames), "rows": rows, "failed": dict(failed)}))
