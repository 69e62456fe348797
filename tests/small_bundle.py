"""Real bundles of a few ONNX nodes whose answers are known by heart, and folders of images for
them.

The image's colours are the decoder's probabilities, cell by cell: red, green and blue are classes
0, 1, 2, or background, core and border; of the panoptic task the masks of three queries, each of
which answers for a class. The cheap plan d1 takes blue for red; d2 sees everything.
The gate knows how much blue there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from service import bundle
from service.core import Margin

HEIGHT, WIDTH, CELL = 32, 48, 4
CANVAS = bundle.Canvas.of([bundle.Shape(HEIGHT, WIDTH)])
GRID = (HEIGHT // CELL, WIDTH // CELL)
MARGINS = (Margin(0.01, 0.005), Margin(0.05, 0.2))
Cells = NDArray[np.uint8]


def write_bundle(
    folder: Path, task: str = "semantic", margins: tuple[Margin, ...] = MARGINS, blind: bool = True
) -> Path:
    """blind: whether d1 is; if not, it is as good as d2, and the gate does not know."""
    folder.mkdir(parents=True)
    f4 = ("f4", TensorProto.FLOAT, ["batch", 3, *GRID])
    e4 = ("e4", *f4[1:])
    image = ("image", TensorProto.UINT8, ["batch", HEIGHT, WIDTH, 3])
    quality = ("quality", TensorProto.FLOAT, ["batch", 2])
    seen = np.float32([[1, 0, blind], [0, 1, 0], [0, 0, not blind]]).reshape(3, 3, 1, 1)
    lost = np.float32([[0, 0], [0, 0], [-1, 0]])  # blue -> the cheap plan's predicted quality
    graphs = {
        "front": (
            [image],
            [f4, quality],
            [
                helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
                helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
                helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
                helper.make_node(
                    "AveragePool",
                    ["planes"],
                    ["f4"],
                    kernel_shape=[CELL, CELL],
                    strides=[CELL, CELL],
                ),
                helper.make_node("ReduceMean", ["f4", "axes"], ["mean"], keepdims=0),
                helper.make_node("MatMul", ["mean", "lost"], ["less"]),
                helper.make_node("Add", ["less", "level"], ["quality"]),
            ],
            {
                "scale": np.float32(1 / 255),
                "axes": np.int64([2, 3]),
                "lost": lost,
                "level": np.float32([0.9, 0.9]),
            },
        ),
        "encoder-d1": (
            [f4],
            [e4],
            [helper.make_node("Conv", ["f4", "seen"], ["e4"])],
            {"seen": seen},
        ),
        "encoder-d2": ([f4], [e4], [helper.make_node("Identity", ["f4"], ["e4"])], {}),
        "decoder": _queries(e4) if task == "panoptic" else _probabilities(e4),
    }
    stages = {name: write_stage(folder / f"{name}.onnx", *graph) for name, graph in graphs.items()}
    names = ("cell",) if task == "instance" else ("red", "green", "blue")
    things = {"red", "blue"} if task == "panoptic" else {"cell"}
    plans = tuple(
        bundle.EncoderPlan(
            f"d{depth}",
            depth,
            1.0,
            1.0,
            3.0 * depth,
            {task: bundle.HeadWorth(0.0, quality, (quality,) * 5)},
            CANVAS.name,
        )
        for depth, quality in ((1, 0.8), (2, 0.9))
    )
    classes = tuple(bundle.ClassInfo(name, (9, 9, 9), name in things) for name in names)
    thresholds = bundle.Thresholds(0.5, 0.5, 0.8) if task == "panoptic" else None
    manifest = bundle.Manifest(
        name=folder.name,
        revision="0" * 40,
        provenance={},
        heads=(bundle.Head(task, task, classes, thresholds=thresholds),),
        default_preference={task: 1.0},
        input=bundle.InputSpec.of([CANVAS], (0, 0, 0)),
        stages=stages,
        files=(),
        encoder_plans=plans,
        graphs={
            CANVAS.shapes[0].name: bundle.Graphs(
                "front", {plan.name: f"encoder-{plan.name}" for plan in plans}, {task: "decoder"}
            )
        },
        margins=margins,
        calibration={"gflops": {"encoder-d1": 1.0, "encoder-d2": 4.0}},
    )
    bundle.save(folder, manifest)
    return folder


Value = tuple[str, int, list[object]]
Graph = tuple[list[Value], list[Value], list[onnx.NodeProto], Mapping[str, object]]


def _probabilities(e4: Value) -> Graph:
    nodes = [helper.make_node("Identity", ["e4"], ["probabilities"])]
    return [e4], [("probabilities", *e4[1:])], nodes, {}


def _queries(e4: Value) -> Graph:
    """Query k is sure to be of class k; its mask's logits are -9 to 9."""
    classes = ("class_logits", TensorProto.FLOAT, ["batch", 3, 4])
    nodes = [
        helper.make_node("Sub", ["e4", "half"], ["centred"]),
        helper.make_node("Mul", ["centred", "steep"], ["mask_logits"]),
        helper.make_node("ReduceMean", ["e4", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
        helper.make_node("Mul", ["column", "nothing"], ["zeros"]),
        helper.make_node("Add", ["zeros", "kinds"], ["class_logits"]),
    ]
    constants = {
        "half": np.float32(0.5),
        "steep": np.float32(18),
        "axes": np.int64([2, 3]),
        "last": np.int64([2]),
        "nothing": np.float32(0),
        "kinds": 9 * np.eye(3, 4, dtype=np.float32),
    }
    return [e4], [classes, ("mask_logits", *e4[1:])], nodes, constants


def write_stage(
    path: Path,
    inputs: list[Value],
    outputs: list[Value],
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, object],
) -> bundle.Stage:
    arrays = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    sides = [
        [helper.make_tensor_value_info(*value) for value in side] for side in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, path.stem, *sides, arrays)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path
    )

    def specs(values: list[Value]) -> tuple[bundle.TensorSpec, ...]:
        dtypes = [np.dtype(helper.tensor_dtype_to_np_dtype(kind)).name for _, kind, _ in values]
        return tuple(
            bundle.TensorSpec(v[0], dtype, tuple(v[2]))
            for v, dtype in zip(values, dtypes, strict=True)
        )

    return bundle.Stage(path.name, "", specs(inputs), specs(outputs), 0.0)


def pixels(cells: Cells) -> Cells:
    """(8, 12) per cell -> (32, 48) per pixel."""
    return cells.repeat(CELL, 0).repeat(CELL, 1)


def write_image(
    root: Path, name: str, cells: Cells, truth: NDArray[np.unsignedinteger], labels: str = "masks"
) -> None:
    """cells: which of red, green and blue each is; truth: per cell."""
    for folder in ("images", labels):
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.eye(3, dtype=np.uint8)[pixels(cells)] * 255).save(
        root / "images" / f"{name}.png"
    )
    Image.fromarray(pixels(truth)).save(root / labels / f"{name}.png")
