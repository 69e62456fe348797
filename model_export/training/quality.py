"""How good a network is at several settings of its knobs: counts, from which quality follows.

Masks are made from probabilities as the service makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_export.data.augment import on_canvases
from model_export.data.datasets import Dataset, Sample
from model_export.network.config import Config
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter, head_of
from model_export.tasks import VOID, task_of
from model_export.tasks.base import Labels
from model_export.tasks.panoptic_quality import without_void
from service.bundle import Canvas, Shape, Tiles, is_larger, plain_of
from service.core import Geometry
from service.inference.tiles import join, split


@torch.inference_mode()
def counts_by_knobs(
    model: Segmenter, sample: Sample, canvases: Sequence[Canvas], knobs: Sequence[Knobs]
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """(len(knobs), ...) counts of the network's task, and the gate's input of the same image,
    (inputs,).

    An image without labels is judged by the full plan's answer, which knobs must hold then, as for
    one that is not larger than the largest plain canvas: the full plan then stands for those on
    tiled canvases, which such an image does not get.
    canvases: from small to large; the gate sees the first one. knobs: each names its canvas. The
    backbone runs once on a canvas, an encoder once for all exits of the same keep and width.
    """
    answers: dict[Knobs, Labels] = {}
    frames, larger = on_canvases(sample, canvases), is_larger(canvases, *sample.image.shape[1::-1])
    named = {canvas.name: canvas for canvas in canvases}
    for canvas in canvases:
        own = [setting for setting in knobs if setting.canvas == canvas.name]
        unused = not own or (canvas.tiles is not None and not larger)
        if unused and canvas is not canvases[0]:
            continue
        frame, cut = frames[canvas.name], None
        if canvas.tiles is not None:
            tile = named[canvas.tiles.of].shapes[canvas.shapes.index(Shape(*frame.geometry.canvas))]
            cut = canvas.tiles, tile
        pieces = [frame.pixels] if cut is None else split(frame.pixels, *cut)
        features = [
            model.features(torch.from_numpy(piece.copy())[None].to(model.mean.device))
            for piece in pieces
        ]
        answers |= _answers_on_canvas(model, frame.geometry, features, own, cut)
        if canvas is canvases[0]:
            geometry, (_, maps) = frame.geometry, features[0]
            size = torch.tensor([[geometry.height, geometry.width]], device=model.mean.device)
            seen = model.glance(maps, size.float())[0]
    full = Knobs(model.config.exits, canvas=plain_of(canvases)[-1].name)
    answers |= {k: answers[full] for k in knobs if k.tiled and not larger}
    truth = sample.truth if sample.labelled else answers[full]
    counts = [_counts(model.config, answers[k], sample, truth) for k in knobs]
    return np.stack(counts), seen.cpu().numpy()


def _counts(config: Config, labels: Labels, sample: Sample, truth: Labels) -> NDArray[Any]:
    task = task_of(config)
    if not task.void and sample.instances is not None:  # but the mask has a value for it
        labels = without_void(labels, sample.mask == VOID)
    return task.counts(labels, truth, config.classes)


def _answers_on_canvas(
    model: Segmenter,
    geometry: Geometry,
    features: Sequence[tuple[Tensor, list[Tensor]]],
    knobs: Sequence[Knobs],
    cut: tuple[Tiles, Shape] | None,
) -> dict[Knobs, Labels]:
    """features: the image's on the canvas of all these knobs, or those of each tile. cut: into what
    tiles, and their shape."""
    task = task_of(model.config)
    answers: dict[Knobs, Labels] = {}
    for keep, width in dict.fromkeys((k.keep, k.width) for k in knobs):
        depths = {k.depth: k for k in knobs if (k.keep, k.width) == (keep, width)}
        given: dict[int, list[Any]] = {depth: [] for depth in depths}
        for lateral, maps in features:
            for depth, encoded in enumerate(model.encoder.run(maps, max(depths), keep, width), 1):
                if depth in depths:
                    prediction = model.decoder(lateral, encoded.maps)[-1]
                    given[depth].append(head_of(model.config, prediction))
        for depth, setting in depths.items():
            answer = given[depth][0]
            if cut is not None:  # as service/inference/stages.py joins them
                maps_of_tiles = [each.cpu().numpy() for each in given[depth]]
                answer = torch.from_numpy(join(maps_of_tiles, *cut)).to(answer.device)
            answers[setting] = task.predicted(answer, geometry)
    return answers


def knobs_to_watch(config: Config, canvases: Sequence[Canvas]) -> list[Knobs]:
    """On the largest canvas every exit, and at the deepest one pausing and narrowing, alone and
    together; on the others the first exit and the deepest."""
    least, few = min(config.widths), 1.0 if config.pauses_from is None else 0.25
    *others, largest = [canvas.name for canvas in canvases]
    exits = [Knobs(d, canvas=largest) for d in range(1, config.exits + 1)]
    cuts = {Knobs(config.exits, k, w, largest) for k, w in ((few, 1.0), (1.0, least), (few, least))}
    ends = [Knobs(d, canvas=name) for name in others for d in dict.fromkeys((1, config.exits))]
    return [*exits, *sorted(cuts - {exits[-1]}, reverse=True), *ends]


def dev_quality(model: Segmenter, dev: Dataset, canvases: Sequence[Canvas]) -> dict[str, float]:
    """Quality on the dev set at some settings of the knobs."""
    task, knobs = task_of(model.config), knobs_to_watch(model.config, canvases)
    total = sum(counts_by_knobs(model, dev[i], canvases, knobs)[0] for i in range(len(dev)))
    return {
        f"dev_{k.name}": round(task.of_set(part), 4) for k, part in zip(knobs, total, strict=True)
    }
