"""The kernel part of the GPU benchmark, on a stand-in for a GPU; on a real one if it is there."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_export.kernels import on_torch
from model_export.network import deformable_attention as attention
from tests.bench import (
    gpu_kernel,
    gpu_layers,
)
from tests.bench.gpu_clock import (
    CudaClock,
    Pace,
    Recorded,
    Setting,
)
from tests.bench.gpu_layers import (
    BASELINE,
    GRID_COMPILED,
    GRID_EAGER,
    label,
)
from tests.gpu_bench.stand_in import LAYERS, SHORT, TOY, HostClock, needs_gpu, operator
from tests.gpu_bench.stand_in import fused as on_host
from tests.kernel_inputs import random_inputs


def test_parity_of_all_variants(clock: HostClock) -> None:
    found = gpu_kernel.steps(Setting(clock, SHORT, None, Path(), lambda: 1.0))["parity"]()
    assert found["checked"] == len(list(gpu_layers.variants())) + 3
    assert found["wrong"] == {}
    assert found["worst"].keys() == {"float16", "bfloat16", "float32"}
    assert (
        0
        < found["worst"]["float32"]
        < found["worst"]["float16"]
        < found["worst"]["bfloat16"]
        < 2e-3
    )


def test_parity_sees_a_wrong_a_broken_and_a_lazy_kernel(
    clock: HostClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(
        problem: Any, tactic: Any, device: torch.device, *, ptx: bool = False
    ) -> Callable[..., Tensor]:
        right = on_host(problem, tactic, device)
        if tactic.packed:
            return lambda inputs: right(inputs) * 1.01
        if tactic.vectors == 2:
            raise RuntimeError("CUDA driver error 700")
        if ptx:
            return lambda inputs: torch.full_like(right(inputs), float("nan"))
        return right

    monkeypatch.setattr(gpu_kernel, "fused", faulty)
    found = gpu_kernel.parity(clock)
    said = set(found["wrong"].values())
    assert said == {"error 1.0e-02", "RuntimeError: CUDA driver error 700", "error nan"}
    kinds = [v for v in gpu_layers.variants() if v.tactic.packed or v.tactic.vectors == 2 or v.ptx]
    assert found["wrong"].keys() == {variant.name for variant in kinds}


def test_a_layer_is_timed_cold_and_hot_against_the_others(clock: HostClock) -> None:
    found = gpu_kernel.time_layer(clock, LAYERS[2], SHORT)
    assert found["sets"] == math.ceil(4 * clock.cache / found["bytes"]["total"])
    assert found["caches"] >= 4
    assert found["default"] == label(gpu_kernel.tactics(LAYERS[2].problem)[0])
    assert found["bandwidth"] > 0
    assert found["roofline_us"] == pytest.approx(
        1e6 * found["bytes"]["total"] / found["bandwidth"], rel=1e-3
    )
    tactics = [label(tactic) for tactic in gpu_kernel.tactics(LAYERS[2].problem)]
    assert list(found["rows"]) == [*tactics, BASELINE, GRID_EAGER, GRID_COMPILED]
    assert found["best"] in tactics
    for name, row in found["rows"].items():
        assert row["cold_us"]["samples"] == 2
        assert ("hot_us" in row) == (name not in (GRID_EAGER, GRID_COMPILED))
        assert row["error"] < (0.2 if "grid" in name else 2e-3)


@pytest.fixture
def untraced(clock: HostClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the grid_sample form is beside the point, the operator does."""

    class Form(nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return operator(*tensors, list(TOY.shapes))

    monkeypatch.setattr(gpu_kernel, "grid_sample_form", lambda problem, inputs: Form())
    monkeypatch.setattr(gpu_kernel, "compiled", lambda module: module)


def test_what_is_wrong_or_does_not_compile_is_not_timed(
    clock: HostClock, untraced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(dtype: str, device: torch.device) -> Callable[..., Tensor]:
        raise RuntimeError("no kernel image")

    default = gpu_kernel.tactics(TOY)[0]

    def wrong(
        problem: Any, tactic: Any, device: torch.device, *, ptx: bool = False
    ) -> Callable[..., Tensor]:
        run = on_host(problem, tactic, device)
        return (lambda inputs: -run(inputs)) if tactic == default else run

    monkeypatch.setattr(gpu_kernel, "baseline", broken)
    monkeypatch.setattr(gpu_kernel, "fused", wrong)
    rows = gpu_kernel.time_layer(clock, LAYERS[1], SHORT)["rows"]
    assert rows[label(default)] == {"wrong": "error 2.0e+00"}
    assert rows[BASELINE] == {"not_measured": "RuntimeError: no kernel image"}
    assert "cold_us" in rows[GRID_EAGER]


def test_what_cannot_be_recorded_is_a_row_with_the_reason(
    clock: HostClock, untraced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = clock.record

    def refusing(works: Any, launches: int) -> Recorded:
        if isinstance(works[0], partial) and not isinstance(works[0].func, nn.Module):  # a kernel
            return record(works, launches)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(clock, "record", refusing)
    found = gpu_kernel.time_layer(clock, LAYERS[0], SHORT)
    assert found["rows"][GRID_EAGER]["not_measured"].startswith(
        "RuntimeError: operation not permitted"
    )
    assert "bandwidth" not in found
    assert "cold_us" in found["rows"][BASELINE]


def test_the_traced_grid_sample_form_is_the_same_operators_with_the_constant_at_hand() -> None:
    inputs = gpu_kernel.halved(random_inputs(TOY, 1))
    form = gpu_kernel.grid_sample_form(TOY, random_inputs(TOY, 1))
    assert torch.equal(form(*inputs), attention.by_grid_sample(*inputs, list(TOY.shapes)))
    elsewhere = gpu_kernel.grid_sample_form(TOY, gpu_kernel.on_device(inputs, torch.device("meta")))
    assert {each.device.type for each in elsewhere.buffers()} == {"meta"}


def test_kernels_are_compiled_for_the_chip_or_as_the_bundle_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, inputs, asked = torch.device("cuda", 0), random_inputs(TOY, 1), []
    tactic = gpu_kernel.tactics(TOY)[0]
    monkeypatch.setattr(on_torch, "compiled", lambda *what: ("for the chip", *what))
    monkeypatch.setattr(
        on_torch, "load", lambda image, entry, where: asked.append((image, entry, where))
    )
    monkeypatch.setattr(on_torch, "run", lambda kernel, *tensors: (kernel, len(tensors)))
    monkeypatch.setattr(on_torch, "compiled_baseline", lambda dtype, where: (dtype, where))
    monkeypatch.setattr(on_torch, "run_baseline", lambda kernel, *tensors: (kernel, tensors))
    monkeypatch.setattr(gpu_kernel.nvrtc, "compile_kernel", lambda plan, arch: arch.encode())
    assert gpu_kernel.fused(TOY, tactic, device)(inputs) == (
        ("for the chip", TOY, tactic, device),
        4,
    )
    kernel, _ = gpu_kernel.fused(TOY, tactic, device, ptx=True)(inputs)
    assert kernel[:2] == (TOY, gpu_kernel.describe(TOY, tactic))
    assert asked == [(b"compute_80", "ms_deform_attn", device)]
    assert gpu_kernel.baseline("float16", device)(1, 2) == (("float16", device), (1, 2))


@pytest.mark.gpu
@needs_gpu
def test_the_kernel_part_on_the_gpu() -> None:
    clock = CudaClock()
    found = gpu_kernel.parity(clock)
    assert found["wrong"] == {}
    for layer in (gpu_layers.layers()[0], gpu_layers.layers()[-1]):
        timed = gpu_kernel.time_layer(clock, layer, Pace(samples=3, replays=1, warm_s=0.02))
        assert {name for name, row in timed["rows"].items() if "cold_us" not in row} == set()
        assert timed["roofline_us"] < timed["rows"][timed["best"]]["cold_us"]["median"]
