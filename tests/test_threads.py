"""Work in threads whose caller leaves."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from service.threads import Threads


class Held:
    """Something large."""


def test_work_that_has_begun_is_waited_for_and_its_error_is_no_surprise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun, go, ended = threading.Event(), threading.Event(), list[bool]()

    def work() -> None:
        begun.set()
        go.wait(5)
        ended.append(True)
        raise ValueError("nobody is there to see it")

    async def scenario() -> None:
        threads = Threads(1)
        running = asyncio.create_task(threads.run(work))
        await asyncio.to_thread(begun.wait, 5)
        running.cancel()
        await asyncio.sleep(0.01)
        assert not running.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert ended == [True]
        threads.shutdown()

    asyncio.run(scenario())
    gc.collect()
    assert not caplog.records  # "exception was never retrieved"


def test_work_that_waits_for_a_thread_is_dropped() -> None:
    async def scenario() -> None:
        threads, go = Threads(1), threading.Event()
        first = asyncio.create_task(threads.run(lambda: go.wait(5)))
        held = Held()
        alive = weakref.ref(held)
        second = asyncio.create_task(threads.run(lambda held=held: held))
        del held
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.wait([second])
        assert second.cancelled()
        del second
        gc.collect()
        assert alive() is None  # while the thread is still busy
        go.set()
        assert await first
        threads.shutdown()

    asyncio.run(scenario())
