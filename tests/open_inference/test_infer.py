"""POST /v2/models/M/infer over a real port: tensors, forms, budgets, batches."""

from __future__ import annotations

import base64
import gzip
import io
import json
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.bundle import Manifest
from service.core import Ask
from service.inference.costs import AGAIN
from service.open_inference.parameters import ask_of
from tests.api.server import Server, corners, running
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
from tests.pictures import encoded, flat, quarters

QUARTERS = quarters(64, 48)
EXPECTED = [[0, 1], [2, 3]]


def array(file: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def test_an_image_in_json_gives_labels_segments_and_what_it_took(server: Server) -> None:
    response = infer(server, document(QUARTERS, id="seven"))
    found = response.json()
    assert (found["model_name"], found["model_version"], found["id"]) == ("fake", "1", "seven")
    labels = outputs(response)["labels"]
    assert (labels["datatype"], labels["shape"]) == ("UINT8", [1, 48, 64])
    assert corners(np.array(labels["data"], np.uint8).reshape(48, 64)) == EXPECTED
    segments = outputs(response)["segments"]
    assert (segments["datatype"], segments["shape"]) == ("BYTES", [1])
    plain = server.post(QUARTERS).json()
    assert json.loads(segments["data"][0]) == plain["segments"]
    (usage,) = json.loads(found["parameters"]["usage"])
    assert usage == plain["usage"]
    flat_usage = usage | {"canvas": usage["canvas"]["name"]}
    assert {key: found["parameters"][key] for key in usage} == flat_usage
    assert response.headers["compute-used"].startswith(f"depth={usage['depth']}")


def test_each_image_says_on_which_canvas_it_was_looked_at(canvases_manifest: Manifest) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 90, 3), np.uint8)
    body = document(flat(), encoded(Image.fromarray(noise)), outputs=[{"name": "segments"}])
    with running(canvases_manifest) as server:
        found = infer(server, body).json()
    easy, hard = json.loads(found["parameters"]["usage"])
    assert (easy["plan"], hard["plan"]) == ("c32-d1", "c64-d4")
    assert easy["canvas"] == {"name": "c32", "height": 24, "width": 32}
    assert hard["canvas"] == {"name": "c64", "height": 64, "width": 48}


def test_objects_are_int32_and_the_map_holds_their_ids(instance_manifest: Manifest) -> None:
    with running(instance_manifest) as server:
        found = outputs(infer(server, document(QUARTERS)))
        described = server.http.get("/v2/models/fake").json()["outputs"][0]
    assert found["labels"]["datatype"] == described["datatype"] == "INT32"
    ids = {segment["id"] for segment in json.loads(found["segments"]["data"][0])}
    assert set(found["labels"]["data"]) - {0} == ids


def test_binary_bytes_and_binary_outputs(server: Server) -> None:
    data = elements([QUARTERS])
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1, 1]}
    tensor["parameters"] = {"binary_data_size": len(data)}
    body, headers = binary({"inputs": [tensor], "parameters": {"binary_data_output": True}}, data)
    response = infer(server, body, headers)
    length = int(response.headers[LENGTH])
    found = json.loads(response.content[:length])
    rest = response.content[length:]
    sizes = [output["parameters"]["binary_data_size"] for output in found["outputs"]]
    assert sum(sizes) == len(rest)
    assert sizes[0] == 48 * 64
    assert corners(np.frombuffer(rest[: sizes[0]], np.uint8).reshape(48, 64)) == EXPECTED
    text = rest[sizes[0] :]
    assert int.from_bytes(text[:4], "little") == len(text) - 4
    assert json.loads(text[4:]) == server.post(QUARTERS).json()["segments"]


@pytest.mark.parametrize("axes", [3, 4])
@pytest.mark.parametrize("size", [(64, 48), (33, 101), (1200, 700)])
def test_pixels_of_any_size_are_scaled_as_files_are(
    server: Server, size: tuple[int, int], axes: int
) -> None:
    file = quarters(*size)
    shape = (size[1], size[0], 3) if axes == 3 else (1, size[1], size[0], 3)
    found = outputs(infer(server, *pixels(shape, array(file).tobytes())))
    expected = outputs(infer(server, document(file)))
    assert found["labels"] == expected["labels"]
    assert found["segments"] == expected["segments"]


@pytest.mark.parametrize("nested", [False, True])
def test_pixels_in_json_are_flat_or_nested(server: Server, nested: bool) -> None:
    values = array(QUARTERS)[None]
    data = values.tolist() if nested else values.ravel().tolist()
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": list(values.shape), "data": data}
    found = outputs(infer(server, {"inputs": [tensor]}))
    assert corners(np.array(found["labels"]["data"]).reshape(48, 64)) == EXPECTED


def test_elements_in_json_are_flat_or_nested_by_their_shape(server: Server) -> None:
    sent = document(QUARTERS)
    expected = outputs(infer(server, sent))
    sent["inputs"][0]["shape"] = [1, 1]
    sent["inputs"][0]["data"] = [sent["inputs"][0]["data"]]
    assert outputs(infer(server, sent)) == expected


@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_base64_may_have_lines(server: Server, line: str) -> None:
    sent = document(QUARTERS)
    sent["inputs"][0]["data"] = [base64.encodebytes(QUARTERS).decode().replace("\n", line)]
    assert outputs(infer(server, sent)) == outputs(infer(server, document(QUARTERS)))


def test_members_that_are_null_are_absent(server: Server) -> None:
    sent = document(QUARTERS, id=None, parameters=None, outputs=None)
    sent["inputs"][0]["parameters"] = None
    assert infer(server, sent).json().keys() == infer(server, document(QUARTERS)).json().keys()
    data = elements([QUARTERS])
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": None}
    tensor["parameters"] = {"binary_data_size": len(data)}
    wanted = [{"name": "labels", "parameters": {"binary_data": None, "shared_memory_region": None}}]
    body, headers = binary({"inputs": [tensor], "outputs": wanted}, data)
    assert list(outputs(infer(server, body, headers))) == ["labels"]


def test_a_mark_of_utf_8_may_stand_before_the_json(server: Server) -> None:
    body = b"\xef\xbb\xbf" + json.dumps(document(QUARTERS)).encode()
    assert outputs(infer(server, body, {"Content-Type": "application/json"}))


def test_a_header_length_of_zero_takes_the_body_as_the_image(server: Server) -> None:
    found = outputs(infer(server, QUARTERS, {LENGTH: "0"}))
    assert corners(np.array(found["labels"]["data"]).reshape(48, 64)) == EXPECTED


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_bodies_are_packed_both_ways(
    server: Server, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    noise[:200] = 7  # long matches, which fill whole pieces
    body, headers = pixels(noise.shape, noise.tobytes(), outputs=[{"name": "labels"}])
    plain = outputs(infer(server, body, headers | {"Accept-Encoding": "identity"}))
    packed = headers | {"Content-Encoding": encoding, "Accept-Encoding": encoding}
    response = infer(server, pack(body), packed)
    assert response.headers["content-encoding"] == encoding
    assert "Accept-Encoding" in response.headers["vary"]
    assert outputs(response) == plain


@pytest.mark.parametrize("field", ["x-gzip", "X-GZIP", "gzip, identity", "identity,, gzip ,"])
def test_one_encoding_may_be_named_in_several_ways(server: Server, field: str) -> None:
    body = gzip.compress(json.dumps(document(QUARTERS)).encode())
    found = outputs(infer(server, body, {"Content-Encoding": field}))
    assert found == outputs(infer(server, document(QUARTERS)))


@pytest.mark.parametrize(
    ("field", "encoding"),
    [
        ("", None),
        ("identity", None),
        ("br", None),
        ("gzip;q=0", None),
        ("zstd, deflate;q=0.0", None),
        ("*;q=0", None),
        ("gzip;q=0.5, identity", None),
        ("gzip;q=high", None),
        ("gzip;q=1.5", None),
        ("gzip, deflate, br, zstd", "gzip"),
        ("identity, gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("GZIP;Q=0.001", "gzip"),
        ("gzip;q=.2, *;q=0", "gzip"),  # as Java's HttpURLConnection writes weights
        ("*", "gzip"),
        ("gzip;q=0, *", "deflate"),
        ("deflate, gzip;q=0.1", "deflate"),
        ("deflate; q=0.5, *;q=0.2", "deflate"),
        ("identity;q=0.5, *;q=0.6", "gzip"),
    ],
)
def test_answers_are_packed_as_the_caller_prefers(
    server: Server, field: str, encoding: str | None
) -> None:
    response = infer(server, document(QUARTERS), {"Accept-Encoding": field})
    assert response.headers.get("content-encoding") == encoding
    assert outputs(response).keys() == {"labels", "segments"}


@pytest.mark.parametrize(
    ("parameters", "plan"),
    [
        ({"depth": 2}, "d2"),
        ({"depth": "2"}, "d2"),
        ({"depth": 2.0}, "d2"),  # an integer, as JSON has them
        ({"gflops": 3.5}, "d2"),
        ({"gflops": "3.5"}, "d2"),
        ({"gflops": 3}, "d2"),
        ({"max_loss": 0}, "d4"),
        ({"max_loss": "0", "strict": "true"}, "d4"),
        ({"ms": 60000, "timeout": 50_000_000, "max_loss": 0}, "d4"),
        ({"timeout": 0, "max_loss": 0}, "d4"),
        ({"timeout": 10**400, "max_loss": 0}, "d4"),
        ({"timeout": 1e308, "ms": 60000, "max_loss": 0}, "d4"),
        ({"timeout": 50_000_000.0, "max_loss": 0}, "d4"),
        ({"sequence_id": 7, "sequence_start": True, "sequence_end": True, "depth": 1}, "d1"),
        ({"priority": 3, "depth": 1}, "d1"),
        ({"depth": 1, "ms": None, "strict": None, "timeout": None, "value_range": None}, "d1"),
        ({"depth": 1, "task_preference": None, "binary_data_output": None}, "d1"),
    ],
)
def test_the_ask_stands_in_the_parameters(
    server: Server, parameters: dict[str, Any], plan: str
) -> None:
    ceiling = {"max_loss": 0} | parameters
    found = infer(server, document(flat(), parameters=ceiling)).json()
    assert found["parameters"]["plan"] == plan


@pytest.mark.parametrize(
    ("headers", "parameters", "plan"),
    [
        ({"Compute-Budget": "depth=2, max-loss=0"}, {}, "d2"),
        ({"Compute-Budget": "depth=2"}, {"max_loss": 0}, "d2"),
        ({"Compute-Budget": "depth=2, max-loss=0"}, {"gflops": 2.0}, "d1"),
        ({"Compute-Budget": "max-loss=0, depth=2"}, {"depth": "2"}, "d2"),
        ({"Compute-Budget": "max-loss=0, strict=?0"}, {"strict": True}, "d4"),
        ({"Compute-Budget": "ms=60000, max-loss=0"}, {"timeout": 50_000_000}, "d4"),
        ({"Compute-Budget": ""}, {"depth": 1}, "d1"),
        ({"Task-Preference": "semantic=2"}, {"task_preference": "semantic=2", "depth": 1}, "d1"),
        ({"Value-Range": "full"}, {"value_range": "auto", "depth": 1}, "d1"),
    ],
)
def test_header_fields_ask_where_the_parameters_do_not(
    server: Server, headers: dict[str, str], parameters: dict[str, Any], plan: str
) -> None:
    response = infer(server, document(flat(), parameters=parameters), headers)
    assert response.json()["parameters"]["plan"] == plan


def test_a_file_alone_has_its_ask_in_the_header(server: Server) -> None:
    ask = {LENGTH: "0", "Compute-Budget": "depth=2, max-loss=0"}
    response = infer(server, flat(), ask)
    assert response.json()["parameters"]["plan"] == "d2"
    assert "Compute-Budget" in response.headers["vary"]
    pixels = np.tile(np.arange(600, 616, dtype=np.uint16), (16, 1))
    narrow = encoded(Image.fromarray(pixels))
    seen = [
        outputs(infer(server, narrow, {LENGTH: "0", "Value-Range": value}))["labels"]["data"]
        for value in ("full", "auto")
    ]
    assert len(set(seen[0])) == 1
    assert len(set(seen[1])) > 1


@pytest.mark.parametrize(
    ("headers", "parameters", "words"),
    [
        ({"Compute-Budget": "depth=2"}, {"depth": 3}, "'depth' and the header field Compute-"),
        ({"Compute-Budget": "strict"}, {"strict": False}, "'strict' and the header field Compute-"),
        ({"Compute-Budget": "max-loss=0"}, {"max_loss": 0.1}, "'max_loss' and the header field"),
        ({"Value-Range": "auto"}, {"value_range": "full"}, "'value_range' and the header field V"),
        (
            {"Task-Preference": "semantic=1"},
            {"task_preference": "semantic=2"},
            "'task_preference' and the header field Task-Preference differ: send one of them",
        ),
        ({"Compute-Budget": "foo=1"}, {}, "Compute-Budget: the key 'foo' is unknown"),
        ({"Compute-Budget": "depth=99"}, {}, "Compute-Budget: the key 'depth' must be from 1 to 4"),
        ({"Task-Preference": "sky=1"}, {}, "Task-Preference: the key 'sky' is no head"),
        ({"Value-Range": "most"}, {}, "Value-Range is 'most'"),
    ],
)
def test_a_header_field_that_is_wrong_or_says_otherwise_is_named(
    server: Server, headers: dict[str, str], parameters: dict[str, Any], words: str
) -> None:
    body = document(flat(), parameters=parameters)
    assert words in refused(infer(server, body, headers))
    if not parameters:
        assert words in refused(infer(server, flat(), headers | {LENGTH: "0"}))


def test_the_urgency_is_that_of_the_header() -> None:
    assert ask_of({"priority": 1}, Ask(urgency=6)) == Ask(urgency=6)


def test_what_the_header_asks_for_is_refused_before_the_body_is_read(server: Server) -> None:
    response = infer(server, b"no JSON", {"Compute-Budget": "gflops=1"})
    assert response.json()["cheapest"]
    refused(response, 422)


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ({"dept": 2}, ["'dept'", "'depth'"]),
        ({"max-loss": 0}, ["'max-loss'", "'max_loss'"]),
        ({"classification": 3}, ["'classification'", "gflops"]),
        ({"depth": 2.5}, ["'depth'", "Integer"]),
        ({"depth": "two"}, ["'depth'"]),
        ({"depth": 99}, ["depth"]),
        ({"max_loss": 2}, ["'max_loss'"]),
        ({"strict": 1}, ["'strict'"]),
        ({"ms": [1]}, ["'ms'"]),
        ({"timeout": -1}, ["'timeout'"]),
        ({"timeout": -(10**400)}, ["'timeout'"]),
        ({"ms": 10**400, "timeout": 5}, ["'ms' must be from 1 to 600000", "401 digits"]),
        ({"ms": 0.5, "timeout": 5}, ["'ms' must be from 1 to 600000, but is 0.5"]),
        ({"gflops": 10**4000}, ["'gflops'", "4001 digits"]),
        ({"depth": 10**4000}, ["'depth' must be from 1 to 4", "4001 digits"]),
        ({"max_loss": -(10**4000)}, ["'max_loss'", "4001 digits"]),
        ({"strict": 10**4000}, ["'strict'"]),
        ({"timeout": 1.5}, ["'timeout'"]),
        ({"binary_data_output": 1}, ["'binary_data_output'"]),
    ],
)
def test_a_parameter_that_is_wrong_is_named(
    server: Server, parameters: dict[str, Any], names: list[str]
) -> None:
    message = refused(infer(server, document(flat(), parameters=parameters)))
    for name in names:
        assert name in message
    assert message.count("parameters") <= 1
    assert len(message) < 200


def test_an_empty_length_of_the_json_is_refused(server: Server) -> None:
    assert LENGTH in refused(infer(server, document(flat()), {LENGTH: ""}))


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        (LENGTH, "0", 200),
        (LENGTH, "5", 400),
        ("Content-Type", "application/octet-stream", 200),
        ("Content-Type", "application/json", 400),
    ],
)
def test_a_field_may_be_repeated_but_not_with_another_value(
    server: Server, name: str, value: str, status: int
) -> None:
    fields = [(LENGTH, "0"), ("Content-Type", "application/octet-stream"), (name, value)]
    response = server.http.post(INFER, content=QUARTERS, headers=fields)
    assert response.status_code == status
    if status == 400:
        assert f"{name} is there with 2 values" in refused(response)


def test_a_budget_below_every_plan_is_422_with_the_cheapest(server: Server) -> None:
    response = infer(server, document(flat(), parameters={"gflops": 1}))
    assert "2" in refused(response, 422)
    assert response.json()["cheapest"]


def test_only_requested_outputs_are_given_in_their_order(server: Server) -> None:
    for names in (["labels"], ["segments"], ["segments", "labels"]):
        found = infer(server, document(flat(), outputs=[{"name": name} for name in names]))
        assert list(outputs(found)) == names


def test_each_output_may_be_binary_or_not(server: Server) -> None:
    wanted = [{"name": "labels", "parameters": {"binary_data": True}}, {"name": "segments"}]
    response = infer(server, document(flat(), outputs=wanted))
    length = int(response.headers[LENGTH])
    labels, segments = json.loads(response.content[:length])["outputs"]
    assert labels["parameters"]["binary_data_size"] == len(response.content) - length
    assert "data" in segments


def test_each_image_of_a_batch_has_its_own_plan_and_counts(fake_manifest: Manifest) -> None:
    # With so many places, three images are no load.
    with running(fake_manifest, queue_size=1000) as server:
        # The fake gate finds bright images easy and dark ones hard.
        files = [flat((250,) * 3), flat((20,) * 3), QUARTERS]
        response = infer(server, document(*files, parameters={"max_loss": 0.01}))
        found = outputs(response)
        assert found["labels"]["shape"] == [3, 48, 64]
        maps = np.array(found["labels"]["data"]).reshape(3, 48, 64)
        usage = json.loads(response.json()["parameters"]["usage"])
        for i, file in enumerate(files):
            alone = server.post(file, {"Compute-Budget": "max-loss=0.01"}).json()
            assert json.loads(found["segments"]["data"][i]) == alone["segments"]
            assert usage[i] == alone["usage"]
            assert set(np.unique(maps[i])) == {entry["class_id"] for entry in alone["segments"]}
        assert len({entry["plan"] for entry in usage}) > 1
        assert "plan" not in response.json()["parameters"]
        assert server.value("fathom_requests_total", outcome="ok") == 6


def test_images_of_different_sizes_give_segments_only(server: Server) -> None:
    files = [quarters(64, 48), quarters(100, 50)]
    message = refused(infer(server, document(*files)))
    assert "64 x 48, 100 x 50" in message
    assert "'segments'" in message
    found = outputs(infer(server, document(*files, outputs=[{"name": "segments"}])))
    sizes = [json.loads(text)[0]["rle"]["size"] for text in found["segments"]["data"]]
    assert sizes == [[48, 64], [50, 100]]


def test_one_bad_image_fails_the_request_and_is_named(server: Server) -> None:
    message = refused(infer(server, document(QUARTERS, b"no image", QUARTERS)), 422)
    assert message.startswith("Image 1: ")
    assert "Image" not in refused(infer(server, document(b"no image")), 422)[:6]


def test_a_batch_has_a_limit_which_config_tells(server: Server) -> None:
    config = server.http.get("/v2/models/fake/config").json()
    limit = int(config["parameters"]["max_images"]["string_value"])
    assert limit == 8  # the queue's size, where that is less than 16
    assert "1 to 8" in refused(infer(server, document(*[flat()] * (limit + 1))))
    assert "1 to 8" in refused(infer(server, document()))


def test_label_maps_of_one_request_have_a_limit(fake_manifest: Manifest) -> None:
    with running(fake_manifest, max_pixels=64 * 48 * 2) as server:
        assert infer(server, document(flat(), flat())).status_code == 200
        assert "'segments'" in refused(infer(server, document(*[flat()] * 3)), 413)
        few = document(*[flat()] * 3, outputs=[{"name": "segments"}])
        assert infer(server, few).status_code == 200


def test_limits_of_images_and_bodies_hold(fake_manifest: Manifest) -> None:
    with running(fake_manifest, max_body_bytes=20_000, max_side=100) as server:
        assert "no side may be over 100" in refused(infer(server, document(flat(width=101))), 413)
        wide = bytes(101 * 20 * 3)
        assert "101 x 20" in refused(infer(server, *pixels((20, 101, 3), wide)), 413)
        assert "no side may be under" in refused(infer(server, *pixels((2, 2, 3), bytes(12))), 422)
        refused(infer(server, *pixels((80, 90, 3), bytes(80 * 90 * 3))), 413)
        body, headers = pixels((80, 90, 3), bytes(80 * 90 * 3))
        packed = gzip.compress(body)
        assert len(packed) < 1000
        refused(infer(server, packed, headers | {"Content-Encoding": "gzip"}), 413)
        assert server.value("fathom_requests_total", outcome="too-large") == 4


def test_requests_wait_their_turn_and_a_full_queue_is_429(fake_manifest: Manifest) -> None:
    with running(fake_manifest, queue_size=2, max_batch=1) as server:
        server.gate.clear()
        with ThreadPoolExecutor(4) as pool:
            first = pool.submit(infer, server, document(flat()))
            server.until("fathom_inflight", 1)
            both = pool.submit(infer, server, document(flat(), flat()))
            server.until("fathom_queue_depth", 2)
            response = infer(server, document(flat()))
            assert "queue is full" in refused(response, 429)
            assert int(response.headers["retry-after"]) >= 1
            server.gate.set()
            assert first.result().status_code == both.result().status_code == 200
        assert server.value("fathom_requests_total", outcome="overloaded") == 1
        assert server.value("fathom_shed_total", reason="full") == 1


def test_a_batch_that_does_not_fit_the_queue_takes_no_place(fake_manifest: Manifest) -> None:
    with running(fake_manifest, queue_size=2, max_batch=1) as server:
        server.gate.clear()
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(infer, server, document(flat()))]
            server.until("fathom_inflight", 1)
            waiting.append(pool.submit(infer, server, document(flat())))
            server.until("fathom_queue_depth", 1)
            refused(infer(server, document(flat(), flat())), 429)
            server.until("fathom_queue_depth", 1)
            server.gate.set()
            assert [each.result().status_code for each in waiting] == [200, 200]


def test_a_client_that_leaves_takes_its_images_out(fake_manifest: Manifest) -> None:
    with running(fake_manifest, max_batch=1) as server:
        server.gate.clear()
        with pytest.raises(httpx.ReadTimeout):
            server.http.post(INFER, json=document(flat(), flat(), flat()), timeout=0.5)
        server.until("fathom_queue_depth", 0)
        server.until("fathom_requests_total", 1, outcome="cancelled")
        server.gate.set()


def test_a_deadline_that_passes_is_told(fake_manifest: Manifest) -> None:
    with running(fake_manifest, delay_s={"front": 0.4}) as server:
        response = infer(server, document(flat(), parameters={"timeout": 20_000}))
        assert response.status_code in (429, 504)
        refused(response, response.status_code)


def test_images_that_wait_for_each_other_shorten_no_deadline(fake_manifest: Manifest) -> None:
    with running(fake_manifest, max_batch=1, delay_s={"front": 0.05}) as server:
        for _ in range(AGAIN):
            assert infer(server, document(*[flat()] * 6)).status_code == 200
        assert 0 < server.model.engine._costs.answer.s < 0.15  # the first one waits for 0.25 s


def test_every_version_serves(server: Server) -> None:
    for version in server.http.get("/v2/models/fake").json()["versions"]:
        path = f"/v2/models/fake/versions/{version}/infer"
        assert server.http.post(path, json=document(flat())).status_code == 200
    response = server.http.post("/v2/models/fake/versions/2/infer", json=document(flat()))
    assert "1 and 0000" in refused(response, 404)


def test_gray_alpha_and_turned_files_are_read_as_segment_reads_them(server: Server) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [
        encoded(Image.open(io.BytesIO(QUARTERS)).convert("LA")),
        quarters(64, 48, "JPEG", exif=exif.tobytes()),
    ]
    for file in files:
        found = outputs(infer(server, document(file)))
        kind = "image/jpeg" if file[:2] == b"\xff\xd8" else "image/png"
        plain = server.post(file, {"Content-Type": kind}).json()
        assert json.loads(found["segments"]["data"][0]) == plain["segments"]
