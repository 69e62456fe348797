"""What the tests of the GPU benchmark share. Only what they use loads torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from service import bundle
from service.bundle import Bundle, Canvas, Graphs, Stage
from tests.processes import ROOT

if TYPE_CHECKING:
    from tests.gpu_bench.stand_in import HostClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> HostClock:
    from tests.gpu_bench.stand_in import install

    return install(monkeypatch)


@pytest.fixture(scope="session")
def served() -> Bundle:
    """The shipped bundle with its cheapest plan and one that pauses tokens, each canvas in one
    shape."""
    found = bundle.load(ROOT / "trained_weights/camvid-tiny")
    manifest = found.manifest
    every_plan = manifest.encoder_plans
    plans = (every_plan[0], next(plan for plan in every_plan if plan.keep < 1))
    names = {manifest.glance.name, *(plan.canvas for plan in plans)}
    canvases = tuple(
        Canvas(canvas.name, canvas.shapes[:1])
        for canvas in manifest.input.canvases
        if canvas.name in names
    )
    stages, graphs = dict[str, Stage](), dict[str, Graphs]()
    for canvas in canvases:
        shape = canvas.shapes[0].name
        every = manifest.graphs[shape]
        encoders = {
            plan.name: every.encoders[plan.name] for plan in plans if plan.canvas == canvas.name
        }
        graphs[shape] = replace(every, encoders=encoders)
        needed = (every.front, *encoders.values(), *every.heads.values())
        stages |= {name: manifest.stages[name] for name in needed}
    changes = {"input": replace(manifest.input, canvases=canvases), "encoder_plans": plans}
    return replace(found, manifest=replace(manifest, **changes, stages=stages, graphs=graphs))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few runs for each time."""
    from tests.bench import gpu_models

    monkeypatch.setattr(gpu_models, "RUNS", 2)
    monkeypatch.setattr(gpu_models, "WARM", 1)
