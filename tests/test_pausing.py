"""Pausing of tokens and narrow layers: what is chosen, what is updated, what it saves."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from model_export.network.encoder import Encoder
from model_export.network.pausing import Active, TokenHead, choose_active, entropy
from tests.small_network import COARSER, KNOBBED, SHAPES, SMALL, random_maps, randomised, worst

pytestmark = pytest.mark.usefixtures("one_thread", "seed")


# ---- pausing


@torch.no_grad()
def test_token_head_adds_the_coarser_maps_answers_at_stride_8() -> None:
    head, maps = randomised(TokenHead(32, 4)), random_maps()
    want = torch.zeros(2, 4, 8, 12)
    for layer, m in zip(head.classify, maps, strict=True):
        answer = (
            torch.einsum("kc,bchw->bkhw", layer.weight[:, :, 0, 0], m) + layer.bias[:, None, None]
        )
        want += F.interpolate(answer, (8, 12), mode="bilinear", align_corners=False)
    assert worst(head(maps), want) < 1e-5


def test_entropy_is_a_share_of_its_largest_value() -> None:
    logits = torch.tensor([[0.0, 0, 0, 0], [50, 0, 0, 0], [5, 5, -50, -50], [200, -200, 0, 0]]).T[
        None, :, None
    ]
    assert entropy(logits)[0, 0].tolist() == pytest.approx([1, 0, 0.5, 0], abs=1e-6)


@pytest.mark.parametrize(("keep", "count"), [(0.25, 24), (0.5, 48), (0.001, 1), (1.0, 96)])
def test_a_share_chooses_that_many_of_the_least_sure_tokens(keep: float, count: int) -> None:
    logits = torch.randn(2, 4, 8, 12)
    active = choose_active(logits, keep, None, SHAPES)
    unsure = entropy(logits).flatten(1)
    assert active.rows.shape == (2, COARSER + count)
    for image in range(2):
        assert active.rows[image, :COARSER].tolist() == list(range(COARSER))
        want = set((COARSER + unsure[image].argsort(descending=True)[:count]).tolist())
        assert set(active.rows[image, COARSER:].tolist()) == want
        paused = active.paused((8, 12))[image].flatten()
        assert set(paused.nonzero().flatten().tolist()) == {
            i for i in range(96) if COARSER + i not in want
        }
    assert active.paused((8, 12)).dtype == torch.uint8


def test_a_threshold_chooses_per_image_the_tokens_at_or_above_it() -> None:
    logits = torch.randn(3, 4, 8, 12) * torch.tensor([0.5, 2.0, 1000.0])[:, None, None, None]
    unsure = entropy(logits)
    level = float(unsure[1].flatten()[5])  # this very token is in
    active = choose_active(logits, 1.0, level, SHAPES)
    assert torch.equal(active.paused((8, 12)).bool(), unsure < level)
    assert active.counted is not None
    assert active.counted[:, :COARSER].all()
    counts = active.counted.sum(1).tolist()
    assert counts == (COARSER + (unsure >= level).flatten(1).sum(1)).tolist()
    assert len(set(counts)) == 3  # the images differ, so that rows fill up the batch
    assert active.rows.shape[1] == max(counts)


def test_rows_that_fill_up_the_batch_stay_as_they_were() -> None:
    tokens, updated = torch.randn(2, 10, 3), torch.randn(2, 6, 3)
    rows = torch.tensor([[0, 1, 5, 2, 9, 7], [0, 1, 8, 3, 2, 4]])
    counted = torch.tensor([[True] * 6, [True, True, True, False, False, False]])
    active = Active(rows, 2, counted)
    got = active.into(tokens, updated)
    for image, place in np.ndindex(2, 10):
        where = [k for k in range(6) if rows[image, k] == place and counted[image, k]]
        want = updated[image, where[0]] if where else tokens[image, place]
        assert torch.equal(got[image, place], want)
    assert torch.equal(active.of(tokens), torch.stack([tokens[i, rows[i]] for i in range(2)]))
    assert torch.equal(active.of(tokens[0]), tokens[0][rows])
    assert active.paused((2, 4)).tolist() == [
        [[0, 1, 1, 0], [1, 0, 1, 0]],
        [[1, 1, 1, 1], [1, 1, 0, 1]],
    ]


@pytest.fixture
def pausing() -> Encoder:
    return randomised(Encoder(KNOBBED))


@torch.no_grad()
def test_a_threshold_of_zero_pauses_nothing(pausing: Encoder) -> None:
    maps = random_maps()
    plain, paused = list(pausing.run(maps, 5)), list(pausing.run(maps, 5, threshold=0.0))
    assert paused[-1].active is not None
    assert not paused[-1].active.paused((8, 12)).any()
    for a, b in zip(plain, paused, strict=True):
        # The rows' order alone differs.
        assert max(worst(x, y) for x, y in zip(a.maps, b.maps, strict=True)) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("how", [{"keep": 0.25}, {"threshold": 0.6}], ids=["share", "threshold"])
def test_later_layers_update_exactly_the_active_tokens(
    pausing: Encoder, how: dict[str, float]
) -> None:
    maps = random_maps()
    plain, every = list(pausing.run(maps, 5)), list(pausing.run(maps, 5, **how))
    assert [each.active is None for each in every] == [True, True, True, False, False]
    for a, b in zip(plain[:3], every[:3], strict=True):  # before, nothing has changed
        assert all(torch.equal(x, y) for x, y in zip(a.maps, b.maps, strict=True))
    paused = every[3].active.paused((8, 12)).bool()
    assert 0.2 < paused.float().mean() < 0.9
    for before, after in pairwise(every[2:]):
        moved = (before.maps[2] - after.maps[2]).abs().amax(1)  # (B, h, w)
        assert not moved[paused].any()
        assert moved[~paused].min() > 1e-3
        assert all(
            (x - y).abs().amax(1).min() > 1e-3
            for x, y in zip(before.maps[:2], after.maps[:2], strict=True)
        )
    # The first layer that pauses gives the others what it gives without pausing: they still sample
    # the paused tokens.
    assert (
        max(worst(x, y) for x, y in zip(plain[3].maps[:2], every[3].maps[:2], strict=True)) < 1e-4
    )
    active = (~paused).unsqueeze(1).expand_as(maps[2])
    assert worst(plain[3].maps[2][active], every[3].maps[2][active]) < 1e-4


@torch.no_grad()
def test_a_paused_token_is_still_sampled_by_the_others() -> None:
    layer = randomised(Encoder(KNOBBED)).layers[4]
    tokens, position, reference = torch.randn(1, 126, 32), torch.randn(126, 32), torch.rand(126, 2)
    active = Active(torch.arange(60)[None], COARSER)
    changed = tokens.clone()
    changed[:, 60:] += torch.randn(1, 66, 32)
    before, after = (layer(x, position, reference, SHAPES, 1.0, active) for x in (tokens, changed))
    assert torch.equal(after[:, 60:], changed[:, 60:])
    assert (after[:, :60] - before[:, :60]).abs().amax(-1).max() > 1e-2


@torch.no_grad()
def test_each_image_of_a_batch_pauses_its_own_tokens(pausing: Encoder) -> None:
    maps = random_maps()
    for how in ({"keep": 0.25}, {"threshold": 0.6}):
        *_, both = pausing.run(maps, 5, **how)
        for image in range(2):
            *_, alone = pausing.run([m[image : image + 1] for m in maps], 5, **how)
            assert torch.equal(alone.active.paused((8, 12))[0], both.active.paused((8, 12))[image])
            assert (
                max(worst(a[0], b[image]) for a, b in zip(alone.maps, both.maps, strict=True))
                < 1e-4
            )


@torch.no_grad()
def test_the_head_speaks_once_behind_its_layer(pausing: Encoder) -> None:
    maps = random_maps()
    every = list(pausing.run(maps, 5))
    assert [each.tokens is None for each in every] == [True, True, True, False, False]
    assert torch.equal(every[4].tokens, pausing.token_head(every[2].maps))


def test_a_network_without_a_token_head_cannot_pause() -> None:
    encoder = Encoder(SMALL)
    with pytest.raises(AssertionError, match="no token head"):
        encoder(random_maps(), 6, keep=0.5)


# ---- width


@torch.no_grad()
@pytest.mark.parametrize("width", [0.25, 0.5])
def test_a_narrow_layer_uses_the_first_channels_only(pausing: Encoder, width: float) -> None:
    layer, n = pausing.layers[2], round(16 * width)
    tokens, position, reference = torch.randn(2, 126, 32), torch.randn(126, 32), torch.rand(126, 2)
    got = layer(tokens, position, reference, SHAPES, width)
    x = layer.norm1(tokens + layer.attention(tokens + position, tokens, reference, SHAPES))
    hidden = F.relu(x @ layer.linear1.weight[:n].T + layer.linear1.bias[:n])
    want = layer.norm2(x + hidden @ layer.linear2.weight[:, :n].T + layer.linear2.bias)
    assert worst(got, want) < 1e-5
    full = layer(tokens, position, reference, SHAPES)
    assert worst(full, got) > 1e-2
    for rest in (layer.linear1.weight[n:], layer.linear1.bias[n:], layer.linear2.weight[:, n:]):
        rest.normal_()
    assert torch.equal(layer(tokens, position, reference, SHAPES, width), got)
    assert worst(layer(tokens, position, reference, SHAPES), full) > 1e-2


# ---- knobs together


@torch.no_grad()
def test_every_combination_of_knobs_runs_and_each_knob_cuts_the_work(pausing: Encoder) -> None:
    maps, flops = random_maps(), {}
    for depth, keep, width in product(range(1, 6), (0.25, 0.5, 1.0), (0.25, 0.5, 1.0)):
        with FlopCounterMode(display=False) as counter:
            out = pausing(maps, depth, keep, width)
        assert [m.shape for m in out] == [m.shape for m in maps]
        assert all(m.isfinite().all() for m in out)
        flops[depth, keep, width] = counter.get_total_flops()
    for (depth, keep, width), cost in flops.items():
        assert cost > flops.get((depth - 1, keep, width), 0)
        assert width == 0.25 or cost > flops[depth, width / 2, width / 2] or keep != 1
        if width > 0.25:
            assert cost > flops[depth, keep, width / 2]
        if keep > 0.25:
            less = flops[depth, keep / 2, width]
            # Up to the third layer nothing is paused.
            assert cost > less if depth >= 4 else cost == less
