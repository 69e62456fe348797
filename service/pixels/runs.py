"""Label maps as runs down the columns: the order in which COCO counts, and far less than the pixels
of a large photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.unsignedinteger]
Positions = NDArray[np.intp]

_TILE = 128  # columns turned into rows at a time, so that they fit into the cache


@dataclass(frozen=True, slots=True)
class Runs:
    """A label map of shape (height, width).

    starts: (n,) where each run begins, as x * height + y, from 0 on in ascending order; a run may
    go on in the next column. values: (n,), of neighbours never the same.
    """

    shape: tuple[int, int]
    starts: Positions
    values: Labels

    @classmethod
    def of(cls, labels: Labels) -> Runs:
        """The runs of a label map (height, width)."""
        height, width = labels.shape
        pixels = labels.T.ravel()
        changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
        starts = np.r_[0, changes]
        return cls((height, width), starts, pixels[starts])

    @classmethod
    def joined(cls, shape: tuple[int, int], starts: Positions, values: Labels) -> Runs:
        """The same from runs whose neighbours may have the same value."""
        kept = np.r_[True, values[1:] != values[:-1]]
        return cls(shape, starts[kept], values[kept])

    @classmethod
    def looked_up(cls, grid: Labels, rows: Positions, columns: Positions) -> Runs:
        """`grid[rows][:, columns]`. rows: ascending."""
        shape = len(rows), len(columns)
        tops = np.flatnonzero(np.diff(rows, prepend=-1))
        values = grid[rows[tops]].T[columns]  # (width, strips of equal rows)
        starts = np.arange(shape[1])[:, None] * shape[0] + tops
        return cls.joined(shape, starts.ravel(), values.ravel())

    @property
    def ends(self) -> Positions:
        """(n,): where each run ends."""
        height, width = self.shape
        return np.append(self.starts[1:], height * width)

    def at(self, positions: Positions) -> Labels:
        """The values at some places."""
        return np.asarray(self.values[np.searchsorted(self.starts, positions, "right") - 1])

    def split(self, positions: Positions) -> tuple[Positions, Labels]:
        """Starts and values of the runs, each begun anew at these ascending places, too."""
        starts = merged(self.starts, positions)
        return starts, self.at(starts)

    def by_column(self) -> tuple[Positions, Positions, Labels]:
        """(starts, ends, values) of runs that end with their column."""
        height, width = self.shape
        starts, values = self.split(np.arange(width) * height)
        return starts, np.r_[starts[1:], height * width], values

    def within(self, others: Runs) -> Runs:
        """The map with 0 where the others, of the same shape, are 0."""
        starts, values = self.split(others.starts)
        return self.joined(self.shape, starts, values * (others.at(starts) > 0))

    def under(self, others: Runs) -> Runs:
        """The map with the others, of the same shape, where it is 0."""
        starts, values = self.split(others.starts)
        return self.joined(self.shape, starts, np.where(values > 0, values, others.at(starts)))

    def renamed(self, table: Labels) -> Runs:
        """The map with `table[value]` for each value."""
        return self.joined(self.shape, self.starts, table[self.values])

    def labels(self) -> Labels:
        """The label map, (height, width), made a few columns at a time."""
        height, width = self.shape
        labels = np.empty(self.shape, self.values.dtype)
        for left in range(0, width, _TILE):
            low, high = left * height, min(left + _TILE, width) * height
            first = np.searchsorted(self.starts, low, "right") - 1
            last = np.searchsorted(self.starts, high, "left")
            edges = np.append(self.starts[first:last], high).clip(low)
            columns = np.repeat(self.values[first:last], np.diff(edges))
            labels[:, left : left + _TILE] = columns.reshape(-1, height).T
        return labels


def merged(first: Positions, second: Positions) -> Positions:
    """Two ascending lists as one, without duplicates. Much faster than numpy's union1d."""
    positions = np.concatenate((first, second))
    positions.sort(kind="stable")  # which finds that the lists are sorted
    return np.asarray(positions[np.append(True, positions[1:] != positions[:-1])])


def grouped(values: Labels, wanted: Sequence[int] | Positions) -> list[Positions]:
    """For each wanted value, the indices at which it stands, in ascending order."""
    order = np.argsort(values, kind="stable")
    in_order = values[order]
    first = np.searchsorted(in_order, wanted, "left")
    last = np.searchsorted(in_order, wanted, "right")
    return [order[low:high] for low, high in zip(first, last, strict=True)]
