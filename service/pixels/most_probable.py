"""The most probable channel of each pixel at the image's own size, without a look at every pixel.

Down a column, between two rows of cells' centres, every channel's probability is a straight line.
Where one channel leads by more than rounding at both ends of a stretch, it does all the way between
them: only stretches with a border inside are cut, until nothing is between their ends. A mixture of
four cells is between their least and their largest, so that a channel whose largest is below
another's least cannot lead there: of many classes only the few that can are compared. The result is
that of interpolating and comparing all channels at all pixels, in float32.

The compiled library, where it is installed, gives the same in a fraction of the time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.core import Geometry
from service.pixels.compiled_labels import compiled_map, compiled_runs, labeller
from service.pixels.resample import Axis, axes, mix
from service.pixels.runs import Positions, Runs

Planes: TypeAlias = NDArray[np.float32]
Labels: TypeAlias = NDArray[np.uint8]

BAND_VALUES = 1 << 19  # interpolated values at a time: bounds the memory that a large image takes
_ROUNDING = 16 * float(np.finfo(np.float32).eps)  # of a lead, as a share of the largest value


def most_probable(probabilities: Planes, geometry: Geometry) -> Runs:
    """(C, h, w) -> the map of (height, width), uint8. Ties go to the lower channel."""
    rows, columns = axes(geometry, probabilities.shape[1:])
    shape = geometry.height, geometry.width
    if label := labeller():
        return Runs.joined(shape, *compiled_runs(label, probabilities, rows, columns))
    return Runs.joined(shape, *_runs(probabilities, rows, columns))


def most_probable_map(probabilities: Planes, geometry: Geometry) -> Labels:
    """The same as an array (height, width), for those who need no runs."""
    if label := labeller():
        return compiled_map(label, probabilities, *axes(geometry, probabilities.shape[1:]))
    return np.asarray(most_probable(probabilities, geometry).labels(), np.uint8)


def _runs(probabilities: Planes, rows: Axis, columns: Axis) -> tuple[Positions, Labels]:
    """(starts, values) without the compiled library; neighbours may be the same."""
    tolerance = _ROUNDING * float(np.abs(probabilities).max())
    cells = _Cells.of(probabilities, tolerance)
    starts: list[Positions] = []
    values: list[Labels] = []
    band = max(1, BAND_VALUES // ((len(rows.tops) - 1) * len(probabilities)))
    for left in range(0, len(columns.first), band):
        part = columns.at(slice(left, left + band))
        places, labels = _band_runs(cells, rows, part, tolerance)
        starts.append(places + left * len(rows.first))
        values.append(labels)
    return np.concatenate(starts), np.concatenate(values)


class _Cells(NamedTuple):
    """What is known about the decoder's cells.

    labels: (h, w), the most probable channel. agree: (h, w), whether it is also that of the next
    cell to the right, below, and across: then it is that of all mixtures of them.
    columns: (n,) of the cells that do not agree with those three. possible: (C, n), the channels
    that can lead in a mixture of the four.
    """

    probabilities: Planes
    labels: Labels
    agree: NDArray[np.bool_]
    columns: Positions
    possible: NDArray[np.bool_]

    @classmethod
    def of(cls, probabilities: Planes, tolerance: float) -> _Cells:
        labels, _, _ = largest(probabilities)
        edged = np.pad(labels, ((0, 1), (0, 1)), mode="edge")
        agree = (labels == edged[1:, :-1]) & (labels == edged[:-1, 1:]) & (labels == edged[1:, 1:])
        row, column = np.nonzero(~agree)
        height, width = labels.shape
        flat = probabilities.reshape(len(probabilities), -1)
        rows, columns = (
            (row, np.minimum(row + 1, height - 1)),
            (column, np.minimum(column + 1, width - 1)),
        )
        corners = [flat.take(at * width + across, axis=1) for at in rows for across in columns]
        least = functools.reduce(np.minimum, corners).max(0)
        possible = functools.reduce(np.maximum, corners) >= least - tolerance
        return cls(probabilities, labels, agree, column, possible)

    def can_lead(self, columns: Positions) -> Positions:
        """The channels that can be the most probable one between cells of which not all have the
        same, in these columns of cells, from the first to the last."""
        within = (self.columns >= columns[0]) & (self.columns <= columns[-1])
        found = np.flatnonzero(self.possible[:, within].any(1))
        return found if len(found) else np.zeros(1, np.intp)  # all cells agree


class _Stretches(NamedTuple):
    """Parts of columns from row `top` to row `bottom`, both of them in it, (n,) each.

    own: which of the interpolated columns. first, last: the labels at the two ends; ahead,
    ahead_last: by how much they lead there.
    """

    own: Positions
    top: Positions
    bottom: Positions
    first: Labels
    last: Labels
    ahead: Planes
    ahead_last: Planes

    def of(self, chosen: NDArray[np.bool_]) -> _Stretches:
        kept = np.flatnonzero(chosen)
        return _Stretches(
            self.own[kept],
            self.top[kept],
            self.bottom[kept],
            self.first[kept],
            self.last[kept],
            self.ahead[kept],
            self.ahead_last[kept],
        )

    def between(self, halved: bool) -> Positions:
        """A row between the ends: where the leads meet if both are straight lines, or in the
        middle."""
        middle = (self.top + self.bottom) // 2
        if halved:
            return middle
        both = self.ahead + self.ahead_last
        share = np.divide(self.ahead, both, out=np.zeros_like(both), where=both > 0)
        meeting = self.top + (share * (self.bottom - self.top)).astype(np.intp)
        return np.where(
            self.first == self.last, middle, meeting.clip(self.top + 1, self.bottom - 1)
        )

    def cut(self, row: Positions, label: Labels, lead: Planes) -> _Stretches:
        """Each up to a row between its ends, then each from there on."""
        return _Stretches(
            np.concatenate((self.own, self.own)),
            np.concatenate((self.top, row)),
            np.concatenate((row, self.bottom)),
            np.concatenate((self.first, label)),
            np.concatenate((label, self.last)),
            np.concatenate((self.ahead, lead)),
            np.concatenate((lead, self.ahead_last)),
        )


def _band_runs(
    cells: _Cells, rows: Axis, columns: Axis, tolerance: float
) -> tuple[Positions, Labels]:
    """(starts, values) of the runs of some columns; neighbours may be the same."""
    above, tops, bottoms = rows.first[rows.tops[:-1]], rows.tops[:-1], rows.tops[1:] - 1
    first = cells.labels[above].T[columns.first]  # (columns, strips), the label at the top of each
    last = first.copy()
    column, strip = np.nonzero(~cells.agree[above].T[columns.first])
    channels = cells.can_lead(columns.first)
    upper, lower = _between(cells.probabilities[channels], rows, columns, strip, column)
    stretches = _measured(
        upper, lower, rows.weight, np.arange(len(strip)), tops[strip], bottoms[strip]
    )
    names = channels.astype(np.uint8)
    first[column, strip], last[column, strip] = names[stretches.first], names[stretches.last]
    height, strips = len(rows.first), first.shape[1]
    before = np.r_[-1, last.ravel()[:-1].astype(np.intp)]
    changed = np.flatnonzero(first.ravel() != before)
    places = [changed // strips * height + tops[changed % strips]]
    labels = [first.ravel()[changed]]
    for own, row, label in _borders(stretches, upper, lower, rows.weight, tolerance):
        places.append(column[own] * height + row)
        labels.append(names[label])
    order = np.argsort(np.concatenate(places), kind="stable")
    return np.concatenate(places)[order], np.concatenate(labels)[order]


def _between(
    probabilities: Planes, rows: Axis, columns: Axis, strip: Positions, column: Positions
) -> tuple[Planes, Planes]:
    """(C, n): the channels at these columns of pixels, in the rows of cells above and below."""
    flat, width = probabilities.reshape(len(probabilities), -1), probabilities.shape[2]
    across, down = columns.at(column), rows.at(rows.tops[strip])

    def mixed(row: Positions) -> Planes:
        left, right = (row * width + cell for cell in (across.first, across.second))
        return mix(flat.take(left, axis=1), flat.take(right, axis=1), across.weight)

    return mixed(down.first), mixed(down.second)


def _winners(upper: Planes, lower: Planes, weight: Planes) -> tuple[Labels, Planes]:
    """(n,): the largest channel of each mixture, and by how much it leads."""
    labels, best, second = largest(mix(upper, lower.copy(), weight))
    return labels, best - second


def largest(values: Planes) -> tuple[Labels, Planes, Planes]:
    """(C, ...) -> the index of the largest, of equals the lowest; it, and the second largest.

    numpy's argmax along a first axis takes several times as long.
    """
    best, second = values[0].copy(), np.full(values.shape[1:], -np.inf, np.float32)
    labels = np.zeros(values.shape[1:], np.uint8)
    for index, value in enumerate(values[1:], 1):
        np.copyto(labels, index, where=value > best)
        np.maximum(second, np.minimum(value, best), out=second)
        np.maximum(best, value, out=best)
    return labels, best, second


def _measured(
    upper: Planes,
    lower: Planes,
    weight: Planes,
    own: Positions,
    top: Positions,
    bottom: Positions,
) -> _Stretches:
    first, ahead = _winners(upper, lower, weight[top])
    last, ahead_last = _winners(upper, lower, weight[bottom])
    return _Stretches(own, top, bottom, first, last, ahead, ahead_last)


def _borders(
    stretches: _Stretches, upper: Planes, lower: Planes, weight: Planes, tolerance: float
) -> Iterator[tuple[Positions, Positions, Labels]]:
    """(own, row, label) of the rows within stretches where another label begins."""
    halved = False  # every other time, which bounds the steps
    while len(stretches.own):
        same, rows = stretches.first == stretches.last, stretches.bottom - stretches.top
        ends = stretches.of((rows == 1) & ~same)
        yield ends.own, ends.bottom, ends.last
        lead = np.minimum(stretches.ahead, stretches.ahead_last)
        stretches = stretches.of((rows > 1) & ~(same & (lead > tolerance)))
        row = stretches.between(halved)
        label, lead = _winners(upper[:, stretches.own], lower[:, stretches.own], weight[row])
        stretches, halved = stretches.cut(row, label, lead), not halved
