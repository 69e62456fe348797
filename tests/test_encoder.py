"""The encoder against slow and plain statements of what it should do.

That the whole is Mask2Former is shown in test_mask2former_parity.py.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model_export.network.config import STANDARD, proscale
from model_export.network.encoder import Encoder, TokenRecalibration
from tests.small_network import KNOBBED, SHAPES, SMALL, every_exit, random_maps, randomised, worst

pytestmark = pytest.mark.usefixtures("one_thread", "seed")


# ---- encoder


@pytest.fixture(params=[STANDARD, proscale(2, 2, 2)], ids=["standard", "proscale"])
def schedule(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return request.param


@pytest.fixture(params=[False, True], ids=["plain", "recalibrated"])
def encoder(request: pytest.FixtureRequest, schedule: tuple[int, ...]) -> Encoder:
    return randomised(Encoder(replace(SMALL, schedule=schedule, recalibration=request.param)))


@torch.no_grad()
def test_encoder_gives_at_every_exit_what_running_only_so_far_gives(encoder: Encoder) -> None:
    maps = random_maps()
    every = every_exit(encoder, maps, 6)
    assert len(every) == 6
    for k, outputs in enumerate(every, 1):
        for got, want in zip(encoder(maps, k), outputs, strict=True):
            assert torch.equal(got, want)
    assert all(worst(a[0], b[0]) > 1e-2 for a, b in pairwise(every))  # each layer does something


@torch.no_grad()
def test_encoder_updates_scales_that_the_schedule_reached_and_passes_the_others_on(
    encoder: Encoder,
) -> None:
    maps = random_maps()
    for k, outputs in enumerate(every_exit(encoder, maps, 6), 1):
        reached = encoder.schedule[k - 1]
        for scale in range(3):
            assert outputs[scale].shape == maps[scale].shape
            if scale < reached:
                assert worst(outputs[scale], maps[scale]) > 1e-2
            else:
                assert outputs[scale] is maps[scale]


def test_encoder_layers_look_at_as_many_levels_as_the_schedule_says(encoder: Encoder) -> None:
    assert tuple(layer.attention.levels for layer in encoder.layers) == encoder.schedule
    for layer, levels in zip(encoder.layers, encoder.schedule, strict=True):
        assert layer.attention.logits.out_features == SMALL.heads * levels * SMALL.points
        assert layer.attention.offsets.out_features == SMALL.heads * levels * SMALL.points * 2


@torch.no_grad()
def test_encoder_treats_each_image_of_a_batch_alone(encoder: Encoder) -> None:
    maps = random_maps()
    both, second = encoder(maps, 6), encoder([m[1:] for m in maps], 6)
    # Six layers amplify rounding.
    assert max(worst(b[1:], s) for b, s in zip(both, second, strict=True)) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("recalibration", [False, True])
def test_a_scale_sees_finer_ones_before_they_join_only_through_recalibration(
    recalibration: bool,
) -> None:
    encoder = randomised(
        Encoder(replace(SMALL, schedule=proscale(2, 2, 2), recalibration=recalibration))
    )
    maps = random_maps()
    coarsest = encoder(maps, 2)[0]
    assert torch.equal(coarsest, encoder([maps[0], torch.randn_like(maps[1]), maps[2]], 2)[0])
    finest = encoder([maps[0], maps[1], torch.randn_like(maps[2])], 2)[0]
    assert torch.equal(coarsest, finest) is not recalibration


@torch.no_grad()
def test_recalibration_scales_every_place_by_one_gate_read_off_the_finest_map() -> None:
    layer = randomised(TokenRecalibration(32))
    coarse, finest = torch.randn(2, 32, 2, 3), 5 * torch.randn(2, 32, 4, 6)
    want = torch.empty_like(coarse)
    for b in range(2):
        for y in range(2):
            for x in range(3):  # at half the size the bilinear resize is the mean of four pixels
                seen = finest[b, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((1, 2))
                gate = 0.1 * (layer.excite.weight[0] @ seen + layer.excite.bias[0])
                want[b, :, y, x] = coarse[b, :, y, x] / (1 + torch.exp(-gate))
    assert worst(layer(coarse, finest), want) < 1e-5


@torch.no_grad()
def test_scales_join_recalibrated_and_as_they_came_from_the_backbone() -> None:
    """PRO-SCALE (1, 1, 1) written out: x5' alone, then [h5 | x4'], then [h54 | x3]."""
    encoder = randomised(Encoder(replace(SMALL, schedule=(1, 2, 3), recalibration=True)))
    maps = random_maps()
    seen: list[Tensor] = []
    for layer in encoder.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    outputs = every_exit(encoder, maps, 3)
    x5, x4 = (encoder.recalibration(m, maps[2]).flatten(2).mT for m in maps[:2])
    assert torch.equal(seen[0], x5)
    assert torch.equal(seen[1], torch.cat((outputs[0][0].flatten(2).mT, x4), 1))
    assert torch.equal(seen[2], torch.cat([m.flatten(2).mT for m in (*outputs[1][:2], maps[2])], 1))


# ---- top-down


@torch.no_grad()
def test_scales_that_no_layer_has_reached_get_what_comes_down_from_the_coarser_ones() -> None:
    maps, encoder = random_maps(), randomised(Encoder(KNOBBED))
    first, second, third = (each.maps for each in encoder.run(maps, 3))

    def down(step: int, above: Tensor, size: tuple[int, int]) -> Tensor:
        conv = encoder.top_down[step]
        moved = (
            torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], above) + conv.bias[:, None, None]
        )
        return F.interpolate(moved, size, mode="bilinear", align_corners=False)

    assert worst(first[1], maps[1] + down(0, first[0], SHAPES[1])) < 1e-4
    assert worst(first[2], maps[2] + down(1, first[1], SHAPES[2])) < 1e-4
    assert worst(second[2], maps[2] + down(1, second[1], SHAPES[2])) < 1e-4
    plain = randomised(Encoder(replace(KNOBBED, top_down=False)))
    assert torch.equal(plain(maps, 2)[2], maps[2])
    assert worst(third[2], maps[2]) > 1e-2


@torch.no_grad()
def test_a_scale_joins_with_what_came_down_to_it() -> None:
    encoder = randomised(Encoder(KNOBBED))
    maps, seen = random_maps(), []
    for layer in encoder.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    every = [each.maps for each in encoder.run(maps, 3)]
    for k in (1, 2):
        assert torch.equal(seen[k], torch.cat([m.flatten(2).mT for m in every[k - 1][: k + 1]], 1))
