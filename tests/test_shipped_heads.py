"""streets-multi: whole, small, and each head as good as its README says, and better when wider."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model_export.data.datasets import Scenes
from model_export.evaluation.evaluate_tasks import Results, measure_heads
from model_export.gating.preferences import preference_grid
from service import bundle
from service.engines.onnxruntime import OnnxRuntimeBackend

FOLDER = Path(__file__).resolve().parents[1] / "trained_weights" / "streets-multi"
MEGABYTES = 9
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def shipped() -> bundle.Bundle:
    return bundle.load(FOLDER)


@pytest.fixture(scope="module")
def results(shipped: bundle.Bundle) -> Results:
    backend = OnnxRuntimeBackend(shipped, threads=1)
    try:
        return measure_heads(shipped.manifest, backend, Scenes(8, 900))
    finally:
        backend.close()


def test_it_is_small_and_its_weights_lie_there_once(shipped: bundle.Bundle) -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < MEGABYTES * 1e6
    assert max(file.stat().st_size for file in FOLDER.glob("*.onnx")) < 100_000


def test_every_graph_was_compared_with_torch(shipped: bundle.Bundle) -> None:
    stages = shipped.manifest.stages
    assert len(stages) > 30
    assert all(0 < stage.parity <= 1e-3 for stage in stages.values())


def test_heads_are_most_of_the_cost_in_full_and_little_of_it_at_a_quarter(
    shipped: bundle.Bundle,
) -> None:
    full = shipped.manifest.encoder_plans[-1]
    names = [head.name for head in shipped.manifest.heads]
    assert names == ["semantic", "detection", "depth"]
    wide, thin = (sum(full.heads[f"{name}{end}"].gflops for name in names) for end in ("", "-w25"))
    assert wide > full.gflops
    assert thin < full.gflops / 5


def test_each_preference_has_plans_from_cheap_to_full(shipped: bundle.Bundle) -> None:
    manifest = shipped.manifest
    for preference in preference_grid([head.name for head in manifest.heads]):
        plans = bundle.complete_plans(manifest.encoder_plans, manifest.heads, preference)
        assert len(plans) >= 6
        assert plans[-1].gflops > 5 * plans[0].gflops


def test_each_head_answers_for_streets_that_it_has_never_seen(
    shipped: bundle.Bundle, results: Results
) -> None:
    means = results.quality.mean(0)
    keys = shipped.manifest.head_keys
    for name, least in (("semantic", 0.45), ("detection", 0.08), ("depth", 0.6)):
        assert means[-1, keys.index(name)] >= least, name
    wider = [
        means[:, keys.index(name)] - means[:, keys.index(f"{name}-w25")]
        for name in ("semantic", "detection", "depth")
    ]
    assert np.mean(wider[0]) > 0.005
    assert np.mean(wider) > 0.005, "width pays"
    larger = means[-1] - means[0]
    assert larger.mean() > 0.03, "so do canvas and depth"


def test_the_gate_gives_a_score_for_every_head_at_every_width(
    shipped: bundle.Bundle, results: Results
) -> None:
    plans, keys = len(shipped.manifest.encoder_plans), len(shipped.manifest.head_keys)
    assert results.scores.shape == (8, plans, keys)
    stated = [
        [plan.heads[key].quality for key in shipped.manifest.head_keys]
        for plan in shipped.manifest.encoder_plans
    ]
    assert np.abs(results.scores.mean(0) - stated).max() < 0.1
