"""The settings of the knobs that a search tries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from model_export.network.config import Config
from model_export.network.knobs import Knobs
from service.bundle import Canvas

MOST_CHOSEN = 3840  # by TensorRT's TopK


def combinations_of(
    config: Config,
    canvases: Sequence[Canvas],
    keeps: Sequence[float],
    widths: Sequence[float],
) -> list[Knobs]:
    """All settings of the knobs, the full plan included. Where nothing can be paused, keep is 1.

    Plans that pause, but keep more tokens than TensorRT can choose, are left out.
    """
    first = config.pauses_from or config.exits + 1
    combinations = {full_of(config, canvases)}
    depths = range(1, config.exits + 1)
    for canvas, depth, keep, width in product(canvases, depths, keeps, widths):
        tokens = max((shape.height // 8) * (shape.width // 8) for shape in canvas.shapes)
        if depth < first or keep == 1:
            combinations.add(Knobs(depth, 1.0, width, canvas.name))
        elif round(keep * tokens) <= MOST_CHOSEN:
            combinations.add(Knobs(depth, keep, width, canvas.name))
    return sorted(combinations)


def full_of(config: Config, canvases: Sequence[Canvas]) -> Knobs:
    """The full plan: everything on the largest canvas."""
    return Knobs(config.exits, canvas=canvases[-1].name)
