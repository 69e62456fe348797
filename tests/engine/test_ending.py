"""The engine: what a failure does, and how it drains and ends."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator

import pytest

from service.bundle import Manifest
from service.engines.base import Backend
from service.errors import (
    BackendError,
    FathomError,
    NotReady,
)
from service.settings import Settings
from tests.engine.world import WAIT_S, World, failure, play, ready, settle, until


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
            monkeypatch.setattr(world.engine._queue, "take", broken)
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


def test_an_engine_without_work_closes_though_the_requests_took_all_of_the_drain(
    fake_manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with ready(fake_manifest) as world:
            await world.model.drain(0.0)
            assert world.backend.closings == 1

    play(scenario())
    assert "not finished in time" not in caplog.text


def test_an_engine_without_work_closes_without_an_event_loop_too(
    fake_manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(fake_manifest, Settings())
    world.segmenter.start()
    world.model.engine.warm.result(WAIT_S)
    world.model.close(0.0)
    assert world.backend.closings == 1
    assert "not finished in time" not in caplog.text


def test_drain_while_starting_ends_the_warm_up_and_the_engine(fake_manifest: Manifest) -> None:
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
        assert len(world.backend.batches) == 1  # no stage ran any more
        assert isinstance(world.engine.warm.exception(0), NotReady)
        assert world.engine.failure is None

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
