"""The models' part of the GPU benchmark on a stand-in for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from model_export.export.engine_parity import LIMITS
from model_export.training.runs import RunError
from service import bundle
from service.bundle import Bundle
from service.engines import onnxruntime_cuda
from service.errors import BackendError
from tests.bench import (
    gpu_models,
)
from tests.bench.gpu_clock import (
    Setting,
)
from tests.bench.gpu_layers import (
    NO_TIME,
)
from tests.bench.gpu_torch import Replayed, TorchBackend
from tests.gpu_bench.stand_in import SHIPPED, SHORT, HostClock


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
        few = served.manifest.encoder_plans[:1]
        served = replace(served, manifest=replace(served.manifest, encoder_plans=few))
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
    (shape,) = served.manifest.glance.shapes
    graphs = served.manifest.graphs[shape.name]
    image = np.zeros((1, shape.height, shape.width, 3), np.uint8)
    tensors = backend.run(graphs.front, {"image": image, "size": np.float32([[360, 480]])})
    assert tensors["quality"].shape == (1, len(bundle.load(SHIPPED).manifest.plans))
    with pytest.raises(KeyError, match="no encoded maps"):
        backend.run(graphs.heads["semantic"], tensors)


@pytest.fixture
def compared(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Exception | None], Callable[[], gpu_models.Route]]:
    """A route whose comparison gives 0.001, or fails."""

    def arrange(error: Exception | None) -> Callable[[], gpu_models.Route]:
        def compare(ours: Any, theirs: Any, plans: Any, *_: object) -> dict[str, float]:
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
            RunError("c640-d1 (480x640, batch 1): probabilities differ"),
            {"wrong": "c640-d1 (480x640, batch 1): probabilities differ"},
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

    def find(cache: Path, content: str, there: Any, chip: str, *, build_command: str) -> Any:
        assert (cache, there, chip) == (tmp_path, [("tensorrt", "11.4")], "9.0")
        assert build_command.startswith("python -m model_export build-trt")
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
