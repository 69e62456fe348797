"""The engine: its thread, order and batches, load, cancellation. The queue: test_queue."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Sequence

import pytest

from service.bundle import Manifest
from service.core import Budget
from service.errors import (
    NotReady,
    Overloaded,
    UnsatisfiableBudget,
)
from service.settings import Settings
from tests.engine.world import NONE, WAIT_S, World, failure, play, ready, settle, until


def test_an_image_is_answered_and_its_trace_is_written(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            answer = await world.submit(200)
            assert (answer.outcome.heads["semantic"]["probabilities"].argmax(axis=0) == 3).all()
            trace = world.traces[200]
            assert list(trace.stages) == ["queue", "front", "encoder", "decoder"]
            assert (trace.decision, trace.batch_size) == (answer.decision, 1)
            assert world.count("fathom_compute_gflops_total") == 5.0
            assert world.count("fathom_batch_size_count") == 1

    play(scenario())


def test_one_thread_opens_runs_and_closes_the_engine(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            assert world.model.plan_ms(fake_manifest.plans).keys() == {"d1", "d2", "d3", "d4"}
        assert world.threads == ["engine"]
        assert world.backend.closings == 1
        await until(lambda: "engine" not in {thread.name for thread in threading.enumerate()})

    play(scenario())


def test_nothing_is_taken_before_the_engine_is_warm(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        world = World(fake_manifest, Settings())
        assert (world.model.state, world.model.plan_ms(fake_manifest.plans)) == ("starting", {})
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
            for place in world.engine._queue.waiting:
                place.least_ms = 100_000.0
            assert (world.count("fathom_queue_depth"), world.count("fathom_inflight")) == (2, 1)
            error = await failure(world.submit(3), Overloaded)
            # Two images that wait, 100 s each, and a random part of that.
            assert error.retry_after is not None
            assert 200 <= error.retry_after <= 402
            assert error.shed == "full"
            world.release()
            assert len(await asyncio.gather(*tasks)) == 3
            await until(lambda: world.count("fathom_inflight") == 0)
            assert world.count("fathom_queue_depth") == 0

    play(scenario())


def test_the_most_urgent_image_runs_first(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest, max_batch=1, target_ms=10_000) as world:
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
                world.submit(1, late_s=10.0),  # longer than the objective
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
            world.engine._queue._pays = math.inf  # whatever the fake engine's times are
            world.engine._queue.size = 10**9  # nor do few of many places close plans for them
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
        async with ready(fake_manifest, target_ms=6_000) as world:
            first = await world.hold()
            for plan in fake_manifest.plans:
                cost = world.engine._costs.encoders[plan.encoder]
                # Two take as long as one and a half: it pays.
                cost.__init__(1000.0 * plan.depth, most=4, most_ms=2500.0 * plan.depth)  # type: ignore[misc]
            tasks = [
                world.submit(1, Budget(ms=1_900)),
                world.submit(2),
                world.submit(3),
                world.submit(4),
            ]
            await settle()
            world.release()
            await asyncio.gather(first, *tasks)
            # 1.9 s are enough for two of d1, to which load has come down.
            assert world.backend.batches[:2] == [[0], [1, 2]]

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


def test_every_plan_down_to_the_cheapest_is_used_before_anything_is_refused(
    fake_manifest: Manifest,
) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest, max_batch=1, queue_size=4) as world:
            for plan in fake_manifest.plans:
                cost = world.engine._costs.encoders[plan.encoder]
                cost.__init__(10.0 * plan.depth)  # type: ignore[misc]
            tasks = [await world.hold(), *(world.submit(number) for number in (1, 2, 3, 4))]
            await settle()
            world.release()
            answers = await asyncio.gather(*tasks)
            # When each starts, 1, 4, 3, 2 and 1 of 4 places in the queue are taken: 10 ms are left
            # to each of four, then a little more.
            plans = [answer.decision.plan.name for answer in answers]
            assert (plans[0], plans[1]) == ("d4", "d1")
            assert plans[1:] == sorted(plans[1:])
            assert answers[1].decision.reason.value == "load"

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


def test_a_floor_out_of_reach_fails_its_image_alone(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            strict = world.submit(1, Budget(depth=1, strict=True))
            good = world.submit(2, Budget(depth=1))
            await failure(strict, UnsatisfiableBudget)
            assert (await good).decision.plan.name == "d1"

    play(scenario())


def test_many_images_at_once_are_all_answered(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest, queue_size=64) as world:
            numbers: Sequence[int] = range(60)
            answers = await asyncio.gather(*(world.submit(number) for number in numbers))
            labels = [
                int(answer.outcome.heads["semantic"]["probabilities"][:, 0, 0].argmax())
                for answer in answers
            ]
            assert labels == [number * 4 // 256 for number in numbers]
            assert world.count("fathom_queue_depth") == 0

    play(scenario())
