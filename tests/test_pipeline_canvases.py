"""The pipeline on several canvases: each plan on its own, all with one glance, and no more images
at once than their canvas allows."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest

from service.bundle import InputSpec, Manifest, Shape, TensorSpec
from service.core import Ask, Budget, Frame, Frames, Outcome
from service.engines.base import WHOLE_BATCH
from service.engines.fake import FakeBackend
from service.inference.batches import Job, at_once
from tests.known_costs import known_costs
from tests.pipelines import (
    NONE,
    TALL,
    WIDE,
    Recorder,
    costs_of,
    follow,
    photo,
    pipeline_of,
    plans_of,
    run,
)

ON_C32, ON_C64, FULL = Budget(gflops=1.5), Budget(gflops=2.5), Budget()  # c32-d1, c64-d1, c64-d4


@pytest.fixture
def small_and_large(canvases_manifest: Manifest) -> Recorder:
    return Recorder(canvases_manifest, [0.5, 0.6, 0.8])


def test_all_share_the_glance_and_each_shape_of_another_canvas_has_a_front(
    small_and_large: Recorder, canvases_manifest: Manifest
) -> None:
    asked = [(WIDE, ON_C32), (TALL, FULL), (WIDE, ON_C64), (TALL, ON_C32), (WIDE, FULL)]
    jobs = [
        photo(canvases_manifest, size, budget, brightness=50 * row)
        for row, (size, budget) in enumerate(asked)
    ]
    spine = pipeline_of(small_and_large, canvases_manifest, costs_of(canvases_manifest, 10.0))
    steps = follow(spine, jobs)
    results = [step.result for step in steps]
    assert plans_of(results) == ["c32-d1", "c64-d4", "c64-d1", "c32-d1", "c64-d4"]
    assert small_and_large.calls == [
        ("front-24x32", 5),
        # No front again for the plan on the canvas of the glance.
        ("24x32-d1", 2),
        ("decoder-24x32", 2),
        ("front-64x48", 1),
        ("64x48-d4", 1),
        ("decoder-64x48", 1),
        ("front-48x64", 2),
        ("48x64-d1", 1),
        ("decoder-48x64", 1),
        ("48x64-d4", 1),
        ("decoder-48x64", 1),
    ]
    assert [step.batch_size for step in steps] == [2, 1, 1, 2, 1]
    shapes = ["24x32", "64x48", "48x64", "24x32", "48x64"]
    for row, (job, result, shape) in enumerate(zip(jobs, results, shapes, strict=True)):
        assert isinstance(result, Outcome)
        assert result.geometry == job.frames[result.decision.plan.canvas].geometry
        assert result.geometry.shape == shape
        height, width = result.geometry.canvas
        (planes,) = result.heads["semantic"].values()
        assert planes.shape == (4, height // 4, width // 4)
        shown = planes[:, : result.geometry.scaled_height // 4, : result.geometry.scaled_width // 4]
        assert (shown.argmax(axis=0) == 50 * row * 4 // 256).all()  # its own


def test_the_front_of_an_image_is_the_one_whose_features_its_plan_uses(
    small_and_large: Recorder, canvases_manifest: Manifest
) -> None:
    jobs = [photo(canvases_manifest, WIDE, budget) for budget in (ON_C32, FULL)]
    spine = pipeline_of(small_and_large, canvases_manifest, costs_of(canvases_manifest, 10.0))
    decided, *rest = spine.run(jobs, NONE)
    assert [[span.stage for span in step.spans] for _, step in decided] == [["front"], ["glance"]]
    spans = {job: progress.spans for step in rest for job, progress in step}
    small, large = (spans[job] for job in jobs)
    assert [span.stage for span in small] == ["front", "encoder", "decoder"]
    assert [span.stage for span in large] == ["glance", "front", "encoder", "decoder"]
    assert (large[0].began, large[0].ended) == (small[0].began, small[0].ended)
    for first, second in itertools.pairwise((*small, *large[1:])):
        assert first.began <= first.ended <= second.began


def test_decisions_are_known_before_any_image_is_put_on_another_canvas(
    small_and_large: Recorder, canvases_manifest: Manifest
) -> None:
    spine = pipeline_of(small_and_large, canvases_manifest, costs_of(canvases_manifest, 10.0))
    seen: list[str] = []
    frames = Noting(photo(canvases_manifest, WIDE).frames, seen.append)
    steps = spine.run([Job(frames, Ask(), None)], NONE)
    next(steps)
    assert (set(seen), small_and_large.calls) == ({"c32"}, [("front-24x32", 1)])
    list(steps)
    assert set(seen) == {"c32", "c64"}


def test_an_image_whose_plan_is_on_the_glances_canvas_is_put_on_no_other(
    small_and_large: Recorder, canvases_manifest: Manifest
) -> None:
    spine = pipeline_of(small_and_large, canvases_manifest, costs_of(canvases_manifest, 10.0))
    seen: list[str] = []
    frames = Noting(photo(canvases_manifest, TALL).frames, seen.append)
    assert plans_of(run(spine, [Job(frames, Ask(ON_C32), None)])) == ["c32-d1"]
    assert set(seen) == {"c32"}


class Noting(Mapping[str, Frame]):
    """Frames, with a call before each is looked at."""

    def __init__(self, frames: Frames, note: Callable[[str], object]) -> None:
        self._frames, self._note = frames, note

    def __getitem__(self, name: str) -> Frame:
        self._note(name)
        return self._frames[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._frames)

    def __len__(self) -> int:
        return len(self._frames)


def test_the_gate_is_told_the_images_own_sizes(
    small_and_large: Recorder, canvases_manifest: Manifest
) -> None:
    spine = pipeline_of(small_and_large, canvases_manifest, costs_of(canvases_manifest, 10.0))
    run(spine, [photo(canvases_manifest, size) for size in (WIDE, TALL, (17, 11))])
    (sizes,) = small_and_large.sizes.values()  # and no front of another canvas is
    assert small_and_large.sizes.keys() == {"front-24x32"}
    assert sizes.dtype == np.float32
    assert sizes.tolist() == [[150, 200], [120, 90], [11, 17]]  # height, width


def test_glances_of_several_shapes_run_one_shape_after_the_other(
    canvases_manifest: Manifest,
) -> None:
    large, plans = canvases_manifest.input.canvases[1], canvases_manifest.encoder_plans[1:]
    quality, stages = TensorSpec("quality", "float32", ("batch", 2)), dict(canvases_manifest.stages)
    for name in ("front-48x64", "front-64x48"):
        stages[name] = replace(stages[name], outputs=(*stages[name].outputs, quality))
    spec = InputSpec.of([large], canvases_manifest.input.pad)
    graphs = {shape.name: canvases_manifest.graphs[shape.name] for shape in large.shapes}
    changes = {"input": spec, "stages": stages, "graphs": graphs, "encoder_plans": plans}
    manifest = replace(canvases_manifest, **changes)
    backend = Recorder(manifest, [0.5, 0.8])
    jobs = [photo(manifest, size) for size in (TALL, WIDE, TALL)]
    known = known_costs({"c64": 5.0}, dict.fromkeys(manifest.plans, 10.0))
    assert plans_of(run(pipeline_of(backend, manifest, known), jobs)) == ["c64-d4"] * 3
    assert backend.calls == [
        *(("front-64x48", 2), ("64x48-d4", 2), ("decoder-64x48", 2)),
        *(("front-48x64", 1), ("48x64-d4", 1), ("decoder-48x64", 1)),
    ]


def test_a_deadline_counts_another_front_for_a_plan_on_another_canvas(
    small_and_large: Recorder, canvases_manifest: Manifest
) -> None:
    def chosen(*jobs: Job) -> list[str]:
        # After the glance: c32-d1 takes 1 s, c64-d1 2 + 1 s, c64-d4 2 + 4 s.
        known = costs_of(canvases_manifest, 1000.0, 1000.0, 4000.0, c64=2000.0)
        return plans_of(run(pipeline_of(small_and_large, canvases_manifest, known), list(jobs)))

    def one(ms: float | None = None) -> Job:
        return photo(canvases_manifest, WIDE, ms=ms)

    assert chosen(one(7000)) == ["c64-d4"]
    assert chosen(one(5500)) == ["c64-d1"]
    assert chosen(one(2500)) == ["c32-d1"]
    assert chosen(one(500)) == ["DeadlineExceeded"]
    assert chosen(one(7000), one()) == ["c64-d1", "c64-d4"]  # twice 3 s fit, twice 6 s do not
    assert chosen(one(), one(9500)) == ["c64-d4", "c64-d1"]  # 6 s are promised: 3.5 s are left


def test_a_plan_costs_the_glance_its_front_and_the_rest(canvases_manifest: Manifest) -> None:
    known, (small, *_, full) = (
        costs_of(canvases_manifest, 1.0, 10.0, 100.0, c32=5.0, c64=30.0),
        canvases_manifest.plans,
    )
    assert known.plan_ms(canvases_manifest.plans) == {
        "c32-d1": 6.0,
        "c64-d1": 45.0,
        "c64-d4": 135.0,
    }
    assert known.after_glance_ms(small) == 1.0
    assert known.after_glance_ms(full) == 130.0


def test_the_cost_of_each_canvas_follows_its_own_front(canvases_manifest: Manifest) -> None:
    def after(size: tuple[int, int], budget: Budget, **delay_s: float) -> tuple[float, float]:
        known = costs_of(canvases_manifest, 1.0)
        named = {f"front-{name.removeprefix('on_')}": delay for name, delay in delay_s.items()}
        slow = FakeBackend(canvases_manifest, delay_s=named, quality=[0.5, 0.6, 0.8])
        spine = pipeline_of(slow, canvases_manifest, known)
        for _ in range(7):  # the median counts, on a machine that may be busy
            run(spine, [photo(canvases_manifest, size, budget)])
        return known.front["c32"].ms(), known.front["c64"].ms()

    risen = 19.0
    for size, shape in ((WIDE, "on_48x64"), (TALL, "on_64x48")):
        small, large = after(size, FULL, **{shape: 0.02})
        assert small < 5.0  # the fake backend takes no time
        assert large > risen
    small, large = after(WIDE, ON_C32, on_24x32=0.02)
    assert small > risen
    assert large == 5.0  # it did not run


def test_putting_an_image_on_another_canvas_is_part_of_that_canvas_cost(
    small_and_large: Recorder, canvases_manifest: Manifest
) -> None:
    known = costs_of(canvases_manifest, 1.0)

    def scale(canvas: str) -> None:
        if canvas == "c64" and not scaled:
            time.sleep(0.02)
            scaled.append(canvas)

    scaled: list[str] = []
    frames = Noting(photo(canvases_manifest, WIDE).frames, scale)
    spine = pipeline_of(small_and_large, canvases_manifest, known)
    (progress,) = follow(spine, [Job(frames, Ask(), None)])
    (front,) = (span for span in progress.spans if span.stage == "front")
    assert front.ended - front.began >= 0.02
    assert known.front["c64"].high_ms() >= 5.0  # one outlier moves nothing
    for _ in range(2):
        scaled.clear()
        follow(spine, [Job(frames, Ask(), None)])
    assert known.front["c64"].ms() > 19.0


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (Shape(480, 640), 8),
        (Shape(24, 32), 8),
        (Shape(640, 640), 6),
        (Shape(768, 1024), 3),
        (Shape(1536, 2048), 1),  # never none
    ],
)
def test_on_a_large_canvas_fewer_images_run_together(shape: Shape, expected: int) -> None:
    assert at_once(shape, 8, WHOLE_BATCH) == expected


def test_a_batch_is_split_where_its_canvas_is_large(
    small_and_large: Recorder, canvases_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = costs_of(canvases_manifest, 10.0)
    jobs = [photo(canvases_manifest, WIDE) for _ in range(5)]
    monkeypatch.setattr(FakeBackend, "whole_batch", 48 * 64 // 2)
    spine = pipeline_of(small_and_large, canvases_manifest, known, max_batch=5)
    steps = follow(spine, jobs)
    fronts = [call for call in small_and_large.calls if call[0].startswith("front")]
    assert fronts == [("front-24x32", 5), *(("front-48x64", count) for count in (2, 2, 1))]
    assert [step.batch_size for step in steps] == [2, 2, 2, 2, 1]
    monkeypatch.setattr(FakeBackend, "whole_batch", 24 * 32 // 2)  # the glance's, too
    small_and_large.calls.clear()
    follow(spine, jobs)
    fronts = [call for call in small_and_large.calls if call[0].startswith("front")]
    part = [("front-24x32", 2), ("front-48x64", 1), ("front-48x64", 1)]
    assert fronts == [*part, *part, ("front-24x32", 1), ("front-48x64", 1)]
