"""The backbones: strides, padding, frozen statistics, and their files against layers written
out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_export.network.backbone import (
    BACKBONES,
    MobileNetV1,
    MobileNetV2,
    SameConv,
    load_pretrained,
)
from model_export.network.segmenter import Segmenter
from tests.needs import data_at
from tests.small_network import SMALL, worst

pytestmark = pytest.mark.usefixtures("one_thread", "seed")

FILES = {
    "mobilenet_v1": "mobilenet_v1_1.0_224_nohead.npz",
    "mobilenet_v2": "mobilenet_v2_1.0_folded_nohead.npz",
    "efficientnet_lite0": "efficientnet_lite0_nohead.npz",
    "efficientnet_lite2": "efficientnet_lite2_nohead.npz",
}


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
    """Each kernel has one tap, so that the output shows which pixels it read: TensorFlow's 'SAME'
    starts at (0, 0)."""
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
def test_stride_two_of_five_pixels_pads_one_less_at_the_top_and_left() -> None:
    """TensorFlow's 'SAME' starts at (-1, -1) and ends two pixels behind the image."""
    layer = SameConv(1, 1, 5, stride=2, norm=False, act=False)
    image = torch.arange(1.0, 25.0).reshape(1, 1, 4, 6)
    padded = F.pad(image, (1, 2, 1, 2))
    layer.conv.bias.zero_()
    for y in range(5):
        for x in range(5):
            layer.conv.weight.zero_()
            layer.conv.weight[0, 0, y, x] = 1
            assert torch.equal(layer(image), padded[:, :, y : y + 3 : 2, x : x + 5 : 2])


@pytest.mark.parametrize("kernel", [1, 3, 5])
@torch.no_grad()
def test_stride_one_pads_all_sides_alike(kernel: int) -> None:
    layer = SameConv(1, 1, kernel, norm=False, act=False)
    image = torch.randn(1, 1, 4, 6)
    layer.conv.bias.zero_()
    layer.conv.weight.zero_()
    layer.conv.weight[0, 0, kernel // 2, kernel // 2] = 1
    assert torch.equal(layer(image), image)


@pytest.mark.parametrize(
    ("name", "channels", "blocks", "millions"),
    [
        ("efficientnet_lite0", (24, 40, 112, 320), 16, 3.0),
        ("efficientnet_lite2", (24, 48, 120, 352), 21, 4.4),
    ],
)
def test_efficientnet_lite_has_its_published_channels_and_depth(
    name: str, channels: tuple[int, ...], blocks: int, millions: float
) -> None:
    backbone = BACKBONES[name]()
    assert backbone.channels == channels
    assert sum(len(stage) for stage in backbone.blocks) == blocks
    parameters = sum(p.numel() for p in backbone.parameters()) / 1e6
    assert parameters == pytest.approx(millions, abs=0.05)  # without the head's 1.3 M to 2 M
    kernels = [stage[0].layers[-2].conv.kernel_size[0] for stage in backbone.blocks]
    assert kernels == [3, 3, 5, 3, 5, 5, 3]


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
    assert bool(norms) is (name != "mobilenet_v2")  # that one has them folded
    before = [norm.running_mean.clone() for norm in norms]
    images = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    network.features(images)
    assert not any(norm.training for norm in norms)
    assert all(
        torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True)
    )
    assert network.training
    assert network.decoder.training


def pretrained(name: str) -> Path:
    return data_at(f"backbones/{FILES[name]}")


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
        gamma, beta, mean, variance = (
            torch.from_numpy(arrays[f"{name}/{p}"])[:, None, None] for p in parts
        )
        return (gamma * (x - mean) / torch.sqrt(variance + 1e-3) + beta).clamp(0, 6)

    image = torch.rand(1, 3, 64, 96) * 2 - 1
    x = norm(same_conv(image, arrays["conv1/kernel"].transpose(3, 2, 0, 1), 2), "conv1_bn")
    after = []
    for i in range(1, 13):
        kernel = arrays[f"conv_dw_{i}/depthwise_kernel"].transpose(2, 3, 0, 1)
        x = norm(
            same_conv(x, kernel, 2 if i in (2, 4, 6, 12) else 1, groups=len(kernel)),
            f"conv_dw_{i}_bn",
        )
        x = norm(
            same_conv(x, arrays[f"conv_pw_{i}/kernel"].transpose(3, 2, 0, 1), 1), f"conv_pw_{i}_bn"
        )
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


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite2"])
@torch.no_grad()
def test_efficientnet_lite_with_its_file_equals_timm_s_layers_written_out(name: str) -> None:
    path = pretrained(name)
    backbone = BACKBONES[name]().eval()
    load_pretrained(backbone, path)
    arrays = np.load(path)

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        parts = ("weight", "bias", "running_mean", "running_var")
        gamma, beta, mean, variance = (
            torch.from_numpy(arrays[f"{norm}.{p}"])[:, None, None] for p in parts
        )
        x = same_conv(x, arrays[f"{conv}.weight"], stride, groups)
        return gamma * (x - mean) / torch.sqrt(variance + 1e-3) + beta

    image = torch.rand(1, 3, 64, 96) * 2 - 1
    x = layer(image, "conv_stem", "bn1", 2).clamp(0, 6)
    # The first stage does not expand, so that its projection is the only 1x1.
    x = layer(x, "blocks.0.0.conv_dw", "blocks.0.0.bn1", groups=32).clamp(0, 6)
    x = layer(x, "blocks.0.0.conv_pw", "blocks.0.0.bn2")
    after = [x]
    for stage in range(1, 7):
        block = 0
        while (at := f"blocks.{stage}.{block}") + ".conv_dw.weight" in arrays:
            stride = 2 if block == 0 and stage in (1, 2, 3, 5) else 1
            y = layer(x, f"{at}.conv_pw", f"{at}.bn1").clamp(0, 6)
            y = layer(y, f"{at}.conv_dw", f"{at}.bn2", stride, groups=y.shape[1]).clamp(0, 6)
            y = layer(y, f"{at}.conv_pwl", f"{at}.bn3")
            x = x + y if x.shape == y.shape else y
            block += 1
        after.append(x)
    for got, stage in zip(backbone(image), (1, 2, 4, 6), strict=True):
        assert after[stage].std() > 0.1
        assert worst(got, after[stage]) < 1e-3


def test_weights_of_another_backbone_are_refused_with_the_file_s_name() -> None:
    for name, other in (
        ("mobilenet_v1", "mobilenet_v2"),
        ("mobilenet_v2", "mobilenet_v1"),
        ("efficientnet_lite0", "efficientnet_lite2"),
        ("efficientnet_lite2", "efficientnet_lite0"),
        ("efficientnet_lite0", "mobilenet_v2"),
    ):
        path = pretrained(other)
        with pytest.raises(ValueError, match=path.name):
            load_pretrained(BACKBONES[name](), path)


@pytest.mark.parametrize("shape", [(3, 3, 3, 16), (3, 3, 3, 1)], ids=["wrong", "broadcastable"])
def test_an_array_of_the_wrong_shape_is_refused_with_the_file_s_name(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    backbone, arrays = MobileNetV1(), {}
    arrays["conv1/kernel"] = np.ones(shape, np.float32)
    for part in ("gamma", "beta", "moving_mean", "moving_variance"):
        arrays[f"conv1_bn/{part}"] = np.ones(32, np.float32)
    for i, (depthwise, pointwise) in enumerate(backbone.blocks, 1):
        for kind, layer, kernel in (
            ("dw", depthwise, "depthwise_kernel"),
            ("pw", pointwise, "kernel"),
        ):
            axes = (2, 3, 0, 1) if kind == "dw" else (2, 3, 1, 0)
            arrays[f"conv_{kind}_{i}/{kernel}"] = np.ones(
                [layer.conv.weight.shape[a] for a in axes], np.float32
            )
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
