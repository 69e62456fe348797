"""The pipeline with several heads: only those that are asked for run, together where they can."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from service.bundle import Manifest
from service.core import Ask, Budget, Frame, Frames, Outcome
from service.engines.fake import FakeBackend
from service.inference.batches import Job
from service.inference.policies import Policies
from service.inference.stages import Stages
from service.inference.warm_up import warm_up
from tests.pipelines import (
    WIDE,
    Recorder,
    photo,
    pipeline_of,
    plans_of,
    run,
)

# Every plan, and every width, is worth its price.
GATE = [0.5 + 0.1 * row + 0.05 * wide for row in range(3) for wide in (0, 1, 1, 0, 1)]


@pytest.fixture
def headed(several_heads: Manifest) -> Recorder:
    return Recorder(several_heads, GATE)


def asking(manifest: Manifest, gflops: float | None = None, **preference: float) -> Job:
    frames = photo(manifest, WIDE).frames
    return Job(frames, Ask(Budget(gflops=gflops, max_loss=0), preference=preference or None), None)


def heads_of(manifest: Manifest, backend: Recorder, jobs: Sequence[Job]) -> list[str]:
    """Run them. Returns the head stages with their batch sizes, in order."""
    known = warm_up(Stages(FakeBackend(manifest), manifest), 4)
    last = dict(
        itertools.chain.from_iterable(pipeline_of(backend, manifest, known).run(jobs, Budget()))
    )
    for job in jobs:
        outcome = last[job].result
        assert isinstance(outcome, Outcome)
        assert list(outcome.heads) == [head.name for head in outcome.decision.plan.heads]
        assert outcome.shares.keys() == outcome.heads.keys()
        for name, tensors in outcome.heads.items():
            specs = manifest.stages[manifest.graphs["48x64"].heads[name]].outputs
            assert {key: own.shape for key, own in tensors.items()} == {
                spec.name: spec.dims[1:] for spec in specs
            }
    stages = {stage for graphs in manifest.graphs.values() for stage in graphs.heads.values()}
    return [f"{name} {count}" for name, count in backend.calls if name in stages]


def test_only_the_heads_that_are_asked_for_run(several_heads: Manifest, headed: Recorder) -> None:
    jobs = [asking(several_heads, boxes=1.0, semantic=0)]
    assert heads_of(several_heads, headed, jobs) == ["boxes-48x64 1"]


def test_who_says_nothing_gets_the_heads_of_the_bundle(
    several_heads: Manifest, headed: Recorder
) -> None:
    ran = heads_of(several_heads, headed, [asking(several_heads)])
    assert ran == ["semantic-48x64 1", "depth-48x64 1"]


def test_images_with_the_same_head_at_the_same_width_share_a_run(
    several_heads: Manifest, headed: Recorder
) -> None:
    jobs = [
        asking(several_heads),
        asking(several_heads, depth=1.0),
        asking(several_heads, boxes=0.5, depth=0.5),
        asking(several_heads, 6.3, semantic=0.5, depth=0.5),  # buys semantic at half its width
    ]
    ran = heads_of(several_heads, headed, jobs)
    assert ran == [
        "semantic-48x64 1",
        "depth-48x64 4",
        "boxes-48x64 1",
        "semantic-w50-48x64 1",
    ]
    assert headed.calls.count(("48x64-d4", 4)) == 1  # of one encoder


def test_heads_get_the_tensors_of_their_own_images(several_heads: Manifest) -> None:
    backend = FakeBackend(several_heads, quality=GATE)
    jobs = [
        replace(asking(several_heads, **{name: 1.0}), frames=flat(several_heads, value))
        for name, value in (("semantic", 10), ("depth", 200), ("semantic", 250), ("depth", 0))
    ]
    known = warm_up(Stages(backend, several_heads), 4)
    steps = pipeline_of(backend, several_heads, known).run(jobs, Budget())
    last = dict(itertools.chain.from_iterable(steps))
    found = [last[job].result for job in jobs]
    shown = [
        float(outcome.heads["depth"]["depth"].mean())
        if "depth" in outcome.heads
        else int(outcome.heads["semantic"]["probabilities"][:, 0, 0].argmax())
        for outcome in found
        if isinstance(outcome, Outcome)
    ]
    assert shown == [0, pytest.approx(1 + 49 * 200 / 255), 3, 1.0]


def flat(manifest: Manifest, value: int) -> Frames:
    return {
        canvas.name: Frame.filling(
            np.full((canvas.shapes[0].height, canvas.shapes[0].width, 3), value, np.uint8)
        )
        for canvas in manifest.input.canvases
    }


def test_each_head_has_a_cost_of_its_own(several_heads: Manifest) -> None:
    backend = FakeBackend(
        several_heads,
        delay_s={"depth-48x64": 0.03, "boxes-48x64": 0.015, "depth-w25-24x32": 0.008},
    )
    known = warm_up(Stages(backend, several_heads), 1)
    assert list(known.encoders) == ["c32-d1", "c64-d1", "c64-d4"]
    assert len(known.heads) == 2 * 5
    assert known.heads["c64", "depth"].ms() >= 30
    assert known.heads["c32", "depth-w25"].ms() >= 8
    plans = Policies(several_heads, 0.0).of({"boxes": 1, "depth": 1}).plans
    taken = known.plan_ms(plans)  # also of plans that never ran
    assert taken["c64-d4+boxes+depth"] >= 45
    before = known.heads["c64", "boxes"].ms()
    slow = FakeBackend(several_heads, delay_s={"boxes-48x64": 0.2}, quality=GATE)
    for _ in range(4):
        run(pipeline_of(slow, several_heads, known), [asking(several_heads, boxes=1.0)])
    assert known.heads["c64", "boxes"].ms() > before + 100


def test_the_plans_of_each_image_are_under_its_own_ceiling(
    several_heads: Manifest, headed: Recorder
) -> None:
    jobs = [asking(several_heads, gflops, boxes=1.0) for gflops in (1.3, 2.4, 5.3)]
    known = warm_up(Stages(FakeBackend(several_heads), several_heads), 4)
    chosen = plans_of(run(pipeline_of(headed, several_heads, known), jobs))
    assert chosen == ["c32-d1+boxes", "c64-d1+boxes", "c64-d4+boxes"]
    jobs = [asking(several_heads, 1.2, boxes=1.0)]
    assert plans_of(run(pipeline_of(headed, several_heads, known), jobs)) == ["UnsatisfiableBudget"]
