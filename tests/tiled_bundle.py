"""Real bundles of a few ONNX nodes with a tiled canvas, and without one but with a canvas as large.

As in small_bundle.py, the image's colours are the decoder's probabilities, cell by cell: red is the
background, green are cores and blue is the border. Plans of depth 1 take blue for red; those of
depth 2 see everything. A cell sees itself alone, so that tiles and a larger canvas must agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from service import bundle
from service.bundle import Canvas, Shape
from service.core import Margin
from tests.small_bundle import CELL, write_stage

PLAIN = Canvas.of([Shape(64, 64), Shape(64, 96)])
TILED = Canvas.tiled(PLAIN, 2, 2, 32)  # t96: 96x96 and 96x160
WHOLE = Canvas("c96", TILED.shapes)
# Name, canvas, depth and GFLOPs with the head. A tiled plan may cost less than the full plain one.
PLANS = (
    ("c64-d1", 3.0, 0.70),
    ("t96-d1", 5.0, 0.75),
    ("c64-d2", 6.0, 0.80),
    ("t96-d2", 24.0, 0.90),
)
MARGINS = (Margin(0.01, 0.005), Margin(0.15, 0.15))


def write_tiled_bundle(
    folder: Path,
    canvases: Sequence[Canvas] = (PLAIN, TILED),
    plans: Sequence[tuple[str, float, float]] = PLANS,
    pauses: bool = False,
) -> Path:
    """Every image gets the scores of the plans' qualities. pauses: whether encoders tell cells of
    8 x 8 pixels that they paused: those darker than black and white's middle."""
    folder.mkdir(parents=True)
    stages, graphs = dict[str, bundle.Stage](), dict[str, bundle.Graphs]()
    for canvas in bundle.plain_of(canvases):
        names = {canvas.name, *(c.name for c in canvases if c.tiles and c.tiles.of == canvas.name)}
        own = [name for name, *_ in plans if name.partition("-")[0] in names]
        for shape in canvas.shapes:
            scores = [quality for *_, quality in plans] if canvas is canvases[0] else []
            for kind, stage in _stages(folder, shape, scores, pauses).items():
                stages[f"{kind}-{shape.name}"] = stage
            encoders = {name: f"encoder-d{name[-1]}-{shape.name}" for name in own}
            heads = {"instance": f"decoder-{shape.name}"}
            graphs[shape.name] = bundle.Graphs(f"front-{shape.name}", encoders, heads)
    manifest = bundle.Manifest(
        name=folder.name,
        revision="0" * 40,
        provenance={},
        heads=(bundle.Head("instance", "instance", (bundle.ClassInfo("cell", (9, 9, 9), True),)),),
        default_preference={"instance": 1.0},
        input=bundle.InputSpec.of(canvases, (255, 0, 0)),
        stages=stages,
        files=(),
        encoder_plans=tuple(
            bundle.EncoderPlan(
                *(name, int(name[-1]), 0.5 if pauses else 1.0, 1.0, gflops),
                {"instance": bundle.HeadWorth(0.0, quality, (quality,) * 5)},
                name.partition("-")[0],
            )
            for name, gflops, quality in plans
        ),
        graphs=graphs,
        margins=MARGINS,
        calibration={},
    )
    bundle.save(folder, manifest)
    return folder


def _stages(
    folder: Path, shape: Shape, scores: Sequence[float], pauses: bool
) -> dict[str, bundle.Stage]:
    """Of one shape. scores: of the gate; none: it has no gate."""
    float32 = TensorProto.FLOAT
    cells = [shape.height // CELL, shape.width // CELL]
    image = ("image", TensorProto.UINT8, ["batch", shape.height, shape.width, 3])
    f4, e4, answer = ((name, float32, ["batch", 3, *cells]) for name in ("f4", "e4", "answer"))
    paused = ("paused", TensorProto.UINT8, ["batch", *(side // 2 for side in cells)])
    node = helper.make_node
    pool = {"kernel_shape": [CELL, CELL], "strides": [CELL, CELL]}
    front = [
        node("Cast", ["image"], ["pixels"], to=float32),
        node("Mul", ["pixels", "scale"], ["scaled"]),
        node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        node("AveragePool", ["planes"], ["f4"], **pool),
    ]
    constants: dict[str, object] = {"scale": np.float32(1 / 255)}
    outputs: list[tuple[str, int, list[object]]] = [f4]
    if scores:
        front += [
            node("ReduceMean", ["f4", "axes"], ["mean"], keepdims=0),
            node("MatMul", ["mean", "nothing"], ["zeros"]),
            node("Add", ["zeros", "level"], ["quality"]),
        ]
        constants |= {"axes": np.int64([2, 3]), "level": np.float32(scores)}
        constants |= {"nothing": np.zeros((3, len(scores)), np.float32)}
        outputs.append(("quality", float32, ["batch", len(scores)]))
    dark = [
        node("ReduceMean", ["f4", "channels"], ["gray"], keepdims=0),
        node("Unsqueeze", ["gray", "channels"], ["plane"]),
        node("AveragePool", ["plane"], ["coarse"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Squeeze", ["coarse", "channels"], ["light"]),
        node("Less", ["light", "middle"], ["darker"]),
        node("Cast", ["darker"], ["paused"], to=TensorProto.UINT8),
    ]
    extra = dark if pauses else []
    of_dark = {"channels": np.int64([1]), "middle": np.float32(0.5)} if pauses else {}
    blind = np.float32([[1, 0, 1], [0, 1, 0], [0, 0, 0]]).reshape(3, 3, 1, 1)
    encoded = [e4, paused] if pauses else [e4]
    made = {
        "front": ([image], outputs, front, constants),
        "encoder-d1": (
            *([f4], encoded, [node("Conv", ["f4", "seen"], ["e4"]), *extra]),
            {"seen": blind, **of_dark},
        ),
        "encoder-d2": ([f4], encoded, [node("Identity", ["f4"], ["e4"]), *extra], of_dark),
        "decoder": ([e4], [answer], [node("Identity", ["e4"], ["answer"])], {}),
    }
    return {
        kind: write_stage(folder / f"{kind}-{shape.name}.onnx", *graph)
        for kind, graph in made.items()
    }
