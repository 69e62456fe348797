"""The CUDA provider's backend, by ONNX Runtime's CPU provider: sessions of one batch size,
io-binding, rows copied.

What only a GPU can show is marked `gpu`.
"""

from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from service import bundle
from service.bundle import Bundle, Manifest
from service.core import Frame, Geometry
from service.engines import onnxruntime_cuda
from service.engines.base import Backend
from service.engines.cuda import DriverError
from service.engines.onnxruntime import OnnxRuntimeBackend
from service.engines.onnxruntime_cuda import OnnxRuntimeCudaBackend, sizes_up_to
from service.errors import BackendError
from service.inference.stages import Stages
from service.inference.warm_up import warm_up
from tests.fake_tensorrt import FakeDevice
from tests.small_graphs import (
    check_backend,
    check_canvases,
    check_paused,
    decode,
    encode,
    front,
    images,
    pausing,
    reference,
    write_graphs,
)

SHIPPED = Path(__file__).resolve().parent.parent / "trained_weights"
# Whose results the CUDA provider keeps on the CPU, so that ONNX Runtime would put what follows
# there, too.
SHAPES = {"Shape", "Size", "NonZero"}


def on_host(
    served: Bundle, device: FakeDevice | None = None, *, max_batch: int = 4
) -> OnnxRuntimeCudaBackend:
    return OnnxRuntimeCudaBackend(
        served,
        max_batch=max_batch,
        device=lambda: device or FakeDevice(),
        provider="CPUExecutionProvider",
        place="cpu",
    )


def test_it_computes_what_the_graphs_say_for_every_plan_and_for_batches_without_a_session(
    onnx_bundle: Bundle,
) -> None:
    backend: Backend = on_host(onnx_bundle, max_batch=5)
    check_backend(backend, onnx_bundle, (1, 3, 5))
    backend.close()


def test_rows_are_copied_in_the_order_asked_for_and_the_source_stays_good(
    onnx_bundle: Bundle,
) -> None:
    device = FakeDevice()
    backend = on_host(onnx_bundle, device)
    batch, plan = images(4), onnx_bundle.manifest.plans[1]
    tensors, _ = front(backend, batch)
    device.calls.clear()
    some = encode(backend, plan, tensors.take([3, 0, 2]))
    assert device.calls == [*["on device"] * 3 * 4, "wait"]  # f4, f8, f16, f32
    decoded = decode(backend, some)
    for row, source in enumerate((3, 0, 2)):
        np.testing.assert_allclose(decoded[row], reference(batch[source], plan.depth)[1], atol=1e-5)
    last = decode(backend, some.take([2]))
    np.testing.assert_array_equal(last[0], decoded[2])
    whole = decode(backend, encode(backend, plan, tensors))
    np.testing.assert_allclose(whole[1], reference(batch[1], plan.depth)[1], atol=1e-5)


def test_it_tells_which_tokens_an_encoder_paused(
    tmp_path: Path, instance_manifest: Manifest
) -> None:
    manifest = pausing(instance_manifest)
    write_graphs(tmp_path, manifest)
    check_paused(on_host(bundle.save(tmp_path, manifest)), manifest)


def test_plans_run_on_several_canvases(tmp_path: Path, canvases_manifest: Manifest) -> None:
    write_graphs(tmp_path, canvases_manifest)
    served = bundle.save(tmp_path, canvases_manifest)
    check_canvases(on_host(served, max_batch=8), served.manifest)


def test_it_warms_up_like_any_backend_and_gives_everything_back_once(onnx_bundle: Bundle) -> None:
    device = FakeDevice()
    backend = on_host(onnx_bundle, device)
    assert (device.streams, device.closed) == (1, 0)
    stages = Stages(backend, onnx_bundle.manifest)
    assert set(warm_up(stages, 4).encoders) == {"d1", "d2", "d3", "d4"}
    backend.close()
    backend.close()
    assert (device.streams, device.closed) == (0, 1)


def test_wrong_calls_are_refused(onnx_bundle: Bundle) -> None:
    backend, other = on_host(onnx_bundle, max_batch=2), on_host(onnx_bundle)
    tensors, _ = front(backend, images(2))
    with pytest.raises(ValueError, match="1 to 2"):
        front(backend, images(3))
    with pytest.raises(ValueError, match="1 to 2"):
        tensors.take([0, 1, 0])
    with pytest.raises(IndexError, match="of 2"):
        tensors.take([2])
    with pytest.raises(KeyError, match="e8"):
        decode(backend, tensors)
    for stranger in (other, OnnxRuntimeBackend(onnx_bundle, threads=1)):
        with pytest.raises(TypeError, match="tensors of another backend"):
            decode(stranger, tensors)


def test_every_session_has_run_at_each_size_when_it_is_open_and_a_request_makes_none(
    onnx_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[ort.InferenceSession] = []
    run = ort.InferenceSession.run_with_iobinding

    def noted(session: ort.InferenceSession, binding: object) -> None:
        ran.append(session)
        run(session, binding)

    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", noted)
    with caplog.at_level("INFO", "fathom"):
        backend = on_host(onnx_bundle, max_batch=3)
    sessions = list(backend._sessions.values())
    assert len(sessions) == 6 * 3
    assert len(ran) == len(sessions)
    assert {*map(id, ran)} == {*map(id, sessions)}
    assert "batches (1, 2, 3): 18 sessions, 0 MB on the device" in caplog.text
    monkeypatch.setattr(ort, "InferenceSession", None)
    check_backend(backend, onnx_bundle, (1, 2, 3))
    assert {*map(id, ran)} == {*map(id, sessions)}


def test_a_first_run_that_fails_ends_the_start_with_the_file_and_what_may_help(
    onnx_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(session: ort.InferenceSession, binding: object) -> None:
        raise RuntimeError("CUDA failure 2: out of memory")

    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", full)
    device = FakeDevice()
    with pytest.raises(
        BackendError, match=r"front\.onnx: .* for 1 images at once: CUDA failure 2.*--max-batch"
    ):
        on_host(onnx_bundle, device)
    assert (device.streams, device.closed) == (0, 1)


def test_the_sizes_of_batches_end_with_the_largest_that_is_served() -> None:
    assert [sizes_up_to(n) for n in (1, 2, 3, 4, 5, 8)] == [
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 4),
        (1, 2, 4, 5),
        (1, 2, 4, 8),
    ]


def test_an_onnxruntime_without_the_provider_is_an_error_that_names_the_package(
    onnx_bundle: Bundle,
) -> None:
    if onnxruntime_cuda.PROVIDER in ort.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    with pytest.raises(BackendError, match=r"no CUDAExecutionProvider: .* pip install '\.\[gpu\]'"):
        OnnxRuntimeCudaBackend(onnx_bundle)


def test_a_machine_without_a_driver_is_an_error_that_says_so(
    onnx_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_driver() -> FakeDevice:
        raise DriverError("no CUDA driver: libcuda.so.1")

    monkeypatch.setattr(ort, "get_available_providers", lambda: [onnxruntime_cuda.PROVIDER])
    with pytest.raises(BackendError, match="needs a GPU: no CUDA driver"):
        OnnxRuntimeCudaBackend(onnx_bundle, device=no_driver)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_node_that_would_run_on_the_cpu_is_refused_by_onnxruntime(
    onnx_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider that is named but cannot be loaded: ONNX Runtime by itself would take the CPU for
    all nodes."""
    monkeypatch.setattr(onnxruntime_cuda, "PROVIDER", "CUDAExecutionProvider")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    if "CUDAExecutionProvider" in ort.get_all_providers() and _loads_cuda():
        pytest.skip("here it can be loaded")
    with pytest.raises(
        BackendError, match=r"front\.onnx: .*CPU EP has been explicitly disabled.*'\.\[gpu\]'"
    ):
        OnnxRuntimeCudaBackend(onnx_bundle, device=FakeDevice)


def _loads_cuda() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def test_tensors_that_are_not_the_manifest_s_are_named(onnx_bundle: Bundle) -> None:
    manifest = onnx_bundle.manifest
    front = manifest.stages["front"]
    wrong = dataclasses.replace(front.outputs[0], dims=("batch", 9, 12, 16))
    stages = {
        **manifest.stages,
        "front": dataclasses.replace(front, outputs=(wrong, *front.outputs[1:])),
    }
    changed = dataclasses.replace(
        onnx_bundle, manifest=dataclasses.replace(manifest, stages=stages)
    )
    with pytest.raises(BackendError, match=r"front\.onnx: output 'f4'"):
        on_host(changed)


@pytest.mark.parametrize("name", ["camvid-tiny", "nuclei-tiny"])
def test_with_the_batch_known_nothing_of_a_shipped_graph_is_left_to_the_cpu(
    name: str, tmp_path: Path
) -> None:
    """No node is left whose result the CUDA provider keeps on the CPU; all others have kernels
    there."""
    served = bundle.load(SHIPPED / name)
    for stage in served.manifest.stages.values():
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_free_dimension_override_by_name("batch", 2)
        options.optimized_model_filepath = str(tmp_path / stage.file)
        ort.InferenceSession(served.root / stage.file, options, providers=["CPUExecutionProvider"])
        kinds = {
            node.op_type
            for node in onnx.load(tmp_path / stage.file, load_external_data=False).graph.node
        }
        assert not kinds & SHAPES, stage.file
        assert kinds, "an empty graph would pass, too"


@pytest.mark.gpu
def test_on_a_gpu_it_gives_what_the_cpu_gives() -> None:
    served = bundle.load(SHIPPED / "camvid-tiny")
    try:
        backend = OnnxRuntimeCudaBackend(served, max_batch=2)
    except BackendError as error:
        pytest.skip(error.detail)
    manifest, rng = served.manifest, np.random.default_rng(0)
    ours = Stages(backend, manifest)
    theirs = Stages(OnnxRuntimeBackend(served, threads=2), manifest)
    for canvas in manifest.input.canvases:
        for shape in canvas.shapes:
            batch = rng.integers(0, 256, (2, shape.height, shape.width, 3), dtype=np.uint8)
            sides = shape.width, shape.height
            geometry = Geometry(*sides, *sides, canvas=(shape.height, shape.width))
            frames = [Frame(pixels, geometry) for pixels in batch]
            mine, right = ours.front(frames), theirs.front(frames)
            if canvas is manifest.glance:
                np.testing.assert_allclose(mine["quality"], right["quality"], atol=1e-3)
            for plan in (plan for plan in manifest.plans if plan.canvas == canvas.name):
                (got,) = ours.head(shape.name, ours.encode(plan, shape.name, mine)).values()
                (true,) = theirs.head(shape.name, theirs.encode(plan, shape.name, right)).values()
                assert (got.argmax(1) != true.argmax(1)).mean() < 5e-3
    backend.close()
