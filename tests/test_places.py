"""Position embeddings and reference points as written into graphs are those that torch computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from model_export.export.attention import OPSET
from model_export.export.places import write_places
from model_export.network.names import DOMAIN, EMBEDDING, POINTS
from model_export.network.position import reference_points, sine_embedding

CPU = torch.device("cpu")
LEVELS = [(3, 4), (6, 8), (11, 15)]
SIZES = [side for level in LEVELS for side in level]


def graph_of(*nodes: tuple[str, list[int], tuple[int, ...]]) -> onnx.ModelProto:
    """A graph of these nodes alone, each an output: operator, sizes and shape."""
    made, outputs = [], []
    for number, (operator, sizes, shape) in enumerate(nodes):
        name = f"out{number}"
        made.append(helper.make_node(operator, [], [f"{name}.own"], domain=DOMAIN, sizes=sizes))
        made.append(helper.make_node("Identity", [f"{name}.own"], [name]))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    graph = helper.make_graph(made, "places", [], outputs)
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    write_places(model)
    onnx.checker.check_model(model)
    return model


def computed(model: onnx.ModelProto) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {})


@pytest.mark.parametrize(("height", "width", "channels"), [(3, 5, 8), (72, 96, 128), (1, 1, 256)])
def test_position_embeddings_are_torchs(height: int, width: int, channels: int) -> None:
    shape = (height * width, channels)
    (found,) = computed(graph_of((EMBEDDING, [height, width, channels], shape)))
    wanted = sine_embedding(height, width, channels, CPU).numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-7)


@pytest.mark.parametrize("levels", [LEVELS[:1], LEVELS])
def test_reference_points_are_torchs(levels: list[tuple[int, int]]) -> None:
    wanted = reference_points(levels, CPU).numpy()
    sizes = [side for level in levels for side in level]
    (found,) = computed(graph_of((POINTS, sizes, wanted.shape)))
    np.testing.assert_array_equal(found, wanted)


def test_what_is_of_the_same_sizes_is_computed_once() -> None:
    tokens = sum(height * width for height, width in LEVELS)
    once, twice = ([(POINTS, SIZES, (tokens, 2))] * count for count in (1, 2))
    added = len(graph_of(*twice).graph.node) - len(graph_of(*once).graph.node)
    assert added == 1  # the Identity
    first, second = computed(graph_of(*twice))
    np.testing.assert_array_equal(first, second)
