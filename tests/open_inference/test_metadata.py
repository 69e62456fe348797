"""What clients ask about the server and its model, and how errors below /v2 look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.bundle import Manifest
from service.settings import Settings
from tests.api.asgi import ask, body, get, scope, stubbed
from tests.api.server import Server, running
from tests.api_keys import line
from tests.open_inference.asking import INFER, document, infer, refused
from tests.pictures import flat


def read(server: Server, path: str) -> Any:
    response = server.http.get(path)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_server_says_which_extensions_it_has(fake_manifest: Manifest) -> None:
    app, _, _ = stubbed(fake_manifest)
    assert json.loads(get(app, "/v2")[2]) == {
        "name": "fathom",
        "version": "unknown",
        "extensions": ["binary_tensor_data", "parameters", "model_configuration", "statistics"],
    }
    assert json.loads(get(app, "/v2/health/live")[2]) == {"live": True}
    assert json.loads(get(app, "/v2/health/ready")[2]) == {"ready": True}


def test_metadata_and_config_speak_of_the_same_tensors(server: Server) -> None:
    metadata, config = read(server, "/v2/models/fake"), read(server, "/v2/models/fake/config")
    assert metadata["versions"] == ["1", "0" * 40]
    assert metadata["inputs"] == [
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
        {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
    ]
    assert metadata["outputs"] == [
        {"name": "labels", "datatype": "UINT8", "shape": [-1, -1, -1]},
        {"name": "segments", "datatype": "BYTES", "shape": [-1]},
    ]
    names = {"BYTES": "TYPE_STRING", "UINT8": "TYPE_UINT8"}
    for kind in ("input", "output"):
        assert [(entry["name"], entry["data_type"], entry["dims"]) for entry in config[kind]] == [
            (entry["name"], names[entry["datatype"]], entry["shape"])
            for entry in metadata[f"{kind}s"]
        ]
    assert config["max_batch_size"] == 0


@pytest.mark.parametrize("path", ["", "/ready", "/config", "/stats"])
def test_each_path_of_the_model_also_stands_below_its_versions(server: Server, path: str) -> None:
    plain = read(server, f"/v2/models/fake{path}")
    for version in ("1", "0" * 40):
        assert read(server, f"/v2/models/fake/versions/{version}{path}").keys() == plain.keys()
    assert "versions are 1" in refused(server.http.get(f"/v2/models/fake/versions/2{path}"), 404)
    assert "only model is fake" in refused(server.http.get(f"/v2/models/other{path}"), 404)


def test_statistics_count_what_the_metrics_count(server: Server) -> None:
    (before,) = read(server, "/v2/models/stats")["model_stats"]
    assert (before["last_inference"], before["inference_count"]) == (0, 0)
    assert infer(server, document(flat(), flat())).status_code == 200
    assert server.post(flat()).status_code == 200
    refused(infer(server, document(b"nothing")), 422)
    (after,) = read(server, "/v2/models/fake/stats")["model_stats"]
    assert (after["name"], after["version"], after["inference_count"]) == ("fake", "1", 3)
    assert 1 <= after["execution_count"] <= 3
    assert after["last_inference"] > 1_600_000_000_000
    found = after["inference_stats"]
    assert (found["success"]["count"], found["fail"]["count"]) == (3, 1)
    for stage in ("queue", "compute_input", "compute_infer", "compute_output"):
        assert found[stage]["count"] == 3
        assert found[stage]["ns"] > 0
    total = sum(found[stage]["ns"] for stage in ("compute_input", "compute_infer"))
    assert total < found["success"]["ns"]


def test_statistics_count_what_the_response_cache_had(fake_manifest: Manifest) -> None:
    with running(fake_manifest, response_cache_mb=1) as server:
        for _ in range(3):
            assert server.post(flat()).status_code == 200
        (found,) = read(server, "/v2/models/stats")["model_stats"]
    assert (found["inference_count"], found["inference_stats"]["success"]["count"]) == (1, 3)
    assert found["inference_stats"]["cache_hit"] == {"count": 2, "ns": 0}
    assert found["inference_stats"]["cache_miss"] == {"count": 1, "ns": 0}


def test_the_repository_has_one_model_and_its_state(fake_manifest: Manifest) -> None:
    with running(fake_manifest, closed=True) as server:
        (found,) = server.http.post("/v2/repository/index").json()
        assert (found["state"], found["name"], found["version"]) == ("UNAVAILABLE", "fake", "1")
        assert "starting" in found["reason"]
        assert server.http.post("/v2/repository/index", json={"ready": True}).json() == []
        refused(server.http.post("/v2/repository/index", json={"ready": 1}))
        refused(server.http.get("/v2/models/fake/ready"), 503)
        response = infer(server, document(flat()))
        assert "starting" in refused(response, 503)
        assert response.headers["retry-after"] == "2"


def test_models_are_listed(server: Server) -> None:
    assert read(server, "/v2/models") == {"models": ["fake"]}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/fake/nothing", 404),
        ("GET", "/v2/models/fake/versions/1/nothing", 404),
        ("GET", INFER, 405),
        ("DELETE", "/v2", 405),
        ("POST", "/v2/models/fake", 405),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/repository/models/fake/load", 400),
        ("POST", "/v2/repository/models/fake/unload", 400),
        ("GET", "/v2/logging", 400),
        ("POST", "/v2/trace/setting", 400),
        ("GET", "/v2/systemsharedmemory/status", 400),
    ],
)
def test_every_error_has_the_protocols_form(
    server: Server, method: str, path: str, status: int
) -> None:
    refused(server.http.request(method, path), status)


@pytest.mark.parametrize("kind", ["text/plain", "image/png", "multipart/form-data; boundary=x"])
def test_other_content_types_are_415(server: Server, kind: str) -> None:
    message = refused(server.http.post(INFER, content=b"x", headers={"Content-Type": kind}), 415)
    assert "application/json" in message


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd"])
def test_other_content_encodings_are_415(server: Server, encoding: str) -> None:
    headers = {"Content-Encoding": encoding}
    assert "gzip or deflate" in refused(infer(server, document(flat()), headers), 415)


def test_an_unforeseen_error_tells_nothing(fake_manifest: Manifest) -> None:
    async def broken(trace: object) -> Any:
        raise RuntimeError("a secret of the inside")

    app, _, _ = stubbed(fake_manifest, broken)
    sent = json.dumps(document(flat())).encode()
    given = scope("POST", INFER, {"content-type": "application/json"})
    status, headers, content = ask(app, given, body(sent))
    assert (status, headers["content-type"]) == (500, "application/json")
    assert "inside the service" in json.loads(content)["error"]
    assert b"secret" not in content


def test_infer_asks_for_a_key_before_its_body_is_read(
    fake_manifest: Manifest, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(line("me", "secret"))
    app, _, _ = stubbed(fake_manifest, settings=Settings(api_keys_file=str(keys)))
    for path in (INFER, "/v2/models/fake/versions/1/infer", "/v2/repository/index"):
        status, headers, content = ask(app, scope("POST", path))
        assert status == 401
        assert headers["www-authenticate"].startswith("Bearer")
        assert "API key" in json.loads(content)["error"]
    status, _, _ = ask(app, scope("POST", INFER, {"X-API-Key": "secret"}), body(b"{}"))
    assert status == 400


def test_openapi_describes_infer_and_its_errors(fake_manifest: Manifest) -> None:
    api = json.loads(get(stubbed(fake_manifest)[0], "/openapi.json")[2])
    for path in ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"):
        operation = api["paths"][path]["post"]
        assert set(operation["requestBody"]["content"]) == {
            "application/json",
            "application/octet-stream",
        }
        names = {parameter["name"] for parameter in operation["parameters"]}
        assert {"name", "Inference-Header-Content-Length"} <= names
        errors = {"400", "403", "404", "408", "413", "415", "422", "429", "500", "503", "504"}
        assert set(operation["responses"]) == {"200"} | errors
        for status in errors:
            content = operation["responses"][status]["content"]
            assert content["application/json"]["schema"]["required"] == ["error"]
        assert {"Compute-Budget", "Task-Preference", "Value-Range", "Priority"} <= names
    index = api["paths"]["/v2/repository/index"]["post"]
    assert not index["requestBody"]["required"]
    errors = {"400", "403", "408", "413", "415", "429", "500"}
    assert set(index["responses"]) == {"200"} | errors
    ids = [
        operation["operationId"]
        for operations in api["paths"].values()
        for operation in operations.values()
    ]
    assert len(set(ids)) == len(ids)
