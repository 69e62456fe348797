"""Average precision at IoU 0.5 of instance masks, from one small table per image.

COCO matches objects within an image and then ranks those of all images by score. So a table per
image and plan is enough to know the precision of any choice of plans, without another look at the
masks. The tests compare it with COCO's own code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model_export.tasks.panoptic_quality import overlaps_of

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
    certainty = np.asarray(scores, np.float64)
    overlaps = overlaps_of(predicted, truth)
    ours, theirs = overlaps.predicted, overlaps.true
    enough = np.flatnonzero(2 * overlaps.shared >= overlaps.union)
    hits, taken = np.zeros(len(scores) + 1), set()
    # Two predicted halves can overlap the same object by 0.5 each: the more certain one has it.
    for pair in sorted(enough.tolist(), key=lambda pair: -certainty[ours[pair] - 1]):
        if theirs[pair] not in taken and not hits[ours[pair]]:
            hits[ours[pair]] = 1
            taken.add(theirs[pair])
    return np.stack((certainty, hits[1:]), 1)


def average_precision(images: Sequence[Floats], objects: float) -> float:
    """The mean over COCO's 101 recalls of the highest precision at that recall or more, 0..1; nan
    without objects.

    images: `detections` of each. objects: how many there truly are, in all images.
    """
    if objects == 0:
        return float("nan")
    rows = np.concatenate((np.empty((0, 2)), *images))
    hits = rows[(-rows[:, 0]).argsort(kind="stable"), 1].cumsum()
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    place = np.searchsorted(hits / objects, RECALLS)
    return float(np.append(precision, 0.0)[np.minimum(place, len(precision))].mean())
