"""A model on a fake engine that a test can hold, driven through a Segmenter as HTTP drives it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.bundle import Bundle, Manifest
from service.core import Ask, Budget, Frame, Frames, Geometry
from service.engines.base import Arrays, Backend, HostTensors, Tensors, on_host
from service.engines.fake import FakeBackend
from service.errors import (
    FathomError,
)
from service.inference.place import URGENCY
from service.model import Model, metrics_of
from service.segmenting import Answer, Segmenter
from service.settings import Settings
from service.trace import Trace
from tests.serving import answered

NONE = Budget()
WAIT_S = 10.0  # only ever reached by a test that fails


class Gate(FakeBackend):
    """A fake backend that holds every batch, once `closed`, until `opened`.

    It notes the batches as brightnesses, and the encoders that ran.
    """

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest, quality=[0.5, 0.6, 0.7, 0.8])
        self.batches: list[list[int]] = []
        self.closed = False
        self.opened = threading.Event()
        self.entered = threading.Event()
        self.closings = 0
        self.fail: Exception | None = None

    def run(self, stage: str, tensors: Tensors | Arrays) -> HostTensors:
        if stage == "front":
            if self.closed:
                images = on_host(tensors)["image"]
                self.batches.append([int(image[0, 0, 0]) for image in images])
                self.entered.set()
                assert self.opened.wait(WAIT_S)
            if self.fail is not None:
                raise self.fail
        return super().run(stage, tensors)

    def close(self) -> None:
        self.closings += 1


class World:
    """A model that is ready, its backend and its metrics."""

    def __init__(self, manifest: Manifest, settings: Settings) -> None:
        self.backend = Gate(manifest)
        self.metrics = metrics_of(manifest, settings)
        self.threads: list[str] = []
        self.model = Model(Bundle(Path(), manifest, ""), settings, self.metrics, self._open)
        self.engine = self.model.engine
        self.segmenter = Segmenter(self.model, settings)
        self.traces: dict[int, Trace] = {}

    def _open(self) -> Backend:
        self.threads.append(threading.current_thread().name)
        return self.backend

    def submit(
        self,
        number: int,
        budget: Budget = NONE,
        *,
        late_s: float = 0.0,
        urgency: int = URGENCY,
        caller: str = "",
    ) -> asyncio.Task[Answer]:
        """An image of this brightness; late_s: how long ago its request began."""
        self.traces[number] = trace = Trace(f"id-{number}", caller=caller)
        arrived = time.perf_counter() - late_s
        asked = Ask(budget, urgency=urgency)
        return asyncio.create_task(answered(self.segmenter, image(number), asked, trace, arrived))

    async def hold(self) -> asyncio.Task[Answer]:
        """Submit image 0, and return when the engine holds it."""
        self.backend.closed = True
        task = self.submit(0)
        await until(self.backend.entered.is_set)
        return task

    def release(self) -> None:
        self.backend.opened.set()

    def count(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


def image(brightness: int) -> Frames:
    geometry = Geometry(64, 48, 64, 48, canvas=(48, 64))
    return {"c64": Frame(np.full((48, 64, 3), brightness, np.uint8), geometry)}


async def until(condition: Callable[[], object]) -> None:
    end = time.perf_counter() + WAIT_S
    while not condition():
        assert time.perf_counter() < end, "the condition never came"
        await asyncio.sleep(0.001)


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


@asynccontextmanager
async def ready(manifest: Manifest, **changes: Any) -> AsyncIterator[World]:
    world = World(manifest, replace(Settings(), **changes))
    world.segmenter.start()
    await until(lambda: world.model.state == "ready")
    try:
        yield world
    finally:
        world.release()
        await world.model.drain(WAIT_S)


def play(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


async def failure(task: Awaitable[Answer], kind: type[FathomError]) -> FathomError:
    with pytest.raises(FathomError) as caught:
        await asyncio.wait_for(task, WAIT_S)
    assert type(caught.value) is kind
    return caught.value
