"""How good a network is at several settings of its knobs: counts, from which quality follows.

Masks are made from probabilities as the service makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.data.augment import on_canvas
from model_export.data.datasets import Dataset, Sample
from model_export.network.config import Config
from model_export.network.gate import gate_input
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter, semantic_probabilities
from model_export.tasks import TASKS, VOID
from model_export.tasks.panoptic_quality import without_void
from service.core import Geometry


@torch.inference_mode()
def counts_by_knobs(
    model: Segmenter, sample: Sample, canvas: tuple[int, int], knobs: Sequence[Knobs]
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """(len(knobs), ...) counts of the network's task, and the gate's input of the same image,
    (inputs,).

    The backbone runs once, an encoder once for all exits of the same keep and width.
    """
    task, channels = TASKS[model.config.task], model.config.classes
    pixels, (inner_height, inner_width) = on_canvas(sample, canvas)
    height, width = sample.mask.shape
    geometry = Geometry(width, height, inner_width, inner_height, canvas)
    lateral, maps = model.features(torch.from_numpy(pixels)[None].to(model.mean.device))
    counts: dict[Knobs, NDArray[Any]] = {}
    for keep, width in dict.fromkeys((k.keep, k.width) for k in knobs):
        depths = {k.depth: k for k in knobs if (k.keep, k.width) == (keep, width)}
        for depth, encoded in enumerate(model.encoder.run(maps, max(depths), keep, width), 1):
            if depth in depths:
                probabilities = semantic_probabilities(model.decoder(lateral, encoded.maps)[-1])
                labels = task.predicted(probabilities, geometry)
                if task.objects:  # their labels have no value for void, the mask has
                    labels = without_void(labels, sample.mask == VOID)
                counts[depths[depth]] = task.counts(labels, sample.truth, channels)
    seen = gate_input(maps, model.front_head(maps))[0]
    return np.stack([counts[k] for k in knobs]), seen.cpu().numpy()


def knobs_to_watch(config: Config) -> list[Knobs]:
    """Every exit; and at the deepest one pausing and narrowing, alone and together."""
    least, few = min(config.widths), 1.0 if config.pauses_from is None else 0.25
    cuts = {Knobs(config.exits, k, w) for k, w in ((few, 1.0), (1.0, least), (few, least))}
    return [Knobs(d) for d in range(1, config.exits + 1)] + sorted(
        cuts - {Knobs(config.exits)}, reverse=True
    )


def dev_quality(model: Segmenter, dev: Dataset, canvas: tuple[int, int]) -> dict[str, float]:
    """Quality on the dev set at some settings of the knobs."""
    task, knobs = TASKS[model.config.task], knobs_to_watch(model.config)
    total = sum(counts_by_knobs(model, dev[i], canvas, knobs)[0] for i in range(len(dev)))
    return {
        f"dev_{k.name}": round(task.of_set(part), 4) for k, part in zip(knobs, total, strict=True)
    }
