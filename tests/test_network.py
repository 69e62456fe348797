"""The network's boxes, each against a slow and plain statement of what it should do.

That the whole is Mask2Former is shown in test_mask2former_parity.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_export.network.backbone import BACKBONES, MobileNetV1, MobileNetV2, SameConv, load_pretrained
from model_export.network.config import CONFIGS, STANDARD, Config, proscale, tiny
from model_export.network.decoder import Decoder, PixelEmbedding, Prediction
from model_export.network.deformable_attention import DeformableAttention, deformable_attention
from model_export.network.encoder import Encoder, TokenRecalibration
from model_export.network.gate import Gate
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
    every = list(encoder.every_exit(maps, 6))
    assert len(every) == 6
    for k, outputs in enumerate(every, 1):
        for got, want in zip(encoder(maps, k), outputs, strict=True):
            assert torch.equal(got, want)
    assert all(worst(a[0], b[0]) > 1e-2 for a, b in pairwise(every))  # each layer does something


@torch.no_grad()
def test_encoder_updates_scales_that_the_schedule_reached_and_passes_the_others_on(encoder: Encoder) -> None:
    maps = random_maps()
    for k, outputs in enumerate(encoder.every_exit(maps, 6), 1):
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
    outputs = list(encoder.every_exit(maps, 3))
    x5, x4 = (encoder.recalibration(m, maps[2]).flatten(2).mT for m in maps[:2])
    assert torch.equal(seen[0], x5)
    assert torch.equal(seen[1], torch.cat((outputs[0][0].flatten(2).mT, x4), 1))
    assert torch.equal(seen[2], torch.cat([m.flatten(2).mT for m in (*outputs[1][:2], maps[2])], 1))


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
def test_gate_predicts_every_plan_for_each_image_alone() -> None:
    gate, maps = randomised(Gate(32, 8, 5)), torch.randn(3, 32, 4, 6)
    scores = gate(gate.pool(maps))
    assert scores.shape == (3, 5)
    for i in range(3):
        assert worst(gate(gate.pool(maps[i : i + 1])), scores[i : i + 1]) < 1e-5
    assert worst(scores[0], scores[1]) > 1e-3


@torch.no_grad()
def test_gate_reads_mean_and_spread_of_each_channel() -> None:
    maps = 1 + 2 * torch.randn(2, 32, 4, 6)
    want = np.concatenate((maps.numpy().mean((2, 3)), maps.numpy().std((2, 3))), 1)
    assert worst(Gate.pool(maps), torch.from_numpy(want)) < 1e-5


def test_gate_has_a_gradient_where_a_channel_does_not_vary() -> None:
    maps = torch.ones(1, 32, 4, 6, requires_grad=True)
    Gate.pool(maps).sum().backward()
    assert torch.isfinite(maps.grad).all()  # the bare square root would divide by zero


def test_gate_is_a_hundredth_of_the_network_and_of_one_encoder_layer_s_work() -> None:
    network, pixels = Segmenter(tiny()), 12 * 15  # tokens of a canvas of 384 x 480 at stride 32
    gate = sum(p.numel() for p in network.gate.parameters())
    assert gate < 0.01 * sum(p.numel() for p in network.parameters())
    # Its matrices run once per image, those of an encoder layer once per token of three scales (1 + 4 + 16).
    assert gate < 0.01 * sum(p.numel() for p in network.encoder.layers[0].parameters()) * pixels * 21


def test_every_parameter_but_the_gate_s_learns_from_the_deepest_exit() -> None:
    network = Segmenter(replace(SMALL, schedule=proscale(1, 1, 1), recalibration=True)).train()
    randomised(network.encoder).train()  # offsets start at weight 0, behind which no gradient can be told from none
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    heads = network(images, 3, deep=True)
    sum((head.classes.square().sum() + head.masks.square().sum() for head in heads), torch.zeros(())).backward()
    idle = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    assert {name for name in idle if not name.startswith("gate.")} <= {
        f"decoder.layers.{i}.{part}.key.bias" for i in range(4) for part in ("cross", "self_attention")
    }  # a key's bias shifts all scores of a row alike: softmax does not see it


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
