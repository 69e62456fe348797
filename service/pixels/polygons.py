"""Label maps -> polygons with holes, along the edges of the pixels: nothing is cut off or rounded,
neighbours share their border, and a pixel that stands alone is a square.

Contours at a level between pixels (marching squares, as contour libraries have it) cut every corner
and leave gaps between neighbours. Here every edge of a pixel whose other side has another value is
part of one ring of either side. Parts are connected by edges of pixels, not by corners. Rings touch
themselves nowhere: what OGC's simple features and GeoJSON call valid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.pixels.runs import Positions, Runs, merged

Ring: TypeAlias = list[tuple[int, int]]  # of (x, y), closed: the last one is the first one
Polygon: TypeAlias = list[Ring]  # the outline, then its holes

RIGHT, DOWN, LEFT, UP = range(4)  # directions of edges; the region lies where the next one points


def polygons(runs: Runs, values: Sequence[int]) -> list[list[Polygon]]:
    """For each value its parts, from left to right by their leftmost columns.

    Coordinates are corners of pixels: x from 0 to the width, to the right; y from 0 to the height,
    down. Outlines have a positive area by the shoelace formula, holes a negative one.
    """
    edges = _edges(runs, values)
    found: list[list[Polygon]] = [[] for _ in values]
    if not edges.x.size:
        return found
    corners, own = _rings(edges, runs.shape[0])
    sizes = np.bincount(own[corners])
    level = edges.direction % 2 == 0
    signed = edges.y * np.where(edges.direction == LEFT, 1, -1)  # of the area under the edge
    hole = np.bincount(own[level], signed[level], len(sizes)) < 0
    parents = _parents(edges, own, hole)
    first = np.cumsum(sizes) - sizes
    regions = edges.region[corners[first]].tolist()
    points = list(zip(edges.x[corners].tolist(), edges.y[corners].tolist(), strict=True))
    rings = [
        [*points[low : low + size], points[low]]
        for low, size in zip(first.tolist(), sizes.tolist(), strict=True)
    ]
    outlines: dict[int, Polygon] = {}
    for index in np.flatnonzero(~hole).tolist():
        outlines[index] = [rings[index]]
        found[regions[index]].append(outlines[index])
    for index in np.flatnonzero(hole).tolist():
        outlines[parents[index]].append(rings[index])
    return found


class _Edges(NamedTuple):
    """Parts of borders, (n,) each. x, y: where one begins; length: up to where it ends, in pixels.

    region: the index of its value. The first edges are the upper ends of runs in columns, the next
    ones, in the same order, their lower ends.
    """

    x: Positions
    y: Positions
    length: Positions
    direction: Positions
    region: Positions


def _edges(runs: Runs, values: Sequence[int]) -> _Edges:
    height, width = runs.shape
    table = np.full(max(int(runs.values.max()), *values, 0) + 2, -1, np.intp)
    table[list(values)] = np.arange(len(values))
    starts, ends, shown = runs.by_column()
    region = table[shown]
    starts, ends, region = (array[region >= 0] for array in (starts, ends, region))
    column = starts // height
    top, bottom = starts - column * height, ends - column * height
    one = np.ones(len(column), np.intp)
    horizontal = (
        _Edges(column, top, one, RIGHT * one, region),
        _Edges(column + 1, bottom, one, LEFT * one, region),
    )
    # The borders between columns, and those of the image: the map beside itself, a column farther.
    nothing = np.array([len(table) - 1])
    columns = np.arange(width + 1) * height
    places = merged(merged(runs.starts, runs.starts + height), columns)
    left = np.where(places < height, nothing, runs.at(places - height))
    right = np.where(places < height * width, runs.at(places), nothing)
    x, y = places // height, places % height
    length = np.diff(places, append=height * (width + 1))
    differ = left != right
    left, right = table[left], table[right]
    vertical = []
    for beside, direction in ((left, DOWN), (right, UP)):
        chosen = differ & (beside >= 0)
        begin = (y + length if direction == UP else y)[chosen]
        way = np.full(len(begin), direction)
        vertical.append(_Edges(x[chosen], begin, length[chosen], way, beside[chosen]))
    return _Edges(*map(np.concatenate, zip(*horizontal, *vertical, strict=True)))


def _rings(edges: _Edges, height: int) -> tuple[Positions, Positions]:
    """The edges that begin at corners of polygons, ring by ring in the order in which they follow
    each other; and of all edges the ring."""
    x, y, length, direction, region = edges
    end_x = x + length * np.array([1, 0, -1, 0])[direction]
    end_y = y + length * np.array([0, 1, 0, -1])[direction]
    across = int(end_x.max()) + 1
    begins, stops = (
        (region * across + column) * (height + 1) + row for column, row in ((x, y), (end_x, end_y))
    )
    # Where two pixels of a region meet only at a corner, the border goes on around the same pixel.
    leaving = np.argsort(begins * 4 + direction)
    arriving = np.argsort(stops * 4 + (direction + 1) % 4)
    preceding = np.empty(len(x), np.intp)
    preceding[leaving] = arriving
    twice = begins[leaving][1:] == begins[leaving][:-1]
    crossing = np.zeros(len(x), np.bool_)
    crossing[leaving[1:][twice]] = crossing[leaving[:-1][twice]] = True
    turning = direction != direction[preceding]
    # From each edge straight back to the one where the border turned, in ever longer steps.
    origin = np.where(turning, np.arange(len(x)), preceding)
    while not turning[origin].all():
        origin = origin[origin]
    corners = np.flatnonzero(turning)
    table = np.cumsum(turning) - 1
    after = np.empty(len(corners), np.intp)
    after[table[origin[preceding[corners]]]] = np.arange(len(corners))
    rings = list(_walked(after.tolist(), crossing[corners].tolist(), begins[corners].tolist()))
    order = np.fromiter(chain.from_iterable(rings), np.intp, len(corners))
    ring = np.empty(len(corners), np.intp)
    ring[order] = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    return corners[order], ring[table[origin]]


def _walked(following: list[int], crossing: list[bool], begins: list[int]) -> Iterator[list[int]]:
    """The rings, cut where they come to a corner of pixels for the second time.

    following: the index of the next edge. crossing: whether two edges of its region begin where it
    begins. begins: where that is.
    """
    seen = [False] * len(following)
    for first in range(len(following)):
        edge, path, passed = first, list[int](), dict[int, int]()
        while not seen[edge]:
            seen[edge] = True
            if crossing[edge]:
                corner = begins[edge]
                if corner in passed:
                    yield path[passed[corner] :]
                    del path[passed[corner] :]
                passed[corner] = len(path)
            path.append(edge)
            edge = following[edge]
        if path:
            yield path


def _parents(edges: _Edges, own: Positions, hole: NDArray[np.bool_]) -> dict[int, int]:
    """Hole -> the outline around it. own: the ring of each edge.

    Above a hole's uppermost edge is a run of the same part, and the run's upper end is an edge of
    the outline or of a hole farther up.
    """
    count = int((edges.direction == RIGHT).sum())
    upper, lower = own[:count], own[count : 2 * count]
    runs = np.flatnonzero(hole[lower])
    runs = runs[np.argsort(edges.y[count : 2 * count][runs], kind="stable")]
    parents: dict[int, int] = {}
    for ring, above in zip(lower[runs].tolist(), upper[runs].tolist(), strict=True):
        if ring not in parents:
            parents[ring] = parents.get(above, above)
    return parents
