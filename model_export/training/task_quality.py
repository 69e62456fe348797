"""How good each head of a network with several tasks is, at its own size of image, as it is served.

A setting is an encoder's knobs with a head's; the encoder runs once for all heads on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.data.augment import on_canvases
from model_export.data.datasets import Dataset
from model_export.data.sample import Sample
from model_export.network.config import Config
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from model_export.tasks.heads import JUDGES, Counts, Judge
from service.bundle import Canvas
from service.core import HeadWidth

Setting = tuple[Knobs, HeadWidth]


@torch.inference_mode()
def task_counts(
    model: Segmenter,
    sample: Sample,
    canvases: Sequence[Canvas],
    settings: Sequence[Setting],
) -> tuple[dict[Setting, Counts], NDArray[np.float32]]:
    """The counts of each setting, and what the gate sees of the image, (inputs,)."""
    judges = judges_of(model.config)
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
                        own_head = model.heads[head.name]
                        tensors = own_head.tensors(own_head(lateral, encoded.maps, head.width))
                        found[knobs, head] = judges[head.name].judged(tensors, geometry, sample)
    return found, seen


def judges_of(config: Config) -> dict[str, Judge]:
    """By the names of the heads."""
    return {head.name: JUDGES[head.task] for head in config.tasks}


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
    judges = judges_of(config)
    return {
        f"dev_{name}": round(
            judges[setting[1].name].of_set([table[setting] for table in tables]), 4
        )
        for name, setting in settings.items()
    }
