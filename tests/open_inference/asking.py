"""Bodies of inference requests, as the protocol's text has them."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import httpx

from tests.api.server import Server

INFER = "/v2/models/fake/infer"
LENGTH = "Inference-Header-Content-Length"


def document(*files: bytes, **members: Any) -> dict[str, Any]:
    """A request in JSON alone. members: further ones of the request."""
    data = [base64.b64encode(file).decode() for file in files]
    image = {"name": "image", "datatype": "BYTES", "shape": [len(files)], "data": data}
    return {"inputs": [image], **members}


def elements(files: Sequence[bytes]) -> bytes:
    return b"".join(len(file).to_bytes(4, "little") + file for file in files)


def binary(head: dict[str, Any], data: bytes) -> tuple[bytes, dict[str, str]]:
    """A body of JSON and binary data, and its header fields."""
    text = json.dumps(head).encode()
    return text + data, {LENGTH: str(len(text)), "Content-Type": "application/octet-stream"}


def pixels(shape: Sequence[int], data: bytes, **members: Any) -> tuple[bytes, dict[str, str]]:
    tensor = {
        "name": "pixels",
        "datatype": "UINT8",
        "shape": list(shape),
        "parameters": {"binary_data_size": len(data)},
    }
    return binary({"inputs": [tensor], **members}, data)


def infer(server: Server, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
    """body: bytes, or a JSON document."""
    if isinstance(body, bytes):
        return server.http.post(INFER, content=body, headers=headers)
    return server.http.post(INFER, json=body, headers=headers)


def outputs(response: httpx.Response) -> dict[str, dict[str, Any]]:
    """By name."""
    assert response.status_code == 200, response.text
    return {output["name"]: output for output in response.json()["outputs"]}


def refused(response: httpx.Response, status: int = 400) -> str:
    """The protocol's error message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    found = response.json()
    assert "Traceback" not in response.text
    error = found["error"]
    assert isinstance(error, str)
    assert error == found["detail"]
    return error
