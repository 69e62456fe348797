"""Pipelines for tests: on the fake backend, with the calls that it got."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle import Manifest
from service.core import Ask, Budget, Frame, Geometry, Margin, Outcome
from service.engines.base import Arrays, Backend, HostTensors, Tensors, on_host
from service.engines.fake import FakeBackend
from service.errors import FathomError
from service.inference.batches import Job
from service.inference.costs import Costs
from service.inference.pipeline import Pipeline
from service.inference.policies import Policies
from service.inference.stages import Stages
from service.pixels.decode import Limits, from_memory
from service.trace import Progress
from tests.known_costs import known_costs

NONE = Budget()
QUALITY = [0.50, 0.60, 0.70, 0.80]  # every plan is worth its price


class Recorder(FakeBackend):
    """The fake backend, with the stage and the number of images of every call, and the sizes of
    images that a front was told."""

    def __init__(self, manifest: Manifest, quality: Sequence[float] | None = None) -> None:
        super().__init__(manifest, quality=quality)
        self.calls: list[tuple[str, int]] = []
        self.sizes: dict[str, NDArray[Any]] = {}

    def run(self, stage: str, tensors: Tensors | Arrays) -> HostTensors:
        arrays = on_host(tensors)
        self.calls.append((stage.removeprefix("encoder-"), len(arrays["image"])))
        if stage in self._fronts and "size" in arrays:
            self.sizes[stage] = arrays["size"]
        return super().run(stage, tensors)


def known_spine(backend: Recorder, manifest: Manifest) -> Pipeline:
    known = known_costs({"c64": 5.0}, {plan: 1000.0 * plan.depth for plan in manifest.plans})
    return pipeline_of(backend, manifest, known)


def pipeline_of(
    backend: Backend,
    manifest: Manifest,
    costs: Costs,
    margins: Sequence[Margin] | None = None,
    max_batch: int = 8,
) -> Pipeline:
    chosen = manifest.margins if margins is None else tuple(margins)
    policies = Policies(replace(manifest, margins=chosen), 0.01)
    return Pipeline(Stages(backend, manifest), policies, costs, max_batch)


def job(brightness: int = 0, budget: Budget = NONE, ms: float | None = None) -> Job:
    geometry = Geometry(64, 48, 64, 48, canvas=(48, 64))
    frame = Frame(np.full((48, 64, 3), brightness, np.uint8), geometry)
    deadline = None if ms is None else time.perf_counter() + ms / 1000
    return Job({"c64": frame}, Ask(budget), deadline)


def follow(
    spine: Pipeline, jobs: list[Job], node: Budget = NONE, limit_ms: float = math.inf
) -> list[Progress]:
    """The last progress of each job."""
    last = dict(itertools.chain.from_iterable(spine.run(jobs, node, limit_ms)))
    assert last.keys() == set(jobs)
    return [last[job] for job in jobs]


def run(
    spine: Pipeline, jobs: list[Job], node: Budget = NONE, limit_ms: float = math.inf
) -> list[Outcome | FathomError]:
    results = [progress.result for progress in follow(spine, jobs, node, limit_ms)]
    assert None not in results
    return [result for result in results if result is not None]


def plans_of(results: Iterable[Outcome | FathomError | None]) -> list[str]:
    return [
        result.decision.plan.name if isinstance(result, Outcome) else type(result).__name__
        for result in results
    ]


WIDE, TALL = (200, 150), (90, 120)  # what fills 48 x 64 and 64 x 48


def costs_of(manifest: Manifest, *rest_ms: float, c32: float = 5.0, c64: float = 5.0) -> Costs:
    """rest_ms: one for all plans, or one for each."""
    return known_costs(
        {"c32": c32, "c64": c64}, dict(zip(manifest.plans, itertools.cycle(rest_ms)))
    )


def photo(
    manifest: Manifest,
    size: tuple[int, int],
    budget: Budget = NONE,
    ms: float | None = None,
    brightness: int = 0,
) -> Job:
    """An image of this width and height on the manifest's canvases."""
    pixels = np.full((size[1], size[0], 3), brightness, np.uint8)
    frames = from_memory(pixels, Limits(100_000, 1000, 1), manifest.input)
    return Job(frames, Ask(budget), None if ms is None else time.perf_counter() + ms / 1000)
