"""How GPU work is timed: recorded as a CUDA graph, replayed between two events, contenders in
turns.

A replay has no Python in it, so that short kernels are not hidden behind the cost of their launch;
the gap from one kernel to the next, about a microsecond, is part of the figure. Contenders of a
race take turns, so that a clock which drifts meets all of them. Clocks are left as they are; work
runs before the first sample, so that they have risen.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from service.bundle import Bundle

Work = Callable[[], Any]
# What torch, Triton's compiler and the driver raise.
ERRORS = (
    RuntimeError,
    ValueError,
    OSError,
    ImportError,
)


@dataclass(frozen=True)
class Recorded:
    """run: queue all that was recorded. outputs: of its last launches, each written anew by every
    run."""

    run: Callable[[], None]
    outputs: Sequence[Any] = ()


class Clock(Protocol):
    """device: where tensors go. cache: bytes of its largest cache. copied: bytes of the buffer that
    shows bandwidth."""

    device: torch.device
    cache: int
    copied: int

    def record(self, works: Sequence[Work], launches: int) -> Recorded:
        """So many launches, the works in turn. Raises RuntimeError for what cannot be recorded."""
        ...

    def seconds(self, run: Callable[[], None], times: int) -> float:
        """From the first of so many runs to the end of the last."""
        ...

    def wait(self) -> None:
        """Until the device is done."""
        ...

    def free(self) -> None:
        """Give back memory that nothing holds any more: others, in processes of their own, want it,
        too."""
        ...


class CudaClock:
    """torch's current GPU."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        self.copied = min(2**30, torch.cuda.mem_get_info()[0] // 8)

    def record(self, works: Sequence[Work], launches: int) -> Recorded:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        # What loads or compiles late must be over before the recording.
        with torch.cuda.stream(side):
            for work in (*works, *works):
                work()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # As many outputs as inputs stay alive: a longer row of them would be more memory, a shorter
        # one would stay in the cache.
        outputs: deque[Any] = deque(maxlen=len(works))
        with torch.cuda.graph(graph):
            for i in range(launches):
                outputs.append(works[i % len(works)]())
        return Recorded(graph.replay, outputs)

    def seconds(self, run: Callable[[], None], times: int) -> float:
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        for _ in range(times):
            run()
        ended.record()
        ended.synchronize()
        return begun.elapsed_time(ended) / 1000

    def wait(self) -> None:
        torch.cuda.synchronize()

    def free(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Figures:
    """Of one launch, in seconds: median and quartiles of the samples."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Figures:
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high, len(samples))

    def as_us(self) -> dict[str, float]:
        """Microseconds, for JSON."""
        values = {"median": self.median, "q1": self.low, "q3": self.high}
        return {name: float(f"{1e6 * value:.4g}") for name, value in values.items()} | {
            "samples": self.samples
        }


@dataclass(frozen=True)
class Pace:
    """How long a race is. replays: of a graph, for one sample. warm_s: seconds of work before the
    first sample.

    many, few: launches in a graph, at least, of a single kernel and of what is made of dozens of
    them.
    """

    samples: int = 15
    replays: int = 3
    warm_s: float = 0.2
    many: int = 100
    few: int = 20


@dataclass(frozen=True)
class Setting:
    """What every part gets. cache: folder of TensorRT engines. left: seconds until no further step
    is begun."""

    clock: Clock
    pace: Pace
    served: Bundle
    cache: Path
    left: Callable[[], float]


@dataclass(frozen=True)
class Contender:
    """works: the same thing on different buffers; each has its turn as often. kernel: whether it is
    a single one."""

    works: Sequence[Work] = field(repr=False)
    kernel: bool = False


def race(clock: Clock, contenders: Mapping[str, Contender], pace: Pace) -> dict[str, Figures | str]:
    """Seconds of one launch of each, or why it could not be timed."""
    found: dict[str, Figures | str] = {}
    ready: dict[str, tuple[Recorded, int]] = {}
    for name, contender in contenders.items():
        least, works = pace.many if contender.kernel else pace.few, len(contender.works)
        count = -(-least // works) * works
        try:
            ready[name] = clock.record(contender.works, count), count
        except ERRORS as error:
            found[name] = reason(error)
    for recorded, _ in ready.values():
        warm(clock, recorded.run, pace.warm_s / len(ready))
    samples: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(max(2, pace.samples)):
        for name, (recorded, count) in ready.items():
            recorded.run()  # its own data in the cache, not its neighbour's
            samples[name].append(clock.seconds(recorded.run, pace.replays) / (count * pace.replays))
    return found | {name: Figures.of(taken) for name, taken in samples.items()}


def warm(clock: Clock, run: Callable[[], None], seconds: float) -> None:
    end = time.perf_counter() + seconds
    run()
    clock.wait()
    while time.perf_counter() < end:
        run()
        clock.wait()


def reason(error: BaseException) -> str:
    """One line of what went wrong; compilers write pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


@dataclass(frozen=True)
class Line:
    """fixed + slope * depth, the best line by least squares. worst: the largest distance from it,
    as a share of the slope."""

    fixed: float
    slope: float
    worst: float


def line_through(costs: Sequence[float]) -> Line:
    """costs of the depths 1, 2, ... Raises ValueError where a line cannot be told from them."""
    if len(costs) < 3:
        raise ValueError(f"{len(costs)} depths: a line through fewer than 3 says nothing")
    depths = range(1, len(costs) + 1)
    slope, fixed = statistics.linear_regression(depths, costs)
    if slope <= 0:
        raise ValueError("the cost does not grow with the depth")
    worst = (
        max(abs(cost - fixed - slope * depth) for depth, cost in zip(depths, costs, strict=True))
        / slope
    )
    return Line(fixed, slope, worst)
