"""Hostile requests: whatever stands in them, the answer is a 4xx in the protocol's form."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.api.encodings import MAX_MEMBERS, PIECE
from service.bundle import Manifest
from service.core import Ask
from service.errors import BadBudget, BadInference, BadPreference
from service.open_inference import rest
from service.open_inference.request import elements as split
from tests.api.server import Server, running
from tests.open_inference.asking import (
    INFER,
    LENGTH,
    binary,
    document,
    elements,
    infer,
    outputs,
    pixels,
    refused,
)
from tests.pictures import flat

FLAT = flat()
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 300)
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 10**4000, 1e308])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["image", "pixels", "labels", "BYTES", "UINT8", "FP32", "AAAA"])
    | st.sampled_from(
        ["a=1", "a=-1", "a=0", "a=1, a", "=1", "a=(1 2)", "A=1", "a=1;b", "a=9" * 400]
    )
)
KEYS = st.sampled_from(
    [
        *("name", "datatype", "shape", "data", "parameters", "binary_data_size", "binary_data"),
        *("id", "inputs", "outputs", "depth", "gflops", "ms", "max_loss", "strict", "timeout"),
        *("binary_data_output", "sequence_id", "shared_memory_region", "x"),
        *("task_preference", "value_range"),
    ]
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.lists(st.integers(0, 255), max_size=20)
    ),
    max_leaves=12,
)
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["image", "pixels"]) | VALUES,
        "datatype": st.sampled_from(["BYTES", "UINT8", "INT64", "FP16"]) | VALUES,
        "shape": st.lists(st.integers(-1, 2**33) | st.integers(0, 3), max_size=6) | VALUES,
        "data": VALUES,
        "parameters": st.dictionaries(KEYS, VALUES, max_size=3)
        | st.fixed_dictionaries({"binary_data_size": st.integers(-1, 40)}),
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=5) | VALUES,
        "inputs": st.lists(TENSORS, max_size=2) | VALUES,
        "outputs": st.lists(st.dictionaries(KEYS, VALUES, max_size=3), max_size=3) | VALUES,
        "parameters": st.dictionaries(KEYS, VALUES, max_size=4) | VALUES,
    },
)
LENGTHS = st.sampled_from(["", "0", "-1", "+1", "1e3", "7 7", "²", "9" * 30]) | st.integers(
    0, 300
).map(str)


class Everything:
    """Offers any output."""

    def chosen(self, names: Sequence[object], ask: Ask) -> tuple[str, ...]:
        return tuple(map(str, names))


@settings(max_examples=400, deadline=None)
@given(head=DOCUMENTS | VALUES, data=st.binary(max_size=40), length=LENGTHS)
@example(head={}, data=b"", length="2")
def test_a_parser_of_hostile_bodies_raises_its_own_errors_alone(
    head: Any, data: bytes, length: str
) -> None:
    body = json.dumps(head).encode() + data
    for field in (length, str(len(body) - len(data)), None):
        with contextlib.suppress(BadInference, BadBudget, BadPreference):
            sent = rest.parse(body, field, Everything(), Ask())
            assert 1 <= len(sent.request.input.pictures(4)) <= 4


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=64), count=st.integers(0, 5))
def test_elements_of_bytes_are_whole_or_refused(raw: bytes, count: int) -> None:
    try:
        found = split(raw, count)
    except BadInference:
        return
    assert len(found) == count
    assert elements(found) == raw


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    head=DOCUMENTS,
    data=st.binary(max_size=40) | st.just(elements([FLAT])),
    length=LENGTHS | st.just("right"),
    encoding=st.sampled_from(["", "gzip", "deflate", "gzip of another", "cut"]),
)
def test_the_service_answers_hostile_requests_with_4xx(
    server: Server, head: Any, data: bytes, length: str, encoding: str
) -> None:
    text = json.dumps(head).encode()
    content, headers = text + data, {}
    if length:
        headers[LENGTH] = str(len(text)) if length == "right" else length
    if encoding == "deflate":
        content = zlib.compress(content)
    elif encoding:
        content = gzip.compress(content)
    if encoding == "cut":
        content = content[:-3]
    if encoding:
        headers["Content-Encoding"] = "gzip" if encoding in ("gzip", "cut") else "deflate"
    fields = [(name.encode(), value.encode()) for name, value in headers.items()]
    response = server.http.post(INFER, content=content, headers=fields)
    if response.status_code != 200:
        assert 400 <= response.status_code < 500, response.text
        assert isinstance(response.json()["error"], str)


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "JSON"),
        (b"[]", "JSON object"),
        (b"{", "JSON"),
        (b"\xff{}", "UTF-8"),
        ('{"inputs": []}'.encode("utf-16"), "UTF-8"),
        (b'{"a": NaN}', "JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"[" * 2_000_000, "too many"),
        (b'{"a": [' + b'"",' * 9000 + b'""]}', "too many"),
        (b"[" + b"1," * 4_000_001 + b"1]", "binary data"),
        (b'{"inputs": 3}', "list of objects"),
        (b'{"inputs": [{}, {}]}', "send one"),
        (b'{"inputs": [{"name": 1}]}', "name and a datatype"),
        (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [true]}]}', "shape"),
        (b'{"inputs": [{"name": "x", "datatype": "BYTES", "shape": [0], "data": []}]}', "unknown"),
        (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}]}', "list"),
        (
            b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], '
            b'"data": ["\xc3\xa9"]}]}',
            "base64",
        ),
        (
            b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": ["AAAA"]}]}',
            "has 1 element, but its shape is [2]",
        ),
        (
            b'{"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 3], '
            b'"data": [0, 1, 256]}]}',
            "0 to 255",
        ),
        (
            b'{"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [3], '
            b'"data": [1, 2, 3]}]}',
            "[N, H, W, 3]",
        ),
        (
            b'{"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 1, 3], '
            b'"data": [0.5, 0.5, 0.5]}]}',
            "is 'FP32': send BYTES",
        ),
        (
            b'{"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 3], '
            b'"data": [1, true, 3]}]}',
            "0 to 255",
        ),
        (
            b'{"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 3], '
            b'"data": [1]}]}',
            "has 1 value, but its shape is [1, 1, 3]",
        ),
        (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [4294967296]}]}', "2**31"),
        (
            b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [3]}]}',
            "must be strings",
        ),
        (
            b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], '
            b'"data": ["data:image/png;base64,AAAA"]}]}',
            "is a data URL: send what follows its comma alone",
        ),
        (
            b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], '
            b'"data": [["AAAA"]]}]}',
            "nested as the shape [1] says",
        ),
        (b'{"parameters": 3, "inputs": null}', "parameters"),
        (b'{"inputs": null}', "inputs must be a list"),
        (
            b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], '
            b'"data": ["AAAA", "A"]}]}',
            "Image 1: the data of the input 'image' is not base64",
        ),
        (
            b'{"outputs": [{"name": "labels", "parameters": {"classification": 3}}]}',
            "the parameter 'classification' of the output 'labels' is unknown",
        ),
        (
            b'{"parameters": {"xyz": 3}}',
            "strict, task_preference, value_range, timeout, binary_data_output",
        ),
    ],
)
def test_what_is_wrong_is_named(server: Server, body: bytes, part: str) -> None:
    assert part in refused(infer(server, body))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"binary_data_size": 5}, "binary_data_size"),
        ({"binary_data_size": True}, "binary_data_size"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": 3}, "shared memory"),
        ({"binary_data_size": None}, "bytes more"),
    ],
)
def test_sizes_of_binary_data_must_be_right(
    server: Server, change: dict[str, Any], part: str
) -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": change}
    body, headers = binary({"inputs": [tensor]}, elements([FLAT]))
    assert part in refused(infer(server, body, headers))


def test_the_json_before_binary_data_is_small(server: Server) -> None:
    body, headers = pixels((48, 64, 3), bytes(48 * 64 * 3), id="x", padding="y" * 70_000)
    assert "65536" in refused(infer(server, body, headers))


def test_a_bomb_is_never_inflated_whole(fake_manifest: Manifest) -> None:
    bomb = gzip.compress(bytes(200_000_000), 9)
    headers = {"Content-Encoding": "gzip", LENGTH: "0"}
    with running(fake_manifest, max_body_bytes=1_000_000) as server:
        tracemalloc.start()
        try:
            refused(infer(server, bomb, headers), 413)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 20_000_000


def test_damaged_and_trailing_data_of_an_encoding_are_refused(server: Server) -> None:
    packed = gzip.compress(json.dumps(document(FLAT)).encode())
    headers = {"Content-Encoding": "gzip"}
    for body in (b"", packed[:-1], packed + b"x", packed + packed[:9], b"x" + packed):
        assert "encoding gzip" in refused(infer(server, body, headers))
    # Of gzip alone, several may follow each other, and zeros.
    for more in (zlib.compress(b"{}"), bytes(2)):
        body = zlib.compress(b"{}") + more
        assert "encoding deflate" in refused(infer(server, body, {"Content-Encoding": "deflate"}))


def test_a_gzip_body_may_have_several_members_but_not_any_number(server: Server) -> None:
    text = json.dumps(document(FLAT)).encode()
    headers = {"Content-Encoding": "gzip"}
    for split_at in (0, 10, len(text)):
        body = gzip.compress(text[:split_at]) + gzip.compress(text[split_at:])
        outputs(infer(server, body, headers))
        outputs(infer(server, body + bytes(2 * PIECE), headers))  # blocks are filled up with zeros
    many = gzip.compress(b"") * MAX_MEMBERS + gzip.compress(text)
    assert "encoding gzip" in refused(infer(server, many, headers))


@pytest.mark.parametrize("size", [PIECE - 1, PIECE, PIECE + 1, 2 * PIECE])
def test_a_packed_body_may_have_any_size(server: Server, size: int) -> None:
    text = json.dumps(document(FLAT)).encode().ljust(size)
    outputs(infer(server, gzip.compress(text), {"Content-Encoding": "gzip"}))


def test_an_element_longer_than_its_data_is_refused(server: Server) -> None:
    for raw in (b"\xff\xff\xff\xff", b"\x01", elements([FLAT])[:-1], elements([FLAT, FLAT])):
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
        tensor["parameters"] = {"binary_data_size": len(raw)}
        refused(infer(server, *binary({"inputs": [tensor]}, raw)))


@pytest.mark.parametrize("stray", [" ", "*", "-", "\0"])
def test_an_image_in_base64_with_a_stray_character_is_refused(server: Server, stray: str) -> None:
    sent = document(FLAT)
    sent["inputs"][0]["data"] = [base64.b64encode(FLAT).decode() + stray]
    assert "base64" in refused(infer(server, sent))


@pytest.mark.parametrize(
    "shape", [(1, 24, 16, 2), (16, 24, 2), (1, 16, 48), (16, 16, 3), (1, 1, 16, 16, 3), (1, 768)]
)
def test_values_nested_by_another_shape_are_refused(server: Server, shape: Sequence[int]) -> None:
    data = np.zeros(shape, np.uint8).tolist()
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, 16, 16, 3], "data": data}
    assert "nested as the shape [1, 16, 16, 3] says" in refused(infer(server, {"inputs": [tensor]}))
    data = np.zeros((1, 16, 16, 3), np.uint8).tolist()
    data[0][7][3] = [0, 0, 0, 0]  # one pixel has more, another one less
    data[0][7][4] = [0, 0]
    assert "nested" in refused(infer(server, {"inputs": [tensor | {"data": data}]}))
