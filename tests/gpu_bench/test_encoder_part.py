"""The encoder part of the GPU benchmark, on a stand-in for a GPU; on a real one if it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model_export.network import deformable_attention as attention
from model_export.network.config import base
from model_export.network.encoder import Encoder
from tests.bench import (
    gpu_encoder,
)
from tests.bench.gpu_clock import (
    CudaClock,
    Recorded,
    Setting,
)
from tests.gpu_bench.stand_in import (
    SHORT,
    SMALL,
    HostClock,
    needs_gpu,
    operator,
)


@pytest.mark.gpu
@needs_gpu
def test_an_encoder_on_the_gpu() -> None:
    found = gpu_encoder.time_depths(CudaClock(), SHORT, base(), 256, lambda layer: layer)
    assert found["error"] < 2e-2
    assert len(found["us"]) == 6


def test_the_layers_are_those_of_the_encoder() -> None:
    torch.manual_seed(5)
    ours = gpu_encoder.Layers(SMALL, 64).eval()
    torch.manual_seed(5)
    encoder = Encoder(SMALL).eval()
    encoder.layers = ours.layers
    maps = [torch.randn(2, 32, h, w) for h, w in ours.shapes]
    with torch.inference_mode():
        for depth in (1, 3):
            for got, want in zip(ours(maps, depth), encoder(maps, depth), strict=True):
                assert torch.allclose(got, want, atol=1e-5)
    stored = ours.stored_as(torch.float16)
    assert (stored.position.dtype, stored.reference.dtype) == (torch.float16, torch.float32)
    assert ours.position.dtype == torch.float32


@pytest.mark.parametrize("name", ["encoder, torch eager", "encoder, torch.compile"])
def test_each_depth_of_the_encoder_is_timed(
    name: str, clock: HostClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "deformable_attention", operator)
    monkeypatch.setattr(gpu_encoder, "LARGE_SIDE", 64)
    monkeypatch.setattr(gpu_encoder.config, "base", lambda: SMALL)
    found = gpu_encoder.steps(Setting(clock, SHORT, None, Path(), lambda: 1.0))[name]()
    assert 0 < found["error"] < 1e-2
    assert len(found["us"]) == 3
    assert found["line"].keys() in ({"fixed_us", "layer_us", "worst"}, {"not_measured"})


def test_an_encoder_without_a_line_or_a_recording_says_so(
    clock: HostClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "deformable_attention", operator)
    slower_at_first = HostClock([3.0, 2.0, 1.0] * 2)
    found = gpu_encoder.time_depths(slower_at_first, SHORT, SMALL, 64, lambda layer: layer)
    assert found["line"] == {"not_measured": "the cost does not grow with the depth"}

    def refuse(works: Any, launches: int) -> Recorded:
        raise RuntimeError("no")

    monkeypatch.setattr(clock, "record", refuse)
    found = gpu_encoder.time_depths(clock, SHORT, SMALL, 64, lambda layer: layer)
    assert found == {"not_measured": "RuntimeError: no"}
