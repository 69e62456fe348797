"""What several steps do to the nodes of a graph."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def rename(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> None:
    """Values, wherever they go in or come out; in place. names: old -> new."""
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def needed_for(outputs: Collection[str], nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes that these outputs depend on, in their order."""
    needed, used = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            used.append(node)
    return used[::-1]
