"""Quality of instance masks: panoptic quality from counts that add up over images, and COCO's
average precision.

Panoptic quality (Kirillov et al. 2019, arXiv 1801.00868, section 4): an object is found if a
predicted one overlaps it with an IoU over 0.5, which at most one can. PQ = sum of those IoUs / (TP
+ FP / 2 + FN / 2).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Labels = NDArray[np.unsignedinteger]


def match_counts(predicted: Labels, truth: Labels) -> NDArray[np.float64]:
    """(4,): summed IoU of the true positives, their number, false positives, false negatives.

    predicted, truth: (H, W) of one size, 0 = background, k = object k; ids need not be without
    gaps.
    """
    theirs, ours = truth.astype(np.intp), predicted.astype(np.intp)
    width = int(ours.max()) + 1
    pairs, shared = np.unique(theirs * width + ours, return_counts=True)  # few of all pairs overlap
    true_area, area = np.bincount(theirs.ravel()), np.bincount(ours.ravel())
    i, j = np.divmod(pairs, width)
    iou = np.where((i > 0) & (j > 0), shared / (true_area[i] + area[j] - shared), 0)
    found = iou[iou > 0.5]
    objects, predictions = np.count_nonzero(true_area[1:]), np.count_nonzero(area[1:])
    return np.array(
        [found.sum(), found.size, predictions - found.size, objects - found.size], np.float64
    )


def panoptic_quality(counts: NDArray[np.float64]) -> float:
    """0..1 from (4,) counts or their sum over images; nan where there is no object and none was
    predicted."""
    iou, found, wrong, missed = counts
    weight = found + (wrong + missed) / 2
    return float(iou / weight) if weight else float("nan")


def image_quality(counts: NDArray[np.float64]) -> float:
    """Panoptic quality of one image. It is 1 where there is no object and none was predicted:
    nothing is wrong."""
    return panoptic_quality(counts) if counts.any() else 1.0


def average_precision(
    images: Iterable[tuple[Labels, Sequence[float], Labels]], iou: float = 0.5
) -> float:
    """COCO's AP at one IoU over a set of images, 0..1, for one class, without COCO's limit of 100
    objects an image.

    images: predicted (H, W), the scores of its objects 1, 2, ... and truth (H, W). nan without any
    true object.
    """
    truths, found = [], []
    sizes = []
    for number, (predicted, scores, truth) in enumerate(images, 1):
        sizes.append({"id": number, "height": truth.shape[0], "width": truth.shape[1]})
        for _, rle in _objects(truth):
            truths.append(
                {
                    "id": len(truths) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "segmentation": rle,
                    "area": float(coco.area(rle)),
                    "bbox": coco.toBbox(rle).tolist(),
                    "iscrowd": 0,
                }
            )
        found += [
            {
                "image_id": number,
                "category_id": 1,
                "segmentation": rle,
                "score": float(scores[k - 1]),
            }
            for k, rle in _objects(predicted)
        ]
    if not truths:
        return float("nan")
    if not found:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it reports every step
        expected = COCO()
        expected.dataset = {
            "images": sizes,
            "annotations": truths,
            "categories": [{"id": 1, "name": "object"}],
        }
        expected.createIndex()
        evaluation = COCOeval(expected, expected.loadRes(found), "segm")
        evaluation.params.iouThrs = np.array([iou])
        evaluation.params.maxDets = [len(found)]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return float(evaluation.eval["precision"].mean())


def _objects(labels: Labels) -> Iterable[tuple[int, dict[str, object]]]:
    columns = np.asfortranarray(labels)  # as COCO counts
    return (
        (k, coco.encode((columns == k).view(np.uint8))) for k in np.unique(labels).tolist() if k
    )
