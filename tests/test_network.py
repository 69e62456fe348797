"""The network's boxes, each against a slow and plain statement of what it should do.

That the whole is Mask2Former is shown in test_mask2former_parity.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model_export.network.backbone import BACKBONES, MobileNetV1, MobileNetV2, SameConv, load_pretrained
from model_export.network.config import CONFIGS, STANDARD, Config, base, proscale, standard, tiny
from model_export.network.decoder import Decoder, PixelEmbedding, Prediction
from model_export.network.deformable_attention import DeformableAttention, deformable_attention
from model_export.network.encoder import Encoder, TokenRecalibration
from model_export.network.gate import EDGES, Gate, gate_input, gate_inputs
from model_export.network.knobs import Knobs
from model_export.network.pausing import Active, TokenHead, choose_active, entropy
from model_export.network.segmenter import Segmenter, semantic_probabilities

WEIGHTS = Path(__file__).parents[2] / "shared" / "data" / "backbones"
FILES = {
    "mobilenet_v1": "mobilenet_v1_1.0_224_nohead.npz",
    "mobilenet_v2": "mobilenet_v2_1.0_folded_nohead.npz",
}
SMALL = Config(
    name="small",
    task="semantic",
    classes=4,
    queries=4,
    channels=32,
    heads=4,
    encoder_ffn=16,
    decoder_layers=4,
    decoder_ffn=16,
)
M = TypeVar("M", bound=nn.Module)
SHAPES = [(2, 3), (4, 6), (8, 12)]  # strides 32, 16 and 8 of an image of 64 x 96
COARSER, FINEST = 6 + 24, 96  # tokens
# Three layers, one per scale that joins, then two that may pause.
KNOBBED = replace(SMALL, schedule=(1, 2, 3, 3, 3), top_down=True, pause_after=3, widths=(0.25, 0.5, 1.0))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def randomised(module: M) -> M:
    """No zeros are left, so that no part can be swapped for another unnoticed."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


def random_maps() -> list[Tensor]:
    return [torch.randn(2, SMALL.channels, *shape) for shape in SHAPES]


def every_exit(encoder: Encoder, maps: list[Tensor], last: int) -> list[list[Tensor]]:
    return [encoded.maps for encoded in encoder.run(maps, last)]


def worst(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


# ---------------------------------------------------------------------------------------------- deformable attention


def pixel(value: Tensor, start: int, shape: tuple[int, int], y: int, x: int) -> Tensor:
    """value: (S, D) of one image and head. Zeros outside of the level."""
    if 0 <= y < shape[0] and 0 <= x < shape[1]:
        return value[start + y * shape[1] + x]
    return torch.zeros(value.shape[1])


def slow_deformable_attention(
    value: Tensor, offsets: Tensor, logits: Tensor, reference: Tensor, shapes: list[tuple[int, int]]
) -> tuple[Tensor, int]:
    """One sample at a time, after the paper's formula. Also counts the samples without any pixel beneath them."""
    batch, queries, heads, _, points = logits.shape
    out, outside = torch.zeros(batch, queries, heads, value.shape[-1]), 0
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                weights = logits[b, q, m].exp() / logits[b, q, m].exp().sum()
                start = 0
                for level, (height, width) in enumerate(shapes):
                    for p in range(points):
                        x = (reference[q, 0] * width + offsets[b, q, m, level, p, 0] - 0.5).item()  # pixel centres
                        y = (reference[q, 1] * height + offsets[b, q, m, level, p, 1] - 0.5).item()
                        left, top = math.floor(x), math.floor(y)
                        fx, fy = x - left, y - top
                        outside += not (-1 < x < width and -1 < y < height)
                        plane, shape = value[b, :, m], (height, width)
                        sample = (
                            (1 - fy) * (1 - fx) * pixel(plane, start, shape, top, left)
                            + (1 - fy) * fx * pixel(plane, start, shape, top, left + 1)
                            + fy * (1 - fx) * pixel(plane, start, shape, top + 1, left)
                            + fy * fx * pixel(plane, start, shape, top + 1, left + 1)
                        )
                        out[b, q, m] += weights[level, p] * sample
                    start += height * width
    return out.flatten(2), outside


@pytest.mark.parametrize("shapes", [[(3, 5)], [(1, 3), (5, 2)], [(1, 1), (3, 2), (5, 7)]], ids=["1", "2", "3"])
def test_deformable_attention_equals_a_loop_over_single_samples(shapes: list[tuple[int, int]]) -> None:
    batch, queries, heads, width, levels, points = 2, 5, 2, 3, len(shapes), 3
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, width)
    offsets = 2.5 * torch.randn(batch, queries, heads, levels, points, 2)
    logits = torch.randn(batch, queries, heads, levels, points)
    reference = torch.rand(queries, 2)
    want, outside = slow_deformable_attention(value, offsets, logits, reference, shapes)
    assert 5 < outside < 0.9 * logits.numel()  # some samples see nothing, some see pixels
    assert worst(deformable_attention(value, offsets, logits, reference, shapes), want) < 1e-5


def test_deformable_attention_of_an_unmoved_point_is_the_pixel_itself() -> None:
    value = torch.randn(1, 12, 1, 4)
    reference = torch.tensor([((i % 4 + 0.5) / 4, (i // 4 + 0.5) / 3) for i in range(12)])
    got = deformable_attention(value, torch.zeros(1, 12, 1, 1, 2, 2), torch.randn(1, 12, 1, 1, 2), reference, [(3, 4)])
    assert worst(got, value[:, :, 0]) < 1e-6


def test_deformable_attention_has_the_gradients_of_its_finite_differences() -> None:
    shapes, kind = [(2, 3), (1, 2)], {"dtype": torch.float64, "requires_grad": True}
    value, offsets = torch.randn(1, 8, 2, 2, **kind), torch.randn(1, 2, 2, 2, 2, 2, **kind)
    logits, reference = torch.randn(1, 2, 2, 2, 2, **kind), torch.rand(2, 2, **kind)

    def attend(*inputs: Tensor) -> Tensor:
        return deformable_attention(*inputs, shapes)

    assert torch.autograd.gradcheck(attend, (value, offsets, logits, reference))


def test_deformable_attention_starts_with_equal_weights_on_rings_around_the_reference() -> None:
    layer = DeformableAttention(channels=32, heads=4, levels=2, points=3)
    query = torch.randn(1, 5, 32)
    offsets = layer.offsets(query).reshape(5, 4, 2, 3, 2)
    right, down = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for point in range(3):
        for head, direction in enumerate((right, down, -right, -down)):
            expected = (direction * (point + 1)).expand(5, 2, 2)
            assert worst(offsets[:, head, :, point], expected) < 1e-6
    assert not layer.logits(query).any()


# ------------------------------------------------------------------------------------------------------------ config


@pytest.mark.parametrize("schedule", [(), (0, 1), (4,), (3, 1), (1, 3, 2)], ids=str)
def test_config_refuses_a_schedule_that_is_empty_or_unknown_or_drops_a_scale(schedule: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="schedule"):
        replace(SMALL, schedule=schedule)


def test_config_refuses_class_matching_unless_every_class_has_its_query() -> None:
    with pytest.raises(ValueError, match="queries == classes, not 5 and 4"):
        replace(SMALL, queries=5)
    assert replace(SMALL, queries=5, matching="hungarian").queries == 5


@pytest.mark.parametrize(("channels", "heads"), [(48, 8), (64, 3)])
def test_config_refuses_channels_that_do_not_divide(channels: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"channels {channels}"):
        replace(SMALL, channels=channels, heads=heads)


@pytest.mark.parametrize("after", [-1, 3])
def test_config_refuses_to_pause_behind_the_last_layer(after: int) -> None:
    with pytest.raises(ValueError, match=f"pause_after {after} must be 0 to 2, or None"):
        replace(SMALL, schedule=(1, 2, 3), pause_after=after)


@pytest.mark.parametrize("widths", [(), (0.5,), (0.0, 1.0), (1.0, 1.5)], ids=str)
def test_config_refuses_widths_without_the_full_one_or_out_of_range(widths: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="widths"):
        replace(SMALL, widths=widths)


def test_config_knows_the_first_exit_that_can_pause_any_token() -> None:
    assert tiny().pauses_from == 5
    assert replace(tiny(), pause_after=2).pauses_from == 5  # before, no layer updates tokens of stride 8
    assert replace(tiny(), pause_after=5).pauses_from == 6
    assert replace(standard(), pause_after=0).pauses_from == 1
    assert standard().pauses_from is None
    assert replace(tiny(), schedule=(1, 2), pause_after=0).pauses_from is None


def test_published_and_standard_sizes_turn_no_knob() -> None:
    """They are what others are compared with: Mask2Former's encoder, every layer over all scales."""
    for config in (base(), standard()):
        assert config.schedule == (3,) * 6
        assert (config.pause_after, config.widths, config.top_down, config.recalibration) == (
            None,
            (1.0,),
            False,
            False,
        )
        encoder = Encoder(config)
        assert encoder.token_head is None
        assert encoder.top_down is None
    sizes = ("channels", "encoder_ffn", "queries", "decoder_layers", "decoder_ffn", "pixel_embedding", "matching")
    assert [getattr(base(), name) for name in sizes] == [256, 1024, 100, 9, 2048, "conv", "hungarian"]
    same = ("channels", "encoder_ffn", "heads", "points", "decoder_layers", "decoder_ffn", "pixel_embedding")
    assert all(getattr(standard(), name) == getattr(tiny(), name) for name in same)


def test_config_survives_json() -> None:
    for make in CONFIGS.values():
        assert Config.from_dict(json.loads(json.dumps(make(7).as_dict()))) == make(7)


def test_proscale_names_the_layers_of_each_group() -> None:
    assert proscale(1, 2, 3) == (1, 2, 2, 3, 3, 3)
    assert replace(SMALL, schedule=proscale(2, 2, 2)).exits == 6


# ----------------------------------------------------------------------------------------------------------- encoder


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
def test_encoder_updates_scales_that_the_schedule_reached_and_passes_the_others_on(encoder: Encoder) -> None:
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
    assert max(worst(b[1:], s) for b, s in zip(both, second, strict=True)) < 1e-4  # six layers amplify rounding


@torch.no_grad()
@pytest.mark.parametrize("recalibration", [False, True])
def test_a_scale_sees_finer_ones_before_they_join_only_through_recalibration(recalibration: bool) -> None:
    encoder = randomised(Encoder(replace(SMALL, schedule=proscale(2, 2, 2), recalibration=recalibration)))
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


# ------------------------------------------------------------------------------------------------------------- knobs


percents = st.integers(1, 1000).map(lambda tenths: round(tenths / 1000, 3))


@given(depth=st.integers(1, 99), keep=percents, width=percents)
def test_a_plan_s_name_says_all_of_it(depth: int, keep: float, width: float) -> None:
    knobs = Knobs(depth, keep, width)
    assert Knobs.parse(knobs.name) == knobs
    assert ("k" in knobs.name, "w" in knobs.name) == (keep != 1, width != 1)


def test_names_of_plans_are_those_of_the_bundles() -> None:
    names = {Knobs(6): "d6", Knobs(5, 0.5): "d5-k50", Knobs(6, 0.25, 0.5): "d6-k25-w50", Knobs(1, 1, 0.125): "d1-w12.5"}
    assert {knobs: knobs.name for knobs in names} == names


@pytest.mark.parametrize("text", ["", "6", "d0", "d06", "d6-k0", "d6-k101", "d6-w50-k50", "d6-", "d6-k50-k50", "d6 "])
def test_a_name_that_is_no_plan_s_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ValueError, match="must be like d6, d6-k50 or d6-k25-w50"):
        Knobs.parse(text)


# ----------------------------------------------------------------------------------------------------------- pausing


@torch.no_grad()
def test_token_head_adds_the_coarser_maps_answers_at_stride_8() -> None:
    head, maps = randomised(TokenHead(32, 4)), random_maps()
    want = torch.zeros(2, 4, 8, 12)
    for layer, m in zip(head.classify, maps, strict=True):
        answer = torch.einsum("kc,bchw->bkhw", layer.weight[:, :, 0, 0], m) + layer.bias[:, None, None]
        want += F.interpolate(answer, (8, 12), mode="bilinear", align_corners=False)
    assert worst(head(maps), want) < 1e-5


def test_entropy_is_a_share_of_its_largest_value() -> None:
    logits = torch.tensor([[0.0, 0, 0, 0], [50, 0, 0, 0], [5, 5, -50, -50], [200, -200, 0, 0]]).T[None, :, None]
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
        assert set(paused.nonzero().flatten().tolist()) == {i for i in range(96) if COARSER + i not in want}
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
    assert active.paused((2, 4)).tolist() == [[[0, 1, 1, 0], [1, 0, 1, 0]], [[1, 1, 1, 1], [1, 1, 0, 1]]]


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
        assert max(worst(x, y) for x, y in zip(a.maps, b.maps, strict=True)) < 1e-4  # the rows' order alone differs


@torch.no_grad()
@pytest.mark.parametrize("how", [{"keep": 0.25}, {"threshold": 0.6}], ids=["share", "threshold"])
def test_later_layers_update_exactly_the_active_tokens(pausing: Encoder, how: dict[str, float]) -> None:
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
        assert all((x - y).abs().amax(1).min() > 1e-3 for x, y in zip(before.maps[:2], after.maps[:2], strict=True))
    # The first layer that pauses gives the others what it gives without pausing: they still sample the paused tokens.
    assert max(worst(x, y) for x, y in zip(plain[3].maps[:2], every[3].maps[:2], strict=True)) < 1e-4
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
            assert max(worst(a[0], b[image]) for a, b in zip(alone.maps, both.maps, strict=True)) < 1e-4


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


# ------------------------------------------------------------------------------------------------------------- width


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


# ---------------------------------------------------------------------------------------------------- knobs together


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
            assert cost > less if depth >= 4 else cost == less  # up to the third layer nothing is paused


# ---------------------------------------------------------------------------------------------------------- top-down


@torch.no_grad()
def test_scales_that_no_layer_has_reached_get_what_comes_down_from_the_coarser_ones(pausing: Encoder) -> None:
    maps = random_maps()
    first, second, third = (each.maps for each in pausing.run(maps, 3))

    def down(step: int, above: Tensor, size: tuple[int, int]) -> Tensor:
        conv = pausing.top_down[step]
        moved = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], above) + conv.bias[:, None, None]
        return F.interpolate(moved, size, mode="bilinear", align_corners=False)

    assert worst(first[1], maps[1] + down(0, first[0], SHAPES[1])) < 1e-4
    assert worst(first[2], maps[2] + down(1, first[1], SHAPES[2])) < 1e-4
    assert worst(second[2], maps[2] + down(1, second[1], SHAPES[2])) < 1e-4
    plain = randomised(Encoder(replace(KNOBBED, top_down=False)))
    assert torch.equal(plain(maps, 2)[2], maps[2])
    assert worst(third[2], maps[2]) > 1e-2


@torch.no_grad()
def test_a_scale_joins_with_what_came_down_to_it(pausing: Encoder) -> None:
    maps, seen = random_maps(), []
    for layer in pausing.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    every = [each.maps for each in pausing.run(maps, 3)]
    for k in (1, 2):
        assert torch.equal(seen[k], torch.cat([m.flatten(2).mT for m in every[k - 1][: k + 1]], 1))


# ----------------------------------------------------------------------------------------------------------- decoder


@pytest.fixture(params=["conv", "light", "depthwise"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return randomised(Decoder(replace(SMALL, pixel_embedding=request.param)))


@torch.no_grad()
def test_deep_supervision_leaves_the_final_prediction_as_it_is(decoder: Decoder) -> None:
    lateral, maps = torch.randn(2, 32, 16, 24), random_maps()
    heads, (final,) = decoder(lateral, maps, deep=True), decoder(lateral, maps)
    assert len(heads) == SMALL.decoder_layers + 1
    assert final.classes.shape == (2, SMALL.queries, SMALL.classes + 1)
    assert final.masks.shape == (2, SMALL.queries, 16, 24)
    assert torch.equal(final.classes, heads[-1].classes)
    assert torch.equal(final.masks, heads[-1].masks)
    assert all(worst(a.masks, b.masks) > 1e-2 for a, b in pairwise(heads))


@torch.no_grad()
def test_resizing_mask_features_first_equals_resizing_full_masks(decoder: Decoder) -> None:
    lateral, maps = torch.randn(2, 32, 16, 24), random_maps()
    features, embedding = decoder.pixel_embedding(lateral, maps[-1]), torch.randn(2, SMALL.queries, 32)
    for shape in SHAPES:
        full = torch.einsum("bqc,bchw->bqhw", embedding, features)
        want = F.interpolate(full, shape, mode="bilinear", align_corners=False)
        got = embedding @ F.interpolate(features, shape, mode="bilinear", align_corners=False).flatten(2)
        assert worst(got.unflatten(2, shape), want) < 1e-5


@torch.no_grad()
def test_each_layer_looks_only_where_the_full_size_mask_before_it_is_on(decoder: Decoder) -> None:
    lateral, maps = torch.randn(2, 32, 16, 24), random_maps()
    seen: list[Tensor] = []
    for layer in decoder.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[-1]))
    heads = decoder(lateral, maps, deep=True)
    for i, blocked in enumerate(seen):
        resized = F.interpolate(heads[i].masks, SHAPES[i % 3], mode="bilinear", align_corners=False).flatten(2)
        assert resized.abs().min() > 1e-6  # no bit of this seed hangs on rounding
        want = resized.sigmoid() < 0.5
        want[want.all(-1)] = False  # an empty mask looks everywhere
        assert torch.equal(blocked, want)
    assert any(blocked.any() and not blocked.all() for blocked in seen)


@torch.no_grad()
def test_a_query_whose_mask_is_empty_looks_everywhere(decoder: Decoder) -> None:
    pixels, last = decoder.pixel_embedding.project, decoder.embed_mask[-1]
    for layer in (pixels, last):
        layer.weight.zero_()
    last.bias.copy_(-pixels.bias)  # every logit is now -|bias|^2
    seen: list[Tensor] = []
    for layer in decoder.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[-1]))
    (final,) = decoder(torch.randn(2, 32, 16, 24), random_maps())
    assert final.masks.max() < 0
    assert len(seen) == SMALL.decoder_layers
    assert not any(blocked.any() for blocked in seen)


@torch.no_grad()
def test_light_pixel_embedding_takes_the_greatest_of_nine_neighbours() -> None:
    layer = PixelEmbedding(replace(SMALL, pixel_embedding="light"))
    x = torch.randn(1, 32, 4, 6)
    got = layer.smooth[0](x)
    for y in range(4):
        for z in range(6):
            around = x[0, :, max(y - 1, 0) : y + 2, max(z - 1, 0) : z + 2]
            assert torch.equal(got[0, :, y, z], around.amax((1, 2)))


@torch.no_grad()
def test_semantic_probability_sums_class_times_mask_over_queries_without_no_object() -> None:
    prediction = Prediction(torch.randn(2, 3, 5), torch.randn(2, 3, 2, 2))
    got = semantic_probabilities(prediction)
    assert got.shape == (2, 4, 2, 2)
    for b, c, y, x in np.ndindex(2, 4, 2, 2):
        want = 0.0
        for q in range(3):
            share = math.exp(prediction.classes[b, q, c]) / prediction.classes[b, q].exp().sum().item()
            want += share / (1 + math.exp(-prediction.masks[b, q, y, x]))
        assert got[b, c, y, x].item() == pytest.approx(want, abs=1e-6)


# --------------------------------------------------------------------------------------------------------- backbones


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_backbone_gives_maps_at_strides_4_8_16_and_32(name: str) -> None:
    backbone = BACKBONES[name]().eval()
    maps = backbone(torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(backbone.channels, (4, 8, 16, 32), strict=True)
    ]


@torch.no_grad()
def test_stride_two_pads_at_the_bottom_and_right_only() -> None:
    """Each kernel has one tap, so that the output shows which pixels it read: TensorFlow's 'SAME' starts at (0, 0)."""
    layer = SameConv(1, 1, 3, stride=2, norm=False, act=False)
    image = torch.arange(1.0, 25.0).reshape(1, 1, 4, 6)
    padded = F.pad(image, (0, 1, 0, 1))
    layer.conv.bias.zero_()
    for y in range(3):
        for x in range(3):
            layer.conv.weight.zero_()
            layer.conv.weight[0, 0, y, x] = 1
            assert torch.equal(layer(image), padded[:, :, y : y + 3 : 2, x : x + 5 : 2])


@torch.no_grad()
def test_stride_one_pads_all_sides_alike() -> None:
    layer = SameConv(1, 1, 3, norm=False, act=False)
    image = torch.randn(1, 1, 4, 6)
    layer.conv.bias.zero_()
    layer.conv.weight.zero_()
    layer.conv.weight[0, 0, 1, 1] = 1
    assert torch.equal(layer(image), image)


@torch.no_grad()
def test_activation_stops_at_six_and_a_linear_layer_has_none() -> None:
    for act, want in ((True, [0.0, 3.0, 6.0]), (False, [-2.0, 3.0, 9.0])):
        layer = SameConv(1, 1, 1, norm=False, act=act)
        layer.conv.weight.fill_(1)
        layer.conv.bias.zero_()
        assert layer(torch.tensor([-2.0, 3.0, 9.0]).reshape(1, 1, 1, 3)).flatten().tolist() == want


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_statistics_of_the_backbone_stay_frozen_in_train_mode(name: str) -> None:
    network = Segmenter(replace(SMALL, backbone=name)).train()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert bool(norms) is (name == "mobilenet_v1")  # the other one has them folded
    before = [norm.running_mean.clone() for norm in norms]
    images = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    network.features(images)
    assert not any(norm.training for norm in norms)
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
    assert network.training
    assert network.decoder.training


def pretrained(name: str) -> Path:
    path = WEIGHTS / FILES[name]
    if not path.is_file():
        pytest.skip(f"the ImageNet weights {path.name} are not on this machine")
    return path


def same_conv(x: Tensor, kernel: np.ndarray, stride: int, groups: int = 1) -> Tensor:
    """kernel: (out, in, h, w). 'SAME' padding by its definition, without torch's own padding."""
    pad = []
    for size, k in ((x.shape[3], kernel.shape[3]), (x.shape[2], kernel.shape[2])):
        total = max((-(-size // stride) - 1) * stride + k - size, 0)
        pad += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pad), torch.from_numpy(kernel.copy()), stride=stride, groups=groups)


@torch.no_grad()
def test_mobilenet_v1_with_its_file_equals_keras_layers_written_out() -> None:
    path = pretrained("mobilenet_v1")
    backbone = MobileNetV1().eval()
    load_pretrained(backbone, path)
    arrays = np.load(path)

    def norm(x: Tensor, name: str) -> Tensor:
        parts = ("gamma", "beta", "moving_mean", "moving_variance")
        gamma, beta, mean, variance = (torch.from_numpy(arrays[f"{name}/{p}"])[:, None, None] for p in parts)
        return (gamma * (x - mean) / torch.sqrt(variance + 1e-3) + beta).clamp(0, 6)

    image = torch.rand(1, 3, 64, 96) * 2 - 1
    x = norm(same_conv(image, arrays["conv1/kernel"].transpose(3, 2, 0, 1), 2), "conv1_bn")
    after = []
    for i in range(1, 13):
        kernel = arrays[f"conv_dw_{i}/depthwise_kernel"].transpose(2, 3, 0, 1)
        x = norm(same_conv(x, kernel, 2 if i in (2, 4, 6, 12) else 1, groups=len(kernel)), f"conv_dw_{i}_bn")
        x = norm(same_conv(x, arrays[f"conv_pw_{i}/kernel"].transpose(3, 2, 0, 1), 1), f"conv_pw_{i}_bn")
        after.append(x)
    for got, block in zip(backbone(image), (3, 5, 11, 12), strict=True):
        assert worst(got, after[block - 1]) < 1e-4


@torch.no_grad()
def test_mobilenet_v2_with_its_file_equals_inverted_residuals_written_out() -> None:
    path = pretrained("mobilenet_v2")
    backbone = MobileNetV2().eval()
    load_pretrained(backbone, path)
    arrays = np.load(path)

    def conv(x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        bias = torch.from_numpy(arrays[f"{name}.bias"])[:, None, None]
        return same_conv(x, arrays[f"{name}.weight"], stride, groups) + bias

    image = torch.rand(1, 3, 64, 96) * 2 - 1
    x = conv(image, "features.0.0", 2).clamp(0, 6)
    after = []
    for i in range(1, 18):
        y = x if i == 1 else conv(x, f"features.{i}.conv.0.0").clamp(0, 6)
        name, stride = f"features.{i}.conv.{0 if i == 1 else 1}.0", 2 if i in (2, 4, 7, 14) else 1
        y = conv(y, name, stride, groups=y.shape[1]).clamp(0, 6)
        y = conv(y, f"features.{i}.conv.{1 if i == 1 else 2}")
        x = x + y if x.shape == y.shape else y
        after.append(x)
    for got, block in zip(backbone(image), (3, 6, 13, 17), strict=True):
        assert worst(got, after[block - 1]) < 1e-4


def test_weights_of_another_backbone_are_refused_with_the_file_s_name() -> None:
    for backbone, other in ((MobileNetV1(), "mobilenet_v2"), (MobileNetV2(), "mobilenet_v1")):
        path = pretrained(other)
        with pytest.raises(ValueError, match=path.name):
            load_pretrained(backbone, path)


@pytest.mark.parametrize("shape", [(3, 3, 3, 16), (3, 3, 3, 1)], ids=["wrong", "broadcastable"])
def test_an_array_of_the_wrong_shape_is_refused_with_the_file_s_name(tmp_path: Path, shape: tuple[int, ...]) -> None:
    backbone, arrays = MobileNetV1(), {}
    arrays["conv1/kernel"] = np.ones(shape, np.float32)
    for part in ("gamma", "beta", "moving_mean", "moving_variance"):
        arrays[f"conv1_bn/{part}"] = np.ones(32, np.float32)
    for i, (depthwise, pointwise) in enumerate(backbone.blocks, 1):
        for kind, layer, kernel in (("dw", depthwise, "depthwise_kernel"), ("pw", pointwise, "kernel")):
            axes = (2, 3, 0, 1) if kind == "dw" else (2, 3, 1, 0)
            arrays[f"conv_{kind}_{i}/{kernel}"] = np.ones([layer.conv.weight.shape[a] for a in axes], np.float32)
            for part in ("gamma", "beta", "moving_mean", "moving_variance"):
                arrays[f"conv_{kind}_{i}_bn/{part}"] = np.ones(layer.conv.out_channels, np.float32)
    right, wrong = tmp_path / "right.npz", tmp_path / "wrong.npz"
    np.savez(wrong, **arrays)
    np.savez(right, **{**arrays, "conv1/kernel": np.ones((3, 3, 3, 32), np.float32)})
    load_pretrained(backbone, right)
    with pytest.raises(ValueError, match=r"wrong\.npz"):
        load_pretrained(backbone, wrong)


@pytest.mark.parametrize("kind", ["text", "cut", "npy"])
def test_a_file_that_is_no_archive_is_refused_with_its_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.npz"
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    else:
        np.savez(path, x=np.ones(3))
        path.write_bytes(b"no weights" if kind == "text" else path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"weights\.npz"):
        load_pretrained(MobileNetV1(), path)


# ------------------------------------------------------------------------------------------------------ gate and whole


@torch.no_grad()
def test_gate_input_is_what_its_description_says() -> None:
    maps, logits = [3 + 2 * torch.randn(2, 32, *shape) for shape in SHAPES], 2 * torch.randn(2, 4, 8, 12)
    got = gate_input(maps, logits)
    assert got.shape == (2, gate_inputs(32, 4))
    for image in range(2):
        coarsest = maps[0][image].numpy().reshape(32, -1)
        shares = np.exp(logits[image].numpy().reshape(4, -1))
        shares /= shares.sum(0)
        unsure = -(shares * np.log(shares)).sum(0) / np.log(4)
        want = [*coarsest.mean(1), *coarsest.std(1), *shares.mean(1), unsure.mean(), unsure.std()]
        want += [(unsure > edge).mean() for edge in EDGES]
        assert np.abs(got[image].numpy() - np.array(want)).max() < 1e-4
        alone = gate_input([m[image : image + 1] for m in maps], logits[image : image + 1])
        assert worst(alone, got[image : image + 1]) < 1e-5


def test_gate_input_has_a_gradient_where_a_channel_does_not_vary() -> None:
    maps = [torch.ones(1, 32, *shape, requires_grad=True) for shape in SHAPES]
    gate_input(maps, torch.randn(1, 4, 8, 12)).sum().backward()
    assert torch.isfinite(maps[0].grad).all()  # the bare square root would divide by zero


@torch.no_grad()
def test_gate_is_linear_in_the_standardised_inputs_and_stays_a_quality() -> None:
    gate, x = randomised(Gate(20, 3)), 5 + 3 * torch.randn(4, 20)
    gate.mean.fill_(5)
    gate.scale.fill_(3)
    want = ((x - 5) / 3) @ gate.output.weight.T + gate.output.bias
    assert worst(gate(x), want.clamp(0, 1)) < 1e-5
    assert (want < 0).any()  # both ends of the clamp are seen
    assert (want > 1).any()


def test_gate_costs_less_than_half_a_percent_of_the_full_plan() -> None:
    """With the front's token head, which runs for the gate alone, and ten plans."""
    config, shapes = tiny(), [(12, 15), (24, 30), (48, 60)]
    head, gate = TokenHead(config.channels, config.classes), Gate(gate_inputs(config.channels, config.classes), 10)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        maps = [torch.randn(1, config.channels, *shape) for shape in shapes]
        gate(gate_input(maps, head(maps)))
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        Segmenter(config).eval().requires_grad_(False)(torch.zeros(1, 384, 480, 3, dtype=torch.uint8), Knobs(6))
    assert 0 < counter.get_total_flops() < 0.005 * whole.get_total_flops()


def test_every_parameter_learns_from_the_deepest_exit() -> None:
    """All but the token heads: which tokens are active has no gradient, they have a loss of their own."""
    network = Segmenter(replace(KNOBBED, recalibration=True)).train()
    randomised(network.encoder).train()  # offsets start at weight 0, behind which no gradient can be told from none
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    heads = network(images, Knobs(5, 0.5), deep=True)
    sum((head.classes.square().sum() + head.masks.square().sum() for head in heads), torch.zeros(())).backward()
    idle = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    of_heads = {name for name in idle if name.startswith(("front_head.", "encoder.token_head."))}
    assert len(of_heads) == 12
    assert idle - of_heads <= {
        f"decoder.layers.{i}.{part}.key.bias" for i in range(4) for part in ("cross", "self_attention")
    }  # a key's bias shifts all scores of a row alike: softmax does not see it


@torch.no_grad()
def test_knobs_reach_the_encoder_through_the_whole_network() -> None:
    network, images = Segmenter(KNOBBED).eval(), torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    randomised(network.encoder)
    lateral, maps = network.features(images)
    seen = []
    for knobs in (Knobs(5), Knobs(2), Knobs(5, 0.25), Knobs(5, 1, 0.25), Knobs(5, 0.25, 0.25)):
        (got,) = network(images, knobs)
        (want,) = network.decoder(lateral, network.encoder(maps, knobs.depth, knobs.keep, knobs.width))
        assert torch.equal(got.masks, want.masks)
        seen.append(got.masks)
    assert all(worst(a, b) > 1e-4 for i, a in enumerate(seen) for b in seen[:i])


@torch.no_grad()
def test_segmenter_normalises_uint8_pixels_as_its_backbone_was_trained() -> None:
    for name, (zero, full) in {"mobilenet_v1": (-1.0, 1.0), "mobilenet_v2": (-1.0, 127 / 128)}.items():
        network = Segmenter(replace(SMALL, backbone=name)).eval()
        seen: list[Tensor] = []
        network.backbone.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        image = torch.zeros(1, 32, 64, 3, dtype=torch.uint8)
        image[..., 0] = 255
        lateral, maps = network.features(image)
        assert seen[0].shape == (1, 3, 32, 64)
        assert seen[0][0, :, 0, 0].tolist() == pytest.approx([full, zero, zero])
        assert [tuple(m.shape) for m in (lateral, *maps)] == [
            (1, 32, 8, 16), (1, 32, 1, 2), (1, 32, 2, 4), (1, 32, 4, 8)
        ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_random_backbone_keeps_its_signal_to_the_last_stride(name: str) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        maps = BACKBONES[name]().eval()(torch.randn(1, 3, 64, 64))
    assert all(0.05 < float(m.std()) < 20 for m in maps)
