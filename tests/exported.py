"""What tests of an exported bundle share."""

from __future__ import annotations

from collections.abc import Sequence

from model_export.data.augment import on_canvases
from model_export.data.datasets import Scenes
from model_export.export.graphs import graphs_of
from model_export.network.knobs import Knobs
from service.bundle import Canvas, Graphs
from service.core import Frame
from tests.toy import CANVASES, PLANS

CPU = ["CPUExecutionProvider"]
SIZES = ((360, 480), (90, 120), (180, 240))  # of images: the gate is told


def graphs_for(plan: str) -> Graphs:
    """The stages of a toy plan's canvas, which has one shape."""
    (canvas,) = (each for each in CANVASES if each.name == Knobs.parse(plan).canvas)
    (graphs,) = graphs_of([canvas], [Knobs.parse(name) for name in PLANS]).values()
    return graphs


def scene_frames(
    count: int, canvases: Sequence[Canvas] = CANVASES, seed: int = 9
) -> dict[str, list[Frame]]:
    """Scenes of several sizes on every shape, by its name."""
    scenes = []
    for i in range(count):
        height, width = SIZES[i % len(SIZES)]
        scenes.append(Scenes(count, seed, height=height, width=width)[i])
    return {
        shape.name: [
            on_canvases(scene, [Canvas(canvas.name, (shape,))])[canvas.name] for scene in scenes
        ]
        for canvas in canvases
        for shape in canvas.shapes
    }
