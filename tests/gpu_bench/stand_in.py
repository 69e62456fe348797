"""What stands in for a GPU in tests of the benchmark: a clock of the host, kernels in torch, layers
of a few pixels."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model_export.kernels.launch import Problem, Tactic
from model_export.network.config import base
from model_export.network.deformable_attention import deformable_attention, ms_deform_attn
from tests.bench import gpu_kernel, gpu_layers, gpu_report
from tests.bench.gpu_clock import Pace, Recorded, Work
from tests.bench.gpu_layers import Layer
from tests.kernel_inputs import Inputs
from tests.processes import ROOT

TOY = Problem(((2, 3), (4, 6)), heads=2, points=2, width=8, dtype="float16")
LAYERS = (
    Layer("toy, large", TOY, TOY.tokens),
    Layer("toy", TOY, TOY.tokens),
    Layer("toy, some", replace(TOY, dense=False, reference_per_image=True), 12),
)


SHIPPED = ROOT / "trained_weights/camvid-tiny"
SHORT = Pace(samples=2, replays=1, warm_s=0.0, many=4, few=2)
SMALL = replace(base(), channels=32, heads=4, encoder_ffn=64, schedule=(3, 3, 3))
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


class HostClock:
    """Runs what is recorded, on the CPU. took: instead, the seconds of each run in turn."""

    device, cache, copied = torch.device("cpu"), 4096, 65536

    def __init__(self, took: Sequence[float] = ()) -> None:
        self._took = deque(took)

    def record(self, works: Sequence[Work], launches: int) -> Recorded:
        outputs: deque[object] = deque(maxlen=len(works))

        def run() -> None:
            for i in range(launches):
                outputs.append(works[i % len(works)]())

        run()
        return Recorded(run, outputs)

    def seconds(self, run: Callable[[], None], times: int) -> float:
        begun = time.perf_counter()
        for _ in range(times):
            run()
        return self._took.popleft() if self._took else time.perf_counter() - begun

    def wait(self) -> None:
        pass

    def free(self) -> None:
        pass


def operator(
    value: Tensor, offsets: Tensor, logits: Tensor, reference: Tensor, shapes: list[Any]
) -> Tensor:
    """On the CPU half precision is for the operator only, which counts in float32."""
    return ms_deform_attn(value, offsets, logits, reference, [side for hw in shapes for side in hw])


def fused(
    problem: Problem, tactic: Tactic, device: torch.device, *, ptx: bool = False
) -> Callable[[Inputs], Tensor]:
    """The operator, which counts in float32 whatever the storage is."""
    return lambda inputs: ms_deform_attn(
        *inputs, [side for shape in problem.shapes for side in shape]
    )


def baseline(dtype: str, device: torch.device) -> Callable[..., Tensor]:
    def run(value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        offsets = locations.float() * sizes.flip(1)[:, None]
        raw = (value.float(), offsets, weights.float().log(), torch.zeros(weights.shape[1], 2))
        total = weights.float().flatten(3).sum(-1)  # a softmax makes it 1
        out = deformable_attention(*raw, [(int(h), int(w)) for h, w in sizes])
        return (
            (out.unflatten(2, (*total.shape[2:], -1)) * total[..., None]).flatten(2).to(value.dtype)
        )

    return run


def install(monkeypatch: pytest.MonkeyPatch) -> HostClock:
    """Toy layers, kernels on the CPU, and a compiler that only traces."""
    for module in (gpu_layers, gpu_kernel, gpu_report):
        monkeypatch.setattr(module, "layers", lambda: LAYERS)
    monkeypatch.setattr(gpu_kernel, "fused", fused)
    monkeypatch.setattr(gpu_kernel, "baseline", baseline)
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda *args, **options: compiler(*args, **options, backend="eager")
    )
    return HostClock()
