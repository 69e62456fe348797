"""Every call of Triton's HTTP client, unmodified: python triton_http_calls.py HOST:PORT IMAGE.

Runs where tritonclient[http] is installed, which is not where the tests run (see test_clients.py).
It knows nothing of this repository. Ends with "all calls: N".
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

called: set[str] = set()


def call(client: Any, name: str, *args: Any, **options: Any) -> Any:
    called.add(name)
    return getattr(client, name)(*args, **options)


def refused(client: Any, name: str, *args: Any, part: str, **options: Any) -> None:
    """The call fails with the service's own message, not with one of the client."""
    error = None
    try:
        call(client, name, *args, **options)
    except InferenceServerException as raised:
        error = raised
    assert error is not None, f"{name} was not refused"
    assert part in error.message(), error.message()
    assert error.status().startswith("4"), error.status()


def file_input(kind: Any, *files: bytes, binary: bool = True) -> Any:
    tensor = kind.InferInput("image", [len(files)], "BYTES")
    tensor.set_data_from_numpy(np.array(files, dtype=np.object_), binary_data=binary)
    return tensor


def pixel_input(kind: Any, pixels: Any, binary: bool = True) -> Any:
    tensor = kind.InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    return tensor


def check_metadata(client: Any) -> None:
    assert call(client, "is_server_live")
    assert call(client, "is_server_ready")
    for version in ("", "1"):
        assert call(client, "is_model_ready", "fake", version)
    assert not call(client, "is_model_ready", "other")
    assert call(client, "get_server_metadata")["name"] == "fathom"
    for version in ("", "1"):
        metadata = call(client, "get_model_metadata", "fake", version)
        assert {entry["name"] for entry in metadata["inputs"]} == {"image", "pixels"}
        config = call(client, "get_model_config", "fake", version)
        assert config["name"] == "fake"
        assert [entry["name"] for entry in config["output"]] == ["labels", "segments"]
    assert call(client, "get_model_repository_index") == [
        {"name": "fake", "version": "1", "state": "READY", "reason": ""}
    ]
    refused(client, "get_model_metadata", "other", part="The only model is fake")
    refused(client, "get_model_config", "fake", "7", part="versions are 1")


def check_refusals(client: Any) -> None:
    refused(client, "load_model", "fake", part="not loaded or unloaded")
    refused(client, "unload_model", "fake", part="not loaded or unloaded")
    for kind in ("system", "cuda"):
        for name in ("", "region"):
            refused(client, f"get_{kind}_shared_memory_status", name, part="Shared memory")
            refused(client, f"unregister_{kind}_shared_memory", name, part="Shared memory")
    refused(client, "register_system_shared_memory", "r", "/key", 4, part="Shared memory")
    refused(client, "register_cuda_shared_memory", "r", b"aGFuZGxl", 0, 4, part="Shared memory")
    for model in (None, "fake"):
        refused(client, "get_trace_settings", model, part="Tracing")
        refused(client, "update_trace_settings", model, {"trace_rate": "1"}, part="Tracing")
    refused(client, "get_log_settings", part="Logging")
    refused(client, "update_log_settings", {"log_info": True}, part="Logging")


def check_infer(client: Any, file: bytes) -> None:
    result = call(client, "infer", "fake", [file_input(triton, file)], request_id="one")
    labels = result.as_numpy("labels")
    assert (labels.dtype, labels.shape) == (np.uint8, (1, 48, 64))
    segments = json.loads(result.as_numpy("segments")[0])
    assert {entry["class_id"] for entry in segments} == set(np.unique(labels).tolist())
    response = result.get_response()
    assert response["id"] == "one"
    assert response["parameters"]["plan"]
    assert result.get_output("labels")["datatype"] == "UINT8"
    assert result.as_numpy("nothing") is None
    for encoding in ("gzip", "deflate"):
        packed = call(
            client,
            "infer",
            "fake",
            [file_input(triton, file)],
            model_version="1",
            request_compression_algorithm=encoding,
            response_compression_algorithm=encoding,
        )
        assert (packed.as_numpy("labels") == labels).all()
    gray = np.full((2, 30, 40, 3), 200, np.uint8)
    for binary in (True, False):
        wanted = [triton.InferRequestedOutput("labels", binary_data=binary)]
        found = call(
            client,
            "infer",
            "fake",
            [pixel_input(triton, gray, binary)],
            outputs=wanted,
            sequence_id=3,
            sequence_start=True,
            priority=1,
            timeout=30_000_000,
            parameters={"depth": 2, "gflops": 6.5, "max_loss": 0.01, "strict": False},
        )
        assert found.as_numpy("labels").shape == (2, 30, 40)
        assert found.as_numpy("segments") is None
        usage = json.loads(found.get_response()["parameters"]["usage"])
        assert all(entry["depth"] <= 2 for entry in usage)
    pending = call(client, "async_infer", "fake", [file_input(triton, file, file)])
    assert pending.get_result().as_numpy("labels").shape == (2, 48, 64)
    sent = [file_input(triton, b"no image")]
    refused(client, "infer", "fake", sent, part="image")
    refused(client, "infer", "fake", sent, parameters={"dept": 1}, part="did you mean 'depth'")
    refused(client, "infer", "other", sent, part="The only model is fake")
    classes = [triton.InferRequestedOutput("labels", class_count=2)]
    refused(client, "infer", "fake", sent, outputs=classes, part="classification")
    shared = triton.InferInput("image", [1], "BYTES").set_shared_memory("region", 4)
    refused(client, "infer", "fake", [shared], part="shared memory")
    body, length = triton.InferenceServerClient.generate_request_body([file_input(triton, file)])
    called.add("generate_request_body")
    assert 0 < length < len(body)
    parsed = b'{"outputs":[{"name":"labels","datatype":"UINT8","shape":[1],"data":[1]}]}'
    assert triton.InferenceServerClient.parse_response_body(parsed).as_numpy("labels")[0] == 1
    called.add("parse_response_body")


async def check_aio(url: str, file: bytes) -> None:
    async with triton_aio.InferenceServerClient(url) as client:
        assert await client.is_server_live()
        assert await client.is_model_ready("fake")
        for encoding in (None, "gzip", "deflate"):
            result = await client.infer(
                "fake",
                [file_input(triton_aio, file)],
                request_compression_algorithm=encoding,
                response_compression_algorithm=encoding,
            )
            assert result.as_numpy("labels").shape == (1, 48, 64)
        assert (await client.get_inference_statistics("fake"))["model_stats"]


def main(url: str, path: str) -> None:
    file = Path(path).read_bytes()
    with triton.InferenceServerClient(url, concurrency=2) as client:
        check_metadata(client)
        check_refusals(client)
        check_infer(client, file)
        asyncio.run(check_aio(url, file))
        for model in ("", "fake"):
            (stats,) = call(client, "get_inference_statistics", model)["model_stats"]
            assert stats["inference_count"] >= 8
            assert stats["inference_stats"]["success"]["count"] >= 8
            assert stats["inference_stats"]["fail"]["count"] >= 3
            assert stats["last_inference"] > 1_600_000_000_000
        public = {
            name
            for name, _ in inspect.getmembers(type(client), callable)
            if not name.startswith("_")
        }
        local = {"close", "plugin", "register_plugin", "unregister_plugin"}
        assert public - local == called, public - local ^ called
    print(f"all calls: {len(called)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
