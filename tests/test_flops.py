"""GFLOPs of exported graphs: exact for hand-made ones, and the layer's formula for ours."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from model_export.export.flops import count_gflops
from model_export.export.write_manifest import cost_of
from model_export.network.knobs import Knobs
from service import bundle
from service.bundle import Canvas, Shape
from tests.exported import graphs_for
from tests.toy import PLANS, STAGES

# The first test that needs the toy bundle waits for its export.
pytestmark = pytest.mark.timeout(600)


def _graph(
    path: Path, nodes: list[onnx.NodeProto], inputs: dict[str, list[int | str]], outputs: list[str]
) -> Path:
    graph = helper.make_graph(
        nodes,
        "hand-made",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
            for name, dims in inputs.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


NODES = {
    # 6 x 5 x 6 outputs, each from 2 channels x 3 x 3
    "Conv": (
        helper.make_node("Conv", ["x", "w"], ["y"], group=2, pads=[1, 1, 1, 1], strides=[2, 2]),
        {"x": ["batch", 4, 10, 12], "w": [6, 2, 3, 3]},
        2 * 180 * 18,
    ),
    "MatMul": (
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        {"x": ["batch", 7, 5], "w": [5, 3]},
        2 * 21 * 5,
    ),
    "MatMul of two batches": (
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        {"x": ["batch", 2, 7, 5], "w": ["batch", 2, 5, 3]},
        2 * 2 * 21 * 5,
    ),
    "Gemm": (
        helper.make_node("Gemm", ["x", "w"], ["y"], transB=1),
        {"x": ["batch", 8], "w": [9, 8]},
        2 * 9 * 8,
    ),
    "Gemm of a transposed": (
        helper.make_node("Gemm", ["x", "w"], ["y"], transA=1),
        {"x": [8, 4], "w": [8, 9]},
        2 * 4 * 9 * 8,
    ),
    # 4 x 3 samples of 2 channels: 4 corners and the attention weight
    "GridSample": (
        helper.make_node("GridSample", ["x", "w"], ["y"]),
        {"x": ["batch", 2, 5, 6], "w": ["batch", 4, 3, 2]},
        24 * 2 * 5,
    ),
    "Einsum": (
        helper.make_node("Einsum", ["x", "w"], ["y"], equation="bqc,bqhw->bchw"),
        {"x": ["batch", 3, 2], "w": ["batch", 3, 4, 5]},
        2 * 3 * 2 * 4 * 5,
    ),
    "Add": (helper.make_node("Add", ["x", "w"], ["y"]), {"x": ["batch", 3], "w": ["batch", 3]}, 0),
}


@pytest.mark.parametrize("name", NODES)
def test_flops_of_one_node_are_exact(tmp_path: Path, name: str) -> None:
    node, inputs, flops = NODES[name]
    path = _graph(tmp_path / "graph.onnx", [node], inputs, ["y"])  # type: ignore[arg-type]
    assert count_gflops(path) * 1e9 == pytest.approx(flops, abs=1e-6)


def test_flops_of_a_graph_are_the_sum(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "v"], ["y"]),
    ]
    path = _graph(
        tmp_path / "graph.onnx", nodes, {"x": ["batch", 7, 5], "w": [5, 4], "v": [4, 2]}, ["y"]
    )
    assert count_gflops(path) * 1e9 == pytest.approx(2 * 7 * (5 * 4 + 4 * 2), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "free"), [("MatMul", ["batch", "free", 5]), ("Einsum", ["batch", 3, "free"])]
)
def test_flops_refuse_a_size_that_is_not_fixed(
    tmp_path: Path, name: str, free: list[int | str]
) -> None:
    node, inputs, _ = NODES[name]
    path = _graph(tmp_path / "graph.onnx", [node], {**inputs, "x": free}, ["y"])  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=f"{name} .*size is not fixed"):
        count_gflops(path)


def test_an_encoder_costs_what_the_formula_of_its_plan_says(toy_bundle: Path) -> None:
    """Sampling included. Of 30 + 96 tokens, 6 and 24 of them at strides 32 and 16, or a third of
    them on the smaller canvas; a layer of depth d sees d scales."""
    channels, heads, points, ffn, classes = 32, 4, 4, 32, 11
    tokens = {1: 6, 2: 6 + 24, 3: 6 + 24 + 96}
    top_down = 2 * (6 + 24) * channels**2  # each of both steps is taken once, whatever the depth
    third = 1 / 3

    def layer(scales: int, active: int, width: float = 1.0) -> float:
        samples = heads * scales * points
        of_all = channels * channels  # values: paused tokens are still sampled
        of_active = (
            channels * (3 * samples + channels + 2 * ffn * width)
            + 5 * (channels // heads) * samples
        )
        return 2 * (tokens[scales] * of_all + active * of_active)

    first, second = layer(1, tokens[1]), layer(2, tokens[2])
    token_head = 2 * tokens[3] * channels * classes
    wanted = {
        "c64-d1-w50": third * (layer(1, tokens[1], 0.5) + top_down),
        "c96-d2": first + second + top_down,
        "c96-d3-k50": first + second + token_head + layer(3, 6 + 24 + 48) + top_down,
        "c96-d3": first + second + layer(3, tokens[3]) + top_down,
    }
    assert set(wanted) == set(PLANS)
    for name, cost in wanted.items():
        encoder = toy_bundle / f"{graphs_for(name).encoders[name]}.onnx"
        assert 1e9 * count_gflops(encoder) == pytest.approx(cost, rel=1e-9), name


def test_plan_costs_glance_front_encoder_and_decoder(toy_bundle: Path) -> None:
    manifest = bundle.load(toy_bundle).manifest
    parts = {name: count_gflops(toy_bundle / f"{name}.onnx") for name in STAGES}
    for plan in manifest.plans:
        own = graphs_for(plan.name)
        (head,) = own.heads.values()
        whole = parts["front-32x64"] + parts[own.encoders[plan.name]] + parts[head]
        if plan.canvas != "c64":  # for a plan on the smallest canvas the glance is the front
            whole += parts["front-64x96"]
        assert plan.gflops == pytest.approx(whole, abs=1e-4)
    assert min(parts.values()) > 0
    costs = [plan.gflops for plan in manifest.plans]
    assert costs == sorted(costs)


def test_of_several_shapes_of_a_canvas_the_most_expensive_one_counts() -> None:
    glance = Canvas.of([Shape(64, 96), Shape(96, 64)])
    large = Canvas.of([Shape(96, 128), Shape(128, 96), Shape(128, 128)])
    rows = {  # front, decoder and encoder of each shape
        "64x96": (1.0, 0.25, 3.0),
        "96x64": (1.5, 0.5, 2.0),
        "96x128": (10.0, 4.0, 20.0),
        "128x96": (11.0, 5.0, 17.0),
        "128x128": (16.0, 2.0, 15.0),
    }
    parts = {
        name.format(shape): cost
        for shape, row in rows.items()
        for name, cost in zip(("front-{}", "decoder-{}", "encoder-{}-d2"), row, strict=True)
    }
    canvases = (glance, large)
    assert cost_of(Knobs(2, canvas="c96"), canvases, parts) == 1.5 + 3.0 + 0.25
    assert cost_of(Knobs(2, canvas="c128"), canvases, parts) == 1.5 + 10.0 + 20.0 + 4.0
    parts["encoder-128x128-d2"] = 17.0
    assert cost_of(Knobs(2, canvas="c128"), canvases, parts) == 1.5 + 16.0 + 17.0 + 2.0
    # Where the glance is the only canvas, nothing runs twice.
    alone = (Canvas.of(large.shapes[:1]),)
    assert cost_of(Knobs(2, canvas="c128"), alone, parts) == 10.0 + 20.0 + 4.0
