"""The app on a port of loopback, in this process: uvicorn in a thread."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn

from service.api.app import create_app
from service.api.http1.connection import protocol
from service.bundle import Bundle, Manifest
from service.engines.base import Backend
from service.metrics import Metrics
from service.model import Model
from service.segmenting import Segmenter
from service.settings import Settings
from tests.serving import metrics_of

WAIT_S = 20.0


@dataclass
class LiveApp:
    """url: http://127.0.0.1:PORT. loop: the one that serves."""

    url: str
    metrics: Metrics
    segmenter: Segmenter
    loop: asyncio.AbstractEventLoop


@contextmanager
def live_app(
    manifest: Manifest, open_backend: Callable[[], Backend], settings: Settings, ready: bool = True
) -> Iterator[LiveApp]:
    """ready: wait until the service says that it is; otherwise only until it listens."""
    metrics = metrics_of(manifest, settings)
    model = Model(Bundle(Path(), manifest, ""), settings, metrics, open_backend)
    segmenter = Segmenter(model, settings)
    app = create_app(settings, segmenter, metrics)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        http=protocol(settings),
        ws="none",
    )
    server = uvicorn.Server(config)
    loop = asyncio.new_event_loop()
    # With its protocol named, asyncio switches Nagle's algorithm off: it can hold back a body for
    # 40 ms.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def serve() -> None:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(server.serve([listener]))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            if ready:
                _wait_until_ready(url)
            yield LiveApp(url, metrics, segmenter, loop)
        finally:
            server.should_exit = True
            thread.join(WAIT_S)
            assert not thread.is_alive()


def _wait_until_ready(url: str) -> None:
    end = time.monotonic() + WAIT_S
    with httpx.Client(base_url=url, timeout=WAIT_S) as client:
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < end, f"{url} did not get ready"
            time.sleep(0.005)
