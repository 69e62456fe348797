"""Engines: the fake one is deterministic; ONNX Runtime computes what the graphs say, and refuses
undeclared tensors."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from service import bundle
from service.bundle import Bundle, Manifest, TensorSpec
from service.core import Ask, Budget, Frame, Geometry, Outcome
from service.engines.base import Backend, Tensors
from service.engines.fake import FakeBackend
from service.engines.onnxruntime import OnnxRuntimeBackend
from service.errors import BackendError
from service.inference.batches import Job
from service.inference.pipeline import Pipeline
from service.inference.policies import Policies
from service.inference.stages import Stages
from service.inference.warm_up import warm_up
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


def test_onnxruntime_runs_what_the_graphs_say_for_every_plan_and_batch(onnx_bundle: Bundle) -> None:
    backend: Backend = OnnxRuntimeBackend(onnx_bundle, threads=1)
    check_backend(backend, onnx_bundle, (1, 2, 4))
    backend.close()


def test_onnxruntime_takes_rows_in_the_order_asked_for(onnx_bundle: Bundle) -> None:
    backend = OnnxRuntimeBackend(onnx_bundle, threads=2)
    batch, plan = images(4), onnx_bundle.manifest.plans[1]
    tensors, _ = front(backend, batch)
    some = decode(backend, encode(backend, plan, tensors.take([3, 0])))
    for row, source in enumerate((3, 0)):
        np.testing.assert_allclose(some[row], reference(batch[source], plan.depth)[1], atol=1e-5)


def test_onnxruntime_tells_which_tokens_an_encoder_paused(
    tmp_path: Path, instance_manifest: Manifest
) -> None:
    manifest = pausing(instance_manifest)
    write_graphs(tmp_path, manifest)
    check_paused(OnnxRuntimeBackend(bundle.save(tmp_path, manifest), threads=1), manifest)


def test_onnxruntime_runs_plans_on_several_canvases(
    tmp_path: Path, canvases_manifest: Manifest
) -> None:
    write_graphs(tmp_path, canvases_manifest)
    served = bundle.save(tmp_path, canvases_manifest)
    check_canvases(OnnxRuntimeBackend(served, threads=1), served.manifest)


def test_a_bundle_goes_through_the_whole_pipeline_on_onnxruntime(onnx_bundle: Bundle) -> None:
    backend = OnnxRuntimeBackend(onnx_bundle, threads=1)
    manifest = onnx_bundle.manifest
    stages = Stages(backend, manifest)
    known = warm_up(stages, 4)
    assert all(ms > 0 for ms in known.plan_ms(manifest.plans).values())
    policies = Policies(manifest, 0.01)
    spine = Pipeline(stages, policies, known, max_batch=4)
    batch, geometry = images(3), Geometry(64, 48, 64, 48, (48, 64))
    jobs = [
        Job({"c64": Frame(pixels, geometry)}, Ask(Budget(depth=depth, max_loss=0)), None)
        for pixels, depth in zip(batch, (2, 4, 2), strict=True)
    ]
    last = dict(itertools.chain.from_iterable(spine.run(jobs, Budget())))
    for job, pixels, depth in zip(jobs, batch, (2, 4, 2), strict=True):
        outcome = last[job].result
        assert isinstance(outcome, Outcome)
        assert outcome.decision.plan.depth == depth
        scores, expected = reference(pixels, depth)
        assert outcome.decision.predicted_quality == pytest.approx(scores[depth - 1], abs=1e-5)
        np.testing.assert_allclose(outcome.heads["semantic"]["probabilities"], expected, atol=1e-5)


def test_sessions_run_on_the_cpu_with_the_threads_asked_for_and_idle_ones_soon_sleep(
    onnx_bundle: Bundle,
) -> None:
    backend = OnnxRuntimeBackend(onnx_bundle, threads=3)
    assert backend._sessions.keys() == onnx_bundle.manifest.stages.keys()
    for session in backend._sessions.values():
        options = session.get_session_options()
        assert session.get_providers() == ["CPUExecutionProvider"]
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
        assert options.get_session_config_entry("session.intra_op.spin_duration_us") == "50"
        assert options.get_session_config_entry("session.use_env_allocators") == "1"
    backend.close()
    assert backend._sessions == {}


def rename(
    specs: tuple[TensorSpec, ...], name: str, /, **changes: object
) -> tuple[TensorSpec, ...]:
    return tuple(
        dataclasses.replace(spec, **changes) if spec.name == name else spec for spec in specs
    )  # type: ignore[arg-type]


def everywhere(manifest: Manifest, name: str, /, **changes: object) -> Manifest:
    """Change a tensor wherever it is an input or an output, so that the manifest agrees with
    itself."""
    stages = {
        key: dataclasses.replace(
            stage,
            inputs=rename(stage.inputs, name, **changes),
            outputs=rename(stage.outputs, name, **changes),
        )
        for key, stage in manifest.stages.items()
    }
    return dataclasses.replace(manifest, stages=stages)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            lambda m: everywhere(m, "f8", dims=("batch", 8, 6, 9)),
            ["front.onnx", "output 'f8'", "9"],
        ),
        (
            lambda m: everywhere(m, "f16", dtype="float16"),
            ["front.onnx", "output 'f16'", "float16"],
        ),
        (lambda m: everywhere(m, "f32", name="g32"), ["front.onnx", "output 'f32'", "none"]),
        (lambda m: everywhere(m, "f32", name="a32"), ["front.onnx", "output 'a32'", "missing"]),
        (lambda m: everywhere(m, "f4", dims=(1, 8, 12, 16)), ["front.onnx", "output 'f4'"]),
        (lambda m: everywhere(m, "e16", dims=("batch", 8, 3)), ["encoder-d1.onnx", "output 'e16'"]),
        (
            lambda m: everywhere(m, "probabilities", name="masks"),
            ["decoder.onnx", "output 'masks'"],
        ),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_says_is_refused_by_file_and_tensor(
    onnx_bundle: Bundle, edit: Callable[[Manifest], Manifest], words: list[str]
) -> None:
    wrong = bundle.save(onnx_bundle.root, edit(onnx_bundle.manifest))
    with pytest.raises(BackendError) as caught:
        OnnxRuntimeBackend(wrong, threads=1)
    assert [word for word in words if word not in caught.value.detail] == []


def test_a_file_that_is_no_graph_is_refused_by_its_name(onnx_bundle: Bundle) -> None:
    (onnx_bundle.root / "encoder-d3.onnx").write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"encoder-d3\.onnx: ONNX Runtime .* cannot open it"):
        OnnxRuntimeBackend(bundle.save(onnx_bundle.root, onnx_bundle.manifest), threads=1)


def test_fake_brightness_decides_the_class_of_each_place(fake_manifest: Manifest) -> None:
    backend: Backend = FakeBackend(fake_manifest)
    ramp = np.broadcast_to(
        np.arange(0, 256, 4, dtype=np.uint8)[None, None, :, None], (2, 48, 64, 3)
    )
    tensors, _ = front(backend, ramp)
    for plan in fake_manifest.plans:
        probabilities = decode(backend, encode(backend, plan, tensors))
        assert probabilities.shape == (2, 4, 12, 16)
        assert probabilities.argmax(axis=1)[1, 0].tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
        assert probabilities.max() == pytest.approx(0.5 + 0.1 * plan.depth)
    backend.close()


def test_fake_of_the_instance_task_has_bright_cores_within_rims(
    instance_manifest: Manifest,
) -> None:
    backend: Backend = FakeBackend(instance_manifest)
    picture = np.zeros((2, 48, 64, 3), np.uint8)
    picture[1, 8:28, 12:36] = 250  # cells 2 to 6, 3 to 8
    tensors, _ = front(backend, picture)
    probabilities = decode(backend, encode(backend, instance_manifest.plans[-1], tensors))
    assert probabilities.shape == (2, 3, 12, 16)
    expected = np.zeros((2, 12, 16), int)
    expected[1, 2:7, 3:9] = 2
    expected[1, 3:6, 4:8] = 1
    assert (probabilities.argmax(axis=1) == expected).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_fake_pauses_the_darkest_tokens_where_the_manifest_says_so(
    instance_manifest: Manifest,
) -> None:
    backend: Backend = FakeBackend(instance_manifest)
    ramp = np.broadcast_to(
        np.arange(0, 256, 4, dtype=np.uint8)[None, None, :, None], (3, 48, 64, 3)
    )
    tensors, _ = front(backend, ramp)
    for plan in instance_manifest.plans:
        encoded = encode(backend, plan, tensors)
        if plan.keep == 1:
            with pytest.raises(KeyError, match="paused"):
                encoded["paused"]
            continue
        assert encoded["paused"].tolist() == [[[1] * 6 + [0] * 2] * 6] * 3
        assert encoded.take([2, 0])["paused"].shape == (2, 6, 8)
    with pytest.raises(KeyError, match="paused"):
        tensors.take([1])["paused"]


def test_fake_quality_grows_with_depth_on_clutter_only(fake_manifest: Manifest) -> None:
    backend = FakeBackend(fake_manifest)
    _, quality = front(backend, np.concatenate([images(1), np.full((1, 48, 64, 3), 90, np.uint8)]))
    assert (np.diff(quality[0]) > 0.05).all()
    assert np.ptp(quality[1]) == 0
    assert quality.max() <= 1


def test_fake_quality_can_be_told(fake_manifest: Manifest) -> None:
    backend = FakeBackend(fake_manifest, quality=[0.1, 0.2, 0.3, 0.4])
    _, quality = front(backend, images(2))
    np.testing.assert_allclose(quality, [[0.1, 0.2, 0.3, 0.4]] * 2)


def test_fake_of_one_class_is_sure(fake_manifest: Manifest) -> None:
    decoder = fake_manifest.stages["decoder"]
    one = dataclasses.replace(
        decoder, outputs=rename(decoder.outputs, "probabilities", dims=("batch", 1, 12, 16))
    )
    manifest = dataclasses.replace(fake_manifest, stages={**fake_manifest.stages, "decoder": one})
    backend = FakeBackend(manifest)
    tensors, _ = front(backend, images(1))
    assert (decode(backend, encode(backend, manifest.plans[0], tensors)) == 1).all()


def test_tensors_of_another_backend_are_refused(onnx_bundle: Bundle) -> None:
    class Strange:
        def take(self, rows: object) -> Tensors:
            raise NotImplementedError

    for backend in (FakeBackend(onnx_bundle.manifest), OnnxRuntimeBackend(onnx_bundle, threads=1)):
        for stage in ("decoder", "encoder-d1"):
            with pytest.raises(TypeError, match="Strange"):
                backend.run(stage, Strange())


def test_only_what_was_encoded_is_decoded(onnx_bundle: Bundle) -> None:
    for backend, missing in (
        (FakeBackend(onnx_bundle.manifest), "certainty"),
        (OnnxRuntimeBackend(onnx_bundle, threads=1), "e8"),
    ):
        tensors, _ = front(backend, images(1))
        with pytest.raises(KeyError, match=missing):
            decode(backend, tensors)
