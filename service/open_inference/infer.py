"""Images -> the protocol's output tensors, around a Segmenter."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from service import outcomes
from service.core import Frames
from service.errors import BadInference, FathomError, TooLarge
from service.inference.ticket import Ticket
from service.metrics import Metrics
from service.open_inference.outputs import Outputs, Part, Tensor
from service.open_inference.request import MAX_IMAGES, Pixels, Request, Wanted
from service.segmenting import Answer, Segmenter
from service.settings import Settings
from service.trace import Span, Trace

VERSION = "1"  # as clients expect one: a number. The bundle's revision names the same model


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request. parameters: what it took."""

    model_name: str
    id: str
    parameters: Mapping[str, str | int | float]
    outputs: Sequence[Tensor]
    model_version: str = VERSION


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
    outputs: Outputs,
    max_pixels: int,
) -> list[Frames]:
    """Decode a request's images, one after the other, so that nobody else waits for all of them.

    max_pixels: of an output with a value per pixel. Raises BadInference, and what
    `Segmenter.decode` raises; the message names the image, counted from 0.
    """
    images: list[Frames] = []
    for picture, trace in zip(pictures, traces, strict=True):
        with _naming_image(len(images), len(pictures)):
            images.append(await segmenter.decode(picture, "", trace, request.wanted.ask))
    per_pixel = [name for name in request.wanted.outputs if outputs.known[name].per_pixel]
    if per_pixel:
        sizes = [segmenter.size_of(frames) for frames in images]
        heads = {outputs.known[name].head for name in request.wanted.outputs}
        others = [
            f"'{row.name}'"
            for row in outputs.known.values()
            if row.head in heads and not row.per_pixel
        ]
        _check_size(per_pixel[0], " and ".join(others), sizes, max_pixels)
    return images


async def run_all(
    segmenter: Segmenter,
    tickets: Sequence[Ticket],
    images: Sequence[Frames],
    traces: Sequence[Trace],
) -> list[Answer]:
    """Each image has its own place in the queue and its own plan; the first error takes the others
    out. Raises what `Segmenter.run` raises."""
    for ticket, frames in zip(tickets, images, strict=True):
        segmenter.model.submit(ticket, frames)
    tasks = [
        asyncio.ensure_future(segmenter.run(ticket, trace))
        for ticket, trace in zip(tickets, traces, strict=True)
    ]
    try:
        answers = list(await asyncio.gather(*tasks))
        last = max(tickets, key=lambda ticket: ticket.ended or 0.0)
        for ticket in tickets:
            if ticket is not last:  # it waited for the last: its answer did not take that long
                ticket.woken = None
        return answers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def reply(answers: Sequence[Answer], wanted: Wanted, outputs: Outputs) -> tuple[Reply, list[Span]]:
    """The tensors that are wanted, and the stage "mask" of each image. It takes a while: call it in
    a thread."""
    rows, spans = [outputs.known[name] for name in wanted.outputs], list[Span]()
    parts: list[list[Part]] = [[] for _ in rows]
    for answer in answers:
        began = time.perf_counter()
        for row, own in zip(rows, parts, strict=True):
            own.append(row.make(answer.heads[row.head]))
        spans.append(Span("mask", began, time.perf_counter()))
    tensors = [row.tensor(own) for row, own in zip(rows, parts, strict=True)]
    return Reply(answers[0].manifest.name, wanted.id, _used(answers), tensors), spans


def counted(
    metrics: Metrics, traces: list[Trace], arrived: float, gone: type[BaseException]
) -> AbstractContextManager[None]:
    """Count what happens inside as /segment counts: an image each when all is well, else one
    request. traces: filled by then. gone: see `outcomes.counted`."""

    def count(outcome: str) -> None:
        for trace in traces if outcome == "ok" else traces[:1]:
            metrics.observe(trace, outcome, time.perf_counter() - arrived)

    return outcomes.counted(metrics, gone, count)


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


def _check_size(
    output: str, others: str, sizes_of: Sequence[tuple[int, int]], max_pixels: int
) -> None:
    """Whether images of these (width, height) fit into one tensor. others: outputs that always do.
    Raises BadInference or TooLarge."""
    sizes = set(sizes_of)
    if len(sizes) > 1:
        shown = ", ".join(f"{width} x {height}" for width, height in sorted(sizes))
        raise BadInference(
            f"the images have different sizes ({shown}), which one '{output}' tensor cannot hold: "
            f"request {others} alone, or send images of one size"
        )
    ((width, height),) = sizes
    if len(sizes_of) * width * height > max_pixels:
        raise TooLarge(
            f"'{output}' of {len(sizes_of)} images of {width} x {height} would have more than "
            f"{max_pixels} pixels: request {others} alone, or send fewer images"
        )


def _used(answers: Sequence[Answer]) -> dict[str, str | int | float]:
    """What each image took, as JSON, and for a single image as plain values too: of the canvas, its
    name."""
    usage = [answer.outcome.usage(answer.manifest.layers) for answer in answers]
    plain: dict[str, str | int | float] = {}
    if len(usage) == 1:
        plain = {**usage[0], "canvas": usage[0]["canvas"]["name"]}
        plain.pop("heads", None)
    return {**plain, "usage": json.dumps(usage)}


@contextmanager
def _naming_image(index: int, images: int) -> Iterator[None]:
    try:
        yield
    except FathomError as error:
        if images > 1:
            error.detail = f"Image {index}: {error.detail}"
        raise
