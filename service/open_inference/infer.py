"""Images -> the protocol's output tensors, around a Segmenter."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.core import Frames
from service.errors import BadInference, FathomError, TooLarge
from service.inference.ticket import Ticket
from service.metrics import Metrics
from service.open_inference.request import LABELS, MAX_IMAGES, SEGMENTS, Pixels, Request, Wanted
from service.segmenting import Answer, Segmenter
from service.settings import Settings
from service.tasks import Segment
from service.trace import Span, Trace

VERSION = "1"  # as clients expect one: a number. The bundle's revision names the same model


@dataclass(frozen=True, slots=True)
class Tensor:
    """An output. data: of BYTES, its elements; else an array of the shape."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[bytes] | NDArray[Any]

    def raw(self) -> bytes:
        """The binary form: little endian, an element of BYTES behind its length."""
        if isinstance(self.data, list):
            return b"".join(len(text).to_bytes(4, "little") + text for text in self.data)
        return np.ascontiguousarray(self.data).tobytes()


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request. parameters: what it took."""

    model_name: str
    id: str
    parameters: Mapping[str, str | int | float]
    outputs: Sequence[Tensor]
    model_version: str = VERSION


def datatype_of_labels(objects: bool) -> str:
    """objects: whether the task's label map holds ids of objects rather than of classes."""
    return "INT32" if objects else "UINT8"


@contextmanager
def places(
    segmenter: Segmenter, asked: Wanted, traces: list[Trace], images: int, arrived: float
) -> Iterator[list[Ticket]]:
    """A place in the queue for each image of a request, until the block ends.

    traces: the request's own; becomes one per image. Raises what `Segmenter.place` raises.
    """
    traces[:] = _traces(traces[0], images)
    with ExitStack() as stack:
        taken = [segmenter.place(asked.ask, trace, arrived, coming=False) for trace in traces]
        yield [stack.enter_context(place) for place in taken]


async def take(
    segmenter: Segmenter,
    request: Request,
    pictures: Sequence[bytes | Pixels],
    traces: Sequence[Trace],
    max_pixels: int,
) -> list[Frames]:
    """Decode a request's images, one after the other, so that nobody else waits for all of them.

    max_pixels: of the label map. Raises BadInference, and what `Segmenter.decode` raises; the
    message names the image, counted from 0.
    """
    images: list[Frames] = []
    for picture, trace in zip(pictures, traces, strict=True):
        with _naming_image(len(images), len(pictures)):
            images.append(await segmenter.decode(picture, "", trace, request.wanted.ask))
    if LABELS in request.wanted.outputs:
        _check_labels([segmenter.size_of(frames) for frames in images], max_pixels)
    return images


async def run_all(
    segmenter: Segmenter,
    tickets: Sequence[Ticket],
    images: Sequence[Frames],
    traces: Sequence[Trace],
) -> list[Answer]:
    """Each image has its own place in the queue and its own plan; the first error takes the others
    out. Raises what `Segmenter.run` raises."""
    tasks = [
        asyncio.ensure_future(segmenter.run(ticket, frames, trace))
        for ticket, frames, trace in zip(tickets, images, traces, strict=True)
    ]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def reply(answers: Sequence[Answer], wanted: Wanted) -> tuple[Reply, list[Span]]:
    """The tensors that are wanted, and the stage "mask" of each image. It takes a while: call it in
    a thread."""
    spans: list[Span] = []
    for answer in answers:
        began = time.perf_counter()
        if LABELS in wanted.outputs:
            answer.labels  # noqa: B018  # made here, and kept by the answer
        if SEGMENTS in wanted.outputs:
            answer.segments  # noqa: B018
        spans.append(Span("mask", began, time.perf_counter()))
    outputs = [_OUTPUTS[name](answers) for name in wanted.outputs]
    name = answers[0].manifest.name
    return Reply(name, wanted.id, _used(answers), outputs), spans


@contextmanager
def counted(
    metrics: Metrics, traces: list[Trace], arrived: float, *gone: type[BaseException]
) -> Iterator[None]:
    """Count what happens inside as /segment counts: an image each when all is well, else one
    request. traces: filled by then. gone: raised when the caller has left."""
    outcome = FathomError.problem
    try:
        yield
        outcome = "ok"
    except FathomError as error:
        outcome = error.problem
        if error.shed:
            metrics.shed(error.shed)
        raise
    except BaseException as error:
        if isinstance(error, (asyncio.CancelledError, *gone)):
            outcome = "cancelled"
        raise
    finally:
        for trace in traces if outcome == "ok" else traces[:1]:
            metrics.observe(trace, outcome, time.perf_counter() - arrived)


def most_images(settings: Settings) -> int:
    """Of one request: more than the queue's places could never be answered."""
    return min(MAX_IMAGES, settings.queue_size)


def _traces(trace: Trace, images: int) -> list[Trace]:
    """A trace per image: the request's own where it has one image."""
    if images == 1:
        return [trace]
    return [
        Trace(trace.request_id, caller=trace.caller, trace_id=trace.trace_id, sampled=trace.sampled)
        for _ in range(images)
    ]


def _check_labels(sizes_of: Sequence[tuple[int, int]], max_pixels: int) -> None:
    """Whether images of these (width, height) fit into one label map. Raises BadInference or
    TooLarge."""
    sizes = set(sizes_of)
    if len(sizes) > 1:
        shown = ", ".join(f"{width} x {height}" for width, height in sorted(sizes))
        raise BadInference(
            f"the images have different sizes ({shown}), which one '{LABELS}' tensor cannot hold: "
            f"request the output '{SEGMENTS}' alone, or send images of one size"
        )
    ((width, height),) = sizes
    if len(sizes_of) * width * height > max_pixels:
        raise TooLarge(
            f"'{LABELS}' of {len(sizes_of)} images of {width} x {height} would have more than "
            f"{max_pixels} pixels: request '{SEGMENTS}' alone, or send fewer images"
        )


def _labels(answers: Sequence[Answer]) -> Tensor:
    objects = answers[0].task.objects
    maps = np.stack([answer.labels for answer in answers])  # (N, height, width)
    array = maps.astype(np.dtype("<i4") if objects else np.uint8, copy=False)
    return Tensor(LABELS, datatype_of_labels(objects), array.shape, array)


def _segments(answers: Sequence[Answer]) -> Tensor:
    texts = [json.dumps([_segment(found) for found in answer.segments]) for answer in answers]
    return Tensor(SEGMENTS, "BYTES", (len(texts),), [text.encode() for text in texts])


_OUTPUTS: dict[str, Callable[[Sequence[Answer]], Tensor]] = {LABELS: _labels, SEGMENTS: _segments}


def _segment(found: Segment) -> dict[str, object]:
    """A segment as the JSON of /segment has it."""
    return {
        "id": found.id,
        "class_id": found.class_id,
        "label": found.label,
        "is_thing": found.thing,
        "score": round(found.score, 4),
        "area": found.mask.area,
        "box": found.mask.box,
        "rle": found.mask.as_json(),
    }


def _used(answers: Sequence[Answer]) -> dict[str, str | int | float]:
    """What each image took, as JSON, and for a single image as plain values too: of the canvas, its
    name."""
    plain: list[dict[str, str | int | float]] = []
    usage: list[dict[str, object]] = []
    for answer in answers:
        decision, (height, width) = answer.decision, answer.geometry.canvas
        used: dict[str, str | int | float] = {
            "plan": decision.plan.name,
            "canvas": decision.plan.canvas,
            "depth": decision.plan.depth,
            "of": answer.manifest.layers,
            "gflops": decision.plan.price,
            "reason": decision.reason.value,
            "predicted_quality": round(decision.predicted_quality, 4),
        }
        canvas = {"name": decision.plan.canvas, "height": height, "width": width}
        plain.append(used)
        usage.append(used | {"canvas": canvas})
    single = plain[0] if len(plain) == 1 else {}
    return {**single, "usage": json.dumps(usage)}


@contextmanager
def _naming_image(index: int, images: int) -> Iterator[None]:
    try:
        yield
    except FathomError as error:
        if images > 1:
            error.detail = f"Image {index}: {error.detail}"
        raise
