"""PQ, AP and time of our segments beside transformers' on COCO's panoptic labels.

There is no trained checkpoint at hand, so the logits are made of the labels themselves: blurred,
wavy, some of the wrong class, some twice. What is compared is what either side makes of them.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model_export.tasks import VOID
from model_export.tasks.segments import VOID_SEGMENT, Segments, labels_of
from model_export.tasks.semantic import confusion, mean_iou
from service.bundle import Thresholds
from service.core import Geometry
from service.pixels.most_probable import most_probable
from service.tasks import class_planes
from service.tasks.query_maps import object_map, panoptic_map
from tests.needs import data_at

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="the reference is not installed")

IMAGES, QUERIES, CLASSES, CANVAS, CELLS = 40, 100, 133, 512, 128
POINTS = 0.1  # of PQ and AP, in percent
TIME = 1 / 5  # of transformers', of one core
TIMED = 6  # images
DEFAULT = Thresholds(0.5, 0.5, 0.8)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("one_thread"),
]


class Case(NamedTuple):
    """labels: (H, W), k = the segment k - 1. segments: as meta.json has them."""

    labels: NDArray[np.uint8]
    segments: list[dict[str, Any]]
    geometry: Geometry
    kinds: NDArray[np.float32]
    masks: NDArray[np.float32]


@pytest.fixture(scope="module")
def folder() -> Path:
    return data_at("coco128_panoptic")


@pytest.fixture(scope="module")
def things(folder: Path) -> list[bool]:
    classes = json.loads((folder / "meta.json").read_text())["classes"]
    return [bool(entry["isthing"]) for entry in classes]


@pytest.fixture(scope="module")
def cases(folder: Path) -> list[Case]:
    entries = json.loads((folder / "meta.json").read_text())["splits"]["val"][:IMAGES]
    return [case_of(folder, entry, seed) for seed, entry in enumerate(entries)]


def case_of(folder: Path, entry: dict[str, Any], seed: int) -> Case:
    labels = np.asarray(Image.open(folder / f"panoptic/val/{entry['id']}.png"))
    height, width = labels.shape
    rng = np.random.default_rng(seed)
    kinds = rng.normal(0, 1, (QUERIES, CLASSES + 1)).astype(np.float32)
    kinds[:, CLASSES] += 7
    masks = rng.normal(-4, 1, (QUERIES, CELLS, CELLS)).astype(np.float32)
    copies = [k for k in range(len(entry["segments"])) for _ in range(1 + (rng.random() < 0.3))]
    for query, k in enumerate(copies[:QUERIES]):
        own = (labels == k + 1).astype(np.float32)
        coarse = cv2.resize(own, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
        waves = cv2.resize(rng.normal(0, 2, (12, 12)), (CELLS, CELLS), interpolation=2)
        masks[query] = 12 * (cv2.blur(coarse, (5, 5)) - 0.5) + waves
        right = rng.random() < 0.85
        kind = entry["segments"][k]["cat"] if right else int(rng.integers(CLASSES))
        kinds[query, CLASSES] -= 7
        kinds[query, kind] += rng.uniform(3, 9)
    # Without padding, of which transformers' post-processing knows nothing.
    geometry = Geometry(width, height, CANVAS, CANVAS, (CANVAS, CANVAS))
    order = rng.permutation(QUERIES)
    return Case(labels, entry["segments"], geometry, kinds[order], masks[order])


def truth_of(case: Case) -> NDArray[np.uint32]:
    table = [VOID_SEGMENT]
    for number, entry in enumerate(case.segments, 1):
        table.append(VOID_SEGMENT if entry["iscrowd"] else entry["cat"] << 16 | number)
    return np.array(table, np.uint32)[case.labels]


@pytest.fixture(scope="module")
def theirs() -> Any:
    """transformers' processor."""
    from transformers.models.mask2former.image_processing_pil_mask2former import (
        Mask2FormerImageProcessorPil,
    )

    return Mask2FormerImageProcessorPil()


@contextlib.contextmanager
def no_detour(instead: tuple[int, int] | None = None) -> Iterator[None]:
    """transformers without its resizing of all masks to 384 x 384. instead: the size to which they
    are resized; None: they stay as they are."""
    resize = torch.nn.functional.interpolate

    def straight(values: Any, size: Any = None, **options: Any) -> Any:
        if tuple(size) != (384, 384):
            return resize(values, size=size, **options)
        return values if instead is None else resize(values, size=instead, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "interpolate", straight)
        yield


def outputs(case: Case) -> Any:
    from transformers.utils import ModelOutput

    return ModelOutput(
        class_queries_logits=torch.from_numpy(case.kinds)[None],
        masks_queries_logits=torch.from_numpy(case.masks)[None],
    )


def test_panoptic_quality_and_time(cases: list[Case], things: list[bool], theirs: Any) -> None:
    task, counts = Segments("panoptic"), {"ours": 0.0, "theirs": 0.0}
    took = Took()
    for case in cases:
        truth, size = truth_of(case), (case.geometry.height, case.geometry.width)
        our_way = partial(panoptic_map, case.kinds, case.masks, case.geometry, things, DEFAULT)
        counts["ours"] += task.counts(labels_of(*our_way()), truth, CLASSES)
        # Fused below: with ids to fuse, its ids of different segments can be the same.
        ask = {"label_ids_to_fuse": set(), "target_sizes": [size]}
        their_way = partial(theirs.post_process_panoptic_segmentation, outputs(case), **ask)
        took.add(our_way, their_way)
        with no_detour():
            (answer,) = their_way()
        table, first = np.zeros(QUERIES + 1, np.uint32), dict[int, int]()
        for segment in answer["segments_info"]:
            kind, number = segment["label_id"], segment["id"]
            own = number if things[kind] else first.setdefault(kind, number)
            table[number] = kind << 16 | own
        painted = answer["segmentation"].numpy().astype(int).clip(0)
        counts["theirs"] += task.counts(table[painted], truth, CLASSES)
    ours, wanted = (100 * task.of_set(counts[side]) for side in ("ours", "theirs"))
    print(f"PQ {ours:.2f}, transformers {wanted:.2f}; ms {took.medians()}")
    assert wanted > 20
    assert abs(ours - wanted) < POINTS
    assert took.ratio() < TIME


def test_average_precision_and_time(cases: list[Case], theirs: Any) -> None:
    """Against transformers' maps of every object, of which the most certain ones go on top.

    Its masks go straight to the image's size, where its detour ends with the nearest of 384 x 384
    cells and costs it a quarter of a point.
    """
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
    took = Took()
    for number, case in enumerate(cases):
        size = (case.geometry.height, case.geometry.width)
        our_way = partial(object_map, case.kinds, case.masks, case.geometry, DEFAULT)
        runs, regions = our_way()
        labels = runs.labels()
        for region in regions:
            mask = labels == region.value
            found["ours"].append(entry_of(number, mask, region.class_id, region.score))
        ask = {"target_sizes": [size], "return_binary_maps": True}
        their_way = partial(theirs.post_process_instance_segmentation, outputs(case), **ask)
        took.add(our_way, their_way)
        with no_detour(size):
            (answer,) = their_way()
        free = np.ones(size, bool)
        objects = zip(answer["segments_info"], answer["segmentation"].numpy(), strict=False)
        for segment, mask in sorted(objects, key=lambda pair: -pair[0]["score"]):
            shown = (mask == 1) & free
            free &= mask != 1
            if shown.any():
                entry = entry_of(number, shown, segment["label_id"], segment["score"])
                found["theirs"].append(entry)
    reference = truth_for_coco(cases)
    ours, wanted = (100 * average_precision(reference, found[s]) for s in ("ours", "theirs"))
    print(f"AP {ours:.2f}, transformers {wanted:.2f}; ms {took.medians()}")
    assert wanted > 20
    assert abs(ours - wanted) < POINTS
    assert took.ratio() < TIME


def test_mean_iou_and_time(cases: list[Case], theirs: Any) -> None:
    """Of the planes as a bundle's graph gives them: each query votes for its classes."""
    counts = {"ours": np.zeros((CLASSES,) * 2, np.int64), "theirs": np.zeros((CLASSES,) * 2, int)}
    took = Took()
    for case in cases:
        kinds = [VOID, *(entry["cat"] for entry in case.segments)]
        truth = np.array(kinds, np.uint8)[case.labels]
        size = (case.geometry.height, case.geometry.width)
        planes = class_planes({"class_logits": case.kinds, "mask_logits": case.masks})
        our_way = partial(most_probable, planes, case.geometry)
        counts["ours"] += confusion(our_way().labels(), truth, CLASSES)
        ask = {"target_sizes": [size]}
        their_way = partial(theirs.post_process_semantic_segmentation, outputs(case), **ask)
        took.add(our_way, their_way)
        with no_detour():
            (labels,) = their_way()
        counts["theirs"] += confusion(labels.numpy().astype(np.uint8), truth, CLASSES)
    ours, wanted = (100 * mean_iou(counts[side]) for side in ("ours", "theirs"))
    print(f"mIoU {ours:.2f}, transformers {wanted:.2f}; ms {took.medians()}")
    assert wanted > 20
    assert abs(ours - wanted) < POINTS
    assert took.ratio() < TIME


class Took:
    """CPU time of either side, on the first images; transformers' with its detour."""

    def __init__(self) -> None:
        self.ours: list[float] = []
        self.theirs: list[float] = []

    def add(self, our_way: Callable[[], object], their_way: Callable[[], object]) -> None:
        if len(self.ours) < TIMED:
            self.ours.append(cpu_of(our_way))
            self.theirs.append(cpu_of(their_way))

    def ratio(self) -> float:
        return float(np.median(self.ours) / np.median(self.theirs))

    def medians(self) -> list[float]:
        return [round(1e3 * float(np.median(side)), 1) for side in (self.ours, self.theirs)]


def cpu_of(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def entry_of(number: int, mask: NDArray[np.bool_], kind: int, score: float) -> dict[str, Any]:
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"image_id": number, "category_id": kind, "segmentation": rle, "score": score}


def truth_for_coco(cases: list[Case]) -> COCO:
    annotations = list(true_objects(cases))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [
                {"id": number, "height": case.labels.shape[0], "width": case.labels.shape[1]}
                for number, case in enumerate(cases)
            ],
            "annotations": [{"id": k, **entry} for k, entry in enumerate(annotations, 1)],
            "categories": [{"id": kind} for kind in range(CLASSES)],
        }
        truth.createIndex()
    return truth


def true_objects(cases: list[Case]) -> Iterator[dict[str, Any]]:
    for number, case in enumerate(cases):
        for k, segment in enumerate(case.segments, 1):
            entry = entry_of(number, case.labels == k, segment["cat"], 1)
            rle = entry["segmentation"]
            box, area = coco.toBbox(rle).tolist(), float(coco.area(rle))
            yield {**entry, "bbox": box, "area": area, "iscrowd": segment["iscrowd"]}


def average_precision(truth: COCO, found: list[dict[str, Any]]) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        judged = COCOeval(truth, truth.loadRes(found), "segm")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return float(judged.stats[0])
