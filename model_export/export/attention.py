"""Deformable attention as one node of a graph, with its decomposed form as the node's body.

The node is fathom.MsDeformAttn. A local function of the same name, one overload per set of shapes,
defines it in ONNX's own operators. ONNX Runtime replaces the node by the body before it optimises
anything; TensorRT uses our plugin (export/tensorrt.py). So one file serves both.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from model_export.export.compact import compact
from model_export.export.graph_edits import needed_for, rename
from model_export.network.deformable_attention import by_grid_sample
from model_export.network.names import DOMAIN, OPERATOR

OPSET = 18
INPUTS = ("value", "offsets", "logits", "reference")


@dataclass(frozen=True)
class Form:
    """The attributes of a node, and what a body is made for; the batch is free.

    sizes: h, w of level after level. width: channels of a head. per_image: reference points (B, Q,
    2), not (Q, 2).
    """

    sizes: tuple[int, ...]
    heads: int
    points: int
    width: int
    queries: int
    per_image: bool

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return list(zip(self.sizes[::2], self.sizes[1::2], strict=True))

    @property
    def tokens(self) -> int:
        return sum(h * w for h, w in self.shapes)

    @property
    def dense(self) -> bool:
        """Whether the queries are the tokens themselves."""
        return self.queries == self.tokens and not self.per_image

    @property
    def name(self) -> str:
        """Of the overload, e.g. "11x15.22x30", for a subset of the queries "11x15.22x30-400"."""
        levels = ".".join(f"{h}x{w}" for h, w in self.shapes)
        return levels if self.dense else f"{levels}-{self.queries}"


class _Body(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def forward(self, value: Tensor, offsets: Tensor, logits: Tensor, reference: Tensor) -> Tensor:
        return by_grid_sample(value, offsets, logits, reference, self.form.shapes)


def nodes_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Every deformable attention of a graph, in order."""
    return [node for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, OPERATOR)]


def forms_of(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, Form]]:
    """Each such node and its form."""
    for node in nodes_of(model):
        values: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        given = {field.name: values[field.name] for field in fields(Form)}
        typed = {"sizes": tuple(given["sizes"]), "per_image": bool(given["per_image"])}
        yield node, Form(**given | typed)


def add_bodies(model: onnx.ModelProto) -> None:
    """Give every node the overload of its form, and the model the functions."""
    made = {}
    for node, form in forms_of(model):
        node.overload = form.name
        made[form.name] = body(form)
    if made:
        model.functions.extend(made.values())
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


@cache  # the graphs of all plans share a few forms
def body(form: Form) -> onnx.FunctionProto:
    """The decomposed form, traced as the network's other parts are."""
    split = (form.queries, form.heads, len(form.shapes), form.points)
    example = (
        torch.zeros(2, form.tokens, form.heads, form.width),
        torch.zeros(2, *split, 2),
        torch.zeros(2, *split),
        torch.zeros(*((2,) if form.per_image else ()), form.queries, 2),
    )
    free = {0: torch.export.Dim("batch")}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Body(form),
            example,
            dynamo=True,
            dynamic_shapes=dict.fromkeys(INPUTS[:3], free)
            | {"reference": free if form.per_image else None},
            input_names=list(INPUTS),
            output_names=["out"],
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )
    compact(program.model_proto)
    graph = program.model_proto.graph
    nodes = [
        helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in graph.initializer
    ]
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        nodes.append(node)
    return helper.make_function(
        DOMAIN,
        OPERATOR,
        list(INPUTS),
        ["out"],
        with_plain_shapes(nodes, "out"),
        [helper.make_opsetid("", OPSET)],
        [field.name for field in fields(Form)],
        overload=form.name,
    )


def widened(function: onnx.FunctionProto, kind: int) -> onnx.FunctionProto:
    """The body for values, offsets and logits stored as `kind`: it computes in float32, as the
    kernel does."""
    wide = onnx.FunctionProto()
    wide.CopyFrom(function)
    renamed = {name: f"{name}_wide" for name in (*INPUTS[:3], "out")}
    rename(wide.node, renamed)
    float32 = onnx.TensorProto.FLOAT
    casts = [helper.make_node("Cast", [name], [renamed[name]], to=float32) for name in INPUTS[:3]]
    nodes = [*casts, *wide.node, helper.make_node("Cast", [renamed["out"]], ["out"], to=kind)]
    del wide.node[:]
    wide.node.extend(nodes)
    return wide


def with_plain_shapes(nodes: list[onnx.NodeProto], output: str) -> list[onnx.NodeProto]:
    """The batch in the shape of a Reshape becomes -1, and the nodes that computed it go: even once
    per call of the body they cost a percent of an encoder's time."""
    made_by = {name: node for node in nodes for name in node.output}
    plain: list[onnx.NodeProto] = []
    for node in nodes:
        joined = made_by.get(node.input[1]) if node.op_type == "Reshape" else None
        parts = (
            [made_by[name] for name in joined.input]
            if joined is not None and joined.op_type == "Concat"
            else []
        )
        free = [part for part in parts if part.op_type != "Constant"]
        if len(free) == 1:
            sizes = [-1 if part.op_type != "Constant" else _constant(part) for part in parts]
            name = f"{node.output[0]}_shape"
            plain.append(helper.make_node("Constant", [], [name], value_ints=sizes))
            node.input[1] = name
        plain.append(node)
    return needed_for({output}, plain)


def _constant(node: onnx.NodeProto) -> int:
    value = helper.get_attribute_value(node.attribute[0])
    return int(
        numpy_helper.to_array(value).item() if isinstance(value, onnx.TensorProto) else value[0]
    )
