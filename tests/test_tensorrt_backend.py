"""The TensorRT backend on a GPU of numpy: what it computes, what is queued, and where."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service import bundle
from service.bundle import Bundle, Manifest
from service.core import Ask, Budget, Outcome
from service.engines.cuda import DriverError
from service.engines.tensorrt import TensorRTBackend
from service.errors import BackendError
from service.inference.batches import Job
from service.inference.pipeline import Pipeline
from service.inference.policies import Policies
from service.inference.stages import Stages
from service.inference.warm_up import warm_up
from service.pixels.decode import Limits, from_memory
from tests.fake_tensorrt import FakeDevice, FakeRuntime, Opened, fill
from tests.small_graphs import decode, encode, front


def mean_images(*means: int) -> np.ndarray:
    return np.stack([np.full((48, 64, 3), mean, np.uint8) for mean in means])


@pytest.fixture
def opened(fake_bundle: Bundle, tmp_path: Path) -> Opened:
    fill(fake_bundle, tmp_path)
    return Opened(fake_bundle, tmp_path, max_batch=4)


def opened_with(manifest: Manifest, folder: Path, *, max_batch: int) -> Opened:
    """With a manifest of another kind."""
    root = folder / "bundle"
    root.mkdir(parents=True)
    for entry in (*manifest.stages.values(), *manifest.files):
        (root / entry.file).write_bytes(b"x")
    served = bundle.save(root, manifest)
    fill(served, folder)
    return Opened(served, folder, max_batch=max_batch)


# ---- what it computes


@pytest.mark.parametrize("round_", ["first", "second"])
def test_tensors_go_from_front_to_decoder_on_the_device(opened: Opened, round_: str) -> None:
    backend, (d1, *_, d4) = opened.backend, opened.plans
    for means in ((10, 20, 30), (40, 50, 60))[: 1 if round_ == "first" else 2]:
        opened.device.calls.clear()
        tensors, quality = front(backend, mean_images(*means))
        assert quality.shape == (3, 4)
        assert quality[:, -1] == pytest.approx(np.array(means) / 255)
        for plan in (d4, d1):  # the same tensors, for one plan after another
            answer = decode(backend, encode(backend, plan, tensors))
            assert answer.shape == (3, 4, 12, 16)
            assert answer.dtype == np.float32
            assert answer[:, 0, 0, 0].tolist() == list(means)
            assert answer[:, 1, 0, 0].tolist() == [mean + plan.depth for mean in means]
    copies = [call for call in opened.device.calls if call in ("to host", "to device", "on device")]
    # The image; the scores; two masks.
    assert copies == ["to device", "to host", "to host", "to host"]
    assert backend.name == "tensorrt-fp16"


def test_rows_are_taken_on_the_device_and_in_order(opened: Opened) -> None:
    backend, (d1, d2, *_) = opened.backend, opened.plans
    tensors, quality = front(backend, mean_images(10, 20, 30, 40))
    for plan, rows in ((d1, [3, 0]), (d2, [1])):
        opened.device.calls.clear()
        some = tensors.take(rows)
        assert some["quality"].tolist() == quality[rows].tolist()
        answer = decode(backend, encode(backend, plan, some))
        wanted = [(10, 20, 30, 40)[row] for row in rows]
        assert answer[:, 0, 0, 0].tolist() == wanted
        assert answer[:, 1, 0, 0].tolist() == [mean + plan.depth for mean in wanted]
        # f4, f8, f16, f32: not what no encoder wrote
        assert opened.device.calls.count("on device") == 4 * len(rows)
        assert opened.device.calls.count("to host") == 1
    again = tensors.take([2, 1, 0]).take([0, 2])
    assert decode(backend, encode(backend, d1, again))[:, 0, 0, 0].tolist() == [30, 10]


def test_encoded_rows_can_be_taken_with_what_was_paused(
    instance_manifest: Manifest, tmp_path: Path
) -> None:
    opened = opened_with(instance_manifest, tmp_path, max_batch=2)
    tensors, _ = front(opened.backend, mean_images(10, 20))
    narrow = opened.plans[2]
    encoded = encode(opened.backend, narrow, tensors)
    assert encoded["paused"][:, 0, 0].tolist() == [0, 1]
    last = encoded.take([1])
    assert last["paused"][:, 0, 0].tolist() == [1]
    assert decode(opened.backend, last)[0, :2, 0, 0].tolist() == [20, 24]
    with pytest.raises(KeyError, match="paused"):
        tensors["paused"]


def test_a_batch_on_several_canvases_finds_its_tensors_where_they_were_left(
    canvases_manifest: Manifest, tmp_path: Path
) -> None:
    opened, manifest = opened_with(canvases_manifest, tmp_path, max_batch=4), canvases_manifest
    stages = Stages(opened.backend, manifest)
    policies = Policies(replace(manifest, margins=()), 0.0)
    spine = Pipeline(stages, policies, warm_up(stages, 4), max_batch=4)
    wide, tall = (48, 64), (64, 48)
    asked = [
        *((wide, 2.5, 10), (tall, 1.5, 20), (wide, 9.0, 30), (tall, 9.0, 40)),
        *((wide, 1.5, 50), (tall, 2.5, 60), (wide, 9.0, 70), (tall, 9.0, 80)),
    ]
    for four in (asked[:4], asked[4:], asked[::2], asked[1::2]):
        jobs = []
        for side, gflops, mean in four:
            pixels = np.full((*side, 3), mean, np.uint8)
            frames = from_memory(pixels, Limits(10_000, 100, 1), manifest.input)
            jobs.append(Job(frames, Ask(Budget(gflops=gflops)), None))
        last = dict(itertools.chain.from_iterable(spine.run(jobs, Budget())))
        for job, (_, gflops, _) in zip(jobs, four, strict=True):
            outcome = last[job].result
            assert isinstance(outcome, Outcome)
            plan = outcome.decision.plan
            assert plan == [plan for plan in manifest.plans if plan.gflops <= gflops][-1]
            glance, shown = (job.frames[name].pixels.mean() for name in ("c32", plan.canvas))
            score = glance / 255 * np.linspace(0.5, 1, 3)[manifest.plans.index(plan)]
            assert outcome.decision.predicted_quality == pytest.approx(score, rel=1e-3)
            found = outcome.heads["semantic"]["probabilities"][:2, 0, 0]
            assert found == pytest.approx([shown, shown + plan.depth], rel=1e-3)


def test_tensors_that_a_later_call_overwrote_are_refused(opened: Opened) -> None:
    backend, (d1, d2, *_) = opened.backend, opened.plans
    tensors, _ = front(backend, mean_images(10))
    encoded = encode(backend, d1, tensors)
    encode(backend, d2, tensors)
    with pytest.raises(ValueError, match="overwritten"):
        decode(backend, encoded)
    taken = tensors.take([0])
    tensors.take([0])
    with pytest.raises(ValueError, match="overwritten"):
        encode(backend, d1, taken)
    front(backend, mean_images(20))
    with pytest.raises(ValueError, match="overwritten"):
        tensors.take([0])


def test_what_a_stage_reads_must_be_there(opened: Opened) -> None:
    backend = opened.backend
    tensors, _ = front(backend, mean_images(20))
    with pytest.raises(KeyError, match="no e8 among"):
        decode(backend, tensors)
    with pytest.raises(KeyError, match="no image among"):
        backend.run("front", tensors)
    with pytest.raises(KeyError, match="f8"):
        backend.run("encoder-d1", {"image": mean_images(20)})


def test_counts_and_strangers_are_refused(
    opened: Opened, fake_bundle: Bundle, tmp_path: Path
) -> None:
    backend = opened.backend
    tensors, _ = front(backend, mean_images(10))
    with pytest.raises(ValueError, match="5 images: the engines take 1 to 4"):
        front(backend, mean_images(1, 2, 3, 4, 5))
    with pytest.raises(ValueError, match="5 images: the engines take 1 to 4"):
        tensors.take([0] * 5)
    with pytest.raises(IndexError, match=r"rows \[1\] of 1"):
        tensors.take([1])
    other = Opened(fake_bundle, tmp_path)
    with pytest.raises(TypeError, match="another backend"):
        encode(other.backend, opened.plans[0], tensors)
    with pytest.raises(TypeError, match="another backend: object"):
        decode(backend, object())


# ---- what it holds and queues


def test_each_stage_is_run_plainly_and_recorded_at_start_and_only_replayed_later(
    opened: Opened,
) -> None:
    backend, device = opened.backend, opened.device
    at_start = [call for call in device.calls if call != "allocate"]
    stages, batches = list(opened.runtime.manifest.stages), (1, 2, 4)
    # The front in its place, all others in each of the three, for each batch.
    rounds = [s for s in stages for _ in batches for _ in range(1 if s == "front" else 3)]
    once = ("wait", "begin", "recorded", "end", "graph", "wait")
    assert at_start == [s if c == "recorded" else c for s in rounds for c in (s, *once)]
    assert len(device.graphs) == len(rounds) == 3 * (1 + 5 * 3)
    assert [(c.engine.stage, c.batch) for c in opened.runtime.made] == [
        (stage, batch) for stage in stages for batch in batches
    ]
    for means in ((10, 20), (10,), (10, 20, 30), (10, 20)):
        device.calls.clear()
        front(backend, mean_images(*means))
        assert device.calls == ["to device", "graph", "to host", "wait"]


@pytest.mark.parametrize("task", ["semantic", "instance"])
def test_no_request_allocates_records_or_makes_a_context(
    fake_bundle: Bundle, instance_manifest: Manifest, tmp_path: Path, task: str
) -> None:
    """For any batch, plan and way to take rows, from the very first request on."""
    if task == "instance":
        opened = opened_with(instance_manifest, tmp_path / "other", max_batch=4)
    else:
        fill(fake_bundle, tmp_path)
        opened = Opened(fake_bundle, tmp_path, max_batch=4)
    backend, device = opened.backend, opened.device
    before = (len(device.memory), len(device.graphs), len(opened.runtime.made))
    device.calls.clear()
    for count in (1, 2, 3, 4):
        tensors, _ = front(backend, mean_images(*range(10, 10 + count)))
        for plan in opened.plans:
            decode(backend, encode(backend, plan, tensors))
            for kept in range(1, count + 1):
                some = tensors.take(range(kept))
                decode(backend, encode(backend, plan, some))
                decode(backend, encode(backend, plan, some.take([0])).take([0]))
    assert set(device.calls) == {"to device", "graph", "on device", "to host", "wait"}
    assert (len(device.memory), len(device.graphs), len(opened.runtime.made)) == before


def test_only_the_batches_that_can_be_served_are_made(fake_bundle: Bundle, tmp_path: Path) -> None:
    fill(fake_bundle, tmp_path)
    sizes = {}
    for most in (1, 2, 3, 4):
        opened = Opened(fake_bundle, tmp_path, max_batch=most)
        sizes[most] = {context.batch for context in opened.runtime.made}
    assert sizes == {1: {1}, 2: {1, 2}, 3: {1, 2, 4}, 4: {1, 2, 4}}


def test_the_log_says_how_many_graphs_there_are_and_what_memory_is_taken(
    fake_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(fake_bundle, tmp_path)
    with caplog.at_level("INFO", "fathom"):
        opened = Opened(fake_bundle, tmp_path, max_batch=2, free_memory=1 << 30)
    taken = ((1 << 30) - opened.device.free_memory) / 1e6
    assert taken > 0
    assert [record.getMessage() for record in caplog.records] == [
        f"tensorrt-fp16 11 on Fake GPU, batches (1, 2): 32 CUDA graphs, {taken:.0f} MB on the "
        "device"
    ]


def test_stages_share_their_scratch_and_plans_their_maps(opened: Opened) -> None:
    bound = [each for context in opened.runtime.made for each in context.bound]
    assert len({scratch for _, scratch in bound}) == 1
    longest = max(len(stage) for stage in opened.runtime.manifest.stages)
    assert len(opened.device.memory[bound[0][1]]) == longest * 1000
    for name in ("f4", "f8", "e8", "e32"):  # one address for each place
        assert len({addresses[name] for addresses, _ in bound if name in addresses}) == 3
    for name in ("image", "quality", "probabilities"):
        assert len({addresses[name] for addresses, _ in bound if name in addresses}) == 1


def test_what_cannot_be_recorded_is_queued_each_time_and_said_once(
    fake_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(fake_bundle, tmp_path)
    with caplog.at_level("WARNING", "fathom"):
        opened = Opened(fake_bundle, tmp_path, max_batch=4, unrecorded={"front"})
        for mean in (10, 20, 30):
            _, quality = front(opened.backend, mean_images(mean))
            assert quality[0, -1] == pytest.approx(mean / 255)
    assert [record.getMessage() for record in caplog.records] == [
        "front cannot be recorded as a CUDA graph: each run queues its kernels"
    ]
    assert len(opened.device.graphs) == 3 * 5 * 3
    assert opened.device.calls[-4:] == ["to device", "front", "to host", "wait"]


def test_a_failing_recording_ends_the_capture_and_the_start(
    fake_bundle: Bundle, tmp_path: Path
) -> None:
    fill(fake_bundle, tmp_path)
    device = FakeDevice()
    runtime = FakeRuntime(device, fake_bundle.manifest)
    original = device.begin_capture

    def begin(stream: int) -> None:  # the first, plain run succeeds, the recording does not
        original(stream)
        runtime.failing = "front"

    device.begin_capture = begin  # type: ignore[method-assign]
    with pytest.raises(BackendError, match=r"the CUDA driver refused: .*700"):
        TensorRTBackend(
            fake_bundle, cache=tmp_path, device=lambda: device, runtimes=lambda: iter([runtime])
        )
    assert device.recording is None
    assert (device.memory, device.graphs, device.streams, device.closed) == ({}, {}, 0, 1)


def test_close_gives_everything_back_and_may_be_called_twice(opened: Opened) -> None:
    tensors, _ = front(opened.backend, mean_images(10, 20))
    decode(opened.backend, encode(opened.backend, opened.plans[0], tensors.take([1])))
    opened.backend.close()
    opened.backend.close()
    device = opened.device
    assert (device.memory, device.graphs, device.streams, device.closed) == ({}, {}, 0, 1)


def test_a_driver_that_refuses_to_free_is_told_of_and_the_rest_is_given_back(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(address: int) -> None:
        raise DriverError("CUDA driver error 700: an illegal memory access was encountered", 700)

    device = opened.device
    device.free = refuse  # type: ignore[method-assign]
    opened.backend.close()
    assert "the CUDA driver refused to free something: CUDA driver error 700" in caplog.text
    assert (device.graphs, device.streams, device.closed) == ({}, 0, 1)
