"""COCO's own average precision: the reference for model_export/tasks/detections.py."""

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


def average_precision(
    images: Iterable[tuple[Labels, Sequence[float], Labels]], iou: float = 0.5
) -> float:
    """COCO's AP at one IoU over a set of images, 0..1, for one class, without COCO's limit of 100
    objects an image.

    images: predicted (H, W), the scores of its objects 1, 2, ... and truth (H, W). nan without any
    true object.
    """
    truths, predictions = [], []
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
        predictions += [
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
    if not predictions:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it reports every step
        expected = COCO()
        expected.dataset = {
            "images": sizes,
            "annotations": truths,
            "categories": [{"id": 1, "name": "object"}],
        }
        expected.createIndex()
        evaluation = COCOeval(expected, expected.loadRes(predictions), "segm")
        evaluation.params.iouThrs = np.array([iou])
        evaluation.params.maxDets = [len(predictions)]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return float(evaluation.eval["precision"].mean())


def _objects(labels: Labels) -> Iterable[tuple[int, dict[str, object]]]:
    columns = np.asfortranarray(labels)  # as COCO counts
    return (
        (k, coco.encode((columns == k).view(np.uint8))) for k in np.unique(labels).tolist() if k
    )
