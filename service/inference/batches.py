"""The images of a batch, and which of them run together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from service.bundle import Shape
from service.core import Ask, Frames


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One image to segment.

    deadline: in seconds of time.perf_counter, if it has one. due: by when it should be answered; a
    plan that takes longer is closed to it.
    """

    frames: Frames
    ask: Ask
    deadline: float | None
    due: float = math.inf


def together(
    jobs: Sequence[Job], canvas: str, max_batch: int, whole_batch: int
) -> Iterator[Sequence[Job]]:
    """The images that run through a front together: those with one shape of the canvas, in order.

    max_batch, whole_batch: see `at_once`.
    """
    groups: dict[tuple[int, int], list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.frames[canvas].geometry.canvas, []).append(job)
    for (height, width), alike in groups.items():
        most = at_once(Shape(height, width), max_batch, whole_batch)
        for start in range(0, len(alike), most):
            yield alike[start : start + most]


def at_once(shape: Shape, max_batch: int, whole_batch: int) -> int:
    """The most images of a shape that run together. whole_batch: the backend's."""
    return max(1, min(max_batch, max_batch * whole_batch // shape.area))
