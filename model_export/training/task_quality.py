"""How good each head of a network with several tasks is, at its own size of image, as it is served.

A setting is an encoder's knobs with a head's; the encoder runs once for all heads on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_export.data.augment import on_canvases
from model_export.data.datasets import Dataset
from model_export.data.sample import Sample
from model_export.data.several_tasks import large_enough
from model_export.network.config import DEPTHS, Config
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter, semantic_probabilities
from model_export.tasks.depth import Depth
from model_export.tasks.detection import Detection
from model_export.tasks.semantic import confusion, image_quality, labels_at, mean_iou
from service.bundle import Canvas
from service.core import Geometry, HeadWidth

Counts = NDArray[Any]
Setting = tuple[Knobs, HeadWidth]
MEASURES = {"semantic": "mIoU", "detection": "AP", "depth": "within 1.25"}
_DETECTION, _DEPTH = Detection(), Depth()


def counts_of(task: str, answer: Any, geometry: Geometry, sample: Sample) -> Counts:
    """What was right and wrong in one image. answer: of the head in torch, at batch 1."""
    if task == "semantic":
        tensors = {"probabilities": semantic_probabilities(answer[-1])}
    elif task == "depth":
        tensors = {"depth": answer.exp()}
    else:
        tensors = {"class_logits": answer[-1].classes, "boxes": answer[-1].boxes}
    return counts_of_tensors(task, tensors, geometry, sample)


def counts_of_tensors(
    task: str, tensors: Mapping[str, Tensor], geometry: Geometry, sample: Sample
) -> Counts:
    """The same of the tensors of an exported head."""
    if task == "semantic":
        probabilities = tensors["probabilities"]
        inner = (geometry.scaled_height, geometry.scaled_width)
        labels = labels_at(probabilities, geometry.canvas, inner, sample.mask.shape)
        return confusion(labels, sample.mask, probabilities.shape[1])
    own = {name: tensor[0].cpu().numpy() for name, tensor in tensors.items()}
    if task == "depth":
        assert sample.depth is not None
        return _DEPTH.counts(_DEPTH.read(own["depth"], geometry, DEPTHS), sample.depth)
    assert sample.boxes is not None
    rows = _DETECTION.read(own, geometry)
    counted = large_enough(sample.boxes, sample.mask.shape)
    return _DETECTION.counts(rows, sample.boxes, counted)


def of_image(task: str, counts: Counts) -> float:
    """Quality of one image, 0..1."""
    if task == "semantic":
        return image_quality(counts)
    return (_DEPTH if task == "depth" else _DETECTION).of_image(counts)


def of_set(task: str, counts: Sequence[Counts]) -> float:
    """Quality of a set of images, 0..1."""
    if task == "semantic":
        return mean_iou(np.sum(counts, 0))
    return (_DEPTH if task == "depth" else _DETECTION).of_set(counts)


@torch.inference_mode()
def task_counts(
    model: Segmenter,
    sample: Sample,
    canvases: Sequence[Canvas],
    settings: Sequence[Setting],
) -> tuple[dict[Setting, Counts], NDArray[np.float32]]:
    """The counts of each setting, and what the gate sees of the image, (inputs,)."""
    tasks = {head.name: head.task for head in model.config.tasks}
    frames, found = on_canvases(sample, canvases), dict[Setting, Counts]()
    for canvas in canvases:
        own = [setting for setting in settings if setting[0].canvas == canvas.name]
        pixels, geometry = frames[canvas.name].pixels, frames[canvas.name].geometry
        if not own and canvas is not canvases[0]:
            continue
        lateral, maps = model.features(torch.from_numpy(pixels)[None])
        if canvas is canvases[0]:
            size = torch.tensor([[geometry.height, geometry.width]])
            seen = model.glance(maps, size.float())[0].numpy()
        for width in dict.fromkeys(knobs.width for knobs, _ in own):
            wanted = [setting for setting in own if setting[0].width == width]
            deepest = max(knobs.depth for knobs, _ in wanted)
            for depth, encoded in enumerate(model.encoder.run(maps, deepest, 1.0, width), 1):
                for knobs, head in wanted:
                    if knobs.depth == depth:
                        answer = model.heads[head.name](lateral, encoded.maps, head.width)
                        found[knobs, head] = counts_of(tasks[head.name], answer, geometry, sample)
    return found, seen


def settings_of(config: Config, plans: Sequence[Knobs]) -> list[Setting]:
    """Every plan with every head at every width, in the order of the gate."""
    return [
        (knobs, HeadWidth(head.name, width))
        for knobs in plans
        for head in config.tasks
        for width in head.widths
    ]


def dev_qualities(
    model: Segmenter, dev: Dataset, canvases: Sequence[Canvas]
) -> Mapping[str, float]:
    """Quality on the dev set: of every head in full and at its least width behind the full encoder
    on the largest canvas, and in full behind the least encoder, and on the smallest canvas."""
    config, settings = model.config, dict[str, Setting]()
    full = Knobs(config.exits, canvas=canvases[-1].name)
    least = Knobs(1, 1.0, min(config.widths), canvases[-1].name)
    small = Knobs(config.exits, canvas=canvases[0].name)
    for head in config.tasks:
        whole, thin = HeadWidth(head.name), HeadWidth(head.name, head.widths[0])
        for knobs, knob in ((full, whole), (full, thin), (least, whole), (small, whole)):
            settings[f"{knobs.name}+{knob.key}"] = (knobs, knob)
    tables = [
        task_counts(model, dev[i], canvases, [*settings.values()])[0] for i in range(len(dev))
    ]
    tasks = {head.name: head.task for head in config.tasks}
    return {
        f"dev_{name}": round(
            of_set(tasks[setting[1].name], [table[setting] for table in tables]), 4
        )
        for name, setting in settings.items()
    }
