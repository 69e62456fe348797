"""How the GPU benchmark takes times: races, figures, lines, recordings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.bench import (
    gpu_clock,
)
from tests.bench.gpu_clock import (
    Contender,
    CudaClock,
    Figures,
    Pace,
    line_through,
    race,
)
from tests.gpu_bench.stand_in import SHORT, HostClock


def test_a_race_gives_seconds_of_one_launch_and_takes_turns() -> None:
    order: list[str] = []
    clock = HostClock([1.2, 2.4, 1.8, 2.4, 6.0, 2.4])  # of a, b, a, b, a, b

    def work(name: str) -> Callable[[], None]:
        return lambda: order.append(name)

    contenders = {
        "a": Contender([work("a")]),
        "b": Contender([work("b0"), work("b1")], kernel=True),
    }
    found = race(clock, contenders, Pace(samples=3, replays=2, warm_s=0.0, many=4, few=3))
    assert found["a"] == Figures(0.3, 0.25, 0.65, 3)  # 3 launches x 2 replays a sample
    assert found["b"] == Figures(0.3, 0.3, 0.3, 3)  # 4 launches
    assert order[-2 * (3 * 3 + 3 * 4) :] == [*["a"] * 9, *["b0", "b1"] * 6] * 2


def test_who_cannot_be_recorded_does_not_stop_the_others() -> None:
    def broken() -> None:
        raise RuntimeError("not while a graph is recorded\nstack")

    found = race(HostClock(), {"bad": Contender([broken]), "good": Contender([list])}, SHORT)
    assert found["bad"] == "RuntimeError: not while a graph is recorded"
    assert isinstance(found["good"], Figures)
    assert race(HostClock(), {"bad": Contender([broken])}, SHORT).keys() == {"bad"}
    assert gpu_clock.reason(KeyError()) == "KeyError"


def test_it_is_warm_before_the_first_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    ran, now = [], iter([0.0, 0.1, 0.2, 0.3])
    monkeypatch.setattr(gpu_clock, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    gpu_clock.warm(HostClock(), lambda: ran.append(1), 0.25)
    assert len(ran) == 3


def test_figures_are_microseconds_in_json() -> None:
    assert Figures.of([1e-6, 2e-6, 3e-6]).as_us() == {
        "median": 2.0,
        "q1": 1.5,
        "q3": 2.5,
        "samples": 3,
    }


def test_a_line_is_found_and_what_lies_beside_it() -> None:
    line = line_through([30 + 140 * depth for depth in range(1, 7)])
    assert (line.fixed, line.slope) == (pytest.approx(30), pytest.approx(140))
    assert line.worst == pytest.approx(0, abs=1e-9)
    bent = [100.0, 200.0, 300.0, 400.0, 500.0, 700.0]
    # By hand: slope 2000 / 17.5, through the means (3.5, 2200 / 6); the last one lies 0.0417 ..
    # above
    line = line_through(bent)
    assert line.slope == pytest.approx(2000 / 17.5)
    assert line.worst == pytest.approx((700 - (2200 / 6 + 2.5 * 2000 / 17.5)) / (2000 / 17.5))


@pytest.mark.parametrize(
    ("costs", "says"), [([1.0, 2.0], "2 depths"), ([3.0, 2.0, 1.0], "does not grow")]
)
def test_no_line_through_what_is_none(costs: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        line_through(costs)


class FakeCuda:
    """The calls of torch.cuda that the clock makes, noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        put = partial_set(monkeypatch)
        put("current_device", lambda: 0)
        put("get_device_properties", lambda _: SimpleNamespace(L2_cache_size=50 * 2**20))
        put("mem_get_info", lambda: (2**30, 2**36))
        put("Stream", lambda: SimpleNamespace(wait_stream=lambda _: self.log.append("side waits")))
        put(
            "current_stream",
            lambda: SimpleNamespace(wait_stream=lambda _: self.log.append("main waits")),
        )
        put("stream", lambda _: self.noted("side"))
        put("synchronize", lambda: self.log.append("synchronize"))
        put("CUDAGraph", lambda: SimpleNamespace(replay=lambda: self.log.append("replay")))
        put("graph", lambda _: self.noted("recording"))
        put("Event", self.event)
        put("empty_cache", lambda: self.log.append("empty"))

    @contextmanager
    def noted(self, what: str) -> Iterator[None]:
        self.log.append(f"{what} begins")
        yield
        self.log.append(f"{what} ends")

    def event(self, *, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        return SimpleNamespace(
            record=lambda: self.log.append("event"),
            synchronize=lambda: self.log.append("wait for event"),
            elapsed_time=lambda other: 3.0,
        )


def partial_set(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    return lambda name, value: monkeypatch.setattr(torch.cuda, name, value)


def test_a_recording_is_made_after_a_warm_up_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    clock = CudaClock()
    assert (clock.device, clock.cache, clock.copied) == (torch.device("cuda", 0), 50 * 2**20, 2**27)
    numbers = iter(range(100))
    recorded = clock.record(
        [lambda: (cuda.log.append("a"), next(numbers))[1], lambda: next(numbers)], 3
    )
    assert cuda.log == [
        "side waits",
        "side begins",
        "a",
        "a",
        "side ends",
        "main waits",
        "synchronize",
        "recording begins",
        "a",
        "a",
        "recording ends",
    ]
    assert list(recorded.outputs) == [5, 6]  # as many as there are works
    cuda.log.clear()
    assert clock.seconds(recorded.run, 2) == 0.003
    assert cuda.log == ["event", "replay", "replay", "event", "wait for event"]
    cuda.log.clear()
    clock.wait()
    clock.free()
    assert cuda.log == ["synchronize", "empty"]
