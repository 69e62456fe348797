"""Every call of KServe's REST client, unmodified: python kserve_calls.py URL IMAGE.

Runs where kserve is installed, which is not where the tests run (see test_clients.py). Ends with
"all calls: N".
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferOutput, InferRequest, RESTConfig
from kserve.errors import UnsupportedProtocol
from kserve.protocol.infer_type import RequestedOutput


def request(tensor: Any, **options: Any) -> Any:
    return InferRequest(model_name="fake", infer_inputs=[tensor], **options)


def image(file: bytes, binary: bool) -> Any:
    tensor = InferInput(name="image", shape=[1], datatype="BYTES")
    element = file if binary else base64.b64encode(file)
    tensor.set_data_from_numpy(np.array([element], dtype=np.object_), binary_data=binary)
    return tensor


def output(response: Any, name: str) -> InferOutput:
    found = response.get_output_by_name(name)
    assert found is not None
    return found


async def refused(awaited: Any, status: int, part: str) -> None:
    error = None
    try:
        await awaited
    except httpx.HTTPStatusError as raised:
        error = raised
    assert error is not None, "it was not refused"
    assert error.response.status_code == status
    assert part in str(error), str(error)


async def check(client: Any, url: str, file: bytes) -> None:
    assert await client.is_server_live(url) is True
    assert await client.is_server_ready(url) is True
    assert await client.is_model_ready(url, "fake") is True
    assert await client.is_model_ready(url, "other") is False
    for binary in (True, False):
        found = await client.infer(
            url, request(image(file, binary), request_id="seven"), model_name="fake"
        )
        assert (found.model_name, found.id) == ("fake", "seven")
        labels = output(found, "labels").as_numpy()
        assert (labels.dtype, labels.shape) == (np.uint8, (1, 48, 64))
        assert json.loads(output(found, "segments").data[0])
        assert found.parameters["plan"]
    pixels = np.full((2, 30, 40, 3), 200, np.uint8)
    for binary in (True, False):
        tensor = InferInput(name="pixels", shape=[2, 30, 40, 3], datatype="UINT8")
        tensor.set_data_from_numpy(pixels, binary_data=binary)
        wanted = [RequestedOutput("labels", {"binary_data": binary})]
        asked = request(tensor, request_outputs=wanted, parameters={"depth": 1, "gflops": "6.5"})
        headers: dict[str, str] = {}
        found = await client.infer(url, asked, model_name="fake", response_headers=headers)
        assert ("inference-header-content-length" in headers) is binary
        assert output(found, "labels").as_numpy().shape == (2, 30, 40)
        assert all(usage["depth"] == 1 for usage in json.loads(found.parameters["usage"]))
    plain = {
        "inputs": [
            {
                "name": "image",
                "shape": [1],
                "datatype": "BYTES",
                "data": [base64.b64encode(file).decode()],
            }
        ]
    }
    assert (await client.infer(url, plain, model_name="fake")).outputs
    graph = await client.infer(f"{url}/v2/models/fake/infer", plain, is_graph_endpoint=True)
    assert graph["model_name"] == "fake"
    await refused(client.infer(url, plain, model_name="other"), 404, "The only model is fake")
    wrong = request(image(b"no image", True))
    await refused(client.infer(url, wrong, model_name="fake"), 422, "image")
    try:
        await client.explain(url, "fake", plain)
    except UnsupportedProtocol:
        pass  # by the client itself: version 2 of the protocol has no explanations
    else:
        raise AssertionError("explain is not part of the protocol")


async def main(url: str, path: str) -> None:
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    await check(client, url, Path(path).read_bytes())
    await client.close()
    public = {
        name for name, _ in inspect.getmembers(type(client), callable) if not name.startswith("_")
    }
    done = {"infer", "explain", "is_server_ready", "is_server_live", "is_model_ready", "close"}
    assert public == done, public ^ done
    print(f"all calls: {len(done)}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
