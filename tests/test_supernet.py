"""What a step of training sees: who gets which images, what each learns from, and that the smaller
ones are taught."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model_export.data.datasets import VOID
from model_export.network.config import tiny
from model_export.network.encoder import Encoded
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from model_export.training.losses import set_loss
from model_export.training.supernet import (
    SAMPLING,
    Draw,
    Supernet,
    Weights,
    distillation,
    exit_weights,
    one_exit,
    random_draw,
    sandwich,
    token_loss,
)
from tests.toy import toy

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = Weights(64, 2.0, 1.0, 1.0, [1.0, 1.0, 1.0])


def test_exit_weights_grow_with_depth_and_have_mean_one() -> None:
    weights = exit_weights("linear", 6)
    assert np.mean(weights) == pytest.approx(1)
    assert np.allclose(np.diff(weights), weights[0])
    assert exit_weights("uniform", 4) == [1.0] * 4


@pytest.mark.parametrize("batch", range(1, 13))
@pytest.mark.parametrize("kind", sorted(SAMPLING))
def test_every_image_of_a_batch_goes_through_exactly_one_network(kind: str, batch: int) -> None:
    for seed in range(8):
        draws = SAMPLING[kind](tiny(), batch, np.random.default_rng(seed))
        rows = [row for draw in draws for row in range(batch)[draw.rows]]
        assert rows == list(range(batch))


def test_the_sandwich_has_the_full_the_smallest_and_a_random_network() -> None:
    full, between, least = sandwich(tiny(), 8, np.random.default_rng(0))
    assert (full.knobs, full.threshold, full.rows) == (Knobs(6), None, slice(0, 4))
    assert (least.knobs, least.threshold, least.rows) == (Knobs(1, 1, 0.25), None, slice(6, 8))
    assert between.rows == slice(4, 6)
    small = [sandwich(tiny(), 2, np.random.default_rng(seed)) for seed in range(40)]
    assert all(len(draws) == 1 for draws in small)
    assert 10 < sum(draws[0].knobs == Knobs(6) for draws in small) < 32


def test_random_networks_turn_every_knob_in_any_combination() -> None:
    rng, whole = np.random.default_rng(0), slice(0, 1)
    drawn = [random_draw(tiny(), whole, rng) for _ in range(2000)]
    assert {d.knobs.depth for d in drawn} == {1, 2, 3, 4, 5, 6}
    assert {d.knobs.width for d in drawn} == {0.25, 0.5, 1.0}
    pausing = [d for d in drawn if d.threshold is not None or d.knobs.keep < 1]
    assert {d.knobs.depth for d in pausing} == {5, 6}  # before, there is nothing to pause
    assert {d.knobs.width for d in pausing} == {0.25, 0.5, 1.0}
    by_share = [d.knobs.keep for d in pausing if d.threshold is None]
    assert 0.1 <= min(by_share) < 0.15
    assert 0.95 < max(by_share) < 1
    assert 0.3 < len(by_share) / len(pausing) < 0.7
    assert all(d.knobs.keep == 1 for d in pausing if d.threshold is not None)
    plain = replace(tiny(), pause_after=None)
    assert all(random_draw(plain, whole, rng).knobs.keep == 1 for _ in range(50))


def test_one_exit_is_uniform_and_cuts_nothing_else() -> None:
    rng = np.random.default_rng(0)
    drawn = [one_exit(tiny(), 4, rng) for _ in range(1200)]
    assert all(
        len(d) == 1 and d[0].rows == slice(0, 4) and d[0].knobs == Knobs(d[0].knobs.depth)
        for d in drawn
    )
    counts = np.bincount([d[0].knobs.depth for d in drawn], minlength=7)[1:]
    assert counts.min() > 150  # 200 expected
    assert counts.max() < 255


def test_token_loss_compares_with_the_labels_at_the_tokens_centres_and_skips_void() -> None:
    masks = torch.full((1, 16, 24), VOID, dtype=torch.uint8)
    masks[0, 4::8, 4::8] = torch.tensor([[0, 1, 2], [2, 1, VOID]], dtype=torch.uint8)
    logits = torch.randn(1, 3, 2, 3)
    wanted = F.cross_entropy(
        logits.permute(0, 2, 3, 1).reshape(6, 3)[:5], torch.tensor([0, 1, 2, 2, 1])
    )
    assert torch.allclose(token_loss(logits, masks), wanted)
    assert float(token_loss(logits, torch.full_like(masks, VOID))) == 0


def test_distillation_compares_only_the_scales_that_the_smaller_network_has_reached() -> None:
    ours, full = ([torch.randn(1, 4, n, n) for n in (2, 4, 8)] for _ in range(2))
    wanted = (F.mse_loss(ours[0], full[0]) + F.mse_loss(ours[1], full[1])) / 2
    assert torch.allclose(distillation(Encoded(ours), full, 2), wanted)


def _batch(size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (size, 64, 96, 3), dtype=torch.uint8)
    return images, torch.randint(0, 11, (size, 64, 96), dtype=torch.uint8)


def test_the_loss_is_each_network_s_own_on_its_own_images() -> None:
    """Against each one run alone: shares of the batch and weights of the exits included."""
    torch.manual_seed(1)
    model, (images, masks) = Segmenter(toy()), _batch()
    weights = Weights(64, 2.0, 0.0, 0.0, [0.5, 1.0, 1.5])
    draws = [Draw(slice(0, 3), Knobs(3)), Draw(slice(3, 4), Knobs(1, 1, 0.5))]
    torch.manual_seed(2)
    found = Supernet(model, weights)(images, masks, draws)
    torch.manual_seed(2)
    wanted = dict.fromkeys(("class", "bce", "dice", "pixel"), torch.zeros(()))
    for draw, share in ((draws[0], 0.75 * 1.5), (draws[1], 0.25 * 0.5)):
        for prediction in model(images[draw.rows], draw.knobs, deep=True):
            for name, value in set_loss(prediction, masks[draw.rows], "class", 64, 2.0).items():
                wanted[name] = wanted[name] + share * value
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=1e-3), name
    assert float(found["token"].detach()) == 0
    assert "distill" not in found


def test_only_smaller_networks_are_taught_and_the_teacher_learns_nothing_from_it() -> None:
    torch.manual_seed(1)
    model, (images, masks) = Segmenter(toy()), _batch(2)
    only_distill = Supernet(model, replace(WEIGHTS, distill=1.0))
    assert "distill" not in only_distill(images, masks, [Draw(slice(0, 2), Knobs(3))])
    for draw in (
        Draw(slice(0, 2), Knobs(2)),
        Draw(slice(0, 2), Knobs(3, 1, 0.5)),
        Draw(slice(0, 2), Knobs(3), 1.1),
    ):
        model.zero_grad()
        only_distill(images, masks, [draw])["distill"].backward()
        assert model.encoder.layers[0].linear1.weight.grad.abs().sum() > 0
        # Beyond exit 2 only the teacher runs; where a token is not paused, both are the same.
        third = model.encoder.layers[2].linear1.weight.grad
        assert (third is None or not third.any()) is (draw.knobs != Knobs(3, 1, 0.5))


def test_both_token_heads_learn_and_nobody_s_loss_is_lost() -> None:
    torch.manual_seed(1)
    model, (images, masks) = Segmenter(toy()), _batch()
    terms = Supernet(model, WEIGHTS)(images, masks, sandwich(toy(), 4, np.random.default_rng(3)))
    assert set(terms) == {"class", "bce", "dice", "pixel", "token", "distill"}
    torch.stack(list(terms.values())).sum().backward()
    for head in (model.front_head, model.encoder.token_head):
        assert all(p.grad is not None and p.grad.any() for p in head.parameters())
