"""An HTTP client without load: one request at a time, in turns with other work of its process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tests.bench.open_loop import Answer, Load, ask, requests_of

PAUSE_S = 0.05  # before each turn: what a server does after an answer is then done


def in_turns(load: Load, work: Callable[[], object], turns: int) -> list[tuple[Answer, float]]:
    """A request, then one run of work, so many times: each answer, and the seconds of the run
    after it. A machine that gets slower or faster meanwhile does so for both. load: its times do
    not matter."""
    requests, found = requests_of(load), []
    with asyncio.Runner() as client:
        for turn in range(turns):
            time.sleep(PAUSE_S)
            answer = client.run(ask(load.url, requests, turn, time.perf_counter(), 0.0))
            time.sleep(PAUSE_S)
            began = time.perf_counter()
            work()
            found.append((answer, time.perf_counter() - began))
    return found
