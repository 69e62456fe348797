"""The types of JSON answers. The answers and /openapi.json are made from them."""

from __future__ import annotations

from pydantic import BaseModel, Field

from service import tasks
from service.answer import Answer
from service.api.image_info import ImageInfo, Wire, image_info
from service.pixels.rle import RunLengths, run_lengths
from service.pixels.runs import Runs
from service.trace import Span

TASK_NOTES = "; ".join(
    f"{task.name}: a segment per {'object' if task.objects else 'class'}"
    for task in tasks.TASKS.values()
)


class Rle(Wire):
    """COCO's compressed run lengths, column by column."""

    size: tuple[int, int] = Field(description="[height, width]")
    counts: str


class Segment(Wire):
    """One segment of the image: all pixels of a class, or one object.

    is_thing: whether its class is countable. box: [x, y, width, height] in pixels. score: for a
    class the mean probability over its pixels, for an object the confidence in it.
    """

    id: int
    class_id: int
    label: str
    is_thing: bool
    score: float
    area: int
    box: tuple[int, int, int, int]
    rle: Rle


class CanvasUsed(Wire):
    """The canvas that the image was scaled to. height, width: of its shape that fits the image."""

    name: str
    height: int
    width: int


class Usage(Wire):
    """The compute that this image took. of: the encoder's depth; reason: what decided the plan."""

    plan: str
    canvas: CanvasUsed
    depth: int
    of: int
    gflops: float
    reason: str
    predicted_quality: float


class Paused(Wire):
    """The part of the image where the encoder paused tokens. share: of the pixels, 0..1."""

    share: float
    rle: Rle


class Segmentation(Wire):
    """The answer of /segment as application/json."""

    image: ImageInfo
    task: str = Field(description=TASK_NOTES)
    segments: list[Segment]
    usage: Usage
    timing_ms: dict[str, float]
    paused: Paused | None = Field(
        default=None,
        description="Only with include=paused; null if the plan pauses nothing (its keep is 1)",
    )


class Problem(BaseModel):
    """RFC 9457. Some problems have further members, such as the wrong header and key."""

    type: str
    title: str
    status: int
    detail: str
    instance: str


def segment(result: tasks.Segment) -> Segment:
    """A segment in its JSON form."""
    return Segment(
        id=result.id,
        class_id=result.class_id,
        label=result.label,
        is_thing=result.thing,
        score=round(result.score, 4),
        area=result.mask.area,
        box=result.mask.box,
        rle=_rle(result.mask),
    )


def paused(runs: Runs | None) -> Paused | None:
    """The JSON form of a map (height, width), 1 = paused."""
    if runs is None:
        return None
    (mask,) = run_lengths(runs, [1])
    height, width = runs.shape
    return Paused(share=round(mask.area / (height * width), 4), rle=_rle(mask))


def segmentation(
    answer: Answer, segments: list[Segment], paused: Paused | None, mask: Span
) -> Segmentation:
    """The JSON answer. mask: the stage that made the segments."""
    geometry, decision = answer.geometry, answer.decision
    height, width = geometry.canvas
    stages = {**answer.stages, mask.stage: mask.ended - mask.began}
    return Segmentation(
        image=image_info(geometry),
        task=answer.task.name,
        segments=segments,
        usage=Usage(
            plan=decision.plan.name,
            canvas=CanvasUsed(name=decision.plan.canvas, height=height, width=width),
            depth=decision.plan.depth,
            of=answer.manifest.layers,
            gflops=decision.plan.price,
            reason=decision.reason.value,
            predicted_quality=round(decision.predicted_quality, 4),
        ),
        timing_ms={stage: round(seconds * 1000, 3) for stage, seconds in stages.items()},
        paused=paused,
    )


def _rle(mask: RunLengths) -> Rle:
    return Rle(size=mask.size, counts=mask.counts)
