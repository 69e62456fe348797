"""What the GPU benchmark measures, run on a stand-in for a GPU; on a real one where there is
one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model_export.export.engine_parity import LIMITS
from model_export.kernels import on_torch
from model_export.network import deformable_attention as attention
from model_export.network.config import base
from model_export.network.encoder import Encoder
from model_export.training.runs import RunError
from service import bundle
from service.bundle import Bundle
from service.engines import onnxruntime_cuda
from service.errors import BackendError
from tests.bench import (
    gpu,
    gpu_clock,
    gpu_encoder,
    gpu_kernel,
    gpu_layers,
    gpu_machine,
    gpu_models,
    gpu_service,
)
from tests.bench.gpu_clock import (
    Contender,
    CudaClock,
    Figures,
    Pace,
    Recorded,
    Setting,
    line_through,
    race,
)
from tests.bench.gpu_layers import (
    BASELINE,
    ENCODER_EAGER,
    GRID_COMPILED,
    GRID_EAGER,
    NO_TIME,
    label,
)
from tests.bench.gpu_torch import Replayed, TorchBackend
from tests.gpu_stand_in import LAYERS, TOY, HostClock, install
from tests.gpu_stand_in import fused as on_host
from tests.kernel_inputs import random_inputs
from tests.toy import last_json

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "trained_weights/camvid-tiny"
SHORT = Pace(samples=2, replays=1, warm_s=0.0, many=4, few=2)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> HostClock:
    return install(monkeypatch)


# --------------------------------------------------------------------------------------------------
# the clock


def test_a_race_gives_seconds_of_one_launch_and_takes_turns() -> None:
    order: list[str] = []
    clock = HostClock([1.2, 2.4, 1.8, 2.4, 6.0, 2.4])  # of a, b, a, b, a, b

    def work(name: str) -> Callable[[], None]:
        return lambda: order.append(name)

    contenders = {
        "a": Contender([work("a")]),
        "b": Contender([work("b0"), work("b1")], kernel=True),
    }
    found = race(clock, contenders, Pace(samples=3, replays=2, warm_s=0.0, many=4, few=3))
    assert found["a"] == Figures(0.3, 0.25, 0.65, 3)  # 3 launches x 2 replays a sample
    assert found["b"] == Figures(0.3, 0.3, 0.3, 3)  # 4 launches
    assert order[-2 * (3 * 3 + 3 * 4) :] == [*["a"] * 9, *["b0", "b1"] * 6] * 2


def test_who_cannot_be_recorded_does_not_stop_the_others() -> None:
    def broken() -> None:
        raise RuntimeError("not while a graph is recorded\nstack")

    found = race(HostClock(), {"bad": Contender([broken]), "good": Contender([list])}, SHORT)
    assert found["bad"] == "RuntimeError: not while a graph is recorded"
    assert isinstance(found["good"], Figures)
    assert race(HostClock(), {"bad": Contender([broken])}, SHORT).keys() == {"bad"}
    assert gpu_clock.reason(KeyError()) == "KeyError"


def test_it_is_warm_before_the_first_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    ran, now = [], iter([0.0, 0.1, 0.2, 0.3])
    monkeypatch.setattr(gpu_clock, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    gpu_clock.warm(HostClock(), lambda: ran.append(1), 0.25)
    assert len(ran) == 3


def test_figures_are_microseconds_in_json() -> None:
    assert Figures.of([1e-6, 2e-6, 3e-6]).as_us() == {
        "median": 2.0,
        "q1": 1.5,
        "q3": 2.5,
        "samples": 3,
    }


def test_a_line_is_found_and_what_lies_beside_it() -> None:
    line = line_through([30 + 140 * depth for depth in range(1, 7)])
    assert (line.fixed, line.slope) == (pytest.approx(30), pytest.approx(140))
    assert line.worst == pytest.approx(0, abs=1e-9)
    bent = [100.0, 200.0, 300.0, 400.0, 500.0, 700.0]
    # By hand: slope 2000 / 17.5, through the means (3.5, 2200 / 6); the last one lies 0.0417 ..
    # above
    line = line_through(bent)
    assert line.slope == pytest.approx(2000 / 17.5)
    assert line.worst == pytest.approx((700 - (2200 / 6 + 2.5 * 2000 / 17.5)) / (2000 / 17.5))


@pytest.mark.parametrize(
    ("costs", "says"), [([1.0, 2.0], "2 depths"), ([3.0, 2.0, 1.0], "does not grow")]
)
def test_no_line_through_what_is_none(costs: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        line_through(costs)


class FakeCuda:
    """The calls of torch.cuda that the clock makes, noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        put = partial_set(monkeypatch)
        put("current_device", lambda: 0)
        put("get_device_properties", lambda _: SimpleNamespace(L2_cache_size=50 * 2**20))
        put("mem_get_info", lambda: (2**30, 2**36))
        put("Stream", lambda: SimpleNamespace(wait_stream=lambda _: self.log.append("side waits")))
        put(
            "current_stream",
            lambda: SimpleNamespace(wait_stream=lambda _: self.log.append("main waits")),
        )
        put("stream", lambda _: self.noted("side"))
        put("synchronize", lambda: self.log.append("synchronize"))
        put("CUDAGraph", lambda: SimpleNamespace(replay=lambda: self.log.append("replay")))
        put("graph", lambda _: self.noted("recording"))
        put("Event", self.event)
        put("empty_cache", lambda: self.log.append("empty"))

    @contextmanager
    def noted(self, what: str) -> Iterator[None]:
        self.log.append(f"{what} begins")
        yield
        self.log.append(f"{what} ends")

    def event(self, *, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        return SimpleNamespace(
            record=lambda: self.log.append("event"),
            synchronize=lambda: self.log.append("wait for event"),
            elapsed_time=lambda other: 3.0,
        )


def partial_set(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    return lambda name, value: monkeypatch.setattr(torch.cuda, name, value)


def test_a_recording_is_made_after_a_warm_up_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    clock = CudaClock()
    assert (clock.device, clock.cache, clock.copied) == (torch.device("cuda", 0), 50 * 2**20, 2**27)
    numbers = iter(range(100))
    recorded = clock.record(
        [lambda: (cuda.log.append("a"), next(numbers))[1], lambda: next(numbers)], 3
    )
    assert cuda.log == [
        "side waits",
        "side begins",
        "a",
        "a",
        "side ends",
        "main waits",
        "synchronize",
        "recording begins",
        "a",
        "a",
        "recording ends",
    ]
    assert list(recorded.outputs) == [5, 6]  # as many as there are works
    cuda.log.clear()
    assert clock.seconds(recorded.run, 2) == 0.003
    assert cuda.log == ["event", "replay", "replay", "event", "wait for event"]
    cuda.log.clear()
    clock.wait()
    clock.free()
    assert cuda.log == ["synchronize", "empty"]


# --------------------------------------------------------------------------------------------------
# the kernel


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


@pytest.mark.gpu
@needs_gpu
def test_an_encoder_on_the_gpu() -> None:
    found = gpu_encoder.time_depths(CudaClock(), SHORT, base(), 256, lambda layer: layer)
    assert found["error"] < 2e-2
    assert len(found["us"]) == 6


# --------------------------------------------------------------------------------------------------
# the encoder


SMALL = replace(base(), channels=32, heads=4, encoder_ffn=64, schedule=(3, 3, 3))


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


def operator(
    value: Tensor, offsets: Tensor, logits: Tensor, reference: Tensor, shapes: list[Any]
) -> Tensor:
    """On the CPU half precision is for the operator only, which counts in float32."""
    return attention.ms_deform_attn(
        value, offsets, logits, reference, [side for hw in shapes for side in hw]
    )


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


# --------------------------------------------------------------------------------------------------
# the models


@pytest.fixture(scope="module")
def served() -> Bundle:
    """The shipped bundle with its cheapest plan and one that pauses tokens."""
    found = bundle.load(SHIPPED)
    plans = (found.manifest.plans[0], next(plan for plan in found.manifest.plans if plan.keep < 1))
    needed = ("front", *(found.manifest.encoder_of[plan.name] for plan in plans), "decoder")
    stages = {name: found.manifest.stages[name] for name in needed}
    return replace(found, manifest=replace(found.manifest, plans=plans, stages=stages))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_models, "RUNS", 2)
    monkeypatch.setattr(gpu_models, "WARM", 1)


@pytest.mark.parametrize(
    "name",
    [
        "torch eager, fp32",
        "torch eager, bf16, CUDA graph",
        pytest.param("torch.compile, bf16, CUDA graph", marks=pytest.mark.slow),
    ],
)
def test_torch_has_parity_with_what_is_served_in_every_form(
    name: str, clock: HostClock, served: Bundle, quick: None
) -> None:
    if "compile" in name:  # tracing takes its time
        served = replace(served, manifest=replace(served.manifest, plans=served.manifest.plans[:1]))
    found = gpu_models.steps(Setting(clock, SHORT, served, Path(), lambda: 1.0))[name]()
    assert found["precision"] == name.split(", ")[1]
    assert list(found["plans"]) == [plan.name for plan in served.manifest.plans]
    for plan in found["plans"].values():
        assert plan["parity"] < LIMITS[found["precision"]].mean
        assert plan["ms"]["median"] > 0


def test_a_recording_takes_new_inputs_and_any_batch(clock: HostClock) -> None:
    runs = Replayed(clock, lambda x, y: (x + y, x * y))
    with torch.inference_mode():
        for batch in (2, 3, 2):
            x, y = torch.randn(batch, 4), torch.randn(batch, 4)
            total, product = runs(x, y)
            assert torch.equal(total, x + y)
            assert torch.equal(product, x * y)


def test_tensors_must_be_encoded_before_they_are_decoded(clock: HostClock, served: Bundle) -> None:
    backend = TorchBackend(served, clock, half=False)
    canvas = served.manifest.input
    image = np.zeros((1, canvas.height, canvas.width, 3), np.uint8)
    tensors = backend.run("front", {"image": image})
    assert tensors["quality"].shape == (1, len(bundle.load(SHIPPED).manifest.plans))
    with pytest.raises(KeyError, match="no encoded maps"):
        backend.run("decoder", tensors)


@pytest.fixture
def compared(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Exception | None], Callable[[], gpu_models.Route]]:
    """A route whose comparison gives 0.001, or fails."""

    def arrange(error: Exception | None) -> Callable[[], gpu_models.Route]:
        def compare(
            ours: Any, theirs: Any, manifest: Any, plans: Any, *_: object
        ) -> dict[str, float]:
            if error is not None:
                raise error
            return {plans[0].name: 0.001}

        monkeypatch.setattr(gpu_models, "OnnxRuntimeBackend", lambda served, threads: None)
        monkeypatch.setattr(gpu_models, "compare", compare)
        monkeypatch.setattr(gpu_models, "latency", lambda *_: {"median": 2.0})
        return lambda: gpu_models.Route(SimpleNamespace(close=lambda: None), "fp32")

    return arrange


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (
            RunError("d1 at batch 1: probabilities differ"),
            {"wrong": "d1 at batch 1: probabilities differ"},
        ),
        (RuntimeError("no memory"), {"not_measured": "RuntimeError: no memory"}),
        (BackendError("no engine"), {"not_measured": "no engine"}),
    ],
)
def test_a_plan_that_differs_is_wrong_and_one_that_fails_is_not_measured(
    error: Exception, answer: dict[str, str], served: Bundle, compared: Callable[..., Any]
) -> None:
    found = gpu_models.time_plans(compared(error), served, lambda: 1.0)
    assert found["plans"] == {plan.name: answer for plan in served.manifest.plans}


def test_plans_for_which_no_time_is_left_say_so(
    served: Bundle, compared: Callable[..., Any]
) -> None:
    left = iter([1.0, -1.0])
    found = gpu_models.time_plans(compared(None), served, lambda: next(left))["plans"]
    first, second = (plan.name for plan in served.manifest.plans)
    assert found == {
        first: {"parity": 0.001, "ms": {"median": 2.0}},
        second: {"not_measured": NO_TIME},
    }


def test_what_is_not_installed_is_not_measured(
    served: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_models, "installed", lambda: iter(()))
    monkeypatch.setattr(onnxruntime_cuda, "PROVIDER", "NoSuchProvider")
    steps = gpu_models.steps(Setting(HostClock(), SHORT, served, Path(), lambda: 1.0))
    assert steps["TensorRT"]()["not_measured"].startswith("TensorRT is not installed")

    def without(_: object) -> gpu_models.Route:
        raise ImportError("No module named 'onnxruntime'")

    found = gpu_models.time_plans(lambda: without(None), served, lambda: 1.0)
    assert found == {"not_measured": "ImportError: No module named 'onnxruntime'"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_onnxruntime_cuda_is_not_measured_without_a_gpu(served: Bundle) -> None:
    steps = gpu_models.steps(Setting(HostClock(), SHORT, served, Path(), lambda: 1.0))
    assert steps["ONNX Runtime CUDA, fp32"]()["not_measured"] != ""


def test_engines_are_built_where_the_cache_has_none(
    served: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[list[str]] = []
    about = SimpleNamespace(batches=(1, 2, 4), precision="fp16")

    def find(cache: Path, content: str, there: Any, chip: str, *, mend: str) -> Any:
        assert (cache, there, chip) == (tmp_path, [("tensorrt", "11.4")], "9.0")
        assert mend.startswith("python -m model_export build-trt")
        if not built:
            raise BackendError("none")
        return about

    device = SimpleNamespace(capability=(9, 0), close=lambda: None)
    monkeypatch.setattr(
        gpu_models, "installed", lambda: iter([SimpleNamespace(flavour="tensorrt", version="11.4")])
    )
    monkeypatch.setattr(gpu_models, "Device", lambda: device)
    monkeypatch.setattr(gpu_models.engine_cache, "find", find)
    monkeypatch.setattr(gpu_models, "build", lambda words, seconds: built.append(words))
    monkeypatch.setattr(gpu_models, "TensorRTBackend", lambda served, **options: options)
    for _ in range(2):
        route = gpu_models.by_tensorrt(served, tmp_path, lambda: 9.0)
        assert route == gpu_models.Route({"cache": tmp_path, "max_batch": 4}, "fp16", (1, 2, 4))
    (words,) = built
    assert words[-4:] == ["--cache", str(tmp_path), "--batches", "1,2,4"]


def test_a_build_that_fails_or_lasts_has_the_last_word() -> None:
    gpu_models.build(["-c", "pass"], 60)
    with pytest.raises(RuntimeError, match="the engines were not built: no parity"):
        gpu_models.build(
            ["-c", "import sys; print('much'); sys.exit('build-trt: x\\nno parity')"], 60
        )
    with pytest.raises(RuntimeError, match="the engines were not built: exit status 3"):
        gpu_models.build(["-c", "raise SystemExit(3)"], 60)
    with pytest.raises(BackendError, match="longer to build than the 0 s"):
        gpu_models.build(["-c", "import time; time.sleep(60)"], 0)


# --------------------------------------------------------------------------------------------------
# the service


def test_throughput_of_a_real_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_service, "WARM", 1)
    left = iter([9.0, 9.0, -1.0])
    found = gpu_service.throughput(
        SHIPPED, "fake", Path("engines"), lambda: next(left), requests=12
    )
    names = [plan.name for plan in bundle.load(SHIPPED).manifest.plans]
    assert list(found["plans"]) == [names[0], names[-1], "gate"]
    for name in (names[0], names[-1]):
        row = found["plans"][name]
        assert row["requests"] == 12
        assert row["images_per_s"] > 0
        assert 0 < row["p50_ms"] <= row["p95_ms"]
    assert found["plans"]["gate"] == {"not_measured": NO_TIME}


def test_a_service_that_does_not_start_is_not_measured(tmp_path: Path) -> None:
    setting = Setting(
        HostClock(), SHORT, SimpleNamespace(root=SHIPPED), tmp_path / "none", lambda: 9.0
    )
    found = gpu_service.steps(setting)["tensorrt"]()
    assert found.keys() == {"not_measured"}
    assert "BackendError: " in found["not_measured"]
    found = gpu_service.throughput(SHIPPED, "none", tmp_path, lambda: 9.0)
    assert found["not_measured"].startswith("SettingsError: --backend is 'none'")
    assert gpu_service.last_words(RuntimeError()) == "RuntimeError"


def test_a_closed_loop_ends_by_the_clock() -> None:
    found = gpu_service.closed_loop(None, [b""], "", requests=5, seconds=-1.0)
    assert found == {"requests": 0, "images_per_s": 0.0}


def test_images_have_threads_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, threads in ((None, 2), (2, 2), (16, 14), (200, 64)):
        monkeypatch.setattr(gpu_service.os, "cpu_count", lambda cores=cores: cores)
        assert gpu_service.image_threads() == threads


# --------------------------------------------------------------------------------------------------
# all together


@pytest.mark.slow
def test_the_whole_command_on_the_stand_in(
    clock: HostClock,
    served: Bundle,
    quick: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the parts give is what the tables read: one step of each kind, through to the last
    line."""
    wanted, steps_of = (
        {"parity", LAYERS[0].name, ENCODER_EAGER, "torch eager, bf16", "fake"},
        gpu.steps_of,
    )
    monkeypatch.setattr(
        gpu,
        "steps_of",
        lambda *what: {name: step for name, step in steps_of(*what).items() if name in wanted},
    )
    cheap = replace(served, manifest=replace(served.manifest, plans=served.manifest.plans[:1]))
    monkeypatch.setattr(gpu, "load", lambda folder: cheap)
    monkeypatch.setattr(gpu, "uncompiled", lambda parts: [])
    monkeypatch.setattr(gpu_machine, "lacking", list)
    monkeypatch.setattr(gpu_machine, "describe", lambda: {"gpu": "a stand-in"})
    monkeypatch.setattr(gpu_clock, "CudaClock", lambda: clock)
    monkeypatch.setattr(gpu_clock, "Pace", lambda: SHORT)
    monkeypatch.setattr(attention, "deformable_attention", operator)
    monkeypatch.setattr(gpu_encoder, "LARGE_SIDE", 64)
    monkeypatch.setattr(gpu_encoder.config, "base", lambda: SMALL)
    monkeypatch.setattr(gpu_service, "BACKENDS", ("fake",))
    monkeypatch.setattr(gpu_service, "SECONDS", 0.2)
    out = tmp_path / "x.json"
    status = gpu.main(["--minutes", "30", "--out", str(out)])
    said = capsys.readouterr()
    assert (status, said.err) == (0, "")
    found = last_json(said.out)
    assert set().union(*(found[part] for part in gpu.PARTS)) == wanted
    assert json.loads(out.read_text()) == {
        key: value for key, value in found.items() if key != "bars"
    }
    assert f"\n{LAYERS[0].name}: 0.00 MB at" in said.out
    assert f"\n{LAYERS[1].name}: not measured\n" in said.out
    assert f"\n{BASELINE} " in said.out
    assert re.search(r"\ntorch eager, bf16 +\d+\.\d\d\n", said.out)
    assert re.search(r"\nfake, gate +\d+( +\d+\.\d){2}\n", said.out)
    of_kernel = [bar["verdict"] for bar in found["bars"]][:4]
    assert "not measured" not in of_kernel
