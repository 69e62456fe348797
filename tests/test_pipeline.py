"""Pipeline and costs: every image of a batch gets its own plan, and costs follow what really
runs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from service.bundle import Manifest
from service.core import Ask, Budget, Frame, Geometry, Margin, Outcome, Progress, Reason
from service.engines.base import Arrays, Backend, HostTensors, Tensors, on_host
from service.engines.fake import FakeBackend
from service.errors import DeadlineExceeded, FathomError, UnsatisfiableBudget
from service.inference import costs, pipeline
from service.inference.costs import HALF_LIFE_S, Cost, Costs, warm_up
from service.inference.pipeline import Job, Pipeline
from service.inference.policy import Policy
from service.inference.stages import Stages

NONE = Budget()
QUALITY = [0.50, 0.60, 0.70, 0.80]  # every plan is worth its price


class Recorder(FakeBackend):
    """The fake backend, with the stage and the number of images of every call."""

    def __init__(self, manifest: Manifest, quality: Sequence[float] | None = None) -> None:
        super().__init__(manifest, quality=quality)
        self.calls: list[tuple[str, int]] = []

    def run(self, stage: str, tensors: Tensors | Arrays) -> HostTensors:
        self.calls.append((stage.removeprefix("encoder-"), len(on_host(tensors)["image"])))
        return super().run(stage, tensors)


@pytest.fixture
def backend(fake_manifest: Manifest) -> Recorder:
    return Recorder(fake_manifest, QUALITY)


@pytest.fixture
def spine(backend: Recorder, fake_manifest: Manifest) -> Pipeline:
    """Plans d1 to d4 that are said to take 1, 2, 3 and 4 seconds: far more than a test's own
    time."""
    return known_spine(backend, fake_manifest)


def known_spine(backend: Recorder, manifest: Manifest) -> Pipeline:
    known = Costs(5.0, {plan: 1000.0 * plan.depth for plan in manifest.plans})
    return pipeline_of(backend, manifest, known)


def pipeline_of(
    backend: Backend,
    manifest: Manifest,
    costs: Costs,
    margins: Sequence[Margin] | None = None,
) -> Pipeline:
    chosen = manifest.margins if margins is None else tuple(margins)
    policy = Policy(manifest.plans, chosen, default_max_loss=0.01, load_start=0.5)
    return Pipeline(Stages(backend, manifest), policy, costs)


def job(brightness: int = 0, budget: Budget = NONE, ms: float | None = None) -> Job:
    geometry = Geometry(64, 48, 64, 48, canvas=(48, 64))
    frame = Frame(np.full((48, 64, 3), brightness, np.uint8), geometry)
    deadline = None if ms is None else time.perf_counter() + ms / 1000
    return Job(frame, Ask(budget), deadline)


def follow(
    spine: Pipeline, jobs: list[Job], node: Budget = NONE, fill: float = 0.0
) -> list[Progress]:
    """The last progress of each job."""
    last = dict(itertools.chain.from_iterable(spine.run(jobs, node, fill)))
    assert last.keys() == set(jobs)
    return [last[job] for job in jobs]


def run(
    spine: Pipeline, jobs: list[Job], node: Budget = NONE, fill: float = 0.0
) -> list[Outcome | FathomError]:
    results = [progress.result for progress in follow(spine, jobs, node, fill)]
    assert None not in results
    return [result for result in results if result is not None]


def plans_of(results: Iterable[Outcome | FathomError | None]) -> list[str]:
    return [
        result.decision.plan.name if isinstance(result, Outcome) else type(result).__name__
        for result in results
    ]


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
        assert (result.tensors["probabilities"].argmax(axis=0) == label).all()
        assert result.tensors["probabilities"].shape == (4, 12, 16)
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
    known = Costs(5.0, dict.fromkeys(fake_manifest.plans, 10.0))
    spine = pipeline_of(backend, fake_manifest, known)
    easy, hard = job(90), job()
    hard.frame.pixels[:] = np.random.default_rng(0).integers(0, 256, hard.frame.pixels.shape)
    assert plans_of(run(spine, [easy, hard])) == ["d1", "d4"]


def test_each_image_gets_its_own_map_of_paused_tokens_where_its_plan_pauses(
    instance_manifest: Manifest,
) -> None:
    backend = Recorder(instance_manifest, QUALITY)
    known = Costs(5.0, dict.fromkeys(instance_manifest.plans, 10.0))
    spine = pipeline_of(backend, instance_manifest, known)
    jobs = [job(budget=Budget(gflops=gflops)) for gflops in (4, 2, 4)]
    for each, rows in zip(jobs, (slice(0, 24), slice(0, 48), slice(24, 48)), strict=True):
        each.frame.pixels[rows] = 200  # the others are dark, and paused first
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
        Costs(5.0, dict.fromkeys(fake_manifest.plans, 10.0)),
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
    assert result.geometry == asked.frame.geometry


def test_decisions_are_known_before_any_encoder_runs(spine: Pipeline, backend: Recorder) -> None:
    jobs = [job(), job(0, Budget(depth=1))]
    decided = dict(next(spine.run(jobs, NONE, 0.0)))
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
    assert plans_of(run(spine, [job(), job()], fill=1.0)) == ["d1", "d1"]


def test_a_deadline_counts_the_images_that_run_before_and_beside(
    backend: Recorder, fake_manifest: Manifest
) -> None:
    def chosen(*jobs: Job) -> list[str]:
        return plans_of(run(known_spine(backend, fake_manifest), list(jobs)))

    assert chosen(job(0, ms=4500)) == ["d4"]  # 4 s alone
    # Beside one more image a plan takes twice its time: 4.5 s are enough for 2 x 2 s only.
    assert chosen(job(0, ms=4500), job()) == ["d2", "d4"]
    # After an image that was promised 4 s, 6.5 s leave time for 2 s.
    assert chosen(job(), job(0, ms=6500)) == ["d4", "d2"]


def test_results_come_as_soon_as_their_plan_has_run(spine: Pipeline, backend: Recorder) -> None:
    steps = spine.run([job(0, Budget(depth=1)), job()], Budget(), 0.0)
    next(steps)  # the decisions
    assert plans_of(progress.result for _, progress in next(steps)) == ["d1"]
    assert backend.calls == [("front", 2), ("d1", 1), ("decoder", 1)]


def test_the_spine_fits_on_one_screen() -> None:
    assert len(Path(pipeline.__file__).read_text("utf-8").splitlines()) <= 120


def warm(backend: Backend, manifest: Manifest, max_batch: int) -> Costs:
    return warm_up(Stages(backend, manifest), max_batch)


def test_warm_up_runs_every_plan_and_the_largest_batch(fake_manifest: Manifest) -> None:
    backend = Recorder(fake_manifest)
    known = warm(backend, fake_manifest, 6)
    assert [count for name, count in backend.calls if name == "front"] == [1, 1, 6]
    assert {name for name, count in backend.calls if count == 1} == {
        "front",
        "d1",
        "d2",
        "d3",
        "d4",
        "decoder",
    }
    assert {name for name, count in backend.calls if count == 6} == {"front", "d1", "decoder"}
    assert backend.calls.count(("d4", 1)) == backend.calls.count(("decoder", 1)) == 2
    assert list(known.rest) == list(fake_manifest.plans)


def test_warm_up_measures_what_plans_take_on_this_node(fake_manifest: Manifest) -> None:
    slow = FakeBackend(
        fake_manifest, delay_s={"front": 0.004, "encoder-d2": 0.010, "decoder": 0.002}
    )
    measured = warm(slow, fake_manifest, 1).plan_ms()
    assert 6 <= measured["d1"] < measured["d2"] - 5
    assert measured["d2"] >= 16


def test_a_hiccup_in_warm_up_does_not_make_a_plan_look_expensive(fake_manifest: Manifest) -> None:
    class Hiccup(FakeBackend):
        seen = 0

        def run(self, stage: str, tensors: Tensors | Arrays) -> HostTensors:
            self.seen += stage == "encoder-d3"
            if stage == "encoder-d3" and self.seen == 1:
                time.sleep(0.05)
            return super().run(stage, tensors)

    assert warm(Hiccup(fake_manifest), fake_manifest, 1).plan_ms()["d3"] < 25


def test_costs_follow_what_runs(spine: Pipeline, fake_manifest: Manifest) -> None:
    known = Costs(5.0, dict.fromkeys(fake_manifest.plans, 1.0))
    slow = FakeBackend(fake_manifest, delay_s={"encoder-d4": 0.02}, quality=QUALITY)
    run(pipeline_of(slow, fake_manifest, known), [job()])
    rest_ms = {plan.name: cost.ms(time.perf_counter()) for plan, cost in known.rest.items()}
    assert rest_ms["d4"] > 1.0 + costs.WEIGHT * 18
    assert rest_ms["d1"] == 1.0
    assert known.front.ms(time.perf_counter()) < 5.0


def test_a_cost_moves_by_its_weight_and_is_forgotten_with_time() -> None:
    cost = Cost(10.0)
    assert cost.ms(100.0) == 10.0
    cost.add(0.020, 1, 100.0)
    assert cost.ms(100.0) == pytest.approx(12.0)
    assert cost.ms(100.0 + HALF_LIFE_S) == pytest.approx(11.0)
    assert cost.ms(100.0 + 50 * HALF_LIFE_S) == pytest.approx(10.0)


def test_a_batch_counts_only_when_it_shows_that_an_image_takes_longer() -> None:
    cost = Cost(10.0)
    cost.add(0.020, 4, 100.0)  # 5 ms per image: a batch at work, not a faster node
    assert cost.ms(100.0) == 10.0
    cost.add(0.080, 4, 100.0)
    assert cost.ms(100.0) == pytest.approx(12.0)


def test_mean_time_per_image_follows_the_batches(fake_manifest: Manifest) -> None:
    known = Costs(10.0, {plan: 10.0 * plan.depth for plan in fake_manifest.plans})
    assert known.mean_ms == 35.0
    known.served(0.3, 4)
    assert known.mean_ms == pytest.approx(35.0 + costs.WEIGHT * (75.0 - 35.0))
    assert Costs(0.0, {}).plan_ms() == {}


def test_errors_are_those_of_the_contract(spine: Pipeline) -> None:
    refused, late = run(spine, [job(0, Budget(depth=4, gflops=0.5)), job(0, ms=-1.0)])
    assert isinstance(refused, UnsatisfiableBudget)
    assert isinstance(late, DeadlineExceeded)
