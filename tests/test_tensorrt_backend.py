"""The TensorRT backend, the cache of engines and the driver calls, on a GPU of numpy: what is
queued, and where."""

from __future__ import annotations

import ctypes
import functools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from service import bundle
from service.bundle import Bundle, Manifest
from service.engines import cuda, engine_cache
from service.engines.cuda import DriverError
from service.engines.engine_cache import EngineSet
from service.engines.tensorrt import TensorRTBackend
from service.errors import BackendError
from tests.fake_tensorrt import FakeDevice, FakeRuntime


def engine_set(served: Bundle, **changes: object) -> EngineSet:
    about = EngineSet(
        engine_cache.content_of(served.manifest),
        "tensorrt",
        "11",
        "8.9",
        "fp16",
        (1, 2, 4),
        True,
        {},
        {},
    )
    return replace(about, **changes)  # type: ignore[arg-type]


def fill(served: Bundle, cache: Path, **changes: object) -> EngineSet:
    return engine_cache.save(
        cache, engine_set(served, **changes), {s: s.encode() for s in served.manifest.stages}
    )


def mean_images(*means: int) -> np.ndarray:
    return np.stack([np.full((48, 64, 3), mean, np.uint8) for mean in means])


class Opened:
    def __init__(self, served: Bundle, cache: Path, **words: object) -> None:
        self.device = FakeDevice()
        self.runtime = FakeRuntime(self.device, served.manifest)
        self.plans = served.manifest.plans
        self.backend = TensorRTBackend(
            served,
            cache=cache,
            device=lambda: self.device,
            runtimes=lambda: iter([self.runtime]),
            **words,
        )


@pytest.fixture
def opened(fake_bundle: Bundle, tmp_path: Path) -> Opened:
    fill(fake_bundle, tmp_path)
    return Opened(fake_bundle, tmp_path, max_batch=4)


# ---- what it computes


@pytest.mark.parametrize("round_", ["first", "replayed"])
def test_features_go_from_front_to_decoder_on_the_device(opened: Opened, round_: str) -> None:
    backend, (d1, *_, d4) = opened.backend, opened.plans
    for means in ((10, 20, 30), (40, 50, 60))[: 1 if round_ == "first" else 2]:
        opened.device.calls.clear()
        features, quality = backend.front(mean_images(*means))
        assert quality.shape == (3, 4)
        assert quality[:, -1] == pytest.approx(np.array(means) / 255)
        for plan in (d4, d1):  # the same features, for one plan after another
            found = backend.decode(backend.encode(plan, features))
            assert found.shape == (3, 4, 12, 16)
            assert found.dtype == np.float32
            assert found[:, 0, 0, 0].tolist() == list(means)
            assert found[:, 1, 0, 0].tolist() == [mean + plan.depth for mean in means]
    copies = [call for call in opened.device.calls if call in ("to host", "to device", "on device")]
    assert copies == [
        "to device",
        "to host",
        "to host",
        "to host",
    ]  # the image; the scores; two masks
    assert backend.name == "tensorrt-fp16"


def test_rows_are_taken_on_the_device_and_in_order(opened: Opened) -> None:
    backend, (d1, d2, *_) = opened.backend, opened.plans
    features, _ = backend.front(mean_images(10, 20, 30, 40))
    for plan, rows in ((d1, [3, 0]), (d2, [1])):
        opened.device.calls.clear()
        found = backend.decode(backend.encode(plan, features.take(rows)))
        wanted = [(10, 20, 30, 40)[row] for row in rows]
        assert found[:, 0, 0, 0].tolist() == wanted
        assert found[:, 1, 0, 0].tolist() == [mean + plan.depth for mean in wanted]
        assert opened.device.calls.count("on device") == 4 * len(
            rows
        )  # f4, f8, f16, f32: not what no encoder wrote
        assert opened.device.calls.count("to host") == 1
    again = features.take([2, 1, 0]).take([0, 2])
    assert backend.decode(backend.encode(d1, again))[:, 0, 0, 0].tolist() == [30, 10]


def test_encoded_rows_can_be_taken_with_what_was_paused(
    instance_manifest: Manifest, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for entry in (*instance_manifest.stages.values(), *instance_manifest.files):
        (folder / entry.file).write_bytes(b"x")
    served = bundle.save(folder, instance_manifest)
    fill(served, tmp_path)
    opened = Opened(served, tmp_path, max_batch=2)
    features, _ = opened.backend.front(mean_images(10, 20))
    narrow = opened.plans[2]
    encoded = opened.backend.encode(narrow, features)
    assert encoded.paused is not None
    assert encoded.paused[:, 0, 0].tolist() == [0, 1]
    last = encoded.take([1])
    assert last.paused is not None
    assert last.paused[:, 0, 0].tolist() == [1]
    assert opened.backend.decode(last)[0, :2, 0, 0].tolist() == [20, 24]
    assert features.paused is None


def test_features_that_a_later_call_overwrote_are_refused(opened: Opened) -> None:
    backend, (d1, d2, *_) = opened.backend, opened.plans
    features, _ = backend.front(mean_images(10))
    encoded = backend.encode(d1, features)
    backend.encode(d2, features)
    with pytest.raises(ValueError, match="overwritten"):
        backend.decode(encoded)
    taken = features.take([0])
    features.take([0])
    with pytest.raises(ValueError, match="overwritten"):
        backend.encode(d1, taken)
    backend.front(mean_images(20))
    with pytest.raises(ValueError, match="overwritten"):
        features.take([0])
    with pytest.raises(ValueError, match="must be encoded"):
        backend.decode(backend.front(mean_images(20))[0])


def test_counts_and_strangers_are_refused(
    opened: Opened, fake_bundle: Bundle, tmp_path: Path
) -> None:
    backend = opened.backend
    features, _ = backend.front(mean_images(10))
    with pytest.raises(ValueError, match="5 images: the engines take 1 to 4"):
        backend.front(mean_images(1, 2, 3, 4, 5))
    with pytest.raises(IndexError, match=r"rows \[1\] of 1"):
        features.take([1])
    other = Opened(fake_bundle, tmp_path)
    with pytest.raises(TypeError, match="another backend"):
        other.backend.encode(opened.plans[0], features)
    with pytest.raises(TypeError, match="another backend: object"):
        backend.decode(object())


# ---- what it holds and queues


def test_a_stage_runs_once_plainly_is_recorded_and_then_replayed(opened: Opened) -> None:
    backend, device = opened.backend, opened.device
    seen = []
    for _ in range(3):
        device.calls.clear()
        backend.front(mean_images(10, 20))
        seen.append([call for call in device.calls if call != "allocate"])
    assert seen[0] == ["to device", "front", "wait", "begin", "front", "end", "to host", "wait"]
    assert seen[1] == seen[2] == ["to device", "graph", "to host", "wait"]
    assert len(device.graphs) == 1
    backend.front(mean_images(10))  # another bucket
    backend.front(mean_images(10, 20, 30))
    assert len(device.graphs) == 3
    assert [context.batch for context in opened.runtime.made] == [2, 1, 4]


def test_nothing_is_allocated_once_each_stage_has_run(opened: Opened) -> None:
    backend, device, plan = opened.backend, opened.device, opened.plans[1]

    def use() -> None:
        features, _ = backend.front(mean_images(10, 20))
        backend.decode(backend.encode(plan, features))
        backend.decode(backend.encode(plan, features.take([1, 0])))

    use()
    before, made = len(device.memory), len(opened.runtime.made)
    device.calls.clear()
    use()
    assert (len(device.memory), len(opened.runtime.made)) == (before, made)
    assert "allocate" not in device.calls


def test_stages_share_their_scratch_and_plans_their_maps(opened: Opened) -> None:
    backend, device = opened.backend, opened.device
    features, _ = backend.front(mean_images(10))
    for plan in opened.plans:
        backend.decode(backend.encode(plan, features))
    bound = [each for context in opened.runtime.made for each in context.bound]
    assert len({scratch for _, scratch in bound}) == 1
    assert len(device.memory[bound[0][1]]) == max(len(stage) for stage in backend._stages) * 1000
    for name in ("f4", "f8", "e8", "e32"):
        assert len({addresses[name] for addresses, _ in bound if name in addresses}) == 1


def test_what_cannot_be_recorded_is_queued_each_time_and_said(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    opened.runtime.capturable = False
    with caplog.at_level("WARNING", "fathom"):
        for mean in (10, 20, 30):
            _, quality = opened.backend.front(mean_images(mean))
            assert quality[0, -1] == pytest.approx(mean / 255)
    assert [record.getMessage() for record in caplog.records] == [
        "front cannot be recorded as a CUDA graph: it is queued anew each time"
    ]
    assert opened.device.graphs == {}


def test_a_failing_recording_ends_the_capture(opened: Opened) -> None:
    backend = opened.backend
    original = opened.device.begin_capture

    def begin(stream: int) -> None:  # the first, plain run succeeds, the recording does not
        original(stream)
        opened.runtime.failing = "front"

    opened.device.begin_capture = begin  # type: ignore[method-assign]
    with pytest.raises(DriverError, match="700"):
        backend.front(mean_images(10))
    assert opened.device.recording is None


def test_close_gives_everything_back_and_may_be_called_twice(opened: Opened) -> None:
    features, _ = opened.backend.front(mean_images(10, 20))
    opened.backend.decode(opened.backend.encode(opened.plans[0], features.take([1])))
    opened.backend.close()
    opened.backend.close()
    device = opened.device
    assert (device.memory, device.graphs, device.streams, device.closed) == ({}, {}, 0, 1)


# ---- refusals at start


def refused(served: Bundle, cache: Path, match: str, **words: object) -> FakeDevice:
    device, room = FakeDevice(), words.pop("room", None)
    if room is not None:
        device.room = int(str(room))
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
    with pytest.raises(BackendError, match=r"pip install 'fathom\[tensorrt\]'"):
        TensorRTBackend(fake_bundle, cache=tmp_path, device=FakeDevice, runtimes=lambda: iter(()))
    refused(
        fake_bundle,
        tmp_path,
        f"no TensorRT engines.*python -m model_export build-trt {fake_bundle.root} --cache",
    )


@pytest.mark.parametrize(
    ("changes", "words", "match"),
    [
        ({"version": "10.9"}, {}, r"are for tensorrt 10\.9, .*here is tensorrt 11.*build-trt"),
        (
            {"capability": "9.0"},
            {},
            r"compute capability 9\.0; here is .* capability 8\.9\. .*build-trt",
        ),
        ({"flavour": "tensorrt-rtx"}, {}, r"are for tensorrt-rtx 11.*build-trt"),
        ({"checked": False}, {}, "never compared with ONNX Runtime.*build-trt"),
        ({"content": "another"}, {}, "no TensorRT engines for this bundle.*build-trt"),
        (
            {},
            {"max_batch": 8},
            r"take 4 images at once, the service may bring 8.*build-trt .* --batches 1,2,4,8",
        ),
        (
            {},
            {"room": 100_000},
            "not enough free memory.*build-trt .* --precision fp16 --batches 1",
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


def test_a_plan_that_was_changed_or_is_missing_is_refused(
    fake_bundle: Bundle, tmp_path: Path
) -> None:
    folder = tmp_path / fill(fake_bundle, tmp_path).folder
    (folder / "decoder.plan").write_bytes(b"decodex")
    refused(
        fake_bundle,
        tmp_path,
        r"decoder\.plan: its sha256 is not that of engines\.json\. .*build-trt",
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
    refused(fake_bundle, tmp_path, r"front\.plan: its tensors are not the manifest's\. .*build-trt")
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
    other = Opened(fake_bundle, tmp_path, only=about)  # in the place of ONNX Runtime
    monkeypatch.setattr(engine_parity, "OnnxRuntimeBackend", lambda served, threads: other.backend)
    found = engine_parity.check(fake_bundle, tmp_path, about, "scenes:3:5", None)
    assert found == {plan.name: 0.0 for plan in fake_bundle.manifest.plans}
    assert device.closed == 1
    front = other.backend.front
    monkeypatch.setattr(other.backend, "front", lambda pixels: front(255 - pixels))
    with pytest.raises(RunError, match="the gate's scores at batch 1 differ"):
        engine_parity.check(fake_bundle, tmp_path, about, "scenes:3:5", None)
    assert device.closed == 2


def test_another_graph_weight_or_canvas_is_another_content(fake_bundle: Bundle) -> None:
    manifest = fake_bundle.manifest
    first = engine_cache.content_of(manifest)
    stages = {**manifest.stages, "front": replace(manifest.stages["front"], sha256="0")}
    canvas = replace(manifest.input, height=manifest.input.height * 2)
    other = replace(manifest, files=(replace(manifest.files[0], sha256="0"),))
    found = {
        engine_cache.content_of(m)
        for m in (replace(manifest, stages=stages), replace(manifest, input=canvas), other)
    }
    assert len({first, *found}) == 4
    assert (
        engine_cache.content_of(replace(manifest, name="renamed", plans=manifest.plans[:1]))
        == first
    )


# ---- the driver


class Library:
    """libcuda: each function returns 0, or what `fails` has for it; `numbers` go where the first
    argument points."""

    def __init__(self, **fails: int) -> None:
        self.fails, self.calls, self.numbers = fails, [], {"cuDeviceGetAttribute": [9, 0]}

    def __getattr__(self, name: str) -> object:
        def function(*arguments: object) -> int:
            self.calls.append((name, arguments))
            if name == "cuGetErrorString":
                arguments[1]._obj.value = b"out of memory"  # type: ignore[attr-defined]
            elif arguments and hasattr(arguments[0], "_obj"):
                given = self.numbers.get(name)
                arguments[0]._obj.value = given.pop(0) if given else len(self.calls)
            return self.fails.get(name, 0)

        return function


def test_the_driver_is_called_with_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr(cuda, "_library", lambda: library)
    device = cuda.Device()
    assert device.capability == (9, 0)
    assert device.name == ""
    memory, host, stream = device.allocate(100), device.allocate_host(100), device.make_stream()
    assert len({memory, host, stream}) == 3
    device.to_device(memory, host, 10, stream)
    device.on_device(memory, memory + 10, 10, stream)
    device.to_host(host, memory, 10, stream)
    device.begin_capture(stream)
    graph = device.end_capture(stream)
    device.launch_graph(graph, stream)
    device.wait(stream)
    device.free_graph(graph)
    device.free(memory)
    device.free_host(host)
    device.free_stream(stream)
    device.close()
    numbers = {
        name: [getattr(a, "value", None) for a in arguments] for name, arguments in library.calls
    }
    assert numbers["cuMemcpyHtoDAsync_v2"] == [memory, host, 10, stream]
    assert numbers["cuMemcpyDtoDAsync_v2"] == [memory, memory + 10, 10, stream]
    assert numbers["cuMemcpyDtoHAsync_v2"] == [host, memory, 10, stream]
    assert numbers["cuGraphLaunch"] == [graph, stream]
    assert numbers["cuMemFree_v2"] == [memory]
    assert isinstance(dict(library.calls)["cuMemFree_v2"][0], ctypes.c_uint64)
    assert "cuGraphDestroy" in numbers
    assert "cuDevicePrimaryCtxRelease_v2" in numbers


def test_the_driver_s_refusal_has_its_words_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(cuMemAlloc_v2=2)
    monkeypatch.setattr(cuda, "_library", lambda: library)
    with pytest.raises(DriverError, match="CUDA driver error 2: out of memory") as caught:
        cuda.Device().allocate(1)
    assert caught.value.status == cuda.OUT_OF_MEMORY


def test_a_kernel_is_loaded_and_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    library.numbers["cuCtxGetCurrent"] = [5, 0]  # at the launch, a thread without a context
    monkeypatch.setattr(cuda, "_library", lambda: library)
    cuda.Kernel(b"ptx", "entry").launch((3, 2, 1), 64, 7, ctypes.c_void_p(9), ctypes.c_int(4))
    calls = dict(library.calls)
    assert calls["cuLaunchKernel"][1:8] == (3, 2, 1, 64, 1, 1, 0)
    assert calls["cuLaunchKernel"][8].value == 7
    assert calls["cuCtxSetCurrent"][0].value == 5
    assert SimpleNamespace(**calls).cuModuleGetFunction[2] == b"entry"
