"""Probabilities of core and border -> objects, at the image's own size.

A network that classifies pixels cannot separate two objects that touch, unless their inner parts
are a class of their own. Channel 0 is the background, 1 + 2c the core of class c (the pixels of an
object that are farther from its outline than a fixed share of its radius), 2 + 2c the border around
it. Cores of different objects do not touch, so:
- A connected core is an object, or several if it comes apart where the network is more certain.
- It grows over the foreground of its class, all cores at the same speed.
- Foreground that no core reaches is an object, too.
- Objects no larger than one cell of the decoder are dropped.

All this runs on a grid a little finer than the decoder's cells, whatever the image's size: finer
detail does not exist, and it bounds time and memory. Only the foreground's outline and the ids are
looked up at the image's own size, in bands of rows.
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
# Thresholds on the certainty of core against border at which one core can come apart into several.
LEVELS = (0.5, 0.55, 0.6, 0.65, 0.7)
PART_CELLS = 3  # the cells that each part must have there

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
_SQUARE = cv2.getStructuringElement(cv2.MORPH_RECT, (3, 3))
cv2.setNumThreads(1)  # each request's masks are made in a thread of their own

_Flags = NDArray[np.bool_]
_Ids = NDArray[np.int32]
_Labels = NDArray[np.uint16]
_Plane = NDArray[np.float32]


def instance_map(probabilities: _Plane, geometry: Geometry) -> tuple[_Labels, list[Region]]:
    """The label map of one image, (height, width) at its own size, and its objects.

    probabilities: (1 + 2 * classes, h, w) over the whole canvas, 0..1. In the label map 0 is the
    background. The ids are 1, 2, ... in the order of the list, at most 65535, and each has a pixel.

    An object's score is its largest probability of a core, 0..1: an object without a core is
    doubtful. This ranks objects better than the mean certainty of their pixels: AP50 0.806 against
    0.787 on the nuclei of val.
    """
    covered = (geometry.scaled_height, geometry.scaled_width)
    # (rows, columns) of the decoder's cells that the image covers.
    cells = tuple(
        side * count / canvas
        for side, count, canvas in zip(
            covered, probabilities.shape[1:], geometry.canvas, strict=True
        )
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
    classes = [0]  # by id; the background's entry is never read
    cores = np.zeros(size, np.float32)
    for kind in range(len(things)):
        inside = foreground & (kinds == kind)
        certain_core = np.divide(
            grid[1 + 2 * kind], things[kind], out=np.zeros(size, np.float32), where=inside
        )
        ids, count = _objects(inside, _cores(certain_core, PART_CELLS * cell))
        np.copyto(objects, ids + (len(classes) - 1), where=inside)
        np.divide(grid[1 + 2 * kind], certainty + grid[0], out=cores, where=inside)
        classes += [kind] * count
    areas = np.bincount(objects.ravel(), minlength=len(classes))
    scores = np.zeros(len(classes), np.float32)
    np.maximum.at(scores, objects.ravel(), cores.ravel())

    large = (areas > cell) & (areas >= objects.size / MOST)
    large[0] = False
    numbered = _numbers(large)[objects]
    # At the image's own size an outline can be half a point farther out.
    np.copyto(numbered, cv2.dilate(numbered, _SQUARE), where=~foreground)
    margin = (probabilities[1::2] + probabilities[2::2]).max(axis=0) - probabilities[0]
    labels, shown = _at_own_size(numbered, margin, (geometry.height, geometry.width), cells)
    rows = np.flatnonzero(large)[shown[1:]]
    return labels, [
        Region(i, i, classes[k], float(scores[k])) for i, k in enumerate(rows.tolist(), 1)
    ]


def _cores(certainty: _Plane, least: float) -> _Flags:
    """Where the cores are: parts connected at one of LEVELS that do not come apart at a higher one.

    certainty: (h, w), of core against border, 0 outside. least: pixels that a part must have. This
    walks the component tree of the levels, as a watershed does, once up and once down.
    """
    levels = [_components(certainty > level) for level in LEVELS]
    areas = [np.bincount(labels.ravel(), minlength=count + 1) for labels, count in levels]
    parents = [np.zeros(levels[0][1] + 1, np.intp)]
    for (below, _), (labels, count) in pairwise(levels):
        parent = np.zeros(count + 1, np.intp)
        parent[labels] = below  # a component lies entirely in one of the level below
        parents.append(parent)
    large = [(area >= least) & (np.arange(len(area)) > 0) for area in areas]
    large[0][1:] = True
    # The number of parts that a component comes apart into.
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
    """Ids (h, w), 0 outside and 1.. inside, and their count.

    There is one per connected core, and one per connected part that no core reaches.
    """
    labels, cores = _components(core)
    labels = _grow(labels, inside)
    unreached = inside & (labels == 0)
    others, more = _components(unreached)
    np.copyto(labels, others + cores, where=unreached)
    return labels, cores + more


def _components(flags: _Flags) -> tuple[_Ids, int]:
    """The 4-connected components: ids (h, w), 0 outside and 1.. inside, and their count."""
    count, labels = cv2.connectedComponents(flags.view(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    return np.asarray(labels, np.int32), count - 1


def _grow(labels: _Ids, inside: _Flags) -> _Ids:
    """Grow the labels pixel by pixel over what is inside and free.

    The distance from corner to corner bounds the steps, and so the time.
    """
    grown = labels.astype(np.float32)  # OpenCV cannot dilate int32
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
    """The label map, renumbered without objects that have no pixel left; and which ids have one.

    objects: ids on the grid.
    margin: probability of the foreground minus that of the background, on the decoder's cells.
    size: (height, width) of the image.
    cells: (rows, columns) of cells that the image covers.
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
    # If the image has fewer pixels than the grid has points, objects fall between them.
    if not shown[1:].all():
        shown[0] = False
        table = _numbers(shown)
        for rows in rows_of(height, width):
            labels[rows] = table[labels[rows]]
    return labels, shown


def _numbers(keep: _Flags) -> _Labels:
    """Old id -> new id: 1, 2, ... for those to keep, else 0."""
    return np.where(keep, np.cumsum(keep), 0).astype(np.uint16)


def _sample(
    plane: _Plane, step: tuple[float, float], size: tuple[int, int], top: int = 0
) -> _Plane:
    """Interpolate between the centres of cells: `size` pixels from row `top` on, bilinear.

    step: cells per pixel (rows, columns).
    """
    (y, x), (height, width) = step, size
    # (column, row) of a pixel -> (column, row) of a cell
    matrix = np.array([[x, 0, 0.5 * x - 0.5], [0, y, (top + 0.5) * y - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    sampled = cv2.warpAffine(
        plane, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(sampled, np.float32)
