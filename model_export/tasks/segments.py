"""The tasks of a head of queries: segments with classes, judged by panoptic quality of each class.

A label says class and segment: class << 16 | id, ids from 1 on, 0 = no segment; VOID_SEGMENT: a
pixel that counts nowhere. Counts are (classes, 4): of each class the summed IoU of the true
positives, their number, false positives, false negatives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    objects, views, void = True, 1, True

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


def segment_label(kind: int, number: int) -> int:
    """number: of the segment, from 1 on."""
    return kind << _ID_BITS | number


def labels_of(runs: Runs, regions: Sequence[Region]) -> Labels:
    """(H, W) uint32. runs: a label map with the ids of the regions, 0 = none."""
    table = np.zeros(len(regions) + 1, np.uint32)
    for region in regions:
        table[region.value] = segment_label(region.class_id, region.id)
    return runs.renamed(table).labels()


@dataclass(frozen=True, slots=True)
class _Compared:
    """Segments of two label maps. true, ours: their values, with areas. in_void: the pixels of ours
    that lie in void, where there are any. pairs: true, ours, IoU of those of one class that share
    pixels; pixels of truth that are void belong to no union."""

    true: dict[int, int]
    ours: dict[int, int]
    in_void: dict[int, int]
    pairs: list[tuple[int, int, float]]

    @classmethod
    def of(cls, labels: Labels, truth: Labels) -> _Compared:
        both = truth.astype(np.uint64) << np.uint64(32) | labels.astype(np.uint64)
        found, shared = np.unique(both, return_counts=True)
        true = (found >> np.uint64(32)).astype(np.int64)
        ours = (found & np.uint64(VOID_SEGMENT)).astype(np.int64)
        in_void = _sums(ours[true == VOID_SEGMENT], shared[true == VOID_SEGMENT])
        true_areas, areas = _sums(true, shared), _sums(ours, shared)
        pairs = [
            (a, b, pixels / (true_areas[a] + areas[b] - in_void.get(b, 0) - pixels))
            for a, b, pixels in zip(true.tolist(), ours.tolist(), shared.tolist(), strict=True)
            if a and b and a != VOID_SEGMENT and a >> _ID_BITS == b >> _ID_BITS
        ]
        for areas_of in (true_areas, areas):
            for value in (0, VOID_SEGMENT):
                areas_of.pop(value, None)
        return cls(true_areas, areas, in_void, pairs)

    def mostly_void(self, value: int) -> bool:
        """Such a segment of ours is not wrong (Kirillov et al., section 4.2)."""
        return 2 * self.in_void.get(value, 0) > self.ours[value]


def class_counts(labels: Labels, truth: Labels, classes: int) -> NDArray[np.float64]:
    """(classes, 4), see the module (Kirillov et al. 2019, arXiv 1801.00868, sections 4.1 and
    4.2)."""
    compared, counts = _Compared.of(labels, truth), np.zeros((classes, 4))
    matched = [pair for pair in compared.pairs if pair[2] > 0.5]
    for a, _, iou in matched:
        counts[a >> _ID_BITS, :2] += iou, 1
    for value in compared.ours.keys() - {b for _, b, _ in matched}:
        if not compared.mostly_void(value):
            counts[value >> _ID_BITS, 2] += 1
    for value in compared.true.keys() - {a for a, _, _ in matched}:
        counts[value >> _ID_BITS, 3] += 1
    return counts


def segment_detections(
    labels: Labels, scores: Mapping[int, float], truth: Labels
) -> NDArray[np.float64]:
    """(segments, 3): class, score, and 1 if a true one of its class overlaps it with an IoU of 0.5,
    else 0; see tasks/detections.py. scores: of each value in labels. Segments that mostly lie in
    void are left out."""
    compared, hits = _Compared.of(labels, truth), dict[int, int]()
    enough = [(a, b) for a, b, iou in compared.pairs if iou >= 0.5]
    for a, b in sorted(enough, key=lambda pair: -scores[pair[1]]):
        if a not in hits.values() and b not in hits:
            hits[b] = a
    rows = [
        (value >> _ID_BITS, scores[value], value in hits)
        for value in sorted(compared.ours)
        if not compared.mostly_void(value)
    ]
    return np.array(rows, np.float64).reshape(-1, 3)


def _sums(values: NDArray[np.int64], shared: NDArray[np.intp]) -> dict[int, int]:
    """Value -> its pixels."""
    unique, place = np.unique(values, return_inverse=True)
    sums = np.bincount(place, shared, len(unique)).astype(np.int64)
    return dict(zip(unique.tolist(), sums.tolist(), strict=True))
