"""Which TensorRT engines a service takes, and what it says of all others at its start."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from service.bundle import Bundle, Canvas, InputSpec, Shape
from service.engines import cuda, engine_cache
from service.engines.cuda import DriverError
from service.engines.tensorrt import TensorRTBackend
from service.errors import BackendError
from tests.fake_tensorrt import FakeDevice, FakeRuntime, Opened, engine_set, fill


def refused(served: Bundle, cache: Path, match: str, **words: object) -> FakeDevice:
    device = FakeDevice(int(str(words.pop("free_memory", 1 << 30))))
    runtime = FakeRuntime(device, served.manifest, version=str(words.pop("version", "11")))
    with pytest.raises(BackendError, match=match):
        TensorRTBackend(
            served, cache=cache, device=lambda: device, runtimes=lambda: iter([runtime]), **words
        )
    assert (device.memory, device.streams, device.closed) == ({}, 0, 1)
    return device


def test_no_driver_no_package_no_engines(fake_bundle: Bundle, tmp_path: Path) -> None:
    def none() -> cuda.Device:
        raise DriverError("no CUDA driver: libcuda.so.1: cannot open shared object file")

    with pytest.raises(BackendError, match="TensorRT needs a GPU: no CUDA driver"):
        TensorRTBackend(fake_bundle, cache=tmp_path, device=none)
    with pytest.raises(BackendError, match=r"pip install '\.\[tensorrt\]'"):
        TensorRTBackend(fake_bundle, cache=tmp_path, device=FakeDevice, runtimes=lambda: iter(()))
    refused(
        fake_bundle,
        tmp_path,
        f"no TensorRT engines.*python -m model_export build-trt {fake_bundle.root} --cache",
    )


@pytest.mark.parametrize(
    ("changes", "words", "match"),
    [
        (
            {"version": "10.9"},
            {},
            r"are for tensorrt 10\.9, .*this machine has tensorrt 11.*build-trt",
        ),
        (
            {"capability": "9.0"},
            {},
            r"compute capability 9\.0; this machine has .* capability 8\.9\. .*build-trt",
        ),
        ({"flavour": "tensorrt-rtx"}, {}, r"are for tensorrt-rtx 11.*build-trt"),
        ({"checked": False}, {}, "never compared with ONNX Runtime.*build-trt"),
        ({"content": "another"}, {}, "no TensorRT engines for this bundle.*build-trt"),
        (
            {},
            {"max_batch": 8},
            r"take 4 images at once, but the service may send 8.*build-trt .* --batches 1,2,4,8",
        ),
        (
            {},
            {"free_memory": 100_000, "max_batch": 4},
            "too little free memory.*build-trt .* --precision fp16 --batches 1",
        ),
    ],
)
def test_engines_that_do_not_fit_name_the_command(
    fake_bundle: Bundle,
    tmp_path: Path,
    changes: dict[str, object],
    words: dict[str, object],
    match: str,
) -> None:
    fill(fake_bundle, tmp_path, **changes)
    refused(fake_bundle, tmp_path, match, **words)


def test_memory_that_runs_out_for_a_graph_names_the_command_too(
    fake_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(device: FakeDevice, stream: int) -> None:
        raise DriverError("CUDA driver error 2: out of memory", cuda.OUT_OF_MEMORY)

    fill(fake_bundle, tmp_path)
    monkeypatch.setattr(FakeDevice, "begin_capture", full)
    refused(fake_bundle, tmp_path, "too little free memory.*build engines for smaller batches")


def test_a_plan_that_was_changed_or_is_missing_is_refused(
    fake_bundle: Bundle, tmp_path: Path
) -> None:
    folder = tmp_path / fill(fake_bundle, tmp_path).folder
    (folder / "decoder.plan").write_bytes(b"decodex")
    refused(
        fake_bundle,
        tmp_path,
        r"decoder\.plan: its sha256 is not the one in engines\.json\. .*build-trt",
    )
    (folder / "decoder.plan").unlink()
    refused(fake_bundle, tmp_path, r"decoder\.plan: No such file.*build-trt")
    (folder / "engines.json").write_text("{")
    refused(fake_bundle, tmp_path, r"engines\.json: it cannot be read")
    (folder / "engines.json").write_text(json.dumps({"schema": 1, "content": 3}))
    refused(fake_bundle, tmp_path, r"engines\.json: it cannot be read .*engines\.json")
    (folder / "engines.json").write_text(json.dumps({"schema": 99}))
    refused(fake_bundle, tmp_path, "no TensorRT engines")


def test_an_engine_of_other_tensors_or_without_a_stage_is_refused(
    fake_bundle: Bundle, tmp_path: Path
) -> None:
    plans = {
        stage: b"decoder" if stage == "front" else stage.encode()
        for stage in fake_bundle.manifest.stages
    }
    engine_cache.save(tmp_path, engine_set(fake_bundle), plans)
    refused(
        fake_bundle,
        tmp_path,
        r"front\.plan: its tensors are not those in the manifest\. .*build-trt",
    )
    engine_cache.save(tmp_path, engine_set(fake_bundle), {"front": b"front"})
    refused(fake_bundle, tmp_path, "there is no engine for encoder-d1.*build-trt")


def test_the_half_precision_engines_are_taken_and_unchecked_ones_only_by_name(
    fake_bundle: Bundle, tmp_path: Path
) -> None:
    fill(fake_bundle, tmp_path, precision="fp32")
    fill(fake_bundle, tmp_path, precision="bf16", capability="any")
    unchecked = fill(fake_bundle, tmp_path, precision="fp16", checked=False)
    assert Opened(fake_bundle, tmp_path).backend.name == "tensorrt-bf16"
    assert Opened(fake_bundle, tmp_path, only=unchecked).backend.name == "tensorrt-fp16"


def test_the_check_of_new_engines_opens_them_unchecked_and_compares_every_plan(
    fake_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_export.export import engine_parity  # this test alone needs torch
    from model_export.training.runs import RunError

    about = fill(fake_bundle, tmp_path, checked=False)
    device = FakeDevice()
    runtime = FakeRuntime(device, fake_bundle.manifest)
    on_fakes = functools.partial(
        TensorRTBackend, device=lambda: device, runtimes=lambda: iter([runtime])
    )
    monkeypatch.setattr(engine_parity, "TensorRTBackend", on_fakes)
    other = Opened(fake_bundle, tmp_path, only=about, max_batch=4)  # in the place of ONNX Runtime
    monkeypatch.setattr(engine_parity, "OnnxRuntimeBackend", lambda served, threads: other.backend)
    found = engine_parity.check(fake_bundle, tmp_path, about, "scenes:3:5", None)
    assert found == {plan.name: 0.0 for plan in fake_bundle.manifest.plans}
    assert device.closed == 1
    run = other.backend.run

    def negative(stage: str, tensors: object) -> object:
        return run(stage, {"image": 255 - tensors["image"]} if stage == "front" else tensors)

    monkeypatch.setattr(other.backend, "run", negative)
    with pytest.raises(RunError, match=r"the gate's scores \(48x64, batch 1\) differ"):
        engine_parity.check(fake_bundle, tmp_path, about, "scenes:3:5", None)
    assert device.closed == 2


def test_another_graph_weight_or_canvas_is_another_content(fake_bundle: Bundle) -> None:
    manifest = fake_bundle.manifest
    first = engine_cache.content_of(manifest)
    stages = {**manifest.stages, "front": replace(manifest.stages["front"], sha256="0")}
    (graphs,) = manifest.graphs.values()
    canvas = InputSpec.of([Canvas.of([Shape(96, 64)])], manifest.input.pad)
    larger = replace(manifest, input=canvas, graphs={"96x64": graphs})
    other = replace(manifest, files=(replace(manifest.files[0], sha256="0"),))
    found = {engine_cache.content_of(m) for m in (replace(manifest, stages=stages), larger, other)}
    assert len({first, *found}) == 4
    assert (
        engine_cache.content_of(
            replace(manifest, name="renamed", encoder_plans=manifest.encoder_plans[:1])
        )
        == first
    )
