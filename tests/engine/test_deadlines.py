"""The engine: deadlines and ceilings, before, in and after the queue."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from service.bundle import Manifest
from service.core import Ask, Budget
from service.errors import (
    DeadlineExceeded,
    Overloaded,
    UnsatisfiableBudget,
)
from service.trace import Trace
from tests.engine.world import failure, play, ready, settle, until
from tests.known_costs import known_costs


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
            world.engine._queue.free = time.perf_counter() + 100.0
            waiting = world.submit(1)
            await settle()
            # 100 s until the engine is free.
            error = await failure(world.submit(2, Budget(ms=50_000)), Overloaded)
            assert "cannot be met" in error.detail
            assert error.retry_after is not None
            assert error.retry_after >= 100
            assert error.shed == "predicted"
            # Image 1 has no deadline, but its turn comes first.
            world.engine._queue.waiting[0].least_ms = 100_000.0
            await failure(world.submit(3, Budget(ms=150_000)), Overloaded)
            world.release()
            await asyncio.gather(first, waiting)

    play(scenario())


def test_the_cheapest_plan_of_the_prediction_is_the_cheapest_that_the_budget_allows(
    fake_manifest: Manifest,
) -> None:
    async def scenario() -> None:
        plans = tuple(replace(plan, depth=5 - plan.depth) for plan in fake_manifest.encoder_plans)
        manifest = replace(fake_manifest, encoder_plans=plans)
        async with ready(manifest) as world:
            taken_ms = {plan: 1000 * plan.gflops for plan in manifest.plans}
            world.engine._costs = known_costs({"c64": 0.0}, taken_ms)
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


def test_deadlines_leave_time_for_the_way_in_and_out_as_for_waking_a_waiter(
    fake_manifest: Manifest,
) -> None:
    """An event loop that is late hides part of each request's latency from the engine."""

    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            world.backend.closed = True
            for number in range(3):
                world.backend.entered.clear()
                world.backend.opened.clear()
                task = world.submit(number)
                await until(world.backend.entered.is_set)
                world.backend.opened.set()
                time.sleep(0.1)
                await task
            ask, arrived = Ask(Budget(ms=10_000)), time.perf_counter()
            with world.segmenter.place(ask, Trace("2"), arrived) as ticket:
                assert ticket.deadline is not None
                left_s = arrived + 10 - ticket.deadline
            assert 0.25 < left_s < 2.0

    play(scenario())
