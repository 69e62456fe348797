"""The detection task: boxes with classes and scores, judged by COCO's average precision.

Counts are (N, 7): class, score, left, top, width, height in pixels, and what the row is: 0 a
detection, 1 a true box, 2 a true box that counts nowhere.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from service.bundle import Thresholds
from service.core import Geometry
from service.tasks import detection

SURE = 0.5  # score that in an image without objects is a false alarm
LEAST_BOX = 1 / 1000  # of the image's area: what shows less counts nowhere
FOUND, TRUE, IGNORED = 0, 1, 2
Rows = NDArray[np.float64]


class Detection:
    """See the module, and Task (base.py) for the names of its methods."""

    name, measure = "detection", "AP"

    def read(self, tensors: Mapping[str, NDArray[np.float32]], geometry: Geometry) -> Rows:
        """tensors: the head's, of one image -> (N, 6): class, score, left, top, width, height. As
        the service reads them, and however unsure they are."""
        found = detection.Detection(thresholds=Thresholds(0.0)).read(tensors, geometry).found
        rows = [(each.class_id, each.score, *each.box) for each in found]
        return np.array(rows, np.float64).reshape(-1, 6)

    def counts(self, answer: Rows, truth: NDArray[np.float32], counted: NDArray[np.bool_]) -> Rows:
        """truth: (N, 5), class, left, top, width, height. counted: (N,); the others may be found or
        not."""
        kind = np.where(counted, TRUE, IGNORED)
        true = np.column_stack((truth[:, 0], np.ones(len(truth)), truth[:, 1:], kind))
        found = np.column_stack((answer, np.full(len(answer), FOUND)))
        return np.concatenate((found, true))

    def of_set(self, counts: Sequence[Rows]) -> float:
        return average_precision(counts)

    def of_image(self, counts: Rows) -> float:
        """AP of the image by itself; without objects 1, or 0 after a false alarm."""
        if not (counts[:, 6] == TRUE).any():
            sure = (counts[:, 6] == FOUND) & (counts[:, 1] >= SURE)
            return float(not sure.any())
        return average_precision([counts])


def large_enough(boxes: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.bool_]:
    """(N,): which boxes (N, 5), in pixels, of an image of this (height, width) count."""
    flags: NDArray[np.bool_] = boxes[:, 3] * boxes[:, 4] >= LEAST_BOX * size[0] * size[1]
    return flags


def average_precision(
    images: Sequence[Rows], iou: Sequence[float] | None = None, area: float = 1e10
) -> float:
    """COCO's AP over the classes that are there, by pycocotools, 0..1; nan where nothing is.

    images: counts of each. iou: thresholds; None: 0.5 to 0.95. area: true boxes of more pixels, and
    what is found as large, do not count.
    """
    truths, found = [], []
    for image, rows in enumerate(images):
        for row in rows:
            entry = {
                "image_id": image,
                "category_id": int(row[0]),
                "bbox": row[2:6].tolist(),
                "area": float(row[4] * row[5]),
            }
            if row[6] == FOUND:
                found.append(entry | {"score": float(row[1])})
            else:
                own = {"id": len(truths) + 1, "iscrowd": int(row[6] == IGNORED)}
                truths.append(entry | own)
    classes = sorted({row["category_id"] for row in truths if not row["iscrowd"]})
    if not classes:
        return float("nan")
    if not found:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of every step
        data = COCO()
        data.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(len(images))],
            "categories": [{"id": place} for place in classes],
            "annotations": truths,
        }
        data.createIndex()
        judge = COCOeval(data, data.loadRes(found), "bbox")
        judge.params.areaRng, judge.params.areaRngLbl = [[0, area]], ["all"]
        judge.params.maxDets = [100]
        if iou is not None:
            judge.params.iouThrs = np.array(iou)
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"]
    return float(precision[precision > -1].mean())
