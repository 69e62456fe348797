"""Deformable attention as one node of a graph, with its decomposed form as the node's body.

The node is fathom.MsDeformAttn. A local function of the same name, one overload per set of shapes,
defines it in ONNX's own operators. ONNX Runtime replaces the node by the body before it optimises
anything; TensorRT uses our plugin (export/tensorrt.py). So one file serves both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import onnx
from onnx import helper, parser

from model_export.export.graph_edits import rename
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


def body(form: Form) -> onnx.FunctionProto:
    """`by_grid_sample` in ONNX's operators. Written, not traced: the exporter takes 5 s for it.

    Every Reshape has one free axis, the batch. Rows of Q come last, so that sums over points are
    sums of long rows.
    """
    heads, width, queries, levels = form.heads, form.width, form.queries, len(form.shapes)
    samples = levels * form.points  # of a query and head
    pixels = [side for h, w in form.shapes for side in form.points * (2 / w, 2 / h)]
    tiles = [1] * (2 + form.per_image)
    tiles[-1] = heads * samples
    lines = [
        # softmax over levels and points: (B * M, 1, L * P, Q)
        *reshape("rows", "logits", -1, queries, heads, samples),
        "softmax = Softmax <axis = -1> (rows)",
        "by_head = Transpose <perm = [0, 2, 3, 1]> (softmax)",
        *reshape("weights", "by_head", -1, 1, samples, queries),
        # GridSample takes -1..1: 2 * (reference + offset / size) - 1, on flat rows
        *reshape("flat", "offsets", -1, queries, heads * samples * 2),
        f"step = Constant <value_floats = {heads * pixels}> ()",
        "two = Constant <value_float = 2.0> ()",
        "one = Constant <value_float = 1.0> ()",
        f"tiles = Constant <value_ints = {tiles}> ()",
        "twice = Mul (reference, two)",
        "center = Sub (twice, one)",
        "centers = Tile (center, tiles)",
        "steps = Mul (flat, step)",
        "places = Add (steps, centers)",
        *reshape("apart", "places", -1, queries, heads, samples, 2),
        "permuted = Transpose <perm = [0, 2, 3, 1, 4]> (apart)",
        *reshape("grid", "permuted", -1, samples, queries, 2),
        # (B * M, D, S)
        *reshape("tokens", "value", -1, form.tokens, heads * width),
        "channels = Transpose <perm = [0, 2, 1]> (tokens)",
        *reshape("planes", "channels", -1, width, form.tokens),
        *_split("weights", 2, [form.points] * levels),
        *_split("grid", 1, [form.points] * levels),
        *_split("planes", 2, [h * w for h, w in form.shapes]),
        "points = Constant <value_ints = [2]> ()",
    ]
    for i, (h, w) in enumerate(form.shapes):
        lines += [
            *reshape(f"plane{i}", f"planes{i}", -1, width, h, w),
            f'sampled{i} = GridSample <mode = "bilinear"> (plane{i}, grid{i})',
            f"weighted{i} = Mul (sampled{i}, weights{i})",
            f"level{i} = ReduceSum <keepdims = 0> (weighted{i}, points)",
        ]
    total = "level0"
    for i in range(1, levels):
        lines.append(f"sum{i} = Add ({total}, level{i})")
        total = f"sum{i}"
    lines += [
        *reshape("joined", total, -1, heads * width, queries),
        "out = Transpose <perm = [0, 2, 1]> (joined)",
    ]
    attributes = ", ".join(field.name for field in fields(Form))
    head = f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]> {OPERATOR} <{attributes}>'
    text = "\n".join([f"{head} ({', '.join(INPUTS)}) => (out) {{", *lines, "}"])
    function = parser.parse_function(text)
    function.overload = form.name
    return function


def reshape(name: str, source: str, *shape: int) -> tuple[str, str]:
    """Lines of ONNX's text form."""
    return (
        f"{name}_shape = Constant <value_ints = {list(shape)}> ()",
        f"{name} = Reshape ({source}, {name}_shape)",
    )


def _split(name: str, axis: int, sizes: list[int]) -> tuple[str, str]:
    """Into name0, name1, ..."""
    parts = ", ".join(f"{name}{i}" for i in range(len(sizes)))
    return (
        f"{name}_sizes = Constant <value_ints = {sizes}> ()",
        f"{parts} = Split <axis = {axis}> ({name}, {name}_sizes)",
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
