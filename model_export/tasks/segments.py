"""The tasks of a head of queries: segments with classes, judged by panoptic quality of each class.

A label says class and segment: class << 16 | id, ids from 1 on, 0 = no segment; VOID_SEGMENT: a
pixel that counts nowhere. Counts are (classes, 4): of each class the summed IoU of the true
positives, their number, false positives, false negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_export.network.config import Config
from model_export.network.decoder import Prediction
from model_export.tasks.base import VOID, Labels, Mask
from model_export.tasks.panoptic_quality import panoptic_quality
from service.bundle import Thresholds
from service.core import Geometry
from service.pixels.runs import Runs
from service.tasks import Region
from service.tasks.query_maps import object_map, panoptic_map

VOID_SEGMENT = 0xFFFFFFFF
_ID_BITS = 16


@dataclass(frozen=True)
class Segments:
    """See the module, and Task for attributes and methods. config: of the network whose answers are
    read; None: only labels are."""

    name: str
    config: Config | None = None

    measure, folder, bits = "PQ", "panoptic", 32
    objects, views = True, 1

    def channels(self, classes: int) -> int:
        return classes

    def unknown(self, labels: Labels, classes: int) -> list[int]:
        known = labels[labels != VOID_SEGMENT]
        return sorted(
            {value >> _ID_BITS for value in np.unique(known).tolist()} - {*range(classes)}
        )

    def target(self, labels: Labels) -> Mask:
        counted = (labels != 0) & (labels != VOID_SEGMENT)
        return np.where(counted, labels >> _ID_BITS, VOID).astype(np.uint8)

    def predicted(self, prediction: Prediction, geometry: Geometry) -> Labels:
        config = self.config
        assert config is not None  # a network is at hand, so its config is
        classes, masks = (
            tensor[0].float().cpu().numpy() for tensor in (prediction.classes, prediction.masks)
        )
        thresholds = Thresholds(*config.thresholds)
        runs, regions = (
            panoptic_map(classes, masks, geometry, config.things, thresholds)
            if self.name == "panoptic"
            else object_map(classes, masks, geometry, thresholds)
        )
        return labels_of(runs, regions)

    def counts(self, labels: Labels, truth: Labels, channels: int) -> NDArray[np.float64]:
        return class_counts(labels, truth, channels)

    def of_set(self, counts: NDArray[np.float64]) -> float:
        values = self.by_class(counts)
        return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")

    def by_class(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([panoptic_quality(row) for row in counts])

    def of_image(self, counts: NDArray[np.float64]) -> float:
        """1 where there is nothing and nothing was predicted, since nothing is wrong."""
        return self.of_set(counts) if counts.any() else 1.0


def labels_of(runs: Runs, regions: Sequence[Region]) -> Labels:
    """(H, W) uint32. runs: a label map with the ids of the regions, 0 = none."""
    table = np.zeros(len(regions) + 1, np.uint32)
    for region in regions:
        table[region.value] = region.class_id << _ID_BITS | region.id
    return runs.renamed(table).labels()


def class_counts(labels: Labels, truth: Labels, classes: int) -> NDArray[np.float64]:
    """(classes, 4), see the module (Kirillov et al. 2019, arXiv 1801.00868, sections 4.1 and 4.2).

    Pixels of truth that are void belong to no union, and a predicted segment that mostly lies there
    is not wrong.
    """
    pairs = truth.astype(np.uint64) << np.uint64(32) | labels.astype(np.uint64)
    found, shared = np.unique(pairs, return_counts=True)
    true, ours = (found >> np.uint64(32)).astype(np.int64), (found & np.uint64(VOID_SEGMENT))
    ours = ours.astype(np.int64)
    areas = {side: _sums(values, shared) for side, values in (("true", true), ("ours", ours))}
    in_void = _sums(ours[true == VOID_SEGMENT], shared[true == VOID_SEGMENT])
    counts, matched = np.zeros((classes, 4)), {"true": set[int](), "ours": set[int]()}
    for a, b, both in zip(true.tolist(), ours.tolist(), shared.tolist(), strict=True):
        if not a or not b or a == VOID_SEGMENT or a >> _ID_BITS != b >> _ID_BITS:
            continue
        iou = both / (areas["true"][a] + areas["ours"][b] - in_void.get(b, 0) - both)
        if iou > 0.5:
            counts[a >> _ID_BITS, :2] += iou, 1
            matched["true"].add(a)
            matched["ours"].add(b)
    for value in areas["ours"].keys() - matched["ours"] - {0}:
        if 2 * in_void.get(value, 0) <= areas["ours"][value]:
            counts[value >> _ID_BITS, 2] += 1
    for value in areas["true"].keys() - matched["true"] - {0, VOID_SEGMENT}:
        counts[value >> _ID_BITS, 3] += 1
    return counts


def _sums(values: NDArray[np.int64], shared: NDArray[np.intp]) -> dict[int, int]:
    """Value -> its pixels."""
    unique, place = np.unique(values, return_inverse=True)
    sums = np.bincount(place, shared, len(unique)).astype(np.int64)
    return dict(zip(unique.tolist(), sums.tolist(), strict=True))
