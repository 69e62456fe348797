"""Every plan of a bundle on every image of a folder, by the service's own code: decode, engine,
masks.

Per image the front of each canvas runs once, then each plan's encoder, decoder and masks. The
results are counts, from which the quality of any choice of plans follows, the gate's scores and the
times. A cache has one small file per image, so that work that was stopped can continue.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from model_export.data.checks import check
from model_export.data.datasets import DataError
from model_export.data.labelled import LabelledImages
from model_export.evaluation.image_results import Arrays, read_arrays, write_arrays
from model_export.evaluation.labelled_folder import group_of, open_annotated, open_labelled
from model_export.gating.own_plans import open_plans
from model_export.tasks import TASKS, Task, qualities
from model_export.tasks.detections import average_precision, detections
from model_export.tasks.panoptic_quality import without_void
from model_export.tasks.segments import Segments, labels_of, segment_detections, segment_label
from service import bundle
from service.bundle import is_larger
from service.core import Frames
from service.engines.base import Backend
from service.engines.choice import open_named
from service.errors import FathomError
from service.inference.stages import Stages
from service.pixels.decode import Limits, decode, decode_full
from service.tasks import Masks, tasks_of

LIMITS = Limits(max_pixels=25_000_000, max_side=8192, min_side=16)  # the service's defaults
FORM = 4  # of the cached files

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measured:
    """The results for N images and P plans.

    is_open: (N, P), which plans each image may take. Scores, counts, quality and detections of the
    others are those of its full plan; their times are nan.
    scores: (N, P) of the gate. counts: (N, P, ...) as the task has them.
    quality: (N, P) 0..1, of each image: mIoU over the classes that it shows, or PQ. mirrored: the
    same of each image's mirror image, a second measurement of one scene, or None. glance: (N,) ms;
    front, encoder, decoder: (N, P) ms; a plan on the glance's canvas needs no other front, and has
    0. sides: (N,) the square root of each image's own pixels. left_out: names of images that are
    all void. detections: N times P tables, as `detections` gives them; none for a task without
    objects.
    """

    bundle: bundle.Bundle
    names: NDArray[np.str_]
    groups: NDArray[np.str_]
    is_open: NDArray[np.bool_]
    scores: Floats
    counts: Floats
    quality: Floats
    mirrored: Floats | None
    sides: Floats
    glance: Floats
    front: Floats
    encoder: Floats
    decoder: Floats
    left_out: list[str]
    detections: list[list[Floats]]

    @property
    def task(self) -> Task:
        return judge_of(self.bundle.manifest.head)

    def ms(self, times: Floats) -> list[Floats]:
        """Of each plan, the times of the images that may take it. times: (N, P)."""
        return [column[flags] for column, flags in zip(times.T, self.is_open.T, strict=True)]

    def ap50(self, plans: NDArray[np.integer]) -> float | None:
        """The mean over the countable classes that occur. plans: (N,) each image's. None for a task
        without objects."""
        if not self.detections:
            return None
        objects = self.counts[:, 0][..., [1, 3]].sum((0, -1)).reshape(-1)  # by any plan
        tables = [image[plan] for image, plan in zip(self.detections, plans, strict=True)]
        things = [entry.thing for entry in self.bundle.manifest.head.classes]
        found = [
            average_precision([rows[rows[:, 0] == kind, 1:] for rows in tables], count)
            for kind, count in enumerate(objects.tolist())
            if count and things[kind]
        ]
        return float(np.mean(found)) if found else float("nan")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What runs the graphs: a row of the service's table of backends. threads: of one on the CPU.

    engine_cache: folder of TensorRT engines, as build-trt writes it.
    """

    backend: str = "onnxruntime"
    threads: int = 1
    engine_cache: Path = Path("engines")

    def open(self, opened: bundle.Bundle) -> Backend:
        """For one image at a time. Raises BackendError."""
        return open_named(
            self.backend,
            opened,
            threads=self.threads,
            max_batch=1,
            engine_cache=self.engine_cache,
        )


def judge_of(head: bundle.Head) -> Task:
    """How a head's answers are judged: those of queries as segments with classes."""
    return TASKS[head.task] if head.thresholds is None else Segments(head.task)


class Truth(NamedTuple):
    """labels: (H, W) as the task has them. void: (H, W) where objects count nowhere."""

    labels: NDArray[Any]
    void: NDArray[np.bool_]


class Meter:
    """One bundle, open. Raises DataError where it cannot be opened."""

    def __init__(self, folder: Path, engine: EngineOptions, cache: Path | None) -> None:
        try:
            self.bundle = bundle.load(folder)
            self.answers = tasks_of(self.bundle)[self.bundle.manifest.head.name]
            self.backend = engine.open(self.bundle)
        except FathomError as error:
            raise DataError(error.detail) from error
        self.manifest = self.bundle.manifest
        self.stages = Stages(self.backend, self.manifest)
        self.task = judge_of(self.manifest.head)
        name = f"{self.bundle.digest[:16]}-threads{engine.threads}-form{FORM}"
        if self.backend.name != "onnxruntime":
            name += f"-{self.backend.name}"
        self.cache = cache and cache / name
        self.warm = False

    def measure(self, folder: LabelledImages, index: int, *, mirrored: bool = False) -> Arrays:
        """The arrays of one image or of its mirror image, from the cache or anew."""
        file, _ = folder.files[index]
        data = file.read_bytes()
        key = hashlib.sha256(data + folder.label_bytes(index)).hexdigest()[:32]
        cached = self.cache and self.cache / f"{key}{'-mirrored' * mirrored}.npz"
        if cached and cached.is_file():
            return read_arrays(cached)
        _, labels, void = folder.read(index)
        truth = Truth(labels, np.zeros(labels.shape, np.bool_) if void is None else void)
        if mirrored:
            data, truth = _mirror(data), Truth(truth.labels[:, ::-1], truth.void[:, ::-1])
        try:
            frames = decode(data, "", LIMITS, self.manifest.input)
        except FathomError as error:
            raise DataError(f"{file}: {error.detail}") from error
        if not self.warm:  # the first run of a graph reserves memory
            self.run(frames, truth, 0)
            self.warm = True
        arrays = self.run(frames, truth, index)
        if cached:
            write_arrays(cached, arrays)
        return arrays

    def run(self, frames: Frames, truth: Truth, turn: int) -> Arrays:
        """is_open (P,), scores (P,), counts (P, ...), sides (1,), glance (1,), front, encoder and
        decoder (P,) in ms, detections (objects, 1 plan + 3).

        turn: decides which plan comes first, so that it is not always the same.
        """
        plans, clock = self.manifest.plans, time.perf_counter
        height, width = truth.labels.shape
        larger = np.array([is_larger(self.manifest.input.canvases, width, height)])
        tiled = [plan.canvas in self.manifest.input.tiled for plan in plans]
        (is_open,) = open_plans(larger, tiled)
        first = self.manifest.glance.name
        began = clock()
        seen, scores = self.stages.glance([frames[first]])
        glance = clock() - began
        features, took = {first: seen}, {first: 0.0}
        counts: dict[int, NDArray[Any]] = {}
        tables = [np.empty((0, 4))]
        front, encoder, decoder = (np.full(len(plans), np.nan) for _ in range(3))
        for index in np.roll(np.flatnonzero(is_open), -turn).tolist():
            plan = plans[index]
            frame = frames[plan.canvas]
            shape = frame.geometry.shape
            if plan.canvas not in features:
                began = clock()
                features[plan.canvas] = self.stages.front([frame])
                took[plan.canvas] = clock() - began
            began = clock()
            encoded = self.stages.encode(plan, shape, features[plan.canvas])
            between = clock()
            tensors = self.stages.head(shape, encoded)
            encoder[index], decoder[index] = between - began, clock() - between
            front[index] = took[plan.canvas]
            own = {name: values[0] for name, values in tensors.items()}
            masks = self.answers.read(own, frame.geometry)
            counts[index], objects = self.judge(masks, truth)
            tables.append(np.insert(objects, 0, index, axis=1))
        full = int(np.flatnonzero(is_open)[-1])
        for index in np.flatnonzero(~is_open).tolist():
            counts[index] = counts[full]
            own = np.concatenate(tables)
            tables.append(np.insert(own[own[:, 0] == full, 1:], 0, index, axis=1))
        return {
            "is_open": is_open,
            "scores": np.where(is_open, scores[0], scores[0, full]).astype(np.float64),
            "counts": np.stack([counts[i] for i in range(len(plans))]),
            "sides": np.array([truth.labels.size**0.5]),
            "glance": np.array([glance * 1e3]),
            "front": front * 1e3,
            "encoder": encoder * 1e3,
            "decoder": decoder * 1e3,
            "detections": np.concatenate(tables),
        }

    def judge(self, masks: Masks, truth: Truth) -> tuple[NDArray[Any], Floats]:
        """Counts and detections; of the latter there are none for a task without objects."""
        channels = self.task.channels(len(self.manifest.head.classes))
        if not self.task.objects:
            return self.task.counts(masks.labels, truth.labels, channels), np.empty((0, 3))
        if isinstance(self.task, Segments):
            labels = labels_of(masks.runs, masks.regions)
            known = {segment_label(r.class_id, r.id): r.score for r in masks.regions}
            return (
                self.task.counts(labels, truth.labels, channels),
                segment_detections(labels, known, truth.labels),
            )
        labels = without_void(masks.labels, truth.void)
        counts = self.task.counts(labels, truth.labels, channels)
        scores = [region.score for region in masks.regions]
        left = np.isin(np.arange(1, len(scores) + 1), labels)  # the others lie in void
        return counts, np.insert(detections(labels, scores, truth.labels)[left], 0, 0, axis=1)


def measure_bundles(
    bundles: Sequence[Path],
    root: Path | None,
    below: str,
    engine: EngineOptions,
    cache: Path | None,
    *,
    on: str = "",
    mirrored: bool = False,
) -> list[Measured]:
    """Every bundle on the same images, image by image in turns, so that a change in the machine's
    load affects all of them alike.

    root: the labelled folder; with `on`, coco:PATH.json, that of its images, if not beside it.
    mirrored: for the first bundle also the mirror images; times are those of the images themselves.
    Raises DataError that names the file or bundle.
    """
    meters = [Meter(folder, engine, cache) for folder in bundles]
    kinds = [
        (m.manifest.head.task, tuple(entry.name for entry in m.manifest.head.classes))
        for m in meters
    ]
    for meter, kind in zip(meters, kinds, strict=True):
        if kind != kinds[0]:
            raise DataError(
                f"{meter.bundle.root} has another task or other classes than "
                f"{meters[0].bundle.root}"
            )
    folder: LabelledImages
    if on or root is None:
        segments = isinstance(meters[0].task, Segments)
        folder = open_annotated(on, root, *kinds[0], segments)
    else:
        folder = open_labelled(root, below, *kinds[0])
    check(folder, on or str(root), complete=False)
    rows: list[list[Arrays]] = [[] for _ in meters]
    for index in tqdm(range(len(folder)), desc="images", mininterval=2):
        for meter, images in zip(meters, rows, strict=True):
            images.append(meter.measure(folder, index))
            if mirrored and meter is meters[0]:
                mirror = meter.measure(folder, index, mirrored=True)
                images[-1]["mirrored"] = mirror["counts"]
    for meter in meters:
        meter.backend.close()
    return [_gather(meter, folder, images) for meter, images in zip(meters, rows, strict=True)]


def _gather(meter: Meter, folder: LabelledImages, rows: list[Arrays]) -> Measured:
    quality = np.array([[meter.task.of_image(plan) for plan in row["counts"]] for row in rows])
    known = np.isfinite(quality).all(1)
    if not known.any():
        raise DataError(f"{folder.files[0][1].parent}: every pixel of every mask is void")
    names = [folder.name_of(index) for index in range(len(folder))]
    groups = np.array([group_of(name, folder.groups) for name in names])
    judged = [row for row, there in zip(rows, known, strict=True) if there]
    tables = [row["detections"] for row in judged] if meter.task.objects else []
    again = [row["mirrored"] for row in judged if "mirrored" in row]
    mirrored = qualities(meter.task, np.stack(again)) if again else None
    stacked = {
        key: np.stack([row[key] for row in judged]).astype(np.float64)
        for key in rows[0]
        if key != "detections"
    }
    return Measured(
        meter.bundle,
        np.array(names)[known],
        groups[known],
        stacked["is_open"] > 0,
        stacked["scores"],
        stacked["counts"],
        quality[known],
        mirrored,
        stacked["sides"][:, 0],
        stacked["glance"][:, 0],
        stacked["front"],
        stacked["encoder"],
        stacked["decoder"],
        [name for name, there in zip(names, known, strict=True) if not there],
        [[table[table[:, 0] == plan, 1:] for plan in range(quality.shape[1])] for table in tables],
    )


def _mirror(data: bytes) -> bytes:
    """An image file -> a PNG of its mirror image. A file that cannot be read is left to the
    service's own check."""
    try:
        mirrored = Image.fromarray(np.ascontiguousarray(decode_full(data, LIMITS).pixels[:, ::-1]))
    except FathomError:
        return data
    encoded = io.BytesIO()
    mirrored.save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()
