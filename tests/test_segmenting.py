"""The Python API: a bundle is opened, images of every kind are segmented, from many threads."""

from __future__ import annotations

import asyncio
import io
import os
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.bundle import Bundle, Manifest
from service.core import Ask, Budget, Outcome, ValueRange
from service.engines.base import Arrays, HostTensors, Tensors
from service.engines.fake import FakeBackend
from service.errors import (
    BadBudget,
    BadPreference,
    BundleError,
    DeadlineExceeded,
    NotAcceptable,
    NotReady,
    Overloaded,
    SettingsError,
    TooLarge,
    UndecodableImage,
    UnsatisfiableBudget,
)
from service.segmenting import Answer, Segmenter, open_bundle
from service.settings import Settings
from service.trace import Trace
from tests.serving import answered, segmenter_of

GRAY = np.full((48, 64, 3), 140, np.uint8)  # of the third of four bands


def opened(
    manifest: Manifest, settings: Settings | None = None, backend: FakeBackend | None = None
) -> Segmenter:
    segmenter = segmenter_of(manifest, settings, backend=backend)
    segmenter.start()
    segmenter.model.engine.warm.result(10)
    return segmenter


@pytest.fixture
def segmenter(fake_manifest: Manifest) -> Iterator[Segmenter]:
    with opened(fake_manifest) as ready:
        yield ready


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


@pytest.mark.parametrize(
    "picture",
    [
        encoded(Image.fromarray(GRAY)),
        Image.fromarray(GRAY),
        GRAY,
        GRAY[..., 0],
        GRAY[..., 0].astype(np.uint16) * 257,
        (GRAY[..., 0].astype(np.uint16) * 257).astype(">u2"),  # as of a TIFF
        np.dstack([GRAY, np.full((48, 64), 255, np.uint8)]),
        np.asfortranarray(GRAY),
    ],
    ids=["bytes", "Pillow", "RGB", "gray", "16 bits", "big endian", "RGBA", "columns first"],
)
def test_every_kind_of_picture_gives_the_same_answer(
    segmenter: Segmenter, picture: bytes | Image.Image
) -> None:
    answer = segmenter.segment(picture, depth=2)
    assert (answer.labels == 2).all()
    assert answer.labels.shape == (48, 64)
    assert answer.decision.plan.name == "d1"  # the gate wants no more of a flat image
    (segment,) = answer.segments
    assert (segment.id, segment.class_id, segment.label) == (1, 2, "Car")
    assert (segment.mask.area, segment.mask.box) == (48 * 64, (0, 0, 64, 48))
    assert answer.mask(segment).all()
    assert list(answer.stages) == ["decode", "queue", "front", "encoder", "decoder"]
    assert (np.asarray(Image.open(io.BytesIO(answer.png()))) == 2).all()
    assert answer.paused is None


def test_an_image_keeps_its_own_size_and_its_orientation(segmenter: Segmenter) -> None:
    image = Image.fromarray(np.zeros((90, 200, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    for picture in (file.getvalue(), Image.open(file)):
        answer = segmenter.segment(picture)
        assert answer.labels.shape == (200, 90)
        assert answer.geometry.orientation_applied


def test_a_picture_of_the_caller_is_left_as_it_is(segmenter: Segmenter) -> None:
    photo = Image.open(io.BytesIO(encoded(Image.fromarray(np.tile(GRAY, (8, 8, 1))), "JPEG")))
    size, pixels = photo.size, GRAY.copy()
    segmenter.segment(photo)
    segmenter.segment(GRAY)
    assert (photo.size, (pixels == GRAY).all()) == (size, True)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((48, 64, 3), np.float32),
        np.zeros((48, 64, 3), np.uint16),
        np.zeros((48, 64, 2), np.uint8),
        np.zeros((2, 48, 64, 3), np.uint8),
        np.zeros((0, 64, 3), np.uint8),
        np.zeros((48, 64), bool),
    ],
)
def test_an_array_that_is_no_image_is_refused_by_its_type_and_shape(
    segmenter: Segmenter, array: np.ndarray
) -> None:
    with pytest.raises(UndecodableImage, match=r"The array is .* it must be uint8"):
        segmenter.segment(array)


@pytest.mark.parametrize("picture", [None, [[1, 2], [3, 4]], io.BytesIO(b"x"), 3])
def test_what_is_no_picture_is_refused_by_its_type(segmenter: Segmenter, picture: object) -> None:
    with pytest.raises(UndecodableImage, match=f"of type {type(picture).__name__}: give the bytes"):
        segmenter.segment(picture)  # type: ignore[arg-type]


@pytest.mark.parametrize("values", ["full", "auto"])
@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_16_bits_of_a_pillow_image_are_read_in_any_order_of_bytes(
    segmenter: Segmenter, mode: str, values: ValueRange
) -> None:
    levels = np.linspace(0, 65535 if values == "full" else 4095, 64).astype(np.uint16)
    ramp = np.tile(levels, (48, 1))
    stored = ramp.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
    picture = Image.frombytes(mode, (64, 48), stored)
    found = segmenter.segment(picture, value_range=values).labels
    assert set(np.unique(found).tolist()) == {0, 1, 2, 3}
    assert (found == segmenter.segment(ramp, value_range=values).labels).all()


def test_a_pillow_image_with_multiplied_alpha_is_read(segmenter: Segmenter) -> None:
    gray = Image.fromarray(GRAY).convert("LA")
    assert (segmenter.segment(gray.convert("La")).labels == 2).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_pillow_image_of_a_range_that_is_not_known_is_refused(
    segmenter: Segmenter, mode: str
) -> None:
    with pytest.raises(UndecodableImage, match=f"is of mode {mode}, .* give a uint16 array"):
        segmenter.segment(Image.new(mode, (64, 48)))


def test_a_path_is_the_file_there(segmenter: Segmenter, tmp_path: Path) -> None:
    file = tmp_path / "gray.png"
    file.write_bytes(encoded(Image.fromarray(GRAY)))
    for picture in (file, str(file)):
        assert (segmenter.segment(picture).labels == 2).all()
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        segmenter.segment(tmp_path / "elsewhere.png")


def test_a_pillow_image_without_its_pixels_is_an_error_of_the_image(segmenter: Segmenter) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    file = encoded(Image.fromarray(noise))
    with pytest.raises(UndecodableImage, match="The PNG file ends too early"):
        segmenter.segment(Image.open(io.BytesIO(file[: len(file) // 2])))
    closed = Image.open(io.BytesIO(file))
    closed.close()
    with pytest.raises(UndecodableImage, match="The PNG file"):
        segmenter.segment(closed)


def test_limits_hold_for_arrays_too(segmenter: Segmenter) -> None:
    with pytest.raises(TooLarge, match="no side may be over 8192"):
        segmenter.segment(np.zeros((16, 8193, 3), np.uint8))
    with pytest.raises(UndecodableImage, match="no side may be under 16"):
        segmenter.segment(np.zeros((15, 64, 3), np.uint8))


def test_a_budget_is_that_of_the_header_with_its_errors(segmenter: Segmenter) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    assert segmenter.segment(noise).decision.plan.name == "d4"
    assert segmenter.segment(noise, gflops=3.5).decision.plan.name == "d2"
    assert segmenter.segment(noise, gflops=np.float32(3.5)).decision.plan.name == "d2"
    assert segmenter.segment(noise, depth=np.int64(2)).decision.plan.name == "d2"
    assert segmenter.segment(noise, max_loss=0.2).decision.plan.name < "d4"
    with pytest.raises(BadBudget, match="'depth' must be from 1 to 4, but is 5"):
        segmenter.segment(noise, depth=5)
    with pytest.raises(BadBudget, match="'max-loss' must be from 0 to 1"):
        segmenter.segment(noise, max_loss=1.5)
    with pytest.raises(BadBudget, match=r"'strict' must be a Boolean$"):
        segmenter.segment(noise, strict=1)  # type: ignore[arg-type]
    with pytest.raises(BadBudget, match=r"'gflops' must be from 0\.001"):
        segmenter.segment(noise, gflops=10**400)
    with pytest.raises(UnsatisfiableBudget, match="gflops=2"):
        segmenter.segment(noise, gflops=1.0)
    with pytest.raises(UnsatisfiableBudget, match="strict"):
        segmenter.segment(noise, depth=1, strict=True)
    with pytest.raises(UnsatisfiableBudget, match="strict"):
        segmenter.segment(noise, depth=1, strict=np.bool_(True))  # type: ignore[arg-type]


def test_a_deadline_that_passes_ends_the_wait(fake_manifest: Manifest) -> None:
    class Slow(FakeBackend):
        released = threading.Event()

        def run(self, stage: str, tensors: Tensors | Arrays) -> HostTensors:
            assert self.released.wait(10)
            return super().run(stage, tensors)

    backend = Slow(fake_manifest)
    backend.released.set()  # for the warm-up
    with opened(fake_manifest, Settings(max_batch=1), backend) as slow:
        backend.released.clear()
        began = time.perf_counter()
        with pytest.raises(DeadlineExceeded):
            slow.segment(GRAY, ms=100)
        with pytest.raises(Overloaded, match="in the queue"):
            slow.segment(GRAY, ms=100)
        assert time.perf_counter() - began < 5
        backend.released.set()


def test_many_threads_get_their_own_answers_and_share_batches(fake_manifest: Manifest) -> None:
    class Counting(FakeBackend):
        sizes: list[int] = []  # noqa: RUF012

        def run(self, stage: str, tensors: Tensors | Arrays) -> HostTensors:
            made = super().run(stage, tensors)
            if stage == "front":
                self.sizes.append(len(made["image"]))
            return made

    settings = Settings(queue_size=1000, batch_wait_ms=20, max_batch=8, target_ms=60_000)
    backend = Counting(fake_manifest)
    with opened(fake_manifest, settings, backend) as shared, ThreadPoolExecutor(16) as callers:
        brightness = np.arange(64) * 4
        pictures = [np.full((48, 64, 3), value, np.uint8) for value in brightness]
        answers = list(callers.map(shared.segment, pictures))
    assert [int(answer.labels[0, 0]) for answer in answers] == (brightness // 64).tolist()
    assert max(backend.sizes) > 1


def test_closing_twice_is_fine_and_nothing_is_taken_after_it(segmenter: Segmenter) -> None:
    segmenter.close()
    segmenter.close()
    with pytest.raises(NotReady, match="draining"):
        segmenter.segment(GRAY)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_says_that_the_engine_is_elsewhere_and_closes_nothing(segmenter: Segmenter) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # nothing of pytest may run here
        try:
            segmenter.segment(GRAY)
        except NotReady as error:
            segmenter.close()
            os.write(writing, error.detail.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as told:
        assert b"was forked" in told.read()
    os.waitpid(child, 0)
    assert segmenter.segment(GRAY).labels.shape == (48, 64)


def test_an_open_bundle_cannot_be_sent_to_another_process(segmenter: Segmenter) -> None:
    with pytest.raises(TypeError, match="open it there"):
        pickle.dumps(segmenter)


def test_a_bundle_is_opened_by_its_folder_and_settings(onnx_bundle: Bundle) -> None:
    with open_bundle(str(onnx_bundle.root), backend="onnxruntime", threads=1) as segmenter:
        assert segmenter.model.label == f"fake@{onnx_bundle.digest[:12]}"
        plans = segmenter.model.manifest.plans
        assert segmenter.model.plan_ms(plans).keys() == {"d1", "d2", "d3", "d4"}
        answer = segmenter.segment(GRAY, depth=1)
        assert answer.labels.shape == (48, 64)


def test_what_cannot_be_opened_says_why(onnx_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no setting 'thread'; did you mean 'threads'"):
        open_bundle(onnx_bundle.root, thread=1)
    with pytest.raises(SettingsError, match="--max-batch"):
        open_bundle(onnx_bundle.root, max_batch=0)
    with pytest.raises(SettingsError, match="'node_budget' is a setting of the service"):
        open_bundle(onnx_bundle.root, node_budget="depth=1")
    with pytest.raises(BundleError, match="nowhere"):
        open_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("threads", "two", "an integer"),
        ("threads", True, "an integer"),
        ("queue_size", 2.5, "an integer"),
        ("max_loss", "x", "a number"),
        ("max_loss", None, "a number"),
        ("engine_cache", 3, "a path"),
        ("backend", 3, "a text"),
    ],
)
def test_a_setting_of_another_type_is_refused(name: str, value: object, kind: str) -> None:
    with pytest.raises(SettingsError, match=f"is {value!r}: it must be {kind}"):
        open_bundle("anywhere", **{name: value})


def test_an_answer_and_its_segments_are_told_in_a_line(segmenter: Segmenter) -> None:
    answer = segmenter.segment(GRAY)
    assert repr(answer) == "<Answer: 64 x 48 pixels, d1 by gate>"
    assert len(repr(answer.segments)) < 200


def test_instances_have_ids_and_paused_tokens(instance_manifest: Manifest) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[12:36, 16:48] = 200
    manifest = replace(instance_manifest, margins=())  # without a promise, the full plan
    with opened(manifest) as segmenter:
        answer = segmenter.segment(picture, gflops=4)
        assert answer.decision.plan.name == "d4-k25-w50"
        (segment,) = answer.segments
        assert segment.label == "nucleus"
        assert (answer.mask(segment) == (answer.labels == 1)).all()
        assert answer.paused is not None
        assert answer.paused.mean() == pytest.approx(0.75, abs=0.02)
        assert segmenter.segment(picture, depth=1).paused is None


def halves(width: int, height: int) -> Image.Image:
    """The first of four bands of brightness at the left, the last at the right."""
    pixels = np.full((height, width, 3), 20, np.uint8)
    pixels[:, width // 2 :] = 230
    return Image.fromarray(pixels)


ON = ["decode", "queue", "front", "encoder", "decoder"]
BEYOND = ["decode", "queue", "glance", "front", "encoder", "decoder"]


@pytest.mark.parametrize(
    ("size", "gflops", "plan", "canvas", "stages"),
    [
        ((200, 150), 1.5, "c32-d1", (24, 32), ON),
        ((90, 120), 1.5, "c32-d1", (24, 32), ON),
        ((200, 150), 2.5, "c64-d1", (48, 64), BEYOND),
        ((90, 120), 2.5, "c64-d1", (64, 48), BEYOND),
        ((90, 120), 9.0, "c64-d4", (64, 48), BEYOND),
        ((40, 30), 9.0, "c64-d4", (48, 64), BEYOND),
        ((2000, 400), 9.0, "c64-d4", (48, 64), BEYOND),
    ],
)
def test_an_image_is_segmented_on_the_canvas_of_its_plan(
    canvases_manifest: Manifest,
    size: tuple[int, int],
    gflops: float,
    plan: str,
    canvas: tuple[int, int],
    stages: list[str],
) -> None:
    with opened(canvases_manifest) as segmenter:
        answer = segmenter.segment(encoded(halves(*size)), gflops=gflops, max_loss=0)
    width, height = size
    assert (answer.decision.plan.name, answer.geometry.canvas) == (plan, canvas)
    assert list(answer.stages) == stages
    assert answer.labels.shape == (height, width)
    edge = width // 4  # a cell on the small canvas, for a portrait
    assert (answer.labels[:, : width // 2 - edge] == 0).all()
    assert (answer.labels[:, width // 2 + edge :] == 3).all()
    left, *_, right = answer.segments
    assert (left.label, right.label) == ("Road", "Sky")
    assert sum(segment.mask.area for segment in answer.segments) == width * height
    # Deeper plans are more certain, and the fake engine knows which one ran.
    assert left.score == pytest.approx(0.9 if plan == "c64-d4" else 0.6, abs=0.05)


def test_the_gate_chooses_a_canvas(canvases_manifest: Manifest) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (150, 200, 3)).astype(np.uint8)
    with opened(canvases_manifest) as segmenter:
        measured = segmenter.model.plan_ms(canvases_manifest.plans)
        assert measured.keys() == {"c32-d1", "c64-d1", "c64-d4"}
        assert segmenter.segment(GRAY).decision.plan.canvas == "c32"
        answer = segmenter.segment(noise)
        assert (answer.decision.plan.name, answer.decision.reason) == ("c64-d4", "gate")


def test_a_turned_photo_is_segmented_on_the_shape_that_it_fills(
    canvases_manifest: Manifest,
) -> None:
    stored = halves(200, 150).transpose(Image.Transpose.ROTATE_90)
    exif = stored.getexif()
    exif[0x0112] = 6  # turned back by a quarter
    file = io.BytesIO()
    stored.save(file, "PNG", exif=exif)
    with opened(canvases_manifest) as segmenter:
        answer = segmenter.segment(file.getvalue(), max_loss=0)
    assert (answer.geometry.canvas, answer.geometry.orientation_applied) == ((48, 64), True)
    assert answer.labels.shape == (150, 200)
    assert (answer.labels[:, :80] == 0).all()
    assert (answer.labels[:, 120:] == 3).all()


def test_many_threads_get_answers_from_their_own_canvases(canvases_manifest: Manifest) -> None:
    def asked(number: int) -> tuple[tuple[int, int], dict[str, float]]:
        size = ((200, 150), (90, 120), (64, 48))[number % 3]
        return size, {"gflops": (1.5, 2.5, 9.0, 9.0)[number % 4], "max_loss": 0}

    def segment(number: int) -> Answer:
        (width, height), budget = asked(number)
        return shared.segment(np.full((height, width, 3), number * 4, np.uint8), **budget)

    settings = Settings(queue_size=1000, batch_wait_ms=20, max_batch=8, target_ms=60_000)
    with opened(canvases_manifest, settings) as shared, ThreadPoolExecutor(16) as callers:
        answers = list(callers.map(segment, range(64)))
    plans = ("c32-d1", "c64-d1", "c64-d4", "c64-d4")
    for number, answer in enumerate(answers):
        (width, height), _ = asked(number)
        assert answer.decision.plan.name == plans[number % 4]
        assert answer.labels.shape == (height, width)
        assert (answer.labels == number * 4 // 64).all()


def test_the_coroutines_take_an_image_to_the_canvas_of_its_plan(
    canvases_manifest: Manifest,
) -> None:
    async def scenario(segmenter: Segmenter) -> None:
        trace, ask = Trace(), Ask(Budget(max_loss=0))
        frames = await segmenter.decode(encoded(halves(90, 120)), "image/png", trace, ask)
        assert list(frames) == ["c32", "c64"]
        assert trace.size == segmenter.size_of(frames) == (90, 120)
        answer = await answered(segmenter, frames, ask, trace, time.perf_counter())
        assert (answer.geometry.canvas, answer.labels.shape) == ((64, 48), (120, 90))
        assert list(trace.stages) == BEYOND
        assert trace.decision == answer.decision

    with opened(canvases_manifest) as segmenter:
        asyncio.run(scenario(segmenter))


def test_an_image_that_is_decoded_runs_while_the_event_loop_is_busy(
    canvases_manifest: Manifest,
) -> None:
    async def scenario(segmenter: Segmenter) -> None:
        trace, ask = Trace(), Ask(Budget(max_loss=0))
        with segmenter.place(ask, trace, time.perf_counter()) as ticket:
            segmenter.received(ticket)
            decoding = segmenter.decode(encoded(halves(64, 48)), "image/png", trace, ask, ticket)
            task = asyncio.create_task(decoding)
            await asyncio.sleep(0)  # a thread has it now
            assert isinstance(ticket.done.result(5).result, Outcome)
            await task
            answer = await segmenter.run(ticket, trace)
        assert answer.labels.shape == (48, 64)
        assert list(trace.stages) == BEYOND

    with opened(canvases_manifest) as segmenter:
        asyncio.run(scenario(segmenter))


def test_an_image_that_is_refused_once_it_is_decoded_has_its_stage(
    canvases_manifest: Manifest,
) -> None:
    async def scenario(segmenter: Segmenter) -> None:
        trace, ask = Trace(), Ask()
        with segmenter.place(ask, trace, time.perf_counter()) as ticket:
            segmenter.model.engine.leave(ticket)
            await segmenter.decode(encoded(halves(64, 48)), "image/png", trace, ask, ticket)
            with pytest.raises(NotReady):
                await segmenter.run(ticket, trace)
        assert (list(trace.stages), trace.size) == (["decode"], (64, 48))

    with opened(canvases_manifest) as segmenter:
        asyncio.run(scenario(segmenter))


# -- several heads ---------------------------------------------------------------------------------


def test_a_preference_runs_and_answers_its_heads(several_heads: Manifest) -> None:
    with opened(several_heads) as segmenter:
        answer = segmenter.segment(GRAY, preference={"depth": 0.7, "boxes": 0.3}, max_loss=0)
        assert list(answer.heads) == ["boxes", "depth"]
        assert (answer.name, answer.task.name, answer.width) == ("depth", "depth", 1.0)
        assert answer.heads["depth"] is answer
        assert answer.values.values.shape == (48, 64)
        assert answer.values.unit == "m"
        (box,) = answer.heads["boxes"].detections
        assert box.box == (0.0, 0.0, 64.0, 48.0)
        with pytest.raises(NotAcceptable, match="'depth' is of depth: it has no masks"):
            answer.labels  # noqa: B018
        with pytest.raises(NotAcceptable, match="'boxes' is of detection: it has no values"):
            answer.heads["boxes"].values  # noqa: B018
        with pytest.raises(NotAcceptable, match="'depth' is of depth: it has no boxes"):
            answer.detections  # noqa: B018


def test_without_a_preference_the_heads_are_the_bundles(several_heads: Manifest) -> None:
    with opened(several_heads) as segmenter:
        answer = segmenter.segment(GRAY, gflops=1.7)
        assert list(answer.heads) == ["semantic", "depth"]
        assert answer.decision.plan.name == "c32-d1+semantic-w50+depth-w25"
        assert (answer.name, answer.width) == ("semantic", 0.5)
        assert answer.labels.shape == (48, 64)


@pytest.mark.parametrize(
    ("preference", "words"),
    [
        ({"depth": -1}, "'depth' must be from 0"),
        ({"depth": 0}, "'depth' is 0, and so are all others"),
        ({"depth": float("nan")}, "'depth' must be from 0"),
        ({"dept": 1}, "'dept' is no head of this bundle: did you mean 'depth'"),
        ({}, "there is no head"),
        ("depth=1", "have weights by name"),
        (["depth"], "have weights by name"),
        ({1: 1}, "have weights by name"),
    ],
)
def test_a_wrong_preference_is_named(several_heads: Manifest, preference: Any, words: str) -> None:
    with opened(several_heads) as segmenter, pytest.raises(BadPreference, match=words):
        segmenter.segment(GRAY, preference=preference)
