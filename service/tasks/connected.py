"""Connected parts of a grid and their growth, in numpy: no image library for three small steps."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.pixels.runs import Positions, Runs

Flags: TypeAlias = NDArray[np.bool_]
Ids: TypeAlias = NDArray[np.int32]


class Components(NamedTuple):
    """The parts of a grid (h, w) whose points share an edge, `total` of them.

    They are numbered from 1 on by their first point in the order of reading. starts, ends: (n,)
    runs of points along the rows, as y * (w + 1) + x; ids: (n,), whose they are.
    """

    shape: tuple[int, ...]
    starts: Positions
    ends: Positions
    ids: Ids
    total: int

    @classmethod
    def of(cls, flags: Flags) -> Components:
        height, width = flags.shape
        step = width + 1  # a free point ends every row
        padded = np.zeros(height * step + 1, np.int8)
        padded[1:].reshape(height, step)[:, :width] = flags
        edges = np.flatnonzero(padded[1:] != padded[:-1])
        starts, ends = edges[::2], edges[1::2]
        roots = _roots(len(starts), *_touching(starts, ends, step))
        first = roots == np.arange(len(roots))
        ids = np.cumsum(first, dtype=np.int32)[roots]
        return cls(flags.shape, starts, ends, ids, int(first.sum()))

    def areas(self) -> Positions:
        """(total + 1,) by id, in points; 0 of the background."""
        lengths = np.bincount(self.ids, self.ends - self.starts, self.total + 1)
        return lengths.astype(np.intp)

    def at(self, starts: Positions) -> Ids:
        """The ids at points that lie in some part."""
        return self.ids[np.searchsorted(self.starts, starts, "right") - 1]

    def painted(self, values: Ids) -> Ids:
        """(h, w): for each point the value of its run, values: (n,), and 0 outside."""
        height, width = self.shape
        step = width + 1
        edges = np.empty(2 * len(self.starts) + 1, np.intp)
        edges[:-1:2], edges[1::2], edges[-1] = self.starts, self.ends, height * step
        drawn = np.zeros(len(edges), np.int32)
        drawn[1::2] = values
        grid = np.repeat(drawn, np.diff(edges, prepend=0)).reshape(height, step)
        return np.ascontiguousarray(grid[:, :width])


def in_one_piece(runs: Runs) -> Runs:
    """The label map with only the largest piece of each value, of equals the first; 0 elsewhere."""
    starts, ends, values = runs.by_column()
    inside = np.flatnonzero(values)
    begins, stops, own = starts[inside], ends[inside], values[inside]
    one, other = _touching(begins, stops, runs.shape[0])
    same = own[one] == own[other]
    roots = _roots(len(inside), one[same], other[same])
    areas = np.bincount(roots, stops - begins, len(inside))
    # Of each value the largest piece comes first, of equals the first one.
    order = np.lexsort((-areas, own))
    _, largest = np.unique(own[order], return_index=True)
    kept = np.zeros(len(inside), np.bool_)
    kept[order[largest]] = True
    pieces = values.copy()
    pieces[inside[~kept[roots]]] = 0
    return Runs.joined(runs.shape, starts, pieces)


def grow(labels: Ids, inside: Flags) -> Ids:
    """The labels, not 0, point by point over what is inside and free (0), all at one speed; where
    two meet, the larger one goes on."""
    height, width = labels.shape
    step = width + 2
    grown = np.zeros((height + 2, step), np.int32)
    grown[1:-1, 1:-1] = labels
    free = np.zeros(grown.shape, np.bool_)
    free[1:-1, 1:-1] = inside & (labels == 0)
    edge = np.zeros(grown.shape, np.bool_)  # labels beside a free point
    edge[1:-1, 1:-1] = free[:-2, 1:-1] | free[2:, 1:-1] | free[1:-1, :-2] | free[1:-1, 2:]
    flat, room = grown.ravel(), free.ravel()
    turn = np.empty(flat.shape, np.intp)
    front = np.flatnonzero(edge & (grown > 0))
    while front.size:
        points = np.concatenate((front - step, front - 1, front + 1, front + step))
        reached = room[points]
        points = points[reached]
        np.maximum.at(flat, points, np.tile(flat[front], 4)[reached])
        room[points] = False
        turn[points] = np.arange(len(points))
        front = points[turn[points] == np.arange(len(points))]  # each once
    return np.ascontiguousarray(grown[1:-1, 1:-1])


def largest_around(labels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """(h, w): of a point and the eight around it."""
    padded = np.pad(labels, 1)
    rows = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
    return np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])


def _touching(starts: Positions, ends: Positions, step: int) -> tuple[Positions, Positions]:
    """The pairs of runs that share an edge in neighbouring lines: the earlier ones, the later ones.

    step: from a point to its neighbour in the next line. No run goes on in the next line.
    """
    low = np.searchsorted(ends, starts + step, "right")
    high = np.searchsorted(starts, ends + step, "left")
    count = np.maximum(high - low, 0)
    one = np.repeat(np.arange(len(starts)), count)
    other = np.arange(len(one)) + np.repeat(low - (np.cumsum(count) - count), count)
    return one, other


def _roots(count: int, first: Positions, second: Positions) -> Positions:
    """(count,): for each the lowest index that it is joined with, by pairs of the two lists."""
    roots = np.arange(count)
    while True:
        one, other = roots[first], roots[second]
        apart = one != other
        if not apart.any():
            return roots
        one, other = one[apart], other[apart]
        np.minimum.at(roots, np.maximum(one, other), np.minimum(one, other))
        while True:
            further = roots[roots]
            if np.array_equal(further, roots):
                break
            roots = further
