"""Class and mask logits of queries -> label maps at the image's own size, and their segments.

Only queries that count are looked at, and masks are compared at the image's own size as runs, so
that neither time nor memory grows with all pixels of all queries.

The rules are those of transformers' post_process_panoptic_segmentation and
post_process_instance_segmentation with target sizes, but for three: masks go straight from the
cells to the image, not by way of 384 x 384, and cells on padding have no part in them; each segment
has an id of its own, also after a fused one; and where objects overlap, the most certain one is on
top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.bundle import Thresholds
from service.core import Geometry
from service.pixels.most_probable import most_probable
from service.pixels.resample import centred, extents
from service.pixels.runs import Runs
from service.tasks.base import Region

Planes: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Queries:
    """Those that count. kinds, scores: (K,), their classes and scores. masks: (K, h, w), of each
    cell; panoptic: the probability to be inside, objects: its logit."""

    kinds: NDArray[np.intp]
    scores: Planes
    masks: Planes


def panoptic_map(
    class_logits: Planes,
    mask_logits: Planes,
    geometry: Geometry,
    things: Sequence[bool],
    thresholds: Thresholds,
) -> tuple[Runs, list[Region]]:
    """The label map of one image at its own size, 0 = none, and its segments (Mask2Former, panoptic
    inference).

    class_logits: (Q, classes + 1). mask_logits: (Q, h, w) over the canvas. things: of each class.
    """
    probabilities = softmax(class_logits)
    kinds, scores = probabilities.argmax(1), probabilities.max(1)
    kept = (kinds < len(things)) & (scores > thresholds.score)
    found = Queries(kinds[kept], scores[kept], sigmoid(mask_logits[kept]))
    if not len(found.kinds):
        return nothing(geometry), []
    planes = found.masks * found.scores[:, None, None]
    runs = most_probable(planes, geometry)
    areas = pixels_of(runs, len(planes))
    ids, of_class, regions = np.zeros(len(planes), np.uint16), dict[int, int](), list[Region]()
    for query, (kind, score) in enumerate(
        zip(found.kinds.tolist(), found.scores.tolist(), strict=True)
    ):
        if not areas[query]:
            continue
        whole = int(pixels_of(inside(planes[query], thresholds.mask, geometry), 2)[1])
        if not whole or areas[query] / whole <= thresholds.overlap:
            continue
        if kind in of_class:  # all of a class that cannot be counted is one segment
            ids[query] = of_class[kind]
            continue
        ids[query] = len(regions) + 1
        regions.append(Region(int(ids[query]), int(ids[query]), kind, score))
        if not things[kind]:
            of_class[kind] = int(ids[query])
    return runs.renamed(ids), regions


def object_map(
    class_logits: Planes, mask_logits: Planes, geometry: Geometry, thresholds: Thresholds
) -> tuple[Runs, list[Region]]:
    """The label map of one image at its own size, 0 = none, and its objects, the most certain first
    (Mask2Former, instance inference).

    A query can stand for several classes. An object's score is the probability of its class times
    the mean probability inside its mask.
    """
    found = objects_of(class_logits, mask_logits, geometry, thresholds)
    runs, kept, border = nothing(geometry), list[int](), logit(thresholds.mask)
    for query in range(len(found.kinds)):
        mask = inside(found.masks[query], border, geometry)
        if mask.values.any():
            kept.append(query)
            # What is there already is more certain.
            runs = runs.under(mask.renamed(np.array([0, len(kept)], np.uint16)))
    shown = np.unique(runs.values)
    shown = shown[shown > 0]
    ids = np.zeros(len(kept) + 1, np.uint16)
    ids[shown] = np.arange(1, len(shown) + 1)
    regions = [
        Region(i, i, int(found.kinds[kept[value - 1]]), float(found.scores[kept[value - 1]]))
        for i, value in enumerate(shown.tolist(), 1)
    ]
    return runs.renamed(ids), regions


def objects_of(
    class_logits: Planes, mask_logits: Planes, geometry: Geometry, thresholds: Thresholds
) -> Queries:
    """The pairs of a query and a class that reach the score, the most certain first; as many pairs
    as there are queries are looked at."""
    probabilities = softmax(class_logits)[:, :-1]
    order = (-probabilities.ravel()).argsort(kind="stable")[: len(probabilities)]
    order = order[probabilities.ravel()[order] >= thresholds.score]  # a score is no higher
    queries, kinds = np.divmod(order, probabilities.shape[1])
    unique, place = np.unique(queries, return_inverse=True)
    masks = sigmoid(mask_logits[unique])
    rows, columns = map(centred, extents(geometry, masks.shape[1:]))
    shown = masks[:, :rows, :columns]  # what lies on padding says nothing
    within = shown > thresholds.mask
    certainty = (shown * within).sum((1, 2)) / np.maximum(within.sum((1, 2)), 1)
    scores = probabilities.ravel()[order] * certainty[place]
    chosen = (-scores).argsort(kind="stable")
    chosen = chosen[scores[chosen] >= thresholds.score]
    own = mask_logits[queries[chosen]]
    return Queries(kinds[chosen], scores[chosen].astype(np.float32), own)


def inside(plane: Planes, threshold: float, geometry: Geometry) -> Runs:
    """Where a mask (h, w) on the cells is above the threshold at the image's own size: 1, else
    0."""
    return most_probable(np.stack([np.full_like(plane, threshold), plane]), geometry)


def pixels_of(runs: Runs, count: int) -> NDArray[np.intp]:
    """(count,): the pixels of each of the first values."""
    lengths = runs.ends - runs.starts
    return np.asarray(np.bincount(runs.values, lengths, count), np.intp)


def nothing(geometry: Geometry) -> Runs:
    """A label map without a segment."""
    size = (geometry.height, geometry.width)
    return Runs(size, np.zeros(1, np.intp), np.zeros(1, np.uint16))


def logit(probability: float) -> float:
    """The reverse of `sigmoid`, finite also for 0 and 1."""
    return float(np.log(max(probability, 1e-12) / max(1 - probability, 1e-12)))


def softmax(logits: Planes) -> Planes:
    """Over the last axis."""
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(-1, keepdims=True), np.float32)


def sigmoid(logits: Planes) -> Planes:
    """Without overflow."""
    small = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1, small) / (1 + small), np.float32)
