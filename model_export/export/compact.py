"""Smaller graphs: without its weights, two thirds of a graph are names that nobody needs and
repeated constants."""

from __future__ import annotations

import string
from collections.abc import MutableSequence

import onnx

_DIGITS = string.digits + string.ascii_lowercase


def compact(model: onnx.ModelProto) -> None:
    """In place: share constants, drop the names of nodes, shorten those of values, except for
    inputs, outputs and weights.

    The graph has no subgraphs: an exported network has no branches.
    """
    graph = model.graph
    fixed = {
        value.name for part in (graph.input, graph.output, graph.initializer) for value in part
    } | {""}
    _share_constants(graph.node, fixed)
    for function in model.functions:
        _share_constants(function.node, {*function.input, *function.output})
    short: dict[str, str] = {}
    for node in graph.node:
        node.ClearField("name")
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name not in fixed:
                    names[place] = short.setdefault(name, f"%{_base36(len(short))}")


def _share_constants(nodes: MutableSequence[onnx.NodeProto], fixed: set[str]) -> None:
    """The first node with a value stands for all of them. fixed: names that must stay."""
    first: dict[bytes, str] = {}
    instead: dict[str, str] = {}
    remaining = []
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = instead.get(name, name)
        if node.op_type == "Constant" and node.output[0] not in fixed:
            (attribute,) = node.attribute
            value = onnx.AttributeProto()
            value.CopyFrom(attribute)
            value.t.ClearField("name")
            same = first.setdefault(value.SerializeToString(deterministic=True), node.output[0])
            if same != node.output[0]:
                instead[node.output[0]] = same
                continue
        remaining.append(node)
    del nodes[:]
    nodes.extend(remaining)


def _base36(number: int) -> str:
    digits = _DIGITS[number % 36]
    return _base36(number // 36) + digits if number >= 36 else digits
