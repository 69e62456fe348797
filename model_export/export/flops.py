"""GFLOPs of an exported graph, counted from its nodes. A multiply and an add are 2.

Convolutions, matrix products and the deformable sampling are counted. Papers leave the sampling
out: 4 corners and the attention weight are 5 multiply-adds per sampled value. Element-wise work and
norms are not counted.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import onnx
import onnxruntime

SAMPLING = 10  # FLOPs per sampled value


def count_gflops(path: Path) -> float:
    """GFLOPs for one image. Raises ValueError that names a node to count whose shapes are not
    known."""
    graph = _folded(path).graph
    shapes = {t.name: list(t.dims) for t in graph.initializer}
    for info in (*graph.value_info, *graph.input, *graph.output):
        shapes[info.name] = [d.dim_value for d in info.type.tensor_type.shape.dim]
    return sum(_node_flops(node, shapes) for node in graph.node) / 1e9


def _folded(path: Path) -> onnx.ModelProto:
    """The graph at batch 1 with its constants folded, so that every shape is a number."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = f"{folder}/folded.onnx"
        options.add_free_dimension_override_by_name("batch", 1)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return onnx.shape_inference.infer_shapes(
            onnx.load(f"{folder}/folded.onnx", load_external_data=False), data_prop=True
        )


def _node_flops(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    if node.op_type not in (
        "Conv",
        "FusedConv",
        "MatMul",
        "FusedMatMul",
        "Gemm",
        "GridSample",
        "Einsum",
    ):
        return 0
    try:
        if node.op_type == "Einsum":
            return _einsum_flops(node, [shapes[name] for name in node.input])
        out = math.prod(shapes[node.output[0]])
        weight = shapes[node.input[1]]
        inner = math.prod(weight[1:]) if "Conv" in node.op_type else shapes[node.input[0]][-1]
    except KeyError as error:
        raise ValueError(f"{node.op_type} {node.name}: the shape of {error} is unknown") from error
    if out * inner == 0:
        raise ValueError(f"{node.op_type} {node.name}: a size is not fixed")
    if node.op_type == "GridSample":
        return out * SAMPLING
    if node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute):
        inner = shapes[node.input[0]][0]
    return 2 * out * inner


def _einsum_flops(node: onnx.NodeProto, shapes: list[list[int]]) -> int:
    """Of a product of two operands: one multiply-add for each combination of the indices."""
    terms = (
        next(a.s.decode() for a in node.attribute if a.name == "equation").split("->")[0].split(",")
    )
    if len(terms) != 2 or "." in "".join(terms):
        raise ValueError(
            f"Einsum {node.name}: only products of two operands without an ellipsis are counted"
        )
    sizes = {
        i: size
        for term, shape in zip(terms, shapes, strict=True)
        for i, size in zip(term.strip(), shape, strict=True)
    }
    if not all(sizes.values()):
        raise ValueError(f"Einsum {node.name}: a size is not fixed")
    return 2 * math.prod(sizes.values())
