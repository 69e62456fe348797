"""Panoptic quality of instance masks, from counts that add up over images.

Panoptic quality (Kirillov et al. 2019, arXiv 1801.00868, section 4): an object is found if a
predicted one overlaps it with an IoU over 0.5, which at most one can. PQ = sum of those IoUs / (TP
+ FP / 2 + FN / 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_export.tasks.base import Labels


@dataclass(frozen=True, slots=True)
class Overlaps:
    """Pairs of a predicted and a true object that share pixels, (pairs,) each; few of all pairs do.

    predicted, true: their ids. shared, union: pixels. predictions, objects: how many there are.
    """

    predicted: NDArray[np.intp]
    true: NDArray[np.intp]
    shared: NDArray[np.intp]
    union: NDArray[np.intp]
    predictions: int
    objects: int


def overlaps_of(predicted: Labels, truth: Labels) -> Overlaps:
    """predicted, truth: (H, W) of one size, 0 = background, k = object k; ids may have gaps."""
    theirs, ours = truth.astype(np.intp), predicted.astype(np.intp)
    width = int(ours.max()) + 1
    pairs, shared = np.unique(theirs * width + ours, return_counts=True)
    true_area, area = np.bincount(theirs.ravel()), np.bincount(ours.ravel())
    true, ours_of = np.divmod(pairs, width)
    both = (true > 0) & (ours_of > 0)
    true, ours_of, shared = true[both], ours_of[both], shared[both]
    union = true_area[true] + area[ours_of] - shared
    counts = np.count_nonzero(area[1:]), np.count_nonzero(true_area[1:])
    return Overlaps(ours_of, true, shared, union, *counts)


def match_counts(predicted: Labels, truth: Labels) -> NDArray[np.float64]:
    """(4,): summed IoU of the true positives, their number, false positives, false negatives.

    predicted, truth: as for `overlaps_of`.
    """
    overlaps = overlaps_of(predicted, truth)
    iou = overlaps.shared / overlaps.union
    hits = iou[iou > 0.5]
    wrong, missed = overlaps.predictions - hits.size, overlaps.objects - hits.size
    return np.array([hits.sum(), hits.size, wrong, missed], np.float64)


def without_void(predicted: Labels, void: NDArray[np.bool_]) -> Labels:
    """(H, W) predicted objects without the pixels that count nowhere, and without the objects that
    mostly lie there (Kirillov et al., section 4.2)."""
    if not void.any():
        return predicted
    area = np.bincount(predicted.ravel())
    inside = np.bincount(predicted[void], minlength=len(area))
    judged = np.where(void | (2 * inside > area)[predicted], 0, predicted)
    return judged.astype(predicted.dtype)


def panoptic_quality(counts: NDArray[np.float64]) -> float:
    """0..1, from (4,) counts or their sum over images; nan where there is no object and none was
    predicted."""
    iou, matched, wrong, missed = counts
    weight = matched + (wrong + missed) / 2
    return float(iou / weight) if weight else float("nan")


def image_quality(counts: NDArray[np.float64]) -> float:
    """Panoptic quality of one image: 1 where there is no object and none was predicted, since
    nothing is wrong."""
    return panoptic_quality(counts) if counts.any() else 1.0
