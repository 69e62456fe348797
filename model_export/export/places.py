"""What follows from the sizes of the maps alone: position embeddings and reference points.

The exporter sees one node for each. Here it becomes nodes of ONNX's own operators: written, not
traced, in a third of the nodes and none of the seconds. They compute what would be megabytes as a
constant.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import helper, parser

from model_export.export.attention import OPSET, reshape
from model_export.export.graph_edits import rename
from model_export.network.names import DOMAIN, EMBEDDING, POINTS
from model_export.network.position import centers, rates, turns


def write_places(model: onnx.ModelProto) -> None:
    """Replace every such node; those of the same sizes by the same nodes. In place."""
    first: dict[tuple[str, tuple[int, ...]], str] = {}
    instead: dict[str, str] = {}
    nodes = []
    for node in model.graph.node:
        if node.domain != DOMAIN or node.op_type not in WRITERS:
            nodes.append(node)
            continue
        sizes = tuple(helper.get_attribute_value(node.attribute[0]))
        (out,) = node.output
        same = first.setdefault((node.op_type, sizes), out)
        if same == out:
            nodes += _nodes(WRITERS[node.op_type](sizes), out)
        else:
            instead[out] = same
    rename(nodes, instead)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def embedding(sizes: tuple[int, ...]) -> list[str]:
    """`sine_embedding` in lines of ONNX's text form, which end in `out`. sizes: height, width and
    channels."""
    height, width, channels = sizes
    lines = [
        f"rates = Constant <value_floats = {rates(channels).tolist()}> ()",
        "last = Constant <value_ints = [2]> ()",
        f"all = Constant <value_ints = {[height, width, channels // 2]}> ()",
    ]
    for axis, size, shape in (("y", height, (height, 1)), ("x", width, (1, width))):
        lines += [
            f"{axis}_turns = Constant <value_floats = {turns(size).tolist()}> ()",
            *reshape(f"{axis}_column", f"{axis}_turns", size, 1),
            f"{axis}_angle = Mul ({axis}_column, rates)",
            f"{axis}_sin = Sin ({axis}_angle)",
            f"{axis}_cos = Cos ({axis}_angle)",
            f"{axis}_sins = Unsqueeze ({axis}_sin, last)",
            f"{axis}_coss = Unsqueeze ({axis}_cos, last)",
            f"{axis}_pairs = Concat <axis = 2> ({axis}_sins, {axis}_coss)",
            *reshape(f"{axis}_own", f"{axis}_pairs", *shape, channels // 2),
            f"{axis} = Expand ({axis}_own, all)",
        ]
    return [
        *lines,
        "both = Concat <axis = 2> (y, x)",
        *reshape("out", "both", height * width, channels),
    ]


def points(sizes: tuple[int, ...]) -> list[str]:
    """The same for `reference_points`. sizes: h, w of level after level."""
    lines, levels = [], []
    for i, (height, width) in enumerate(zip(sizes[::2], sizes[1::2], strict=True)):
        lines.append(f"all{i} = Constant <value_ints = {[height, width, 1]}> ()")
        for axis, size, shape in (("x", width, (1, width, 1)), ("y", height, (height, 1, 1))):
            lines += [
                f"{axis}{i}_centers = Constant <value_floats = {centers(size).tolist()}> ()",
                *reshape(f"{axis}{i}_own", f"{axis}{i}_centers", *shape),
                f"{axis}{i} = Expand ({axis}{i}_own, all{i})",
            ]
        lines.append(f"both{i} = Concat <axis = 2> (x{i}, y{i})")
        lines += reshape(f"level{i}", f"both{i}", height * width, 2)
        levels.append(f"level{i}")
    return [*lines, f"out = Concat <axis = 0> ({', '.join(levels)})"]


WRITERS: dict[str, Callable[[tuple[int, ...]], list[str]]] = {
    EMBEDDING: embedding,
    POINTS: points,
}


def _nodes(lines: list[str], out: str) -> list[onnx.NodeProto]:
    """Of these lines, with values named after the node that they replace."""
    head = f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]> places () => (out) {{'
    function = parser.parse_function("\n".join([head, *lines, "}"]))
    made = {name for node in function.node for name in node.output}
    rename(function.node, {name: out if name == "out" else f"{out}.{name}" for name in made})
    return list(function.node)
