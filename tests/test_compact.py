"""Smaller graphs compute the same: constants said once, short names, inputs, outputs and weights as
they were."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from model_export.export.compact import compact

OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]


def constant(name: str, value: np.ndarray) -> onnx.NodeProto:
    return helper.make_node(
        "Constant", [], [name], name=f"node_{name}", value=numpy_helper.from_array(value, name)
    )


def model() -> onnx.ModelProto:
    """out = x + 2 + 2 + w, kept = 2, twice = x * 3 * 3 in a function of our own."""
    two, three = np.float32([2]), np.float32([3])
    body = [
        constant("a", three),
        constant("b", three),
        helper.make_node("Mul", ["v", "a"], ["va"]),
        helper.make_node("Mul", ["va", "b"], ["nine"]),
    ]
    function = helper.make_function("own", "Nine", ["v"], ["nine"], body, [OPSETS[0]])
    nodes = [
        constant("first_constant", two),
        constant("second_constant", two),
        constant("other", np.float32([[2]])),
        constant("kept", two),
        helper.make_node("Add", ["x", "first_constant"], ["long_name_of_a_value"]),
        helper.make_node("Add", ["long_name_of_a_value", "second_constant"], ["another"]),
        helper.make_node("Add", ["another", "w"], ["out"]),
        helper.make_node("Nine", ["x"], ["twice"], domain="own"),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
        for name in ("x", "out", "kept", "twice")
    ]
    weights = [numpy_helper.from_array(np.float32([5]), "w")]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=OPSETS, functions=[function], ir_version=10)


def run(made: onnx.ModelProto) -> list[np.ndarray]:
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["out", "kept", "twice"], {"x": np.float32([1])})


def test_a_compact_graph_computes_the_same_with_each_constant_once() -> None:
    plain, small = model(), model()
    compact(small)
    onnx.checker.check_model(small)
    assert (
        [each.tolist() for each in run(small)]
        == [each.tolist() for each in run(plain)]
        == [[10], [2], [9]]
    )
    # A scalar in brackets is another constant; one that is an output keeps its own node.
    assert [node.op_type for node in small.graph.node].count("Constant") == 3
    assert [node.op_type for node in small.functions[0].node] == ["Constant", "Mul", "Mul"]
    assert small.ByteSize() < plain.ByteSize()


def test_names_of_inputs_outputs_and_weights_stay_and_others_get_short() -> None:
    small = model()
    compact(small)
    names = {name for node in small.graph.node for name in (*node.input, *node.output)}
    assert {"x", "out", "kept", "twice", "w"} <= names
    assert all(
        name.startswith("%") and len(name) < 4
        for name in names - {"x", "out", "kept", "twice", "w"}
    )
    assert not any(node.name for node in small.graph.node)


def test_a_compact_graph_is_compact() -> None:
    small = model()
    compact(small)
    again = onnx.ModelProto.FromString(small.SerializeToString())
    compact(again)
    assert again.ByteSize() == small.ByteSize()
