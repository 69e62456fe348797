"""The encoder of `base()` at 1024 x 1024 in float16, each depth in a CUDA graph: random weights,
our attention.

Places (position embedding, reference points) are constants, as in the exported graphs. The offsets'
weights, zero in a new network, are drawn so that samples spread as trained ones do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from model_export.network import config
from model_export.network.config import Config
from model_export.network.encoder import Encoder
from model_export.network.position import reference_points, sine_embedding
from tests.bench.gpu_clock import Clock, Contender, Figures, Pace, Setting, line_through, race
from tests.bench.gpu_kernel import SPREAD, Json, compiled, short
from tests.bench.gpu_layers import ENCODER_COMPILED, ENCODER_EAGER, LARGE_SIDE, levels_of
from tests.kernel_inputs import relative


def steps(setting: Setting) -> dict[str, Callable[[], Json]]:
    wraps = {ENCODER_EAGER: lambda layer: layer, ENCODER_COMPILED: compiled}
    timed = partial(time_depths, setting.clock, setting.pace, config.base(), LARGE_SIDE)
    return {name: partial(timed, wrap) for name, wrap in wraps.items()}


class Layers(nn.Module):
    """An encoder's layers over three scales in one type of storage; only the reference points stay
    float32."""

    def __init__(self, network: Config, side: int) -> None:
        super().__init__()
        assert set(network.schedule) == {3}, "a network whose layers all update three scales"
        encoder = Encoder(network)
        for layer in encoder.layers:
            size = network.channels**0.5  # of a query: LayerNorm gives each channel a variance of 1
            nn.init.normal_(layer.attention.offsets.weight, std=SPREAD / size)
            nn.init.normal_(layer.attention.logits.weight, std=1 / size)
        self.layers, self.shapes = encoder.layers, list(levels_of(side, side))
        device = torch.device("cpu")
        places = [sine_embedding(h, w, network.channels, device) for h, w in self.shapes]
        levels = zip(places, encoder.level_embedding.detach(), strict=True)
        self.register_buffer("position", torch.cat([place + level for place, level in levels]))
        self.register_buffer("reference", reference_points(self.shapes, device))

    def stored_as(self, dtype: torch.dtype) -> Layers:
        """A copy."""
        other = copy.deepcopy(self)
        reference = other.reference
        other.to(dtype)
        other.reference = reference
        return other

    def forward(self, maps: list[Tensor], depth: int) -> list[Tensor]:
        """maps: strides 32, 16, 8, (B, C, h, w); returns the same after so many layers."""
        tokens = torch.cat([each.flatten(2).mT for each in maps], 1)
        for layer in self.layers[:depth]:
            tokens = layer(tokens, self.position, self.reference, self.shapes)
        parts = tokens.mT.split([h * w for h, w in self.shapes], 2)
        return [part.unflatten(2, shape) for part, shape in zip(parts, self.shapes, strict=True)]


@torch.inference_mode()
def time_depths(
    clock: Clock,
    pace: Pace,
    network: Config,
    side: int,
    wrap: Callable[[nn.Module], Any],
    dtype: torch.dtype = torch.float16,
) -> Json:
    """us: of each depth. line: what the depths have in common, cost of a layer, and the worst
    distance from that.

    error: of the whole encoder, against the same in float32.
    """
    torch.manual_seed(0)
    wide = Layers(network, side).eval().to(clock.device)
    maps = [torch.randn(1, network.channels, h, w, device=clock.device) for h, w in wide.shapes]
    want = wide(maps, network.exits)[-1]
    narrow, given = wide.stored_as(dtype), [each.to(dtype) for each in maps]
    narrow.layers = nn.ModuleList(wrap(layer) for layer in narrow.layers)
    error = relative(narrow(given, network.exits)[-1], want.double())
    depths = {
        depth: Contender([partial(narrow, given, depth)]) for depth in range(1, network.exits + 1)
    }
    times = race(clock, {str(depth): each for depth, each in depths.items()}, pace)
    failed = next((each for each in times.values() if isinstance(each, str)), None)
    if failed is not None:
        return {"not_measured": failed}
    ordered = [each for depth in depths if isinstance(each := times[str(depth)], Figures)]
    found: Json = {"error": short(error), "us": [each.as_us() for each in ordered]}
    try:
        line = line_through([each.median for each in ordered])
    except ValueError as refused:
        return found | {"line": {"not_measured": str(refused)}}
    line_us = {
        "fixed_us": short(1e6 * line.fixed),
        "layer_us": short(1e6 * line.slope),
        "worst": short(line.worst),
    }
    return found | {"line": line_us}
