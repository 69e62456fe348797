"""--backend: what `auto` takes with what is installed and built, what it says of it, and that
nothing takes over."""

from __future__ import annotations

import logging
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from service import __main__ as entry
from service.bundle import Bundle
from service.engines import choice, engine_cache, tensorrt
from service.engines.choice import BACKENDS, Choice, choose_backend, open_backend, open_named
from service.engines.cuda import DriverError, gpu_name
from service.engines.engine_cache import EngineSet
from service.errors import BackendError
from service.settings import Settings
from tests.fake_tensorrt import FakeDevice, FakeRuntime

CHIP = "NVIDIA H100"


def no_gpu() -> str:
    raise DriverError("no CUDA driver: libcuda.so.1")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What is installed here, to be filled; "cuda" stands for onnxruntime-gpu."""
    there: set[str] = {"onnxruntime"}
    monkeypatch.setattr(choice, "installed", lambda name: name in there)
    monkeypatch.setattr(
        choice, "_providers", lambda: ["CUDAExecutionProvider"] if "cuda" in there else []
    )
    return there


def engines_for(served: Bundle, cache: Path, version: str = "11.0") -> Path:
    content = engine_cache.content_of(served.manifest)
    found = EngineSet(content, "tensorrt", version, "9.0", "fp16", (1, 2), True, {}, {})
    engine_cache.save(cache, found, {"front": b"plan"})
    return cache


@pytest.mark.parametrize(
    ("there", "gpu", "built", "backend", "reason", "words"),
    [
        ({"tensorrt", "cuda"}, False, True, "onnxruntime", "no-gpu", "no GPU to use .*libcuda"),
        (
            {"tensorrt", "cuda"},
            True,
            True,
            "tensorrt",
            "engines",
            "engines for this bundle, and NVIDIA H100 is here",
        ),
        ({"tensorrt_rtx"}, True, True, "tensorrt", "engines", "engines for this bundle"),
        (
            {"tensorrt", "cuda"},
            True,
            False,
            "onnxruntime-cuda",
            "cuda-provider",
            "no TensorRT engines .*build-trt",
        ),
        (
            {"cuda"},
            True,
            True,
            "onnxruntime-cuda",
            "cuda-provider",
            "H100 is here, and TensorRT is not installed",
        ),
        (
            {"tensorrt"},
            True,
            False,
            "onnxruntime",
            "no-gpu-runtime",
            "H100 stays idle: .* no TensorRT engines",
        ),
        (
            set(),
            True,
            False,
            "onnxruntime",
            "no-gpu-runtime",
            "stays idle: TensorRT is not installed, and onnxruntime",
        ),
    ],
)
def test_auto_takes_the_fastest_that_is_ready(
    machine: set[str],
    fake_bundle: Bundle,
    tmp_path: Path,
    there: set[str],
    gpu: bool,
    built: bool,
    backend: str,
    reason: str,
    words: str,
) -> None:
    machine |= there
    cache = engines_for(fake_bundle, tmp_path / "engines") if built else tmp_path / "none"
    ask_gpu = (lambda: CHIP) if gpu else no_gpu
    found = choose_backend(Settings(engine_cache=cache), fake_bundle, gpu=ask_gpu)
    assert (found.backend, found.reason) == (backend, reason)
    assert re.search(words, found.why), found.why


def test_engines_of_another_bundle_are_none(
    machine: set[str], fake_bundle: Bundle, tmp_path: Path
) -> None:
    machine |= {"tensorrt", "cuda"}
    other = EngineSet("0" * 64, "tensorrt", "11.0", "9.0", "fp16", (1,), True, {}, {})
    engine_cache.save(tmp_path, other, {"front": b"plan"})
    assert (
        choose_backend(Settings(engine_cache=tmp_path), fake_bundle, gpu=lambda: CHIP).backend
        == "onnxruntime-cuda"
    )


@pytest.mark.parametrize("backend", ["onnxruntime", "onnxruntime-cuda", "tensorrt", "fake"])
def test_what_is_asked_for_is_taken_without_a_look_at_the_machine(
    fake_bundle: Bundle, backend: str
) -> None:
    def never() -> str:
        raise AssertionError("nobody asked for the GPU")

    assert choose_backend(Settings(backend=backend), fake_bundle, gpu=never) == Choice(
        backend, "asked", "--backend asks for it"
    )


def test_what_auto_took_must_work_and_names_the_command_where_it_does_not(
    machine: set[str], fake_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines for this bundle of another TensorRT: an error, not a slower backend."""
    machine |= {"tensorrt", "cuda"}
    device = FakeDevice()
    real = tensorrt.TensorRTBackend

    def with_fakes(served: Bundle, **options: object) -> object:
        runtime: object = FakeRuntime(device, served.manifest, version="10.9")
        return real(served, device=lambda: device, runtimes=lambda: iter([runtime]), **options)  # type: ignore[arg-type]

    monkeypatch.setattr(tensorrt, "TensorRTBackend", with_fakes)
    settings = Settings(engine_cache=engines_for(fake_bundle, tmp_path))
    chosen = choose_backend(settings, fake_bundle, gpu=lambda: CHIP)
    with pytest.raises(
        BackendError,
        match=r"tensorrt 11\.0, .*; this machine has tensorrt 10\.9.*model_export build-trt",
    ):
        open_backend(chosen, settings, fake_bundle)


def test_the_log_says_what_was_taken_and_why_and_warns_of_an_idle_gpu(
    fake_bundle: Bundle, onnx_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert (
        open_backend(Choice("fake", "asked", "--backend asks for it"), Settings(), fake_bundle).name
        == "fake"
    )
    assert "backend fake: --backend asks for it" in caplog.text
    assert "made up" in caplog.text
    caplog.clear()
    idle = Choice("onnxruntime", "no-gpu-runtime", f"{CHIP} stays idle: it has nothing to run on")
    assert open_backend(idle, Settings(threads=1), onnx_bundle).name == "onnxruntime"
    *first, attention = [(r.levelname, r.getMessage()) for r in caplog.records]
    assert first == [
        ("WARNING", f"backend onnxruntime: {CHIP} stays idle: it has nothing to run on"),
        ("INFO", "onnxruntime runs on the CPU, 1 threads"),
    ]
    assert attention[1].startswith("deformable attention ")


def test_the_backends_that_can_be_asked_for_are_those_that_can_be_opened() -> None:
    (setting,) = (field for field in fields(Settings) if field.name == "backend")
    assert {*setting.metadata["choices"]} == {"auto", *BACKENDS}


def test_a_backend_is_opened_by_its_name_without_settings(
    onnx_bundle: Bundle, tmp_path: Path
) -> None:
    limits: dict[str, Any] = {"threads": 2, "max_batch": 1, "engine_cache": tmp_path}
    backend = open_named("onnxruntime", onnx_bundle, **limits)
    assert backend.name == "onnxruntime"
    backend.close()
    with pytest.raises(
        BackendError, match="'cpu' is not a backend: choose one of onnxruntime, openvino, "
    ):
        open_named("cpu", onnx_bundle, **limits)


def test_without_onnxruntime_the_error_names_the_package(
    machine: set[str], fake_bundle: Bundle
) -> None:
    machine.clear()
    for backend in ("onnxruntime", "onnxruntime-cuda"):
        with pytest.raises(
            BackendError, match=r"onnxruntime is not installed: pip install '\.\[cpu\]'"
        ):
            open_backend(Choice(backend, "asked", ""), Settings(), fake_bundle)


def test_this_machine_s_providers_and_gpu_are_really_asked_for() -> None:
    assert "CPUExecutionProvider" in choice._providers()
    if not _has_gpu():
        with pytest.raises(DriverError, match="CUDA"):
            gpu_name()


@pytest.mark.parametrize(
    ("backend", "error"),
    [
        ("auto", "BackendError: front.onnx"),
        ("onnxruntime", "BackendError: front.onnx"),
        ("onnxruntime-cuda", "BackendError: onnxruntime"),
        ("tensorrt", "BackendError: TensorRT needs a GPU"),
    ],
)
def test_a_backend_that_cannot_run_here_ends_the_process_and_no_other_takes_over(
    fake_bundle: Bundle,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    backend: str,
    error: str,
) -> None:
    if backend != "onnxruntime" and _has_gpu():
        pytest.skip("here is a GPU")
    assert (
        entry.main(["--bundle", str(fake_bundle.root), "--port", "0", "--backend", backend], {})
        == 1
    )
    assert error in capsys.readouterr().err
    (said,) = (record for record in caplog.records if "the engine stopped" in record.message)
    assert not said.exc_info, "where in the code it came up helps no operator"


def _has_gpu() -> bool:
    try:
        return bool(gpu_name())
    except DriverError:
        return False
