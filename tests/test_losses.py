"""The set loss: matching, sampled points, void, and what a perfect prediction costs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model_export.data.datasets import VOID
from model_export.network.decoder import Prediction
from model_export.training.losses import (
    match,
    sample_points,
    semantic_cross_entropy,
    set_loss,
    targets_of,
    uncertain_points,
)

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = 4


def _mask() -> Tensor:
    """(1, 32, 32): class 1 on the left, class 3 on the right."""
    mask = torch.full((1, 32, 32), 1, dtype=torch.uint8)
    mask[:, :, 16:] = 3
    return mask


def _masks(mask: Tensor, labels: list[int], size: int = 8) -> Tensor:
    """(1, Q, size, size) mask logits of +-20: query i shows labels[i], -1 = nothing."""
    step = mask.shape[-1] // size
    small = mask[:, step // 2 :: step, step // 2 :: step]
    return torch.stack([torch.where(small == label, 20.0, -20.0) for label in labels], 1)


def _classes(labels: list[int]) -> Tensor:
    """(1, Q, CLASSES + 1) class logits, sure of labels[i]; -1 = "no object"."""
    return (
        20.0
        * torch.nn.functional.one_hot(torch.tensor([labels]) % (CLASSES + 1), CLASSES + 1).float()
    )


def _total(terms: dict[str, Tensor]) -> float:
    return float(sum(terms.values()))


def _match(prediction: Prediction, mask: Tensor) -> list[int]:
    labels, targets = targets_of(mask[0], CLASSES)
    return match(prediction, 0, labels, targets, (mask[0] != VOID).float(), 256).tolist()


def test_targets_are_the_shown_classes_without_void() -> None:
    mask = _mask()[0]
    mask[:4] = VOID
    labels, targets = targets_of(mask, CLASSES)
    assert labels.tolist() == [1, 3]
    assert torch.equal(targets[0], (mask == 1).float())
    assert torch.equal(targets[1], (mask == 3).float())


def test_sample_points_takes_x_before_y_and_pixel_centres() -> None:
    ramp = torch.arange(8.0).expand(4, 8)[None]  # value = column
    points = torch.tensor([[[0.5 / 8, 0.5 / 4], [6.5 / 8, 2.5 / 4], [0.5, 0.5]]])
    assert torch.allclose(sample_points(ramp, points), torch.tensor([[0.0, 6.0, 3.5]]), atol=1e-5)


@pytest.mark.parametrize(
    ("queries", "wanted"), [([3, -1, 1, -1], [2, 0]), ([1, 3], [0, 1]), ([-1, 3, 1], [2, 1])]
)
def test_hungarian_matching_finds_the_query_with_the_right_mask(
    queries: list[int], wanted: list[int]
) -> None:
    mask = _mask()
    prediction = Prediction(torch.zeros(1, len(queries), CLASSES + 1), _masks(mask, queries))
    assert _match(prediction, mask) == wanted


def test_hungarian_matching_lets_classes_decide_between_equal_masks() -> None:
    mask = _mask()
    prediction = Prediction(_classes([0, 3, 1]), _masks(mask, [-1, -1, -1]))
    assert _match(prediction, mask) == [2, 1]


def test_hungarian_matching_is_optimal_as_a_whole_and_not_greedy() -> None:
    """Query 0 suits class 1 best of all, but query 1 can stand in for it there and nowhere else."""
    chances = torch.tensor([[[0.04, 0.50, 0.01, 0.44, 0.01], [0.2, 0.4, 0.2, 0.1, 0.1]]])
    assert _match(Prediction(chances.log(), torch.zeros(1, 2, 8, 8)), _mask()) == [1, 0]


def test_hungarian_matching_ignores_void() -> None:
    """Query 0 is wrong on void only, query 1 on one known row: void must not count."""
    mask = _mask()
    mask[:, :16] = VOID
    masks = _masks(_mask(), [1, 1])
    masks[0, 0, :3] = 20.0
    masks[0, 1, 6] = 20.0
    assert _match(Prediction(torch.zeros(1, 2, CLASSES + 1), masks), mask)[0] == 0


def test_more_classes_than_queries_leaves_some_unmatched() -> None:
    mask = _mask()
    prediction = Prediction(torch.zeros(1, 1, CLASSES + 1), _masks(mask, [3]))
    assert _match(prediction, mask) == [-1, 0]
    terms = set_loss(prediction, mask, "hungarian", 64, 0.0)
    assert terms["dice"] < 1


def test_uncertain_points_prefer_logits_near_zero() -> None:
    ramp = torch.linspace(-8, 8, 64).expand(3, 64, 64)
    points = uncertain_points(ramp, 400)
    assert points.shape == (3, 400, 2)
    assert points.min() >= 0
    assert points.max() <= 1
    near = (sample_points(ramp, points).abs() < 2.4).float().mean(1)  # 30 % of the map
    assert near.min() > 0.75
    assert near.max() < 0.95  # a quarter is spread evenly


def test_uncertain_points_are_not_drawn_to_void() -> None:
    logits, known = torch.full((1, 16, 16), 9.0), torch.ones(1, 16, 16)
    logits[:, :8], known[:, :8] = 0.0, 0.0
    share = {
        name: float((uncertain_points(logits, 400, k)[..., 1] > 0.5).float().mean())
        for name, k in (("with", known), ("without", None))
    }
    assert share["with"] > 0.75
    assert share["without"] < 0.4


CASES = [("class", [-1, 1, -1, 3]), ("hungarian", [3, -1, 1, -1])]


@pytest.mark.parametrize(("matching", "queries"), CASES)
def test_perfect_prediction_costs_next_to_nothing(matching: str, queries: list[int]) -> None:
    """The border between the classes is void, as in most data sets: a sample on it is half of
    each."""
    mask = _mask()
    mask[:, :, 12:20] = VOID
    good = set_loss(
        Prediction(_classes(queries), _masks(_mask(), queries)), mask, matching, 256, 2.0
    )
    assert set(good) == {"class", "bce", "dice", "pixel"}
    assert _total(good) < 0.1
    ignorant = set_loss(
        Prediction(torch.zeros(1, 4, CLASSES + 1), torch.zeros(1, 4, 8, 8)),
        mask,
        matching,
        256,
        2.0,
    )
    assert all(ignorant[name] > 1 for name in good)


def test_unmatched_queries_must_say_no_object() -> None:
    mask = _mask()
    masks = _masks(mask, [3, -1, 1, -1])
    right = set_loss(Prediction(_classes([3, -1, 1, -1]), masks), mask, "hungarian", 64, 0.0)
    wrong = set_loss(Prediction(_classes([3, 0, 1, -1]), masks), mask, "hungarian", 64, 0.0)
    assert right["class"] < 0.01
    assert wrong["class"] > 1
    assert "pixel" not in right


@pytest.mark.parametrize(("matching", "queries"), CASES)
@pytest.mark.parametrize(
    "change", [lambda x: -x, torch.zeros_like, lambda x: x + torch.randn_like(x)]
)
def test_what_is_predicted_on_void_counts_nowhere(
    matching: str, queries: list[int], change: Callable[[Tensor], Tensor]
) -> None:
    mask = _mask()
    mask[:, 16:] = VOID
    torch.manual_seed(0)
    masks, classes = (
        _masks(mask, queries) + 3 * torch.randn(1, 4, 8, 8),
        torch.randn(1, 4, CLASSES + 1),
    )
    elsewhere = masks.clone()
    # Rows 5 to 7: farther from known pixels than a sample reaches.
    elsewhere[:, :, 5:] = change(masks[:, :, 5:])
    seen = masks.clone()
    seen[:, :, :3] = change(masks[:, :, :3])
    losses = []
    for prediction in (masks, elsewhere, seen):
        torch.manual_seed(1)
        losses.append(set_loss(Prediction(classes, prediction), mask, matching, 512, 2.0))
    for name in ("class", "bce", "dice", "pixel"):
        assert torch.equal(losses[0][name], losses[1][name]), name
    assert not torch.equal(losses[0]["bce"], losses[2]["bce"])


@pytest.mark.parametrize("matching", ["class", "hungarian"])
def test_gradient_reaches_classes_and_masks_of_every_image(matching: str) -> None:
    classes = torch.randn(2, 4, CLASSES + 1, requires_grad=True)
    masks = torch.randn(2, 4, 8, 8, requires_grad=True)
    sum(
        set_loss(Prediction(classes, masks), _mask().expand(2, -1, -1), matching, 64, 2.0).values()
    ).backward()
    for gradient in (classes.grad, masks.grad):
        assert gradient is not None
        assert gradient.isfinite().all()
        assert (gradient.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize("matching", ["class", "hungarian"])
def test_all_void_is_finite_and_teaches_no_mask(matching: str) -> None:
    classes = torch.randn(2, 4, CLASSES + 1, requires_grad=True)
    masks = torch.randn(2, 4, 8, 8, requires_grad=True)
    terms = set_loss(
        Prediction(classes, masks),
        torch.full((2, 32, 32), VOID, dtype=torch.uint8),
        matching,
        64,
        2.0,
    )
    total = sum(terms.values())
    assert isinstance(total, Tensor)
    assert total.isfinite()
    total.backward()
    assert classes.grad is not None
    assert classes.grad.isfinite().all()
    assert masks.grad is None or not masks.grad.any()


@pytest.mark.parametrize("matching", ["class", "hungarian"])
def test_one_void_image_does_not_spoil_the_batch(matching: str) -> None:
    prediction = Prediction(torch.randn(2, 4, CLASSES + 1), torch.randn(2, 4, 8, 8))
    mask = torch.cat([_mask(), torch.full((1, 32, 32), VOID, dtype=torch.uint8)])
    terms = set_loss(prediction, mask, matching, 64, 2.0)
    assert set(terms) == {"class", "bce", "dice", "pixel"}
    assert all(value.isfinite() for value in terms.values())


def test_below_stride_4_the_cross_entropy_asks_for_what_the_interpolation_shows() -> None:
    """Two maps that are right about every cell; the mask's edge lies inside a cell, and only one
    has it there."""
    mask = torch.zeros(1, 32, 32, dtype=torch.uint8)
    mask[:, :, 14:] = 1
    edge = torch.tensor([-9.0, -9, -9, 0.5, 9, 9, 9, 9])  # bilinear: crosses zero near pixel 14
    late = torch.tensor([-9.0, -9, -9, 8.9, 9, 9, 9, 9])  # near pixel 12
    classes = torch.full((1, 2, 3), -9.0)
    classes[0, 0, 0] = classes[0, 1, 1] = 9.0

    def cost(row: Tensor, stride: int) -> float:
        logits = row.expand(8, 8)
        return float(
            semantic_cross_entropy(
                Prediction(classes, torch.stack((-logits, logits))[None]), mask, stride
            )
        )

    assert cost(late, 4) < cost(edge, 4)
    assert cost(late, 1) > cost(edge, 1)


def test_emphasis_weighs_pixels_and_its_scale_cancels() -> None:
    torch.manual_seed(0)
    mask, prediction = _mask(), Prediction(torch.randn(1, 4, CLASSES + 1), torch.randn(1, 4, 8, 8))
    plain = semantic_cross_entropy(prediction, mask)
    torch.testing.assert_close(
        semantic_cross_entropy(prediction, mask, 4, torch.full(mask.shape, 3.0)), plain
    )
    left = torch.zeros(mask.shape)
    left[..., :16] = 1
    only = mask.clone()
    only[..., 16:] = VOID
    torch.testing.assert_close(
        semantic_cross_entropy(prediction, mask, 4, left), semantic_cross_entropy(prediction, only)
    )
