"""Pipeline and costs: every image of a batch gets its own plan, on the canvas of that plan, and
costs follow what really runs."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.bundle import InputSpec, Manifest, Shape, TensorSpec
from service.core import Ask, Budget, Frame, Frames, Geometry, Margin, Outcome, Reason
from service.engines.base import WHOLE_BATCH, Arrays, Backend, HostTensors, Tensors, on_host
from service.engines.fake import FakeBackend
from service.errors import BackendError, FathomError
from service.inference import pipeline
from service.inference.batches import Job, at_once
from service.inference.costs import Costs
from service.inference.pipeline import Pipeline
from service.inference.policies import Policies
from service.inference.stages import Stages
from service.inference.warm_up import warm_up
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


@pytest.fixture
def backend(fake_manifest: Manifest) -> Recorder:
    return Recorder(fake_manifest, QUALITY)


@pytest.fixture
def spine(backend: Recorder, fake_manifest: Manifest) -> Pipeline:
    """Plans d1 to d4 that are said to take 1, 2, 3 and 4 seconds: far more than a test's own
    time."""
    return known_spine(backend, fake_manifest)


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


# -- several canvases ------------------------------------------------------------------------------

ON_C32, ON_C64, FULL = Budget(gflops=1.5), Budget(gflops=2.5), Budget()  # c32-d1, c64-d1, c64-d4
WIDE, TALL = (200, 150), (90, 120)  # what fills 48 x 64 and 64 x 48


@pytest.fixture
def small_and_large(canvases_manifest: Manifest) -> Recorder:
    return Recorder(canvases_manifest, [0.5, 0.6, 0.8])


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


# -- costs -----------------------------------------------------------------------------------------


def warm(backend: Backend, manifest: Manifest, max_batch: int) -> Costs:
    return warm_up(Stages(backend, manifest), max_batch)


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_gate_whose_scores_are_no_numbers_is_not_served(
    canvases_manifest: Manifest, score: float
) -> None:
    backend = FakeBackend(canvases_manifest, quality=[0.5, score, 0.5])
    with pytest.raises(
        BackendError, match=r"front-24x32\.onnx: the gate's scores of a blank image"
    ):
        warm(backend, canvases_manifest, 1)


def test_warm_up_runs_every_plan_and_the_largest_batch(fake_manifest: Manifest) -> None:
    backend = Recorder(fake_manifest)
    known = warm(backend, fake_manifest, 6)
    assert [count for name, count in backend.calls if name == "front"] == [1, 1, 6, 6]
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
    assert list(known.encoders) == ["d1", "d2", "d3", "d4"]


def test_warm_up_runs_every_shape_and_the_largest_batch_of_every_canvas(
    canvases_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Recorder(canvases_manifest)
    known = warm(backend, canvases_manifest, 6)
    assert {name for name, count in backend.calls if count == 1} == {
        stage.removeprefix("encoder-") for stage in canvases_manifest.stages
    }
    assert [call for call in backend.calls if call[1] == 6] == [
        *[("front-48x64", 6)] * 2,
        *[("48x64-d1", 6)] * 2,
        *[("decoder-48x64", 6)] * 2,
        *[("front-24x32", 6)] * 2,
        *[("24x32-d1", 6)] * 2,
        *[("decoder-24x32", 6)] * 2,
    ]
    # A shape after the first costs about the same: nothing is measured.
    once = [call for call in backend.calls if "64x48" in call[0]]
    assert once == [(name, 1) for name in ("front-64x48", "64x48-d4", "64x48-d1", "decoder-64x48")]
    assert list(known.front) == ["c32", "c64"]
    assert list(known.encoders) == ["c32-d1", "c64-d1", "c64-d4"]
    monkeypatch.setattr(FakeBackend, "whole_batch", 48 * 64 // 2)
    backend.calls.clear()
    warm(backend, canvases_manifest, 6)
    assert [call for call in backend.calls if call[1] > 1 and "front" in call[0]] == [
        *[("front-48x64", 3)] * 2,
        *[("front-24x32", 6)] * 2,
    ]


def test_warm_up_measures_each_canvas(canvases_manifest: Manifest) -> None:
    slow = FakeBackend(
        canvases_manifest,
        delay_s={"front-24x32": 0.004, "front-48x64": 0.05, "front-64x48": 0.3},
    )
    measured = warm(slow, canvases_manifest, 1).plan_ms(canvases_manifest.plans)
    assert 4 <= measured["c32-d1"] < 50
    assert 54 <= measured["c64-d1"] < 300  # by its first shape


def test_a_canvas_may_have_no_plan_of_its_own(canvases_manifest: Manifest) -> None:
    graphs = dict(canvases_manifest.graphs)
    graphs["24x32"] = replace(graphs["24x32"], encoders={})
    plans = canvases_manifest.encoder_plans[1:]
    manifest = replace(canvases_manifest, encoder_plans=plans, graphs=graphs)
    backend = Recorder(manifest, [0.6, 0.8])
    known = warm(backend, manifest, 2)
    assert set(known.plan_ms(manifest.plans)) == {"c64-d1", "c64-d4"}
    backend.calls.clear()
    assert plans_of(run(pipeline_of(backend, manifest, known), [photo(manifest, WIDE)])) == [
        "c64-d4"
    ]
    assert [name for name, _ in backend.calls][:2] == ["front-24x32", "front-48x64"]


def test_warm_up_measures_what_plans_take_on_this_node(fake_manifest: Manifest) -> None:
    slow = FakeBackend(
        fake_manifest, delay_s={"front": 0.004, "encoder-d2": 0.010, "decoder": 0.002}
    )
    measured = warm(slow, fake_manifest, 1).plan_ms(fake_manifest.plans)
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

    assert warm(Hiccup(fake_manifest), fake_manifest, 1).plan_ms(fake_manifest.plans)["d3"] < 25


def test_costs_follow_what_runs(fake_manifest: Manifest) -> None:
    known = known_costs({"c64": 5.0}, dict.fromkeys(fake_manifest.plans, 1.0))
    slow = FakeBackend(fake_manifest, delay_s={"encoder-d4": 0.02}, quality=QUALITY)
    for _ in range(7):
        run(pipeline_of(slow, fake_manifest, known), [job()])
    assert known.encoders["d4"].ms() > 19.0
    assert known.encoders["d1"].ms() == 1.0
    assert known.front["c64"].ms() < 5.0


# -- several heads ---------------------------------------------------------------------------------


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
