"""Smaller graphs: of one without its weights, two thirds are names that nobody asks for and
constants said again."""

from __future__ import annotations

import string
from collections.abc import MutableSequence

import onnx

_DIGITS = string.digits + string.ascii_lowercase


def compact(model: onnx.ModelProto) -> None:
    """In place: share constants, drop nodes' names, shorten those of values but for inputs, outputs
    and weights.

    The graph has no subgraphs: an exported network branches nowhere.
    """
    graph = model.graph
    kept = {
        value.name for part in (graph.input, graph.output, graph.initializer) for value in part
    } | {""}
    _share_constants(graph.node, kept)
    for function in model.functions:
        _share_constants(function.node, {*function.input, *function.output})
    short: dict[str, str] = {}
    for node in graph.node:
        node.ClearField("name")
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name not in kept:
                    names[place] = short.setdefault(name, f"%{_base36(len(short))}")


def _share_constants(nodes: MutableSequence[onnx.NodeProto], kept: set[str]) -> None:
    """The first node with a value stands for all; those whose names are kept stay."""
    first: dict[bytes, str] = {}
    instead: dict[str, str] = {}
    remaining = []
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = instead.get(name, name)
        if node.op_type == "Constant" and node.output[0] not in kept:
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
