"""How answers of detection and depth are judged, and what their heads learn by."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model_export.data.datasets import VOID, Scenes
from model_export.data.several_tasks import TaskBatch, TaskBatches, large_enough, place
from model_export.network.heads import Boxes, Proposals
from model_export.network.position import reference_points
from model_export.tasks.depth import Depth
from model_export.tasks.detection import Detection, average_precision
from model_export.training.head_losses import (
    agreement,
    corners,
    depth_loss,
    generalised_iou,
    match_boxes,
    proposal_loss,
    query_loss,
)
from service.bundle import Canvas, Shape
from service.core import Geometry
from service.pixels.canvas import _scaled

SMALL, LARGE = Canvas.of([Shape(64, 96)]), Canvas.of([Shape(128, 160)])
TRUTH = np.array([[0, 10, 10, 40, 20], [1, 60, 30, 10, 30]], np.float32)


def counts_for(found: list[list[float]], counted: tuple[bool, ...] = (True, True)) -> np.ndarray:
    answer = np.array(found, np.float64).reshape(-1, 6)
    return Detection().counts(answer, TRUTH, np.array(counted))


# ---- average precision


def test_boxes_as_they_are_have_precision_1() -> None:
    exact = [[k, 0.9, *box] for k, *box in TRUTH.tolist()]
    assert Detection().of_image(counts_for(exact)) == pytest.approx(1)
    assert average_precision([counts_for(exact)] * 3) == pytest.approx(1)


def test_another_class_is_no_hit() -> None:
    wrong = [[1 - k, 0.9, *box] for k, *box in TRUTH.tolist()]
    assert Detection().of_image(counts_for(wrong)) == 0


def test_a_box_half_as_wide_counts_at_low_thresholds_alone() -> None:
    half = [[0, 0.9, 10, 10, 26, 20], [1, 0.9, 60, 30, 10, 30]]
    counts = counts_for(half)
    assert average_precision([counts], [0.5]) == pytest.approx(1)
    assert average_precision([counts], [0.75]) == pytest.approx(0.5)


def test_what_counts_nowhere_may_be_found_or_not() -> None:
    first = [[0, 0.9, 10, 10, 40, 20]]
    both = [*first, [1, 0.95, 60, 30, 10, 30]]
    for found in (first, both):
        assert Detection().of_image(counts_for(found, (True, False))) == pytest.approx(1)


@pytest.mark.parametrize(("score", "quality"), [(0.2, 1.0), (0.9, 0.0)])
def test_without_objects_a_sure_answer_is_a_false_alarm(score: float, quality: float) -> None:
    counts = Detection().counts(
        np.array([[0, score, 1, 1, 5, 5]], float), TRUTH[:0], np.zeros(0, bool)
    )
    assert Detection().of_image(counts) == quality


def test_nothing_found_is_0() -> None:
    assert Detection().of_image(counts_for([])) == 0


# ---- depth


def test_depth_is_judged_by_the_share_within_a_quarter() -> None:
    truth = np.full((4, 4), 10, np.float32)
    truth[0] = 0  # sky
    answer = np.full((4, 4), 12.4, np.float32)
    answer[1] = 12.6
    counts = Depth().counts(answer, truth)
    assert Depth().of_image(counts) == pytest.approx(8 / 12)
    assert Depth().of_set([counts, Depth().counts(truth, truth)]) == pytest.approx(20 / 24)


def test_depth_is_read_at_the_size_of_the_image() -> None:
    width, height = _scaled(480, 360, LARGE.largest)
    geometry = Geometry(480, 360, width, height, (128, 160))
    cells = np.tile(np.linspace(2, 50, 40, dtype=np.float32), (32, 1))
    values = Depth().read(cells, geometry, (1.0, 40.0))
    assert values.shape == (360, 480)
    assert (np.diff(values[100]) >= 0).all()
    assert values.max() == 40, "it is cut off at the end of the range"


# ---- placing


def test_labels_lie_where_the_image_lies() -> None:
    sample = Scenes(1, 3, clutter=(0.9, 0.9))[0]
    for canvas in (SMALL, LARGE):
        placed = place(sample, [canvas])[canvas.name]
        width, height = _scaled(480, 360, canvas.largest)
        assert (placed.mask[height:] == VOID).all()
        assert (placed.mask[:, width:] == VOID).all()
        assert (placed.mask[:height, :width] != VOID).all()
        assert (placed.depth[:height, :width] > 0).any()
        assert (placed.depth[height:] == 0).all()
        known = sample.boxes[large_enough(sample.boxes, (360, 480))]
        assert len(placed.boxes) == len(known) < len(sample.boxes)
        sides = np.array([canvas.largest.width, canvas.largest.height])
        back = placed.boxes[:, 1:] * np.tile(sides * (480, 360) / (width, height), 2)
        back[:, :2] -= back[:, 2:] / 2
        np.testing.assert_allclose(back, known[:, 1:], rtol=1e-4, atol=1e-3)


def test_a_batch_depends_on_its_step_alone(tmp_path) -> None:
    def batches(cache=None) -> TaskBatches:
        return TaskBatches(Scenes(3, 5, height=90, width=120), (SMALL, LARGE), 4, (1, 1), 7, cache)

    one, again = batches().batch(5), batches(tmp_path)
    again.batch(4)
    for other in (again.batch(5), batches(tmp_path).batch(5)):
        for a, b in (
            (one.images, other.images),
            (one.masks, other.masks),
            (one.depth, other.depth),
        ):
            assert torch.equal(a, b)
        assert all(torch.equal(a, b) for a, b in zip(one.boxes, other.boxes, strict=True))
    assert not torch.equal(one.images, batches().batch(6).images)


@pytest.mark.parametrize("stay", [True, False])
def test_a_key_stands_for_pixels_where_colours_stay(stay: bool) -> None:
    data = Scenes(2, 5, height=90, width=120)
    batches = TaskBatches(data, (SMALL,), 8, (1,), 7, colours_stay=stay)
    batch, seen = batches.batch(1), dict[object, torch.Tensor]()
    same = [
        torch.equal(seen.setdefault(k, i), i) for k, i in zip(batch.keys, batch.images, strict=True)
    ]
    assert len(seen) == 4, "two images, also mirrored"
    assert all(same) == stay


def test_a_mirrored_image_has_mirrored_boxes() -> None:
    """Where a box is, the mask shows its class."""
    source = Scenes(4, 9, clutter=(0.8, 0.8))
    batches = TaskBatches(source, (LARGE,), 16, (1,), 0)
    batch, seen = batches.batch(0), 0
    for mask, boxes in zip(batch.masks, batch.boxes, strict=True):
        for kind, x, y, w, h in boxes.tolist():
            if w * h > 0.01:
                left, top = int((x - w / 2) * 160), int((y - h / 2) * 128)
                part = mask[top : int((y + h / 2) * 128), left : int((x + w / 2) * 160)]
                seen += int((part == (8, 9, 10)[int(kind)]).float().mean() > 0.3)
    assert seen > 5


# ---- losses


def batch_of(boxes: list[list[float]]) -> TaskBatch:
    empty = torch.zeros(1, 64, 96)
    return TaskBatch(empty, empty, empty, [torch.tensor(boxes).reshape(-1, 5)])


TWO = [[0.0, 0.3, 0.3, 0.2, 0.2], [2.0, 0.7, 0.6, 0.1, 0.3]]


def test_generalised_iou_of_known_boxes() -> None:
    unit = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert generalised_iou(unit, unit).item() == pytest.approx(1)
    assert generalised_iou(unit, unit + torch.tensor([2.0, 0, 2, 0])).item() == pytest.approx(
        -1 / 3
    )
    assert corners(torch.tensor([0.5, 0.5, 1.0, 1.0])).tolist() == [0, 0, 1, 1]


def test_each_target_has_the_query_that_fits_best() -> None:
    logits = torch.zeros(1, 3, 4)
    boxes = torch.tensor([[[0.7, 0.6, 0.1, 0.3], [0.5, 0.5, 0.5, 0.5], [0.3, 0.3, 0.2, 0.2]]])
    queries, targets = match_boxes(Boxes(logits, boxes), 0, torch.tensor(TWO))
    assert dict(zip(targets.tolist(), queries.tolist(), strict=True)) == {0: 2, 1: 0}


def test_the_right_answer_has_the_least_loss() -> None:
    logits = torch.full((1, 3, 4), -10.0)
    logits[0, 0, 0], logits[0, 1, 2], logits[0, 2, 3] = 10, 10, 10
    boxes = torch.tensor([[[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.1, 0.3], [0.1, 0.1, 0.1, 0.1]]])
    right = query_loss(Boxes(logits, boxes), batch_of(TWO))
    moved = query_loss(Boxes(logits, boxes + 0.05), batch_of(TWO))
    unsure = query_loss(Boxes(logits * 0.1, boxes), batch_of(TWO))
    assert right.item() == pytest.approx(0, abs=1e-3)
    assert moved > right + 0.3
    assert unsure > right + 0.3
    assert torch.isfinite(query_loss(Boxes(logits, boxes), batch_of([])))


def test_cells_near_a_centre_propose_the_smaller_object() -> None:
    shape = (8, 12)
    reference = reference_points([shape], torch.device("cpu"))
    nested = [[1.0, 0.5, 0.5, 0.8, 0.8], [0.0, 0.5, 0.5, 0.3, 0.3]]
    scores = torch.full((1, 96, 3), -9.0)
    boxes = torch.tensor([0.5, 0.5, 0.3, 0.3]).expand(1, 96, 4)
    own = ((reference - 0.5).abs() <= 0.15 * 0.3).all(1)
    own[(reference - 0.5).square().sum(1).argmin()] = True
    both = ((reference - 0.5).abs() <= 0.15 * 0.8).all(1)
    assert 0 < own.sum() < both.sum()
    scores[0, own, 0] = 9.0
    scores[0, both & ~own, 1] = 9.0
    full = boxes.clone()
    full[0, both & ~own] = torch.tensor([0.5, 0.5, 0.8, 0.8])
    loss = proposal_loss(Proposals(scores, full, reference), batch_of(nested))
    assert loss.item() == pytest.approx(0, abs=1e-3)
    assert proposal_loss(Proposals(-scores, full, reference), batch_of(nested)) > 1


def test_depth_learns_from_known_cells_alone() -> None:
    depth = torch.full((1, 64, 96), 10.0)
    depth[:, :32] = 0
    batch = TaskBatch(depth, depth, depth, [])
    answer = torch.full((1, 16, 24), 10.0).log()
    answer[:, :8] = 3
    assert depth_loss(answer, batch).item() == pytest.approx(0, abs=1e-5)
    assert depth_loss(answer + 0.1, batch).item() == pytest.approx(1, rel=1e-3)


def test_agreement_is_0_with_itself_alone() -> None:
    scores = torch.randn(1, 5, 3)
    proposals = [Proposals(scores, torch.rand(1, 5, 4), torch.rand(5, 2))]
    assert agreement("depth", scores, scores).item() == 0
    assert agreement("detection", proposals, proposals).item() == 0
    other = [Proposals(scores + 1, torch.rand(1, 5, 4), torch.rand(5, 2))]
    assert agreement("detection", other, proposals).item() > 0
    assert agreement("depth", scores + 1, scores).item() > 0
