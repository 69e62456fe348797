"""Threads for work that would block an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Threads:
    """A few threads, and the work that waits for them."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="image")

    async def run(self, work: Callable[[], _T]) -> _T:
        """The result of the work.

        If the caller is cancelled, work that has begun is waited for, and work that has not is
        dropped: what it holds in memory is free when this returns.
        """
        task = _Task(work)
        future = self._pool.submit(task)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if future.cancel():
                task.drop()  # the pool keeps a cancelled task until a thread is free
            else:
                await asyncio.gather(asyncio.wrap_future(future), return_exceptions=True)
            raise

    def shutdown(self) -> None:
        """Drop what waits; what runs ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def in_daemon(work: Callable[[], _T]) -> _T:
    """The result of work that may never end: in a thread of its own, which the end of the process
    does not wait for."""
    future: Future[_T] = Future()
    future.set_running_or_notify_cancel()  # so that a caller who leaves cannot cancel it

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  # it is the caller's
            future.set_exception(error)

    threading.Thread(target=run, name="daemon", daemon=True).start()
    return await asyncio.wrap_future(future)


class _Task(Generic[_T]):
    def __init__(self, work: Callable[[], _T]) -> None:
        self._work = [work]

    def __call__(self) -> _T:
        return self._work.pop()()

    def drop(self) -> None:
        self._work.clear()
