"""A running service whose engine a test can stop, and what its answers hold."""

from __future__ import annotations

import asyncio
import io
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.bundle import Manifest
from service.engines.base import Arrays, HostTensors, Tensors
from service.engines.fake import FakeBackend
from service.settings import Settings
from tests.live_app import LiveApp, live_app


class Gated(FakeBackend):
    """A fake engine that stands still while its gate is closed."""

    gate: threading.Event

    def run(self, stage: str, tensors: Tensors | Arrays) -> HostTensors:
        if stage.startswith("front"):
            assert self.gate.wait(20)
        return super().run(stage, tensors)


class Server:
    """A running service. gate: closed, the engine stands still."""

    def __init__(self, app: LiveApp, gate: threading.Event, http: httpx.Client) -> None:
        self.url, self.metrics, self.loop = app.url, app.metrics, app.loop
        self.segmenter, self.model = app.segmenter, app.segmenter.model
        self.gate, self.http = gate, http

    def post(
        self, content: Any, headers: dict[str, str] | None = None, **options: Any
    ) -> httpx.Response:
        return self.http.post(
            "/segment",
            content=content,
            headers={"Content-Type": "image/png"} | (headers or {}),
            **options,
        )

    def settle(self) -> None:
        """Wait until what follows an answer is done: counting it, and its log line."""
        if self.loop.is_running():
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self.loop).result(20)

    def value(self, name: str, **labels: str) -> float:
        self.settle()
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def until(self, name: str, value: float, **labels: str) -> None:
        end = time.monotonic() + 10
        while self.value(name, **labels) != value:
            assert time.monotonic() < end, f"{name} stayed {self.value(name, **labels)}"
            time.sleep(0.005)


@contextmanager
def running(
    manifest: Manifest,
    *,
    closed: bool = False,
    delay_s: dict[str, float] | None = None,
    **settings: Any,
) -> Iterator[Server]:
    """closed: the gate is closed from the start, so that the engine never gets warm. settings: the
    objective is by default one that a stalled machine does not miss."""
    settings.setdefault("target_ms", 60_000)
    gate = threading.Event()
    if not closed:
        gate.set()

    def open_backend() -> Gated:
        backend = Gated(manifest, delay_s=delay_s)
        backend.gate = gate
        return backend

    with live_app(manifest, open_backend, Settings(**settings), ready=not closed) as app:
        try:
            with httpx.Client(base_url=app.url, timeout=20) as http:
                yield Server(app, gate, http)
        finally:
            gate.set()


def labels(response: httpx.Response) -> NDArray[np.uint8]:
    assert response.headers["content-type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(response.content)))


def corners(found: NDArray[np.uint8]) -> list[list[int]]:
    """Labels in the middle of each quarter."""
    height, width = found.shape
    rows, columns = (height // 4, height * 3 // 4), (width // 4, width * 3 // 4)
    return [[int(found[y, x]) for x in columns] for y in rows]


def rejected(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """The problem document, after the checks that hold for every one."""
    document: dict[str, Any] = response.json()
    kind = "application/problem+json"
    if response.request.url.path.startswith("/v2/"):  # for clients of the protocol
        assert document["error"] == document["detail"]
        kind = "application/json"
    assert response.headers["content-type"] == kind
    assert (response.status_code, document["type"]) == (status, f"urn:fathom:problem:{slug}")
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert document["instance"] == f"urn:fathom:request:{response.headers['x-request-id']}"
    assert "Traceback" not in response.text
    if status in (429, 503):
        assert re.fullmatch(r"[1-9]\d*", response.headers["retry-after"])
    return document
