"""The engine: estimates that were wrong recover, and an engine that is broken ends the service."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

import pytest

from service.bundle import Manifest
from service.core import Ask, Budget
from service.engines.base import Arrays, HostTensors, Tensors
from service.errors import BackendError, DeadlineExceeded, FathomError, Overloaded
from service.inference.costs import AGAIN, STALE_S, Cost
from service.inference.runner import FAILURES
from service.segmenting import Answer
from tests.engine.world import NONE, Gate, World, failure, play, ready, settle, until


def slow_start(world: World, factor: float) -> None:
    """As if everything had taken so many times as long in the warm-up."""
    costs = world.engine._costs
    for cost in (*costs.front.values(), *costs.encoders.values(), *costs.heads.values()):
        cost.__init__(factor * cost.ms())  # type: ignore[misc]


async def until_answered(ask: Callable[[], asyncio.Task[Answer]]) -> int:
    """How often it was refused before."""
    end = time.perf_counter() + 10
    for refusals in range(1000):
        try:
            await ask()
        except Overloaded:
            assert time.perf_counter() < end, "it is refused for good"
            await asyncio.sleep(0.05)
        else:
            return refusals
    raise AssertionError


@pytest.mark.parametrize("of_the_node", [False, True])
def test_a_slow_start_does_not_refuse_for_good(fake_manifest: Manifest, of_the_node: bool) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            slow_start(world, 1e5)  # tens of seconds
            budget = Budget(ms=400)
            if of_the_node:
                world.model.node_budget, budget = budget, NONE
            refusals = await until_answered(lambda: world.submit(1, budget))
            assert 1 <= refusals < 40
            assert min(world.model.plan_ms(fake_manifest.plans).values()) < 400

    play(scenario())


def test_plans_that_a_wrong_estimate_ruled_out_come_back(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            d4, cost = fake_manifest.plans[-1], world.engine._costs.encoders["d4"]
            cost.__init__(60_000.0)  # type: ignore[misc]
            answer = await world.submit(1, Budget(ms=5_000, max_loss=0))
            assert (answer.decision.plan.name, answer.decision.reason) == ("d3", "deadline")
            await until(lambda: cost.ms() < 5_000)
            answer = await world.submit(2, Budget(ms=5_000, max_loss=0))
            assert answer.decision.plan == d4

    play(scenario())


def test_a_wrong_estimate_does_not_refuse_strict_requests_for_good(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            cost = world.engine._costs.encoders["d4"]
            cost.__init__(60_000.0)  # type: ignore[misc]
            # Its floor needs the full plan here, which is known once the gate has seen the image.
            budget = Budget(ms=5_000, strict=True)
            with pytest.raises(DeadlineExceeded, match="no time for d4"):
                await world.submit(1, budget)
            await until(lambda: cost.ms() < 5_000)
            answer = await world.submit(2, budget)
            assert answer.decision.plan.name == "d4"

    play(scenario())


def test_an_estimate_that_was_too_low_follows_what_runs(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            slow_start(world, 1e-6)
            for number in range(4):
                await world.submit(number)
            assert world.engine._costs.encoders["d4"].ms() > 0.001

    play(scenario())


@pytest.mark.parametrize("ms", [500, 900])
def test_a_batch_wait_never_costs_a_deadline(fake_manifest: Manifest, ms: int) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest, batch_wait_ms=1000) as world:
            began = time.perf_counter()
            answer = await world.submit(1, Budget(ms=ms))
            assert time.perf_counter() - began < ms / 1000
            assert answer.decision.plan.name == "d4"  # nor a plan

    play(scenario())


def test_an_engine_that_fails_for_every_batch_ends_the_service(
    fake_manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            world.backend.fail = RuntimeError("the device is gone")
            for number in range(FAILURES):
                await failure(world.submit(number), FathomError)
            await until(lambda: world.model.state == "failed")
            await asyncio.to_thread(world.engine.ended.result, 10)
            assert isinstance(world.engine.failure, BackendError)
            assert "the device is gone" in world.engine.failure.detail
            assert world.backend.closings == 1

    play(scenario())
    assert "failed in a row" in caplog.text


def test_images_that_fail_the_engine_again_and_again_do_not_end_it(
    fake_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the images: a blank one runs."""
    run = Gate.run

    def poisoned(gate: Gate, stage: str, tensors: Tensors | Arrays) -> HostTensors:
        found = run(gate, stage, tensors)
        if (found["image"][:, 0, 0, 0] == 66).any():
            raise RuntimeError("these pixels")
        return found

    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            monkeypatch.setattr(Gate, "run", poisoned)
            for _ in range(3 * FAILURES):
                await failure(world.submit(66), FathomError)
            await world.submit(1)
            assert world.count("fathom_engine_errors_total") == 3 * FAILURES

    play(scenario())


def test_an_estimate_that_cannot_be_measured_again_at_once_does_not_end_the_service(
    fake_manifest: Manifest,
) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            cost = world.engine._costs.encoders["d4"]
            cost.__init__(60_000.0)  # type: ignore[misc]
            for _ in range(2):
                await world.submit(1, Budget(ms=5_000, max_loss=0))  # it cannot be d4
                world.backend.fail = RuntimeError("out of memory")
                await until(lambda: not world.engine._costs.doubted)
                world.backend.fail = None
                await until(lambda: world.engine._queue.free == -math.inf)  # it counts as busy
            assert (world.model.state, world.count("fathom_engine_errors_total")) == ("ready", 2)
            await world.submit(1, Budget(ms=5_000, max_loss=0))
            await until(lambda: cost.ms() < 5_000)

    play(scenario())


def test_a_doubtful_estimate_keeps_nobody_out_while_it_is_measured(
    fake_manifest: Manifest,
) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            cost = world.engine._costs.encoders["d4"]
            for _ in range(3):
                cost.add(60.0, 1, -math.inf)  # the start was fast, three runs were not
            world.backend.closed = True
            world.engine._costs.doubt(fake_manifest.plans[-1], time.perf_counter())
            with world.engine._changed:
                world.engine._changed.notify()
            await until(world.backend.entered.is_set)  # it is being measured
            task = world.submit(1, Budget(ms=5_000, depth=1))
            await settle()
            world.release()
            assert (await task).decision.plan.name == "d1"

    play(scenario())


def test_who_comes_while_an_estimate_is_measured_waits_for_one_stage_at_most(
    fake_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is measured when the engine is idle again, and no stage counts twice."""
    ran: list[str] = []
    run = Gate.run

    def noted(gate: Gate, stage: str, tensors: Tensors | Arrays) -> HostTensors:
        ran.append(stage)
        return run(gate, stage, tensors)

    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            monkeypatch.setattr(Gate, "run", noted)
            costs, plan = world.engine._costs, fake_manifest.plans[-1]
            world.backend.closed = True
            costs.doubt(plan, time.perf_counter() + STALE_S)
            with world.engine._changed:
                world.engine._changed.notify()
            await until(world.backend.entered.is_set)
            task = world.submit(1, Budget(depth=1))
            await settle()
            counted = []
            monkeypatch.setattr(Cost, "add", lambda cost, *_: counted.append(cost))
            world.release()
            await task
            await until(lambda: not costs.doubted)
            image, plan_d4 = ["front", "encoder-d1", "decoder"], ["front", "encoder-d4", "decoder"]
            assert ran == ["front", *image, *AGAIN * plan_d4]
            assert counted.count(costs.encoders["d4"]) == AGAIN
            assert counted.count(costs.front[plan.canvas]) == AGAIN + 1  # the image's, too

    play(scenario())


def test_places_are_free_again_after_every_way_out(fake_manifest: Manifest) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest, max_batch=1, queue_size=8) as world:
            tasks = [await world.hold(), world.submit(1), world.submit(2, Budget(ms=30))]
            await settle()
            assert world.count("fathom_places_taken") == 2
            with world.segmenter.place(Ask(), world.traces[1], time.perf_counter()):
                assert world.count("fathom_places_taken") == 3
            tasks[1].cancel()
            await failure(tasks[2], Overloaded)
            world.release()
            await tasks[0]
            await until(lambda: world.count("fathom_places_taken") == 0)
            queue = world.engine._queue
            assert (queue.held, queue.waiting, queue.answering) == ({}, [], {})

    play(scenario())
