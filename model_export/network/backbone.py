"""Backbones with ImageNet weights: feature maps at strides 4, 8, 16 and 32.

All were trained in TensorFlow with 'SAME' padding: at stride 2 on even inputs there is one more
pixel of it at the bottom and right than at the top and left. The activation is ReLU6. Mean and
scale of the image's normalisation belong to the backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.npyio import NpzFile
from torch import Tensor, nn


class SameConv(nn.Module):
    """Convolution with TensorFlow's SAME padding, frozen batch norm (optional) and ReLU6
    (optional)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        *,
        norm: bool,
        act: bool = True,
    ) -> None:
        super().__init__()
        before = (kernel - stride) // 2  # at stride 2 on even inputs: one less than after
        self.pad = (before, before + 1) * 2 if stride == 2 else None
        padding = 0 if self.pad else kernel // 2
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding, groups=groups, bias=not norm
        )
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3) if norm else None
        self.act = act
        # Without pretrained weights, torch's default would fade: features at stride 32 would be
        # 1e-7.
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu" if act else "linear")

    def train(self, mode: bool = True) -> SameConv:
        super().train(mode)
        if self.norm is not None:
            # statistics of ImageNet: the crops of a small batch are too few for new ones
            self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, self.pad) if self.pad else x
        weight, bias = self.folded()
        x = F.conv2d(x, weight, bias, self.conv.stride, self.conv.padding, groups=self.conv.groups)
        return F.relu6(x) if self.act else x

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Kernel and bias with the frozen norm folded in: a constant per channel need not be
        applied to every pixel."""
        if self.norm is None:
            return self.conv.weight, self.conv.bias
        scale = self.norm.weight * torch.rsqrt(self.norm.running_var + self.norm.eps)
        return self.conv.weight * scale[
            :, None, None, None
        ], self.norm.bias - self.norm.running_mean * scale


class MobileNetV1(nn.Module):
    """MobileNetV1 1.0 (arXiv 1704.04861) up to the first block at stride 32; 2.1 M parameters."""

    channels = (128, 256, 512, 1024)  # strides 4, 8, 16, 32
    mean, std = 127.5, 127.5
    #       (out, stride) of blocks 1 to 12
    layout = (
        ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)) + ((512, 1),) * 5 + ((1024, 2),)
    )
    taps = (2, 4, 10, 11)

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, 32, 3, 2, norm=True)
        width, blocks = 32, []
        for out, stride in self.layout:
            depthwise = SameConv(width, width, 3, stride, groups=width, norm=True)
            blocks.append(nn.Sequential(depthwise, SameConv(width, out, 1, norm=True)))
            width = out
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised -> [(B, C, H/s, W/s) for s in 4, 8, 16, 32]."""
        x, maps = self.stem(x), []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                maps.append(x)
        return maps

    def load_pretrained(self, arrays: dict[str, np.ndarray]) -> None:
        """Keras names and layouts: kernels are (h, w, in, out), depthwise ones (h, w, in, 1)."""
        with torch.no_grad():
            _copy_keras(self.stem, arrays, "conv1/kernel", "conv1_bn")
            for i, (depthwise, pointwise) in enumerate(self.blocks, 1):
                _copy_keras(depthwise, arrays, f"conv_dw_{i}/depthwise_kernel", f"conv_dw_{i}_bn")
                _copy_keras(pointwise, arrays, f"conv_pw_{i}/kernel", f"conv_pw_{i}_bn")


def _copy_keras(layer: SameConv, arrays: dict[str, np.ndarray], kernel: str, norm: str) -> None:
    _fill(
        layer.conv.weight, arrays, kernel, (2, 3, 0, 1) if "depthwise" in kernel else (3, 2, 0, 1)
    )
    for ours, theirs in (("weight", "gamma"), ("bias", "beta"), ("running_mean", "moving_mean")):
        _fill(getattr(layer.norm, ours), arrays, f"{norm}/{theirs}")
    _fill(layer.norm.running_var, arrays, f"{norm}/moving_variance")


def _fill(
    target: Tensor, arrays: dict[str, np.ndarray], name: str, axes: tuple[int, ...] | None = None
) -> None:
    """Copy an array, transposed to `axes`. Raises ValueError on another shape, which `copy_` alone
    would broadcast."""
    array = arrays[name].transpose(axes) if axes else arrays[name]
    if array.shape != tuple(target.shape):
        raise ValueError(f"{name} has the shape {array.shape}, not {tuple(target.shape)}")
    target.copy_(torch.from_numpy(array.copy()))


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow: the block of MobileNetV2 and EfficientNet."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        expand: int,
        kernel: int = 3,
        *,
        norm: bool = False,
    ) -> None:
        super().__init__()
        hidden = inputs * expand
        layers = [SameConv(inputs, hidden, 1, norm=norm)] if expand > 1 else []
        layers.append(SameConv(hidden, hidden, kernel, stride, groups=hidden, norm=norm))
        layers.append(SameConv(hidden, outputs, 1, norm=norm, act=False))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 1.0 (arXiv 1801.04381) without its last 1x1 convolution; batch norm is folded;
    1.8 M parameters."""

    channels = (24, 32, 96, 320)
    mean, std = 128.0, 128.0
    layout = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    taps = (2, 5, 12, 16)

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, 32, 3, 2, norm=False)
        width, blocks = 32, []
        for expand, out, repeat, stride in self.layout:
            for i in range(repeat):
                blocks.append(InvertedResidual(width, out, stride if i == 0 else 1, expand))
                width = out
        self.blocks = nn.ModuleList(blocks)

    forward = MobileNetV1.forward

    def load_pretrained(self, arrays: dict[str, np.ndarray]) -> None:
        """torchvision's names: features.N.conv.M[.0].weight."""
        convs = [self.stem.conv] + [layer.conv for block in self.blocks for layer in block.layers]
        names = ["features.0.0"]
        for i, block in enumerate(self.blocks, 1):
            last = len(block.layers) - 1
            names += [
                f"features.{i}.conv.{j}" + ("" if j == last else ".0") for j in range(last + 1)
            ]
        with torch.no_grad():
            for conv, name in zip(convs, names, strict=True):
                _fill(conv.weight, arrays, f"{name}.weight")
                _fill(conv.bias, arrays, f"{name}.bias")


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite (EfficientNet, arXiv 1905.11946, without squeeze-and-excitation and with
    ReLU6) up to its last block at stride 32.

    layout: (expansion, outputs, repeats, stride, kernel) of each stage. taps: the stages whose maps
    are at strides 4, 8, 16 and 32.
    """

    mean, std = 127.5, 127.5
    taps = (1, 2, 4, 6)

    def __init__(self, layout: Sequence[tuple[int, int, int, int, int]]) -> None:
        super().__init__()
        self.channels = tuple(layout[stage][1] for stage in self.taps)
        self.stem = SameConv(3, 32, 3, 2, norm=True)
        width, stages = 32, []
        for expand, out, repeats, stride, kernel in layout:
            blocks = []
            for i in range(repeats):
                step = stride if i == 0 else 1
                blocks.append(InvertedResidual(width, out, step, expand, kernel, norm=True))
                width = out
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.ModuleList(stages)

    forward = MobileNetV1.forward

    def load_pretrained(self, arrays: dict[str, np.ndarray]) -> None:
        """timm's names: conv_stem, bn1, blocks.STAGE.BLOCK.{conv_pw,conv_dw,conv_pwl,bn1,...}."""
        with torch.no_grad():
            _copy_timm(self.stem, arrays, "conv_stem", "bn1")
            for i, stage in enumerate(self.blocks):
                for j, block in enumerate(stage):
                    convs = ("conv_pw", "conv_dw", "conv_pwl")
                    if len(block.layers) == 2:
                        convs = ("conv_dw", "conv_pw")
                    for k, (layer, conv) in enumerate(zip(block.layers, convs, strict=True), 1):
                        at = f"blocks.{i}.{j}"
                        _copy_timm(layer, arrays, f"{at}.{conv}", f"{at}.bn{k}")


def _copy_timm(layer: SameConv, arrays: dict[str, np.ndarray], conv: str, norm: str) -> None:
    _fill(layer.conv.weight, arrays, f"{conv}.weight")
    for name in ("weight", "bias", "running_mean", "running_var"):
        _fill(getattr(layer.norm, name), arrays, f"{norm}.{name}")


# (expansion, outputs, repeats, stride, kernel) of EfficientNet-B0's stages; the others are wider
# and deeper.
LITE0 = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
LITE2 = (
    (1, 16, 1, 1, 3),
    (6, 24, 3, 2, 3),
    (6, 48, 3, 2, 5),
    (6, 88, 4, 2, 3),
    (6, 120, 4, 1, 5),
    (6, 208, 5, 2, 5),
    (6, 352, 1, 1, 3),
)
BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v1": MobileNetV1,
    "mobilenet_v2": MobileNetV2,
    "efficientnet_lite0": partial(EfficientNetLite, LITE0),
    "efficientnet_lite2": partial(EfficientNetLite, LITE2),
}


def load_pretrained(backbone: nn.Module, path: Path) -> None:
    """Copy ImageNet weights from an .npz. Raises ValueError that names the file and the array that
    does not fit."""
    with path.open("rb") as file:  # numpy leaves a broken archive open
        try:
            archive = np.load(file)
        except (ValueError, EOFError, BadZipFile) as error:
            raise ValueError(f"{path} is no .npz archive: {error}") from error
        if not isinstance(archive, NpzFile):
            raise ValueError(f"{path} holds a single array; weights need an .npz archive")
        arrays = {name: archive[name] for name in archive.files}
    try:
        backbone.load_pretrained(arrays)
    except KeyError as error:
        raise ValueError(
            f"{path} does not hold weights for {type(backbone).__name__}: {error} is missing"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{path} does not hold weights for {type(backbone).__name__}: {error}"
        ) from error
