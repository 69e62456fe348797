"""Graphs as TensorRT needs them, and whether engines compute what ONNX Runtime does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from model_export.export.engine_parity import LIMITS, compare
from model_export.export.precision import prepare, types_of
from model_export.training.runs import RunError
from service import bundle
from service.engines.base import Arrays, HostTensors, Tensors
from service.engines.onnxruntime import OnnxRuntimeBackend
from service.inference.stages import Stages
from tests.exported import scene_frames
from tests.half_backend import PreparedBackend
from tests.toy import PLANS, STAGES

# The first test waits for the export.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.timeout(900),
]


SHIPPED = Path(__file__).parents[1] / "trained_weights" / "camvid-tiny"


HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_half_precision_ends_at_the_last_heavy_operator(
    toy_bundle: Path, stage: str, precision: str
) -> None:
    half, single = HALF[precision], TensorProto.FLOAT
    model = prepare(toy_bundle / f"{stage}.onnx", precision)
    types = types_of(model)
    for node in model.graph.node:
        kinds = [types[name] for name in node.input if name]
        if node.op_type == "MsDeformAttn":
            assert kinds == [half, half, half, single]  # the reference points keep their places
        elif any(name.startswith("gate.") for name in node.input):
            assert set(kinds) <= {single}
        elif node.op_type in ("Conv", "MatMul", "Gemm", "Einsum"):
            assert set(kinds) == {half}
        # The entropy that decides what pauses, or what the gate sees: openings, the image's size.
        elif node.op_type in ("LogSoftmax", "MaxPool", "Log"):
            assert kinds == [single]
        if TensorProto.UINT8 in {*kinds, *(types[name] for name in node.output)}:
            assert node.op_type == "Cast"
            outer = {value.name for value in (*model.graph.input, *model.graph.output)}
            assert outer & {*node.input, *node.output}
    outer = {
        value.name: value.type.tensor_type.elem_type
        for value in (*model.graph.input, *model.graph.output)
    }
    for name, kind in outer.items():
        assert kind == (
            half
            if name[0] in "fe"
            else TensorProto.UINT8
            if name in ("image", "paused")
            else single
        )


def test_nothing_that_is_constant_is_left_to_compute(toy_bundle: Path) -> None:
    path = toy_bundle / "encoder-64x96-d3.onnx"
    before = onnx.load(path, load_external_data=False).graph.node
    model = prepare(path, "fp32")
    assert len(model.graph.node) < len(before) / 3
    assert not {"Range", "Sin", "Cos", "Constant"} & {node.op_type for node in model.graph.node}
    assert all(tensor.data_location != TensorProto.EXTERNAL for tensor in model.graph.initializer)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_prepared_graphs_compute_what_the_bundle_s_do(
    toy_bundle: Path, tmp_path: Path, precision: str
) -> None:
    served = bundle.load(toy_bundle)
    backends = PreparedBackend(served, precision, tmp_path), OnnxRuntimeBackend(served, threads=1)
    ours, theirs = (Stages(backend, served.manifest) for backend in backends)
    # After three steps of training classes nearly tie everywhere, and so do the tokens that might
    # be paused.
    limits = replace(LIMITS[precision], mean=5e-3, equal=0.98)
    found = compare(ours, theirs, served.manifest.plans, scene_frames(2), (1, 2), limits)
    assert set(found) == set(PLANS)
    assert max(found[plan] for plan in PLANS if "-k" not in plan) < LIMITS[precision].mean
    if precision == "fp16":
        assert min(found.values()) > 0  # it did run in half precision


def on_small_canvases(served: bundle.Bundle, count: int) -> bundle.Bundle:
    """With the graphs of the smallest canvases alone: rounding does not depend on the size."""
    manifest = served.manifest
    shapes = [shape.name for canvas in manifest.input.canvases[:count] for shape in canvas.shapes]
    graphs = {shape: manifest.graphs[shape] for shape in shapes}
    wanted = {
        name
        for own in graphs.values()
        for name in (own.front, *own.encoders.values(), *own.heads.values())
    }
    stages = {name: stage for name, stage in manifest.stages.items() if name in wanted}
    return replace(served, manifest=replace(manifest, graphs=graphs, stages=stages))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("camvid-tiny", 2), ("nuclei-tiny", 1)])
def test_a_shipped_bundle_bears_half_precision(name: str, count: int, tmp_path: Path) -> None:
    """Within the limits of the parity gate, as far as ONNX Runtime rounds where TensorRT would."""
    served = on_small_canvases(bundle.load(SHIPPED.parent / name), count)
    manifest = served.manifest
    backends = PreparedBackend(served, "fp16", tmp_path), OnnxRuntimeBackend(served, threads=1)
    ours, theirs = (Stages(backend, manifest) for backend in backends)
    canvases = manifest.input.canvases[:count]
    # The most expensive plan of a canvas has all that its others cut.
    last = {plan.canvas: plan for plan in manifest.plans}
    plans = tuple(last[canvas.name] for canvas in canvases)
    found = compare(ours, theirs, plans, scene_frames(2, canvases, seed=5), (2,), LIMITS["fp16"])
    assert set(found) == {plan.name for plan in plans}
    assert min(found.values()) > 0


class _Off:
    """A backend of which a part is wrong by `by`."""

    def __init__(self, right: OnnxRuntimeBackend, part: str, by: float) -> None:
        self.right, self.part, self.by = right, part, by

    def run(self, stage: str, tensors: Tensors | Arrays) -> Tensors:
        made = self.right.run(stage, tensors)
        off: dict[str, object] = {}
        if stage == "front-32x64":
            scores = made["quality"]
            apart = np.where(np.arange(scores.shape[1]) == 0, self.by, -self.by)
            off["quality"] = scores + {"gate": self.by, "losses": apart}.get(self.part, 0)
        elif stage.startswith("decoder") and self.part == "mask":
            off["probabilities"] = made["probabilities"] + self.by
        return HostTensors({**made.arrays, **off})


@pytest.mark.parametrize(
    ("part", "by", "match"),
    [
        ("gate", 0.002, r"gate's scores \(32x64, batch 1\)"),
        ("gate", np.nan, "gate's scores"),
        ("losses", 0.0008, r"gate's losses \(32x64, batch 1\) differ by 1\.60e-03"),
        (
            "mask",
            0.002,
            r"c64-d1-w50 \(32x64, batch 1\): probabilities differ by 2\.00e-03.*no engine is "
            "accepted",
        ),
        ("mask", np.nan, r"c64-d1-w50 \(32x64, batch 1\)"),
    ],
)
def test_engines_that_compute_something_else_are_not_accepted(
    toy_bundle: Path, part: str, by: float, match: str
) -> None:
    served = bundle.load(toy_bundle)
    right, manifest = OnnxRuntimeBackend(served, threads=1), served.manifest
    wrong = Stages(_Off(right, part, by), manifest)
    frames = scene_frames(1)
    with pytest.raises(RunError, match=match):
        compare(wrong, Stages(right, manifest), manifest.plans, frames, (1,), LIMITS["fp16"])
