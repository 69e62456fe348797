"""A graph of a bundle as TensorRT needs it: constants folded, every type explicit, 8-bit integers
in inputs and outputs only.

TensorRT 11 is strongly typed: a layer computes in the type of its inputs, so half precision is
decided in the ONNX file. The rule: heavy operators (convolution, matrix product, our attention) and
whatever comes before one compute in half precision, and what comes after the last of them (the
gate, entropies, probabilities) in float32. So do the constants that serve only our attention's
reference points, and the gate's own products. Casts stand where two such parts meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxscript.optimizer
from onnx import TensorProto, helper, numpy_helper

from model_export.export.attention import widened
from model_export.export.graph_edits import rename, types_of
from model_export.export.graphs import ENCODED, FEATURES
from model_export.network.names import OPERATOR
from model_export.training.bundle_weights import GATE

TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
HEAVY = {"Conv", "MatMul", "Gemm", "Einsum", OPERATOR}
MAPS = {"f4", *FEATURES, *ENCODED}  # what one stage hands to the next
# Inputs that are float32 whatever the node computes in
ALWAYS_FLOAT = {OPERATOR: {3}, "Resize": {1, 2}}
_FLOATS = (TensorProto.FLOAT,)
_HALF_MAX = 65504.0


def prepare(path: Path, precision: str) -> onnx.ModelProto:
    """The graph of a stage with its weights inside. Functions stay, so that ONNX Runtime can run
    it, too."""
    model = folded(onnx.load(path))
    types = types_of(model)
    widen_small_integers(model, types)
    if precision != "fp32":
        _Halving(model, types_of(model), TYPES[precision]).run()
        bodies = [widened(body, TYPES[precision]) for body in model.functions]
        del model.functions[:]
        model.functions.extend(bodies)
    onnx.checker.check_model(model)
    return model


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the nodes that depend on constants alone: the casts of the weights, positions,
    shapes."""
    # While the functions' bodies are there to infer from.
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    functions = list(model.functions)
    del model.functions[:]
    limit = 1 << 30
    optimized = onnxscript.optimizer.optimize(
        model, input_size_limit=limit, output_size_limit=limit, inline=False
    )
    optimized.functions.extend(functions)
    return optimized


def widen_small_integers(model: onnx.ModelProto, types: dict[str, int]) -> None:
    """TensorRT has uint8 as inputs and outputs, but does not compute with it: inside, an image is
    float32 and a map of paused tokens is int32."""
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.UINT8:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.int32), tensor.name)
            )
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.UINT8:
                attribute.i = TensorProto.INT32
            elif attribute.name == "value" and attribute.t.data_type == TensorProto.UINT8:
                attribute.t.CopyFrom(
                    numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.int32))
                )
    before, behind = [], []
    for value in graph.input:
        if types[value.name] == TensorProto.UINT8:
            inner = f"{value.name}_float"
            rename(graph.node, {value.name: inner})
            before.append(helper.make_node("Cast", [value.name], [inner], to=TensorProto.FLOAT))
    for value in graph.output:
        if types[value.name] == TensorProto.UINT8:
            inner, between = f"{value.name}_int", f"{value.name}_float"
            rename(graph.node, {value.name: inner})
            behind.append(helper.make_node("Cast", [inner], [between], to=TensorProto.FLOAT))
            behind.append(helper.make_node("Cast", [between], [value.name], to=TensorProto.UINT8))
    nodes = [*before, *graph.node, *behind]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


class _Halving:
    """kind: the type that replaces float32."""

    def __init__(self, model: onnx.ModelProto, types: dict[str, int], kind: int) -> None:
        self.graph, self.types, self.kind = model.graph, types, kind
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.half = self._values_before_heavy()
        # (value, whether half is wanted) -> its name in that type
        self.cast: dict[tuple[str, bool], str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        self.is_half = {value.name for value in self.graph.input if value.name in MAPS}
        for value in self.graph.input:
            if value.name in MAPS:
                value.type.tensor_type.elem_type = self.kind
        for node in list(self.graph.node):
            self._convert(node)
        for value in self.graph.output:
            if value.name in MAPS:
                value.type.tensor_type.elem_type = self.kind
                self._give(value.name, half=True)
            elif self._is_float(value.name):
                self._give(value.name, half=False)
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.graph.node for name in node.input}
        needed = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(needed)

    def _values_before_heavy(self) -> set[str]:
        """Float values that lead, through floats only, to a heavy operator or to a map for the next
        stage."""
        values = {value.name for value in self.graph.output if value.name in MAPS}
        for node in reversed(self.graph.node):
            if self._heavy(node) or values.intersection(node.output):
                values.update(name for _, name in self._floats(node))
        return values

    def _heavy(self, node: onnx.NodeProto) -> bool:
        return node.op_type in HEAVY and not any(name.startswith(GATE) for name in node.input)

    def _is_float(self, name: str) -> bool:
        return self.types.get(name) in _FLOATS

    def _floats(self, node: onnx.NodeProto) -> Iterator[tuple[int, str]]:
        fixed = ALWAYS_FLOAT.get(node.op_type, set())
        return (
            (i, name)
            for i, name in enumerate(node.input)
            if i not in fixed and self._is_float(name)
        )

    def _convert(self, node: onnx.NodeProto) -> None:
        half = self._heavy(node) or bool(self.half.intersection(node.output))
        inputs = list(node.input)
        for i, name in enumerate(inputs):
            if self._is_float(name):
                node.input[i] = self._in_type(
                    name, half and i not in ALWAYS_FLOAT.get(node.op_type, set())
                )
        if half:
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i in _FLOATS:
                    attribute.i = self.kind
                elif attribute.name == "value" and attribute.t.data_type in _FLOATS:
                    attribute.t.CopyFrom(self._halved(attribute.t, attribute.t.name))
            self.is_half.update(name for name in node.output if self._is_float(name))
        self.nodes.append(node)

    def _in_type(self, name: str, half: bool) -> str:
        if name in self.constants:
            if not half:
                return name
            new = f"{name}_half"
            if new not in self.constants:
                self.constants[new] = self._halved(self.constants[name], new)
                self.graph.initializer.append(self.constants[new])
            return new
        if (name in self.is_half) == half:
            return name
        if (name, half) not in self.cast:
            self.cast[name, half] = f"{name}_{'half' if half else 'float'}"
            to = self.kind if half else TensorProto.FLOAT
            self.nodes.append(helper.make_node("Cast", [name], [self.cast[name, half]], to=to))
        return self.cast[name, half]

    def _halved(self, tensor: TensorProto, name: str) -> TensorProto:
        values = np.clip(numpy_helper.to_array(tensor), -_HALF_MAX, _HALF_MAX)
        values = np.where(
            np.isinf(numpy_helper.to_array(tensor)), numpy_helper.to_array(tensor), values
        )
        dtype = helper.tensor_dtype_to_np_dtype(self.kind)
        return numpy_helper.from_array(values.astype(dtype), name)

    def _give(self, name: str, half: bool) -> None:
        """Let an output of the graph have the type that is wanted."""
        if (name in self.is_half) == half:
            return
        inner = f"{name}_inner"
        rename(self.nodes, {name: inner})
        to = self.kind if half else TensorProto.FLOAT
        self.nodes.append(helper.make_node("Cast", [inner], [name], to=to))
