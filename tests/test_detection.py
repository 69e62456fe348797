"""Queries -> boxes in the image's own pixels: as transformers makes them, with padding cut off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.bundle import ClassInfo, Head, TensorSpec, Thresholds
from service.core import Geometry
from service.errors import BundleError
from service.tasks import TASKS, Boxes, task_of
from service.tasks.detection import Detection

CLASSES = tuple(ClassInfo(name, (9, 9, 9), name != "sign") for name in ("car", "person", "sign"))
HEAD = Head("boxes", "detection", CLASSES, thresholds=Thresholds(0.5))
WHOLE = Geometry(64, 48, 64, 48, (48, 64))


def logits(*kinds: int, sure: float = 5.0) -> NDArray[np.float32]:
    """A query per kind; 3 is no object."""
    return sure * np.eye(4, dtype=np.float32)[list(kinds)]


def read(kinds: NDArray[np.float32], boxes: Any, geometry: Geometry, score: float = 0.5) -> Boxes:
    tensors = {"class_logits": kinds, "boxes": np.array(boxes, np.float32)}
    return Detection(CLASSES, Thresholds(score)).read(tensors, geometry)


@pytest.mark.parametrize("seed", range(4))
def test_boxes_are_transformers_where_the_image_fills_the_canvas(seed: int) -> None:
    torch = pytest.importorskip("torch", reason="the reference is not installed")
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
    from transformers.utils import ModelOutput

    rng = np.random.default_rng(seed)
    kinds = rng.normal(0, 3, (30, 4)).astype(np.float32)
    boxes = np.concatenate([rng.uniform(0.3, 0.7, (30, 2)), rng.uniform(0.05, 0.5, (30, 2))], 1)
    found = read(kinds, boxes, replace(WHOLE, width=317, height=241), 0.4).found
    (wanted,) = DetrImageProcessorPil().post_process_object_detection(
        ModelOutput(
            logits=torch.from_numpy(kinds)[None], pred_boxes=torch.from_numpy(boxes).float()[None]
        ),
        threshold=0.4,
        target_sizes=[(241, 317)],
    )
    order = wanted["scores"].argsort(descending=True, stable=True)
    assert [box.class_id for box in found] == wanted["labels"][order].tolist()
    assert [box.score for box in found] == pytest.approx(wanted["scores"][order].tolist())
    corners = wanted["boxes"][order].numpy()
    places = np.c_[corners[:, :2], corners[:, 2:] - corners[:, :2]]
    np.testing.assert_allclose([box.box for box in found], places, atol=1e-2)
    assert [box.id for box in found] == list(range(1, len(found) + 1))
    assert len(found) > 3


def test_boxes_come_back_from_the_canvas_to_an_image_that_fills_a_part_of_it() -> None:
    # 128 x 48 at half its size lies on the upper half of a square canvas.
    geometry = Geometry(128, 48, 64, 24, (64, 64))
    (box,) = read(logits(1), [[0.5, 0.25, 0.25, 0.125]], geometry).found
    assert (box.class_id, box.box) == (1, (48.0, 24.0, 32.0, 16.0))
    assert box.score == pytest.approx(np.exp(5) / (np.exp(5) + 3))


def test_what_lies_on_padding_is_cut_off_or_left_out() -> None:
    geometry = Geometry(64, 32, 64, 32, (64, 64))
    boxes = [
        [0.5, 0.5, 0.5, 0.5],  # half of it
        [0.5, 0.9, 0.2, 0.1],  # all of it
        [1.0, 0.1, 0.5, 0.1],  # beyond the right edge
        [0.5, 0.25, 0.0, 0.3],  # no area
        [np.nan, 0.2, 0.2, 0.2],
    ]
    found = read(logits(0, 0, 1, 0, 0), boxes, geometry).found
    assert [(box.class_id, box.box) for box in found] == [
        (0, (16.0, 16.0, 32.0, 16.0)),
        (1, pytest.approx((48.0, 3.2, 16.0, 6.4), abs=1e-4)),
    ]


def test_no_object_and_what_is_not_certain_enough_is_none() -> None:
    boxes = [[0.5, 0.5, 0.2, 0.2]] * 3
    kinds = np.concatenate([logits(3, 0), logits(1, sure=0.1)])
    assert [box.class_id for box in read(kinds, boxes, WHOLE).found] == [0]
    assert [box.class_id for box in read(kinds, boxes, WHOLE, 0.0).found] == [0, 1, 0]
    assert read(np.full((3, 4), np.nan, np.float32), boxes, WHOLE).found == []


def test_segments_name_their_classes() -> None:
    boxes = read(logits(0, 2), [[0.5, 0.5, 0.2, 0.2]] * 2, WHOLE)
    assert [(each.id, each.label, each.thing) for each in boxes.segments(CLASSES)] == [
        (1, "car", True),
        (2, "sign", False),
    ]


def specs(queries: int = 8, channels: int = 4, sides: int = 4) -> list[TensorSpec]:
    return [
        TensorSpec("class_logits", "float32", ("batch", queries, channels)),
        TensorSpec("boxes", "float32", ("batch", queries, sides)),
    ]


def test_a_head_must_have_a_score_classes_and_both_tensors() -> None:
    task = task_of(HEAD)
    task.check(CLASSES, specs(), "outputs")
    task.check(CLASSES, specs()[::-1], "outputs")
    for wrong in (specs(channels=3), specs(sides=5), specs()[:1], [*specs(), specs()[0]][:0]):
        with pytest.raises(BundleError, match=r"^outputs: they must be class_logits"):
            task.check(CLASSES, wrong, "outputs")
    apart = [specs()[0], TensorSpec("boxes", "float32", ("batch", 9, 4))]
    with pytest.raises(BundleError, match=r"^outputs: "):
        task.check(CLASSES, apart, "outputs")
    with pytest.raises(BundleError, match=r"^classes: there must be at least 1"):
        task.check((), specs(), "outputs")
    with pytest.raises(BundleError, match=r"^thresholds: "):
        TASKS["detection"].check(CLASSES, specs(), "outputs")


def test_the_fake_head_finds_the_bands_of_brightness() -> None:
    image = np.zeros((1, 48, 64, 3), np.uint8)
    image[:, :24, 32:] = 255  # the brightest third is at the top right, the darkest around it
    task, certainty = task_of(HEAD), np.array([0.9])
    kinds, boxes = (task.made_up(image, certainty, spec)[0] for spec in specs())
    found = read(kinds, boxes, WHOLE).found
    assert [(box.class_id, box.box) for box in found] == [
        (0, (0.0, 0.0, 64.0, 48.0)),
        (2, (32.0, 0.0, 32.0, 24.0)),
    ]
    assert [box.score for box in found] == pytest.approx([0.9, 0.9])
