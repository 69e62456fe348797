"""Average precision at IoU 0.5 of instance masks, from what is known of each image alone.

COCO matches objects within an image and then ranks those of all images by score. So a small table
per image and plan is all that has to be kept to know the precision of any choice of plans, without
a look at masks again. It equals `instance_quality.average_precision`, which is COCO's own code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RECALLS = np.linspace(0, 1, 101)  # COCO's

Floats = NDArray[np.float64]


def detections(
    predicted: NDArray[np.unsignedinteger],
    scores: Sequence[float],
    truth: NDArray[np.unsignedinteger],
) -> Floats:
    """(objects, 2): score of each predicted object, and 1 if a true one overlaps it with an IoU of
    0.5, else 0.

    predicted: (H, W), 0 = background, k = the object of scores[k - 1]. truth: (H, W), any ids.
    """
    certain, width = np.asarray(scores, np.float64), len(scores) + 1
    pairs, shared = np.unique(truth.astype(np.intp) * width + predicted, return_counts=True)
    true_area, area = np.bincount(truth.ravel()), np.bincount(predicted.ravel(), minlength=width)
    theirs, ours = np.divmod(pairs, width)
    found = np.flatnonzero(
        (theirs > 0) & (ours > 0) & (2 * shared >= true_area[theirs] + area[ours] - shared)
    )
    hits, taken = np.zeros(width), set()
    for pair in sorted(
        found.tolist(), key=lambda pair: -certain[ours[pair] - 1]
    ):  # halves of one object share it
        if theirs[pair] not in taken and not hits[ours[pair]]:
            hits[ours[pair]] = 1
            taken.add(theirs[pair])
    return np.stack((certain, hits[1:]), 1)


def average_precision(images: Sequence[Floats], objects: float) -> float:
    """0..1: the mean over COCO's 101 recalls of the highest precision at that recall or more; nan
    without objects.

    images: `detections` of each. objects: how many there truly are, in all images.
    """
    if objects == 0:
        return float("nan")
    found = np.concatenate((np.empty((0, 2)), *images))
    hits = found[(-found[:, 0]).argsort(kind="stable"), 1].cumsum()
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    place = np.searchsorted(hits / objects, RECALLS)
    return float(np.append(precision, 0.0)[np.minimum(place, len(precision))].mean())
