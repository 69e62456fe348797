"""Every image of a batch gets its own plan, and its result as soon as that has run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.bundle import Manifest
from service.core import Budget, Margin, Outcome, Reason
from service.inference import pipeline
from service.inference.batches import Job
from service.inference.pipeline import Pipeline
from tests.known_costs import known_costs
from tests.pipelines import (
    NONE,
    QUALITY,
    Recorder,
    follow,
    job,
    known_spine,
    pipeline_of,
    plans_of,
    run,
)


@pytest.fixture
def backend(fake_manifest: Manifest) -> Recorder:
    return Recorder(fake_manifest, QUALITY)


@pytest.fixture
def spine(backend: Recorder, fake_manifest: Manifest) -> Pipeline:
    """Plans d1 to d4 that are said to take 1, 2, 3 and 4 seconds: far more than a test's own
    time."""
    return known_spine(backend, fake_manifest)


def test_each_image_of_a_batch_gets_the_plan_of_its_own_budget_and_its_own_mask(
    spine: Pipeline, backend: Recorder
) -> None:
    budgets = [Budget(depth=1), Budget(), Budget(depth=1), Budget(depth=3)]
    jobs = [
        job(brightness, budget)
        for brightness, budget in zip((10, 80, 140, 200), budgets, strict=True)
    ]
    steps = follow(spine, jobs)
    results = [step.result for step in steps]
    assert plans_of(results) == ["d1", "d4", "d1", "d3"]
    for label, result in enumerate(results):
        assert isinstance(result, Outcome)
        assert (result.heads["semantic"]["probabilities"].argmax(axis=0) == label).all()
        assert result.heads["semantic"]["probabilities"].shape == (4, 12, 16)
    assert backend.calls == [
        ("front", 4),
        ("d1", 2),
        ("decoder", 2),
        ("d4", 1),
        ("decoder", 1),
        ("d3", 1),
        ("decoder", 1),
    ]
    assert [step.batch_size for step in steps] == [2, 1, 2, 1]


def test_each_image_of_a_batch_gets_the_plan_of_its_own_scores(fake_manifest: Manifest) -> None:
    backend = Recorder(fake_manifest)
    known = known_costs({"c64": 5.0}, dict.fromkeys(fake_manifest.plans, 10.0))
    spine = pipeline_of(backend, fake_manifest, known)
    easy, hard = job(90), job()
    pixels = hard.frames["c64"].pixels
    pixels[:] = np.random.default_rng(0).integers(0, 256, pixels.shape)
    assert plans_of(run(spine, [easy, hard])) == ["d1", "d4"]


def test_each_image_gets_its_own_map_of_paused_tokens_where_its_plan_pauses(
    instance_manifest: Manifest,
) -> None:
    backend = Recorder(instance_manifest, QUALITY)
    known = known_costs({"c64": 5.0}, dict.fromkeys(instance_manifest.plans, 10.0))
    spine = pipeline_of(backend, instance_manifest, known)
    jobs = [job(budget=Budget(gflops=gflops)) for gflops in (4, 2, 4)]
    for each, rows in zip(jobs, (slice(0, 24), slice(0, 48), slice(24, 48)), strict=True):
        each.frames["c64"].pixels[rows] = 200  # the others are dark, and paused first
    upper, none, lower = run(spine, jobs)
    assert plans_of([upper, none, lower]) == ["d4-k25-w50", "d1", "d4-k25-w50"]
    assert isinstance(upper, Outcome)
    assert isinstance(none, Outcome)
    assert isinstance(lower, Outcome)
    assert none.paused is None
    assert upper.paused is not None
    assert lower.paused is not None
    assert (upper.paused.dtype, upper.paused.shape) == (np.uint8, (6, 8))
    assert upper.paused[3:].all()
    assert lower.paused[:3].all()
    assert upper.paused.mean() == lower.paused.mean() == 0.75


def test_the_margins_of_the_bundle_decide_for_the_default_floor(fake_manifest: Manifest) -> None:
    backend, known = (
        Recorder(fake_manifest, QUALITY),
        known_costs({"c64": 5.0}, dict.fromkeys(fake_manifest.plans, 10.0)),
    )
    for margins, plan in (([], "d4"), ([Margin(0.01, 0.15)], "d3"), ([Margin(0.01, 1.0)], "d1")):
        spine = pipeline_of(backend, fake_manifest, known, margins)
        assert plans_of(run(spine, [job()])) == [plan]


def test_progress_holds_the_stages_in_order_and_the_decision(spine: Pipeline) -> None:
    asked = job(0, Budget(depth=2))
    (progress,) = follow(spine, [asked])
    result = progress.result
    assert isinstance(result, Outcome)
    assert [span.stage for span in progress.spans] == ["front", "encoder", "decoder"]
    assert all(span.began <= span.ended for span in progress.spans)
    assert progress.decision == result.decision
    assert result.decision.reason == Reason.REQUEST
    assert result.decision.predicted_quality == pytest.approx(0.6)
    assert result.geometry == asked.frames["c64"].geometry


def test_decisions_are_known_before_any_encoder_runs(spine: Pipeline, backend: Recorder) -> None:
    jobs = [job(), job(0, Budget(depth=1))]
    decided = dict(next(spine.run(jobs, NONE)))
    assert [decided[job].decision.plan.name for job in jobs] == ["d4", "d1"]
    assert [decided[job].result for job in jobs] == [None, None]
    assert backend.calls == [("front", 2)]


def test_an_image_that_cannot_be_routed_fails_alone(spine: Pipeline, backend: Recorder) -> None:
    jobs = [job(0, Budget(gflops=0.1)), job(), job(0, ms=1.0), job()]
    steps = follow(spine, jobs)
    plans = plans_of(step.result for step in steps)
    assert plans == ["UnsatisfiableBudget", "d4", "DeadlineExceeded", "d4"]
    assert backend.calls == [("front", 4), ("d4", 2), ("decoder", 2)]
    assert steps[0].decision is None


def test_a_batch_in_which_nothing_can_be_routed_runs_no_encoder(
    spine: Pipeline, backend: Recorder
) -> None:
    assert plans_of(run(spine, [job(0, ms=0.0)])) == ["DeadlineExceeded"]
    assert backend.calls == [("front", 1)]


def test_node_ceiling_and_load_apply_to_every_image(spine: Pipeline) -> None:
    assert plans_of(run(spine, [job(), job()], node=Budget(depth=2))) == ["d2", "d2"]
    assert plans_of(run(spine, [job(), job()], limit_ms=0.0)) == ["d1", "d1"]


def test_a_deadline_counts_the_images_that_run_before_and_beside(
    backend: Recorder, fake_manifest: Manifest
) -> None:
    def chosen(*jobs: Job) -> list[str]:
        return plans_of(run(known_spine(backend, fake_manifest), list(jobs)))

    assert chosen(job(0, ms=5000)) == ["d4"]  # 4 s alone, with a margin
    assert chosen(job(0, ms=4500)) == ["d3"]
    # Beside one more image a plan takes twice its time: 5 s are enough for 2 x 2 s only.
    assert chosen(job(0, ms=5000), job()) == ["d2", "d4"]
    # After an image that was promised 4 s, 6.5 s leave time for 2 s.
    assert chosen(job(), job(0, ms=6500)) == ["d4", "d2"]


def test_results_come_as_soon_as_their_plan_has_run(spine: Pipeline, backend: Recorder) -> None:
    steps = spine.run([job(0, Budget(depth=1)), job()], Budget())
    next(steps)  # the decisions
    assert plans_of(progress.result for _, progress in next(steps)) == ["d1"]
    assert backend.calls == [("front", 2), ("d1", 1), ("decoder", 1)]


def test_the_spine_fits_on_one_screen() -> None:
    assert len(Path(pipeline.__file__).read_text("utf-8").splitlines()) <= 120
