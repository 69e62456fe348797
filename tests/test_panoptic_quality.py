"""Panoptic quality against torchmetrics' and by hand; average precision by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchmetrics.detection import PanopticQuality

from model_export.tasks.panoptic_quality import image_quality, match_counts, panoptic_quality
from tests.coco_average_precision import average_precision


def _random(rng: np.random.Generator, objects: int) -> NDArray[np.uint16]:
    """Rectangles over each other, under ids with gaps."""
    labels = np.zeros((60, 80), np.uint16)
    for k in range(1, objects + 1):
        (top, left), (height, width) = rng.integers(0, (56, 76)), rng.integers(3, 25, 2)
        labels[top : top + height, left : left + width] = 3 * k
    return labels


def _spoilt(rng: np.random.Generator, truth: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Some objects are missed, some are one, all are moved a little; and some are made up."""
    ids = np.arange(truth.max() + 1, dtype=np.uint16)
    ids[rng.random(len(ids)) < 0.2] = 0
    ids[6:10] = ids[3:4]
    moved = np.roll(ids[truth], rng.integers(-2, 3, 2), (0, 1))
    made_up = _random(rng, int(rng.integers(3)))
    return np.where((moved == 0) & (made_up > 0), made_up + ids.max(), moved).astype(np.uint16)


def _row(*objects: tuple[int, int]) -> NDArray[np.uint16]:
    """Stretches [start, end) of one row of 100 pixels; a later one lies on top."""
    labels = np.zeros((1, 100), np.uint16)
    for k, (start, end) in enumerate(objects, 1):
        labels[0, start:end] = k
    return labels


@pytest.mark.parametrize("seed", range(20))
def test_quality_over_a_set_is_that_of_torchmetrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    metric = PanopticQuality(things={1}, stuffs={0}, return_per_class=True, return_sq_and_rq=True)
    total = np.zeros(4)
    for _ in range(4):
        truth = _random(rng, int(rng.integers(1, 12)))
        predicted = _spoilt(rng, truth)
        total += match_counts(predicted, truth)
        pair = [
            torch.from_numpy(np.stack([x > 0, x], -1).astype(np.int64))[None]
            for x in (predicted, truth)
        ]
        metric.update(*pair)
    quality, segmentation, recognition = metric.compute()[
        0
    ].tolist()  # things come first, then the background
    assert panoptic_quality(total) == pytest.approx(quality, abs=1e-6)
    assert total[0] / max(total[1], 1) == pytest.approx(segmentation, abs=1e-6)
    assert total[1] / (total[1] + total[2:].sum() / 2) == pytest.approx(recognition, abs=1e-6)
    assert 0 < panoptic_quality(total) < 1


def test_counts_by_hand() -> None:
    truth = _row((0, 10), (20, 30), (40, 50), (60, 70))
    predicted = _row((0, 10), (22, 30), (45, 55), (80, 90), (95, 99))
    # whole; 8 of 10; 5 of 15: both missed and wrong; not there at all; two that nobody asked for
    assert match_counts(predicted, truth).tolist() == pytest.approx([1.8, 2, 3, 2])
    assert panoptic_quality(match_counts(predicted, truth)) == pytest.approx(1.8 / 4.5)


def test_half_is_no_match() -> None:
    assert match_counts(_row((0, 5)), _row((0, 10))).tolist() == [0, 0, 1, 1]
    assert match_counts(_row((0, 6)), _row((0, 10))).tolist() == [0.6, 1, 0, 0]
    assert match_counts(_row((0, 5), (5, 10)), _row((0, 10))).tolist() == [0, 0, 2, 1]


def test_ids_do_not_matter_and_may_have_gaps() -> None:
    truth, predicted = _row((0, 10), (20, 30)), _row((1, 10), (20, 31))
    wanted = match_counts(predicted, truth)
    renamed = match_counts(
        np.array([0, 65535, 7], np.uint16)[predicted], np.array([0, 2, 40000], np.uint16)[truth]
    )
    assert renamed.tolist() == wanted.tolist()
    assert wanted[1] == 2


def test_what_is_empty_on_both_sides_is_right_as_an_image_and_unknown_as_a_set() -> None:
    nothing, something = _row(), _row((0, 10))
    assert np.isnan(panoptic_quality(match_counts(nothing, nothing)))
    assert image_quality(match_counts(nothing, nothing)) == 1
    for predicted, truth in ((nothing, something), (something, nothing)):
        assert (
            panoptic_quality(match_counts(predicted, truth))
            == image_quality(match_counts(predicted, truth))
            == 0
        )
    assert (
        panoptic_quality(match_counts(nothing, nothing) + match_counts(something, something)) == 1
    )


def test_average_precision_ranks_by_score_over_all_images() -> None:
    two, three = _row((0, 10), (20, 30)), _row((0, 10), (20, 30), (60, 70))
    assert average_precision([(two, [0.1, 0.9], two)]) == 1
    # A false one behind the true ones costs nothing, one before them does, and what is missed does.
    assert average_precision([(three, [0.9, 0.8, 0.7], two)]) == 1
    assert average_precision([(three, [0.8, 0.7, 0.9], two)]) == pytest.approx(2 / 3, abs=1e-6)
    # Of 4, the first two of the ranking are right, then a false one: recall 0.5 at precision 1, of
    # 101 points 51.
    pictures = [(two, [0.9, 0.8], two), (_row((80, 90)), [0.5], _row((0, 10), (20, 30)))]
    assert average_precision(pictures) == pytest.approx(51 / 101)


def test_average_precision_has_coco_s_threshold_on_overlap() -> None:
    """At an IoU of 0.5 COCO calls it a match; panoptic quality does not."""
    assert average_precision([(_row((0, 5)), [1.0], _row((0, 10)))]) == pytest.approx(1)
    assert average_precision([(_row((0, 5)), [1.0], _row((0, 10)))], iou=0.6) == 0


def test_average_precision_knows_no_limit_of_objects() -> None:
    truth = np.arange(1, 401, dtype=np.uint16).repeat(9).reshape(60, 60)
    assert average_precision([(truth, np.linspace(0, 1, 400).tolist(), truth)]) == 1


def test_average_precision_of_nothing() -> None:
    nothing, something = _row(), _row((0, 10))
    assert np.isnan(average_precision([(nothing, [], nothing)]))
    assert np.isnan(average_precision([(something, [1.0], nothing)]))
    assert average_precision([(nothing, [], something)]) == 0
    assert average_precision(
        [(something, [0.9], nothing), (something, [0.5], something)]
    ) == pytest.approx(0.5)


def test_average_precision_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    average_precision([(_row((0, 10)), [1.0], _row((0, 10)))])
    assert capsys.readouterr().out == ""
