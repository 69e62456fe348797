"""Average precision from tables per image equals COCO's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export.tasks.detections import average_precision, detections
from tests import coco_average_precision


def blobs(rng: np.random.Generator, most: int) -> np.ndarray:
    """(24, 24) uint16 label map of rectangles, later ones over earlier ones; numbered 1, 2, ...
    without gaps."""
    labels = np.zeros((24, 24), np.uint16)
    for k in range(1, int(rng.integers(0, most + 1)) + 1):
        top, left = rng.integers(0, 20, 2)
        labels[top : top + rng.integers(2, 10), left : left + rng.integers(2, 10)] = k
    numbers = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
    return numbers.astype(np.uint16) if (labels == 0).any() else labels


def shaken(rng: np.random.Generator, truth: np.ndarray) -> np.ndarray:
    """The truth a pixel or two beside where it is, so that some objects are found and others are
    not."""
    moved = np.roll(truth, rng.integers(-2, 3, 2), (0, 1)) if truth.any() else blobs(rng, 3)
    numbers = np.unique(np.append(moved, 0), return_inverse=True)[1][:-1].reshape(moved.shape)
    return numbers.astype(np.uint16)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 6))
def test_equals_coco(seed: int, images: int) -> None:
    rng, seen = np.random.default_rng(seed), []
    for _ in range(images):
        truth = blobs(rng, 8)
        predicted = shaken(rng, truth)
        seen.append((predicted, rng.uniform(size=int(predicted.max())).tolist(), truth))
    objects = sum(np.count_nonzero(np.unique(truth)) for *_, truth in seen)
    found = average_precision([detections(*image) for image in seen], objects)
    assert found == pytest.approx(
        coco_average_precision.average_precision(seen), abs=1e-9, nan_ok=True
    )


def test_hits_are_objects_with_half_of_the_union_and_an_object_is_found_once() -> None:
    truth = np.uint16([[7, 7, 7, 7, 0, 9, 9, 9]])
    predicted = np.uint16([[1, 1, 1, 0, 0, 2, 0, 3]])
    assert detections(predicted, [0.5, 0.25, 0.75], truth).tolist() == [
        [0.5, 1],
        [0.25, 0],
        [0.75, 0],
    ]
    halves = np.uint16([[1, 1, 2, 2, 0, 0, 0, 0]])
    assert detections(halves, [0.5, 0.75], truth).tolist() == [[0.5, 0], [0.75, 1]]
    assert detections(np.uint16([[1, 0, 0, 0, 0, 2, 0, 0]]), [0.5, 0.75], truth)[:, 1].tolist() == [
        0,
        0,
    ]


def test_precision_by_hand() -> None:
    image = np.array([[0.9, 1], [0.8, 0], [0.7, 1]])
    assert average_precision([image], 2) == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert average_precision([image], 4) == pytest.approx((26 * 1 + 25 * 2 / 3) / 101)
    assert average_precision([image[:0]], 2) == 0
    assert np.isnan(average_precision([image], 0))
