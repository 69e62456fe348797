"""Smaller graphs: two thirds of a graph without weights are names that nobody asks for."""

from __future__ import annotations

import string

import onnx

_DIGITS = string.digits + string.ascii_lowercase


def compact(model: onnx.ModelProto) -> None:
    """Drop the nodes' names and shorten those of values, in place; inputs, outputs and weights keep theirs."""
    graph = model.graph
    kept = {value.name for part in (graph.input, graph.output, graph.initializer) for value in part} | {""}
    short: dict[str, str] = {}
    for node in graph.node:
        node.ClearField("name")
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name not in kept:
                    names[place] = short.setdefault(name, f"%{_base36(len(short))}")


def _base36(number: int) -> str:
    digits = _DIGITS[number % 36]
    return _base36(number // 36) + digits if number >= 36 else digits
