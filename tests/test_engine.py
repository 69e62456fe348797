"""Engine: one thread, batches, deadlines, cancellation, drain, and what a failure does.

Driven through a Segmenter's coroutines, as HTTP drives it. The queue alone is in test_queue.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.bundle import Bundle, Manifest
from service.core import Ask, Budget, Frame, Geometry, Trace
from service.engines.base import Arrays, Backend, HostTensors, Tensors, on_host
from service.engines.fake import FakeBackend
from service.errors import (
    BackendError,
    DeadlineExceeded,
    FathomError,
    NotReady,
    Overloaded,
    UnsatisfiableBudget,
)
from service.inference.costs import Costs
from service.inference.queue import PATIENCE_S
from service.metrics import Metrics
from service.model import Model
from service.segmenting import Answer, Segmenter
from service.settings import Settings

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
        self.metrics = Metrics(layers=manifest.layers, max_batch=settings.max_batch)
        self.threads: list[str] = []
        self.model = Model(Bundle(Path(), manifest, ""), settings, self.metrics, self._open)
        self.engine = self.model.engine
        self.segmenter = Segmenter(self.model, settings)
        self.traces: dict[int, Trace] = {}

    def _open(self) -> Backend:
        self.threads.append(threading.current_thread().name)
        return self.backend

    def submit(
        self, number: int, budget: Budget = NONE, *, late_s: float = 0.0
    ) -> asyncio.Task[Answer]:
        """An image of this brightness; late_s: how long ago its request began."""
        self.traces[number] = trace = Trace(f"id-{number}")
        arrived = time.perf_counter() - late_s
        return asyncio.create_task(self.segmenter.run(image(number), Ask(budget), trace, arrived))

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


def image(brightness: int) -> Frame:
    geometry = Geometry(64, 48, 64, 48, canvas=(48, 64))
    return Frame(np.full((48, 64, 3), brightness, np.uint8), geometry)


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


def test_an_image_is_answered_and_its_trace_is_written(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            answer = await world.submit(200)
            assert (answer.outcome.tensors["probabilities"].argmax(axis=0) == 3).all()
            trace = world.traces[200]
            assert list(trace.stages) == ["queue", "front", "encoder", "decoder"]
            assert (trace.decision, trace.batch_size) == (answer.decision, 1)
            assert world.count("fathom_compute_gflops_total") == 5.0
            assert world.count("fathom_batch_size_count") == 1

    play(scenario())


def test_one_thread_opens_runs_and_closes_the_engine(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            assert world.model.plan_ms.keys() == {"d1", "d2", "d3", "d4"}
        assert world.threads == ["engine"]
        assert world.backend.closings == 1
        await until(lambda: "engine" not in {thread.name for thread in threading.enumerate()})

    play(scenario())


def test_nothing_is_taken_before_the_engine_is_warm(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        world = World(fake_manifest, Settings())
        assert (world.model.state, world.model.plan_ms) == ("starting", {})
        assert (await failure(world.submit(1), NotReady)).retry_after == 2
        world.backend.closed = True
        world.segmenter.start()
        await until(world.backend.entered.is_set)
        assert world.model.state == "starting"
        await failure(world.submit(1), NotReady)
        world.release()
        await until(lambda: world.model.state == "ready")
        await world.submit(1)
        await world.model.drain(WAIT_S)

    play(scenario())


def test_a_full_queue_is_429_with_the_seconds_to_wait(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest, queue_size=2) as world:
            tasks = [await world.hold(), world.submit(1), world.submit(2)]
            await settle()
            world.engine._queue.mean_ms = 100_000.0
            assert (world.count("fathom_queue_depth"), world.count("fathom_inflight")) == (2, 1)
            error = await failure(world.submit(3), Overloaded)
            # One image that runs and two that wait, 100 s each, spread by up to a half.
            assert error.retry_after is not None
            assert 290 < error.retry_after <= 450
            assert error.shed == "full"
            world.release()
            assert len(await asyncio.gather(*tasks)) == 3
            await until(lambda: world.count("fathom_inflight") == 0)
            assert world.count("fathom_queue_depth") == 0

    play(scenario())


def test_the_most_urgent_image_runs_first(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest, max_batch=1) as world:
            tasks = [await world.hold()]
            for number, ms in ((1, None), (2, 9_000), (3, 5_000), (4, 7_000), (5, None)):
                tasks.append(world.submit(number, Budget(ms=ms)))
                await settle()
            world.release()
            await asyncio.gather(*tasks)
            assert world.backend.batches == [[0], [3], [4], [2], [1], [5]]

    play(scenario())


def test_an_image_without_a_deadline_is_not_starved(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest, max_batch=1) as world:
            tasks = [
                await world.hold(),
                world.submit(1, late_s=PATIENCE_S),
                world.submit(2, Budget(ms=9_000)),
            ]
            await settle()
            world.release()
            await asyncio.gather(*tasks)
            assert world.backend.batches == [[0], [1], [2]]

    play(scenario())


def test_waiting_images_run_together_each_with_its_own_plan(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest, max_batch=3) as world:
            first = await world.hold()
            budgets = [Budget(depth=1), NONE, Budget(depth=1), Budget(depth=2)]
            tasks = [world.submit(number, budget) for number, budget in enumerate(budgets, start=1)]
            await settle()
            world.release()
            await first
            answers = await asyncio.gather(*tasks)
            assert world.backend.batches == [[0], [1, 2, 3], [4]]
            assert [answer.decision.plan.name for answer in answers] == ["d1", "d4", "d1", "d2"]
            assert [world.traces[number].batch_size for number in (1, 2, 3, 4)] == [2, 1, 2, 1]

    play(scenario())


def test_company_does_not_cost_an_urgent_image_its_plan(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            first = await world.hold()
            slow = Costs(0.0, {plan: 1000.0 * plan.depth for plan in fake_manifest.plans})
            world.engine._costs = slow  # the batch at hand is over when this counts
            tasks = [
                world.submit(1, Budget(ms=9_500)),
                world.submit(2),
                world.submit(3),
                world.submit(4),
            ]
            await settle()
            world.release()
            await asyncio.gather(first, *tasks)
            assert world.backend.batches == [[0], [1, 2], [3, 4]]  # 9.5 s are enough for two of 4 s

    play(scenario())


def test_a_batch_that_is_not_full_waits_if_told_to(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest, max_batch=2, batch_wait_ms=1000) as world:
            world.backend.closed = True
            world.release()
            began = time.perf_counter()
            tasks = [world.submit(1)]
            await asyncio.sleep(0.02)
            tasks.append(world.submit(2))
            await asyncio.gather(*tasks)
            assert world.backend.batches == [[1, 2]]
            assert time.perf_counter() - began < 0.9  # it waits no longer than until it is full

    play(scenario())


def test_load_makes_plans_cheaper(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest, max_batch=1, queue_size=4) as world:
            tasks = [await world.hold(), *(world.submit(number) for number in (1, 2, 3, 4))]
            await settle()
            world.release()
            answers = await asyncio.gather(*tasks)
            # When each starts, 0, 3, 2, 1 and 0 of 4 places in the queue are taken.
            plans = [
                (answer.decision.plan.name, answer.decision.reason.value) for answer in answers
            ]
            assert plans == [
                ("d4", "gate"),
                ("d3", "load"),
                ("d4", "gate"),
                ("d4", "gate"),
                ("d4", "gate"),
            ]

    play(scenario())


def test_a_cancelled_image_leaves_the_queue_and_never_runs(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest, max_batch=1) as world:
            tasks = [await world.hold(), world.submit(1), world.submit(2)]
            await settle()
            tasks[1].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[1]
            assert world.count("fathom_queue_depth") == 1
            world.release()
            await asyncio.gather(tasks[0], tasks[2])
            assert world.backend.batches == [[0], [2]]

    play(scenario())


def test_an_image_cancelled_while_it_runs_disturbs_nobody(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            task = await world.hold()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            after = world.submit(1)
            world.release()
            await after
            assert world.traces[0].stages == {}

    play(scenario())


def test_a_deadline_that_passes_while_running_is_504_at_once(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            world.backend.closed = True
            began = time.perf_counter()
            await failure(world.submit(1, Budget(ms=200)), DeadlineExceeded)
            assert 0.19 < time.perf_counter() - began < 5  # the engine still holds the image
            assert world.backend.entered.is_set()

    play(scenario())


def test_a_result_that_is_taken_up_after_the_deadline_is_504_too(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            world.backend.closed = True
            task = world.submit(1, Budget(ms=300))
            await until(world.backend.entered.is_set)
            world.release()
            time.sleep(0.35)  # the engine is done in time, but the event loop is busy
            await failure(task, DeadlineExceeded)
            assert "decoder" in world.traces[1].stages

    play(scenario())


def test_a_deadline_that_passes_in_the_queue_is_429_and_never_runs(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            first = await world.hold()
            error = await failure(world.submit(1, Budget(ms=60)), Overloaded)
            assert "in the queue" in error.detail
            assert error.retry_after is not None
            assert error.retry_after > 0
            assert error.shed == "expired"
            assert world.count("fathom_queue_depth") == 0
            world.release()
            await first
            assert world.backend.batches == [[0]]

    play(scenario())


def test_the_engine_skips_an_image_whose_deadline_passed_before_its_timer_fires(
    fake_manifest: Manifest,
) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            first = await world.hold()
            task = world.submit(1, Budget(ms=60))
            await settle()
            time.sleep(0.08)  # the event loop is busy; the engine is not
            world.release()
            time.sleep(0.05)
            await failure(task, Overloaded)
            await first
            assert world.backend.batches == [[0]]

    play(scenario())


def test_a_deadline_out_of_reach_is_429_before_any_work(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            first = await world.hold()
            world.engine._queue.mean_ms = 100_000.0
            waiting = world.submit(1)
            await settle()
            # 100 s until the engine is free.
            error = await failure(world.submit(2, Budget(ms=50_000)), Overloaded)
            assert "cannot be met" in error.detail
            assert error.retry_after is not None
            assert error.retry_after >= 100
            assert error.shed == "predicted"
            # Image 1 has no deadline, but its turn comes first.
            later = world.submit(3, Budget(ms=150_000))
            await failure(later, Overloaded)
            world.release()
            await asyncio.gather(first, waiting)

    play(scenario())


def test_the_cheapest_plan_of_the_prediction_is_the_cheapest_that_the_budget_allows(
    fake_manifest: Manifest,
) -> None:
    async def scenario() -> None:
        plans = tuple(replace(plan, depth=5 - plan.depth) for plan in fake_manifest.plans)
        async with ready(replace(fake_manifest, plans=plans)) as world:
            world.engine._costs = Costs(0.0, {plan: 1000 * plan.gflops for plan in plans})
            # The plan of depth 1 takes 5 s.
            await failure(world.submit(1, Budget(depth=1, ms=4_000)), Overloaded)

    play(scenario())


def test_time_before_admission_counts_for_the_deadline(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            await failure(world.submit(1, Budget(ms=1_000), late_s=2.0), Overloaded)
            await world.submit(2, Budget(ms=60_000), late_s=2.0)

    play(scenario())


def test_the_node_sets_a_deadline_for_every_request_and_the_tighter_one_counts(
    fake_manifest: Manifest,
) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            world.model.node_budget = Budget(ms=1_000)
            await failure(world.submit(1, late_s=2.0), Overloaded)
            await failure(world.submit(2, Budget(ms=60_000), late_s=2.0), Overloaded)
            world.model.node_budget = Budget(ms=60_000)
            await failure(world.submit(3, Budget(ms=1_000), late_s=2.0), Overloaded)
            await world.submit(4, late_s=2.0)

    play(scenario())


def test_a_budget_under_the_cheapest_plan_is_refused_before_any_work(
    fake_manifest: Manifest,
) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            world.backend.closed = True
            error = await failure(world.submit(1, Budget(gflops=0.5)), UnsatisfiableBudget)
            assert error.extra["cheapest"] == {"plan": "d1", "depth": 1, "gflops": 2.0}
            world.model.node_budget = Budget(gflops=0.5)
            assert world.count("fathom_node_budget_gflops") == 0.5
            await failure(world.submit(2), UnsatisfiableBudget)
            assert world.backend.batches == []

    play(scenario())


def test_a_floor_out_of_reach_fails_its_image_alone(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            strict = world.submit(1, Budget(depth=1, strict=True))
            good = world.submit(2, Budget(depth=1))
            await failure(strict, UnsatisfiableBudget)
            assert (await good).decision.plan.name == "d1"

    play(scenario())


def test_a_failing_engine_fails_the_batch_at_hand_only(
    fake_manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            tasks = [await world.hold(), world.submit(1)]
            world.backend.fail = RuntimeError("secret of the engine")
            world.release()
            for task in tasks:
                error = await failure(task, FathomError)
                assert error.status == 500
                assert "secret" not in error.detail
            world.backend.fail = None
            assert world.model.state == "ready"
            await world.submit(2)

    with caplog.at_level(logging.ERROR):
        play(scenario())
    assert "id-0" in caplog.text
    assert "secret of the engine" in caplog.text


@pytest.mark.parametrize("error", [BackendError("front.onnx: broken"), OSError("no such device")])
def test_an_engine_that_cannot_open_leaves_a_failed_service_with_the_reason(
    fake_manifest: Manifest, error: Exception
) -> None:
    def refuse() -> Backend:
        raise error

    async def scenario() -> None:
        world = World(fake_manifest, Settings())
        world.engine._open_backend = refuse
        world.segmenter.start()
        await asyncio.to_thread(world.engine.ended.result, WAIT_S)
        assert world.model.state == "failed"
        assert isinstance(world.engine.failure, BackendError)
        assert str(error) in world.engine.failure.detail
        assert world.engine.warm.exception(WAIT_S) is world.engine.failure
        await failure(world.submit(1), NotReady)
        await world.model.drain(WAIT_S)
        assert world.model.state == "failed"

    play(scenario())


def test_an_engine_that_cannot_be_warmed_is_closed_again(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        world = World(fake_manifest, Settings())
        world.backend.fail = RuntimeError("no kernel")
        world.segmenter.start()
        await asyncio.to_thread(world.engine.ended.result, WAIT_S)
        assert world.model.state == "failed"
        assert world.backend.closings == 1

    play(scenario())


def test_an_engine_that_breaks_answers_everybody(
    fake_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest, max_batch=1) as world:

            def broken(*_: object) -> Iterator[object]:
                raise KeyError("a bug")

            tasks = [await world.hold(), world.submit(1)]
            await settle()
            monkeypatch.setattr(world.engine._costs, "served", broken)
            world.release()
            await tasks[0]
            await failure(tasks[1], NotReady)
            assert isinstance(world.engine.failure, BackendError)

    play(scenario())


def test_drain_finishes_what_was_admitted_and_refuses_the_rest(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest, max_batch=1) as world:
            tasks = [await world.hold(), world.submit(1), world.submit(2)]
            await settle()
            drain = asyncio.create_task(world.model.drain(WAIT_S))
            await settle()
            assert world.model.state == "draining"
            refused = await failure(world.submit(3), NotReady)
            assert (refused.retry_after, refused.shed) == (1, "draining")
            assert not drain.done()
            world.release()
            await drain
            assert all(task.done() for task in tasks)
            assert len(await asyncio.gather(*tasks)) == 3
            assert world.backend.closings == 1

    play(scenario())


def test_drain_gives_up_after_its_time_and_answers_everybody(
    fake_manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest, max_batch=1) as world:
            tasks = [await world.hold(), world.submit(1)]
            await settle()
            await world.model.drain(0.01)
            for task in tasks:
                await failure(task, NotReady)
            world.release()

    play(scenario())
    assert "2 admitted images were not finished" in caplog.text


def test_drain_while_starting_ends_the_engine(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        world = World(fake_manifest, Settings())
        world.backend.closed = True
        world.segmenter.start()
        await until(world.backend.entered.is_set)
        drain = asyncio.create_task(world.model.drain(WAIT_S))
        await settle()
        world.release()
        await drain
        assert world.model.state == "draining"
        assert world.backend.closings == 1

    play(scenario())


def test_an_engine_that_outlives_its_event_loop_does_no_harm(
    fake_manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(fake_manifest, Settings())

    async def scenario() -> None:
        world.segmenter.start()
        await until(lambda: world.model.state == "ready")
        task = await world.hold()
        await world.model.drain(0.01)
        await failure(task, NotReady)

    play(scenario())
    engine = next(thread for thread in threading.enumerate() if thread.name == "engine")
    world.release()
    engine.join(WAIT_S)
    assert not engine.is_alive()
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # the drain's own


def test_many_images_at_once_are_all_answered(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest, queue_size=64) as world:
            numbers: Sequence[int] = range(60)
            answers = await asyncio.gather(*(world.submit(number) for number in numbers))
            labels = [
                int(answer.outcome.tensors["probabilities"][:, 0, 0].argmax()) for answer in answers
            ]
            assert labels == [number * 4 // 256 for number in numbers]
            assert world.count("fathom_queue_depth") == 0

    play(scenario())
