"""Probabilities of core and border -> objects, at the image's own size.

A network that names pixels cannot part two objects that touch; it can if their inner parts have a
class of their own. Channel 0 is the background, 1 + 2c the core of class c (the pixels of an object
that are farther from its outline than a fixed share of its radius), 2 + 2c the border around it.
Cores of different objects do not touch. So: a connected core is an object, or each part of it that
stands alone where the network is more certain; it grows over the foreground of its class, all cores
at one speed; foreground that no core reaches is an object, too; what is no larger than a cell of
the decoder is dropped.

All this happens on a grid a little finer than the decoder's cells, whatever the image's size: there
is nothing finer to know, and it bounds time and memory. Only the foreground's outline and the ids
are looked up at the image's own size, in bands of rows.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from service.core import Geometry
from service.pixels.resample import rows_of
from service.tasks.base import Region

FINE = 2  # points of the grid per cell, along each side
MOST = 65535  # objects that ids of 16 bits can name
# Certainties of core against border at which one core can come apart into several, and the cells
# that each part must have there.
LEVELS = (0.5, 0.55, 0.6, 0.65, 0.7)
PART_CELLS = 3

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
_SQUARE = cv2.getStructuringElement(cv2.MORPH_RECT, (3, 3))
cv2.setNumThreads(1)  # masks of several requests are made side by side, each in a thread of its own

_Flags = NDArray[np.bool_]
_Ids = NDArray[np.int32]
_Labels = NDArray[np.uint16]
_Plane = NDArray[np.float32]


def instance_map(probabilities: _Plane, geometry: Geometry) -> tuple[_Labels, list[Region]]:
    """The objects of one image: (height, width) at its own size, 0 = background, k = object k; and
    what they are.

    probabilities: (1 + 2 * classes, h, w) over the whole canvas, 0..1. The ids are 1, 2, ... in the
    order of the list, at most 65535, and each has a pixel.

    An object's score is the probability of a core where that is largest, 0..1: one without a core
    of its own is doubtful. That ranks objects better than the mean certainty of their pixels does:
    AP50 0.806 against 0.787 on the nuclei of val.
    """
    inner = (geometry.scaled_height, geometry.scaled_width)
    # (rows, columns) of the decoder's cells that the image covers.
    cells = tuple(
        own * count / canvas
        for own, count, canvas in zip(inner, probabilities.shape[1:], geometry.canvas, strict=True)
    )
    size = (max(1, round(FINE * cells[0])), max(1, round(FINE * cells[1])))
    grid = np.stack(
        [_sample(plane, (cells[0] / size[0], cells[1] / size[1]), size) for plane in probabilities]
    )
    cell = FINE * FINE  # in points of the grid
    things = grid[1::2] + grid[2::2]  # (classes, *size)
    kinds, certainty = things.argmax(axis=0), things.max(axis=0)
    foreground = certainty > grid[0]
    objects = np.zeros(size, np.int32)
    classes = [0]  # what stands for the background is never asked for
    cores = np.zeros(size, np.float32)
    for kind in range(len(things)):
        inside = foreground & (kinds == kind)
        certain_core = np.divide(
            grid[1 + 2 * kind], things[kind], out=np.zeros(size, np.float32), where=inside
        )
        own, count = _objects(inside, _cores(certain_core, PART_CELLS * cell))
        np.copyto(objects, own + (len(classes) - 1), where=inside)
        np.divide(grid[1 + 2 * kind], certainty + grid[0], out=cores, where=inside)
        classes += [kind] * count
    areas = np.bincount(objects.ravel(), minlength=len(classes))
    scores = np.zeros(len(classes), np.float32)
    np.maximum.at(scores, objects.ravel(), cores.ravel())

    large = (areas > cell) & (areas >= objects.size / MOST)
    large[0] = False
    kept = _numbers(large)[objects]
    # Looked up at the image's own size, an outline can lie half a point farther out.
    np.copyto(kept, cv2.dilate(kept, _SQUARE), where=~foreground)
    margin = (probabilities[1::2] + probabilities[2::2]).max(axis=0) - probabilities[0]
    labels, shown = _at_own_size(kept, margin, (geometry.height, geometry.width), cells)
    rows = np.flatnonzero(large)[shown[1:]]
    return labels, [
        Region(i, i, classes[k], float(scores[k])) for i, k in enumerate(rows.tolist(), 1)
    ]


def _cores(certainty: _Plane, least: float) -> _Flags:
    """Where the cores are: parts connected at one of LEVELS that do not come apart at a higher one.

    certainty: (h, w), of core against border, 0 outside. least: pixels that a part must have to
    count as one. This walks the tree of the levels' components (a component tree, as a watershed's)
    once up and once down.
    """
    levels = [_components(certainty > level) for level in LEVELS]
    areas = [np.bincount(labels.ravel(), minlength=count + 1) for labels, count in levels]
    parents = [np.zeros(levels[0][1] + 1, np.intp)]
    for (below, _), (labels, count) in pairwise(levels):
        parent = np.zeros(count + 1, np.intp)
        parent[labels] = below  # all of a component lies in one below it
        parents.append(parent)
    large = [(area >= least) & (np.arange(len(area)) > 0) for area in areas]
    large[0][1:] = True
    # Into how many parts a component comes apart.
    ends = [np.ones(count + 1, np.intp) for _, count in levels]
    for k in range(len(levels) - 1, 0, -1):
        parts = np.bincount(parents[k][large[k]], ends[k][large[k]], minlength=len(ends[k - 1]))
        ends[k - 1] = np.maximum(parts.astype(np.intp), 1)
    cores, reached = np.zeros(certainty.shape, np.bool_), large[0]
    for k, (labels, _) in enumerate(levels):
        if k:
            reached = large[k] & (reached & (ends[k - 1] > 1))[parents[k]]
        cores |= (reached & (ends[k] == 1))[labels]
    return cores


def _objects(inside: _Flags, core: _Flags) -> tuple[_Ids, int]:
    """(h, w): 0 outside, 1.. inside; and how many. One per connected core, one per part that no
    core reaches."""
    labels, cores = _components(core)
    labels = _grow(labels, inside)
    alone = inside & (labels == 0)
    others, more = _components(alone)
    np.copyto(labels, others + cores, where=alone)
    return labels, cores + more


def _components(flags: _Flags) -> tuple[_Ids, int]:
    """Of pixels that share an edge: (h, w) with 0 outside and 1.. inside; and how many."""
    count, labels = cv2.connectedComponents(flags.view(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    return np.asarray(labels, np.int32), count - 1


def _grow(labels: _Ids, inside: _Flags) -> _Ids:
    """Pixel by pixel over what is inside and free, no farther than from corner to corner: that
    bounds the time."""
    grown = labels.astype(np.float32)  # OpenCV dilates no int32
    free, count = inside & (labels == 0), -1
    for _ in range(sum(inside.shape)):
        before, count = count, int(free.sum())
        if count == before:
            break
        np.copyto(grown, cv2.dilate(grown, _CROSS), where=free)
        free = inside & (grown == 0)
    return grown.astype(np.int32)


def _at_own_size(
    objects: _Labels, margin: _Plane, size: tuple[int, int], cells: tuple[float, float]
) -> tuple[_Labels, _Flags]:
    """The label map, numbered anew without the objects that have no pixel left in it; which of the
    ids have one.

    objects: on the grid. margin: of the foreground over the background, on the decoder's cells.
    size: (height, width) of the image; cells: how many it covers.
    """
    height, width = size
    lines = ((np.arange(height) + 0.5) * (objects.shape[0] / height)).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * (objects.shape[1] / width)).astype(np.intp)
    labels = np.empty(size, np.uint16)
    shown = np.zeros(int(objects.max()) + 1, np.bool_)
    for rows in rows_of(height, width):
        foreground = _sample(
            margin,
            (cells[0] / height, cells[1] / width),
            (rows.stop - rows.start, width),
            rows.start,
        )
        np.multiply(objects[lines[rows]][:, columns], foreground > 0, out=labels[rows])
        shown[labels[rows]] = True
    if not shown[
        1:
    ].all():  # the image has fewer pixels than the grid has points: objects fall between them
        shown[0] = False
        table = _numbers(shown)
        for rows in rows_of(height, width):
            labels[rows] = table[labels[rows]]
    return labels, shown


def _numbers(kept: _Flags) -> _Labels:
    """Old id -> new id: 1, 2, ... for those that are kept, else 0."""
    return np.where(kept, np.cumsum(kept), 0).astype(np.uint16)


def _sample(
    plane: _Plane, step: tuple[float, float], size: tuple[int, int], top: int = 0
) -> _Plane:
    """Bilinear between the centres of cells: `size` pixels from row `top` on. step: cells per pixel
    (rows, columns)."""
    (y, x), (height, width) = step, size
    matrix = np.array(
        [[x, 0, 0.5 * x - 0.5], [0, y, (top + 0.5) * y - 0.5]]
    )  # (column, row) of a pixel -> of a cell
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    sampled = cv2.warpAffine(
        plane, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(sampled, np.float32)
