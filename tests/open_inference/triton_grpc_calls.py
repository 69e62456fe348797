"""The protocol's calls by Triton's gRPC client, unmodified: triton_grpc_calls.py HOST:PORT IMAGE.

Runs where tritonclient[grpc] is installed, which is not where the tests run (see test_clients.py).
Triton's own calls beyond the protocol are answered UNIMPLEMENTED.
"""

from __future__ import annotations

import json
import queue
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException


def main(address: str, path: str) -> None:
    client = triton.InferenceServerClient(address)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("fake")
    assert client.is_model_ready("fake", "1")
    assert client.get_server_metadata().name == "fathom"
    metadata = client.get_model_metadata("fake", as_json=True)
    assert [entry["name"] for entry in metadata["inputs"]] == ["image", "pixels"]
    file = Path(path).read_bytes()
    tensor = triton.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([file], dtype=np.object_))
    for compression in (None, "gzip", "deflate"):
        found = client.infer(
            "fake",
            [tensor],
            request_id="one",
            compression_algorithm=compression,
            timeout=30_000_000,
            parameters={"depth": 2, "strict": False},
        )
        assert found.as_numpy("labels").shape == (1, 48, 64)
        assert json.loads(found.as_numpy("segments")[0])
        assert found.get_response().id == "one"
        assert found.get_response().parameters["depth"].int64_param <= 2
    pixels = np.full((2, 30, 40, 3), 200, np.uint8)
    tensor = triton.InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    wanted = [triton.InferRequestedOutput("labels")]
    answered: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.async_infer(
        "fake",
        [tensor],
        lambda result, error: answered.put((result, error)),
        outputs=wanted,
    )
    result, error = answered.get(timeout=30)
    assert error is None
    assert result.as_numpy("labels").shape == (2, 30, 40)
    for call, name, code in (
        (client.is_model_ready, "other", "NOT_FOUND"),
        (client.get_model_config, "fake", "UNIMPLEMENTED"),
        (client.load_model, "fake", "UNIMPLEMENTED"),
        (client.get_trace_settings, "fake", "UNIMPLEMENTED"),
    ):
        status = ""
        try:
            call(name)
        except InferenceServerException as error:
            status = error.status()
        assert code in status, status
    client.close()
    print("calls that the protocol has: 6")


if __name__ == "__main__":
    main(*sys.argv[1:])
