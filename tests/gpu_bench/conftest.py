"""What the tests of the GPU benchmark share. Only what they use loads torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from service import bundle
from service.bundle import Bundle
from tests.processes import ROOT

if TYPE_CHECKING:
    from tests.gpu_bench.stand_in import HostClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> HostClock:
    from tests.gpu_bench.stand_in import install

    return install(monkeypatch)


@pytest.fixture(scope="session")
def served() -> Bundle:
    """The shipped bundle with its cheapest plan and one that pauses tokens."""
    found = bundle.load(ROOT / "trained_weights/camvid-tiny")
    plans = (found.manifest.plans[0], next(plan for plan in found.manifest.plans if plan.keep < 1))
    needed = ("front", *(found.manifest.encoder_of[plan.name] for plan in plans), "decoder")
    stages = {name: found.manifest.stages[name] for name in needed}
    return replace(found, manifest=replace(found.manifest, plans=plans, stages=stages))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few runs for each time."""
    from tests.bench import gpu_models

    monkeypatch.setattr(gpu_models, "RUNS", 2)
    monkeypatch.setattr(gpu_models, "WARM", 1)
