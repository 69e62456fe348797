"""The files of a bundle except for its manifest: one with the weights, and a graph per stage that
refers to it.

The weights lie in one model.safetensors (training/bundle_weights.py), which is the external data of
every graph, too.
"""

from __future__ import annotations

import gc
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from tqdm import tqdm

from model_export.export.attention import OPSET, add_bodies, nodes_of
from model_export.export.compact import compact
from model_export.export.graph_edits import needed_for, rename, types_of
from model_export.export.graphs import (
    Decode,
    Encoders,
    Glance,
    Stage,
    examples,
    graphs_of,
    heads_of,
    stages_of,
)
from model_export.export.places import write_places
from model_export.files import naming
from model_export.network.gate import Gate
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from model_export.training.bundle_weights import WEIGHTS, read_weights, write_weights
from model_export.training.runs import RunError
from service.bundle import Canvas, Shape, plain_of
from service.core import Frame

# For each graph the exporter warns of every operator of torchvision that the package is missing.
# The network does not need it.
logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in the weights file: type, shape, first byte and number of bytes."""

    half: bool
    shape: tuple[int, ...]
    offset: int
    length: int


def write_stages(
    folder: Path,
    trained: Segmenter,
    gate: Gate,
    canvases: Sequence[Canvas],
    plans: Sequence[Knobs],
    *,
    half: bool = True,
    reused: Path | None = None,
) -> dict[str, Stage]:
    """Weights and graphs of all stages, and the stages in torch with the weights as written.

    half: whether matrices are written as fp16. reused: a bundle of the same network, whose
    graphs are taken over where it has them; those with the gate are made anew.

    The graphs are made for the shapes of the canvases and any batch.
    """
    write_weights(folder / WEIGHTS, trained, gate, plain_of(canvases), half=half)
    model, stored, _ = read_weights(folder / WEIGHTS)
    stages, entries = stages_of(model, stored, canvases, plans), read_entries(folder / WEIGHTS)
    settings = {plan.name: plan for plan in plans}
    shapes = {shape.name: shape for canvas in canvases for shape in canvas.shapes}
    bar = tqdm(total=len(stages), desc="export", mininterval=5)

    def write(graph: onnx.ModelProto, name: str) -> None:
        write_graph(graph, folder / f"{name}.onnx", entries)
        bar.update()

    for shape, graphs in graphs_of(canvases, plans, heads_of(model.config)).items():
        # Plans on a canvas and on tiles of it share an encoder.
        encoders = {stage: plan for plan, stage in graphs.encoders.items()}
        missing = [graphs.front, *graphs.heads.values(), *encoders]
        for name in list(missing) if reused else ():
            source = reused / f"{name}.onnx"
            if source.exists() and not isinstance(stages[name], Glance):
                take_graph(source, folder / source.name, entries)
                missing.remove(name)
                bar.update()
        if not missing:
            continue
        inputs = examples(stages[graphs.front], [_noise(shapes[shape], seed) for seed in range(2)])
        if graphs.front in missing:
            write(trace(stages[graphs.front], inputs["front"], graphs.front), graphs.front)
        to_heads = dict(zip(Decode.inputs, inputs["decoder"], strict=True))
        for name in graphs.heads.values():
            if name in missing:
                example = tuple(to_heads[wanted] for wanted in stages[name].inputs)
                write(trace(stages[name], example, name), name)
        alike: dict[tuple[float, float], list[Knobs]] = {}
        for knobs in (settings[plan] for stage, plan in encoders.items() if stage in missing):
            alike.setdefault((knobs.keep, knobs.width), []).append(knobs)
        for group in alike.values():  # torch takes a quarter of a minute for six layers
            traced = trace(Encoders(model, group), inputs["encoders"], f"encoder-{shape}")
            for plan in group:
                name = graphs.encoders[plan.name]
                write(cut_out(traced, plan.encoder, stages[name].outputs), name)
    bar.close()
    return stages


def _noise(shape: Shape, seed: int) -> Frame:
    """An image to trace with: what it shows does not matter."""
    size = (shape.height, shape.width, 3)
    return Frame.filling(np.random.default_rng(seed).integers(0, 256, size, np.uint8))


def read_entries(path: Path) -> dict[str, Entry]:
    """The safetensors header."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    entries = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        entries[name] = Entry(
            entry["dtype"] == "F16", tuple(entry["shape"]), 8 + size + start, end - start
        )
    return entries


# --------------------------------------------------------------------------------------------------
# the graphs


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """The exporter makes millions of objects and keeps them until its end: looking for garbage
    among them would take a fifth of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def trace(module: Stage | Encoders, example: tuple[Tensor, ...], name: str) -> onnx.ModelProto:
    """The module as a graph for any batch, without traces of the machine that made it. Raises
    RunError."""
    names = module.inputs
    with warnings.catch_warnings(), torch.no_grad(), _no_garbage_collection():
        warnings.simplefilter("ignore")  # the exporter's own, about names of axes that it merges
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            dynamic_shapes={n: {0: torch.export.Dim("batch")} for n in names},
            input_names=list(names),
            output_names=list(module.outputs),
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )
    model = program.model_proto
    graph = model.graph
    for value in graph.input:
        # An int() or len() of a tensor in the network would fix the batch silently.
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise RunError(f"{name}: the batch of {value.name} is not free")
    del model.metadata_props[:], graph.metadata_props[:]
    for node in graph.node:
        del node.metadata_props[:]  # stack traces with the paths of the exporting machine
        node.doc_string = ""
    for value in (*graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]
    write_places(model)
    cast_by_type(model)
    add_bodies(model)
    del graph.value_info[:]
    return model


def cut_out(traced: onnx.ModelProto, encoder: str, outputs: Sequence[str]) -> onnx.ModelProto:
    """The part of `Encoders` that one of them needs, with its own names of the outputs."""
    renamed = {f"{encoder}.{name}": name for name in outputs}
    nodes = needed_for(renamed, traced.graph.node)
    inputs = {name for node in nodes for name in node.input}
    model = onnx.ModelProto()
    model.CopyFrom(traced)
    graph = model.graph
    del graph.node[:], graph.output[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.output.extend(value for value in traced.graph.output if value.name in renamed)
    graph.initializer.extend(tensor for tensor in traced.graph.initializer if tensor.name in inputs)
    overloads = {node.overload for node in nodes_of(model)}
    del model.functions[:]
    model.functions.extend(body for body in traced.functions if body.overload in overloads)
    for value in graph.output:
        value.name = renamed[value.name]
    rename(graph.node, renamed)
    return model


def write_graph(model: onnx.ModelProto, path: Path, entries: dict[str, Entry]) -> None:
    """Let the parameters refer to the weights file, and save."""
    graph = model.graph
    casts = [cast for tensor in graph.initializer if (cast := refer(tensor, entries)) is not None]
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    part_sums_from_norms(graph)
    compact(model)
    with naming(path):
        onnx.save(model, path)
    onnx.checker.check_model(path)


def refer(tensor: TensorProto, entries: dict[str, Entry]) -> onnx.NodeProto | None:
    """Turn an initializer into a reference to the weights file. Returns the Cast back to fp32 where
    it is fp16."""
    name = tensor.name.removeprefix("model.")
    if name not in entries:
        # An index table of a backbone's windows is small beside its weights.
        if tensor.ByteSize() > 4096 and tensor.data_type in (
            TensorProto.FLOAT,
            TensorProto.FLOAT16,
        ):
            raise RunError(
                f"{tensor.name} ({tensor.ByteSize()} bytes) is no weight of the network; it would "
                f"be stored twice"
            )
        return None
    entry, public = entries[name], tensor.name
    tensor.Clear()
    tensor.name = f"{public}.half" if entry.half else public
    tensor.data_type = TensorProto.FLOAT16 if entry.half else TensorProto.FLOAT
    tensor.dims.extend(entry.shape)
    _point_to(tensor, entry)
    return (
        helper.make_node("Cast", [tensor.name], [public], to=TensorProto.FLOAT)
        if entry.half
        else None
    )


def _point_to(tensor: TensorProto, entry: Entry) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", WEIGHTS), ("offset", entry.offset), ("length", entry.length)):
        tensor.external_data.add(key=key, value=str(value))


def take_graph(source: Path, path: Path, entries: dict[str, Entry]) -> None:
    """A graph of another bundle, with references to this one's weights file. Raises RunError where
    it is of another network."""
    model = onnx.load(source, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        name = tensor.name.removeprefix("model.").removesuffix(".half")
        half, entry = tensor.data_type == TensorProto.FLOAT16, entries.get(name)
        if entry is None or (entry.half, entry.shape) != (half, tuple(tensor.dims)):
            raise RunError(f"{source} is of another network, by its {name}: leave out --graphs-of")
        _point_to(tensor, entry)
    with naming(path):
        onnx.save(model, path)
    onnx.checker.check_model(path)


def cast_by_type(model: onnx.ModelProto) -> None:
    """CastLike becomes Cast. For ONNX Runtime the former is a function, which it resolves too late
    to see that the bounds of a Clip are constants: it would not fuse the Clip with the Conv before
    it, and the backbone would take a third longer."""
    types = types_of(model)
    for node in model.graph.node:
        if node.op_type == "CastLike":
            like = node.input.pop()
            node.op_type = "Cast"
            node.attribute.append(helper.make_attribute("to", types[like]))


def part_sums_from_norms(graph: onnx.GraphProto) -> None:
    """Put an Unsqueeze and a Squeeze, which cost nothing, around every LayerNormalization.

    ONNX Runtime's CPU fuses a sum and the norm that follows into SkipLayerNormalization, which
    takes five times as long as the two (2.2 ms against 0.45 for 3780 x 128). It only does so for
    three axes.
    """
    if not any(node.op_type == "LayerNormalization" for node in graph.node):
        return
    graph.initializer.append(numpy_helper.from_array(np.array([0]), "first_axis"))
    nodes = []
    for node in graph.node:
        if node.op_type != "LayerNormalization":
            nodes.append(node)
            continue
        given, result = node.input[0], node.output[0]
        node.input[0], node.output[0] = f"{given}.for.{result}", f"{result}.normed"
        nodes.append(helper.make_node("Unsqueeze", [given, "first_axis"], [node.input[0]]))
        nodes.append(node)
        nodes.append(helper.make_node("Squeeze", [node.output[0], "first_axis"], [result]))
    del graph.node[:]
    graph.node.extend(nodes)
