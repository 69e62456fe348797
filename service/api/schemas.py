"""The types of JSON answers. The answers and /openapi.json are made from them."""

from __future__ import annotations

from pydantic import BaseModel, Field

from service import tasks
from service.api.image_info import ImageInfo, Wire


def _note(task: tasks.Task) -> str:
    if task.gives is tasks.Values:
        return f"{task.name}: statistics of its values"
    what = "box" if task.gives is tasks.Boxes else "segment"
    return f"{task.name}: a {what} per {'object' if task.objects else 'class'}"


TASK_NOTES = "; ".join(_note(task) for task in tasks.TASKS.values())


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


class Detected(Wire):
    """One object that was found, without its mask. box: [x, y, width, height] in pixels, within the
    image. score: the probability of its class."""

    id: int
    class_id: int
    label: str
    is_thing: bool
    score: float
    box: tuple[float, float, float, float]


class Measured(Wire):
    """Statistics of the values that a head measured, over the image.

    percentiles: by 5, 25, 75 and 95. scale: a pixel of the PNG is its value times this.
    """

    unit: str
    min: float
    max: float
    mean: float
    median: float
    percentiles: dict[str, float]
    scale: float


class MeasuredMap(Measured):
    """The same, with include=values. png: 16-bit, in base64."""

    png: str = Field(
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/png"}
    )


class HeadSegments(Wire):
    """What a head says that gives masks or boxes. weight: how much it was to matter, of 1 in all;
    width: the share of its channels that ran."""

    task: str = Field(description=TASK_NOTES)
    weight: float
    width: float
    segments: list[Segment] | list[Detected]


class HeadValues(Wire):
    """What a head says that measures something."""

    task: str
    weight: float
    width: float
    values: MeasuredMap | Measured


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


class UsageOfHeads(Usage):
    """The same for a bundle that has heads or widths to choose from. heads: width by name."""

    heads: dict[str, float]


class Paused(Wire):
    """The part of the image where the encoder paused tokens. share: of the pixels, 0..1."""

    share: float
    rle: Rle


class Segmentation(Wire):
    """The answer of /segment as application/json."""

    image: ImageInfo
    task: str | None = Field(
        default=None, description=f"Of a single head that is answered. {TASK_NOTES}"
    )
    segments: list[Segment] | list[Detected] | None = Field(
        default=None, description="Of a single head that is answered, and gives masks or boxes"
    )
    values: MeasuredMap | Measured | None = Field(
        default=None, description="Of a single head that is answered, and measures something"
    )
    heads: dict[str, HeadSegments | HeadValues] | None = Field(
        default=None, description="By name, where the bundle has several heads"
    )
    usage: UsageOfHeads | Usage
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
