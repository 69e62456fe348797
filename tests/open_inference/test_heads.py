"""Several heads by the protocol: outputs per head, and the parameter task_preference."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from service.bundle import Manifest
from service.open_inference.outputs import Tensor
from tests.api.server import Server, running
from tests.open_inference.asking import INFER, LENGTH, document, infer, outputs, refused
from tests.pictures import LEVELS, quarters

NAMES = (
    "semantic.labels",
    "semantic.segments",
    "boxes.segments",
    "depth.values",
    "depth.statistics",
)


@pytest.fixture
def server(several_heads: Manifest) -> Iterator[Server]:
    with running(several_heads) as server:
        yield server


def asked(preference: Any = None, *names: str, **parameters: Any) -> dict[str, Any]:
    members: dict[str, Any] = {"parameters": {"max_loss": 0, **parameters}}
    if preference is not None:
        members["parameters"]["task_preference"] = preference
    if names:
        members["outputs"] = [{"name": name} for name in names]
    return document(quarters(), **members)


def test_metadata_and_config_list_the_outputs_of_every_head(server: Server) -> None:
    metadata = server.http.get("/v2/models/fake").json()
    assert [(own["name"], own["datatype"], own["shape"]) for own in metadata["outputs"]] == [
        ("semantic.labels", "UINT8", [-1, -1, -1]),
        ("semantic.segments", "BYTES", [-1]),
        ("boxes.segments", "BYTES", [-1]),
        ("depth.values", "FP32", [-1, -1, -1]),
        ("depth.statistics", "BYTES", [-1]),
    ]
    config = server.http.get("/v2/models/fake/config").json()
    assert [own["name"] for own in config["output"]] == list(NAMES)
    assert config["output"][3]["data_type"] == "TYPE_FP32"
    assert config["parameters"]["heads"] == {"string_value": "semantic, boxes, depth"}


def test_without_names_the_outputs_are_those_of_the_asked_heads(server: Server) -> None:
    assert list(outputs(infer(server, asked()))) == [
        name for name in NAMES if not name.startswith("boxes")
    ]
    assert len(outputs(infer(server, asked("")))) == 4  # no preference, as an empty field
    assert list(outputs(infer(server, asked("boxes=1")))) == ["boxes.segments"]
    found = outputs(infer(server, asked("semantic=0.1, depth=0.9", "depth.values")))
    assert list(found) == ["depth.values"]


def test_the_outputs_say_what_segment_says(server: Server) -> None:
    found = outputs(infer(server, asked("semantic=1, boxes=1, depth=1")))
    headers = {"Task-Preference": "semantic=1, boxes=1, depth=1", "Compute-Budget": "max-loss=0"}
    heads = server.post(quarters(), headers).json()["heads"]
    assert json.loads(found["semantic.segments"]["data"][0]) == heads["semantic"]["segments"]
    assert json.loads(found["boxes.segments"]["data"][0]) == heads["boxes"]["segments"]
    statistics = json.loads(found["depth.statistics"]["data"][0])
    assert statistics == {k: v for k, v in heads["depth"]["values"].items() if k != "scale"}
    values = np.reshape(found["depth.values"]["data"], found["depth.values"]["shape"])
    assert values.shape == (1, 48, 64)
    corners = values[0][[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners == pytest.approx([1 + 49 * level / 255 for level in LEVELS], abs=1e-3)


def test_values_come_as_binary_data(server: Server) -> None:
    body = asked("depth=1", "depth.values", binary_data_output=True)
    response = server.http.post(INFER, json=body)
    start = int(response.headers[LENGTH])
    values = np.frombuffer(response.content[start:], "<f4").reshape(48, 64)
    assert values.max() == pytest.approx(1 + 49 * 250 / 255, abs=1e-3)


def test_values_in_json_are_rounded_to_four_digits() -> None:
    values = np.float32([0, 1e-5, 5e-5, 0.99999, 9.99996, 42.5, 1234.56789, 500_000])
    text = Tensor("values", "FP32", (1, 2, 4), values.reshape(1, 2, 4)).in_json()
    assert json.loads(b"[%b]" % text) == values.astype(float).round(4).tolist()


def test_values_of_a_photo_are_not_written_one_by_one() -> None:
    values = np.linspace(1, 99, 1_000_000, dtype=np.float32).reshape(1, 1000, 1000)
    tracemalloc.start()
    try:
        text = Tensor("values", "FP32", values.shape, values).in_json()
        # As numbers of Python they would take ten times as much, and while those are written no
        # other thread runs: a photo of 12 megapixels stalled the service for seconds.
        assert tracemalloc.get_traced_memory()[1] < 5 * len(text)
    finally:
        tracemalloc.stop()
    written = np.fromstring(text.decode(), sep=",")
    assert np.abs(written - values.ravel()).max() < 6e-5


def test_the_parameters_say_which_heads_ran_at_which_width(server: Server) -> None:
    reply = infer(server, asked("semantic=0.3, depth=0.7", gflops=6.3)).json()["parameters"]
    assert reply["plan"] == "c64-d4+semantic-w50+depth"
    (usage,) = json.loads(reply["usage"])
    assert usage["heads"] == {"semantic": 0.5, "depth": 1.0}


def test_images_of_different_sizes_have_no_common_tensor_of_values(server: Server) -> None:
    body = document(quarters(), quarters(96, 48), parameters={"task_preference": "depth=1"})
    assert "request 'depth.statistics' alone" in refused(infer(server, body))
    found = outputs(infer(server, {**body, "outputs": [{"name": "depth.statistics"}]}))
    assert found["depth.statistics"]["shape"] == [2]


@pytest.mark.parametrize(
    ("preference", "names", "words"),
    [
        ("sky=1", (), "the key 'sky' is no head of this bundle"),
        ("depth=0", (), "parameters: task_preference: the key 'depth' is 0"),
        ("depth=-1", (), "parameters: task_preference: the key 'depth' must be from 0"),
        ("Depth=1", (), "parameters: task_preference: the key 'Depth' cannot be understood"),
        (",", (), "task_preference has a member without a key"),
        ({"depth": 1}, (), "the key 'task_preference' must be a string"),
        (1.5, (), "the key 'task_preference' must be a string"),
        ("a" * 2000, (), "the key 'task_preference' must be a string of at most 1024"),
        ("depth=1", ("boxes.segments",), "of the head 'boxes', which is not asked for"),
        (None, ("boxes.segments",), "give it a weight in task_preference"),
        ("depth=1", ("labels",), "the output 'labels' is unknown: the outputs are"),
        ("depth=1", ("depth.values", "depth.values"), "an output is requested twice"),
    ],
)
def test_what_is_wrong_is_named(
    server: Server, preference: Any, names: tuple[str, ...], words: str
) -> None:
    assert words in refused(infer(server, asked(preference, *names)))


def test_a_bundle_with_one_head_has_the_outputs_it_had(fake_manifest: Manifest) -> None:
    with running(fake_manifest) as server:
        assert list(outputs(infer(server, asked()))) == ["labels", "segments"]
        assert list(outputs(infer(server, asked("semantic=2")))) == ["labels", "segments"]
        assert "'depth' is no head" in refused(infer(server, asked("depth=1")))
