"""The hypervolume of a set of points: how much of the space below them they dominate.

The measure of how well a network can be controlled: the more, and the better spread, the trade-offs
between its tasks and their cost, the larger (Zitzler and Thiele 1999; used so by arXiv 2308.11744).
"""

from __future__ import annotations

from functools import reduce

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def hypervolume(points: Floats) -> float:
    """Of the part of the space that the points dominate, above 0 in everything; (n, d), d >= 2,
    more is better. Exact: on the grid of all values that occur on the first axes, the largest value
    that reaches each cell on the last one. The grid should be small: points that share values."""
    points = points[(points > 0).all(1)]
    if len(points) == 0:
        return 0.0
    axes = [np.unique(column, return_inverse=True) for column in points.T[:-1]]
    reached = np.zeros([len(values) for values, _ in axes])
    np.maximum.at(reached, tuple(place for _, place in axes), points[:, -1])
    for axis in range(reached.ndim):  # what reaches far reaches what is nearer
        reached = np.flip(np.maximum.accumulate(np.flip(reached, axis), axis), axis)
    widths = [np.diff(values, prepend=0.0) for values, _ in axes]
    return float((reduce(np.multiply.outer, widths) * reached).sum())
