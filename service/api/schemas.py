"""Wire types: what JSON answers hold, as models from which both the answers and /openapi.json are
made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ConfigDict, Field

from service.bundle import Manifest
from service.core import Outcome, Trace
from service.settings import Settings


class Wire(BaseModel):
    """Base: frozen, and closed, so that a typing error in a key is found by the first test."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageInfo(Wire):
    """The image as shown, in pixels."""

    width: int
    height: int
    orientation_applied: bool = Field(
        description="EXIF asked for a turn or a flip, and it was done"
    )


class Rle(Wire):
    """COCO's compressed run lengths, column by column."""

    size: tuple[int, int] = Field(description="[height, width]")
    counts: str


class Segment(Wire):
    """One segment of the image: all pixels of a class, or one object.

    box: [x, y, width, height] in pixels; score: mean probability over a class's pixels, confidence
    in an object.
    """

    id: int
    class_id: int
    label: str
    score: float
    area: int
    box: tuple[int, int, int, int]
    rle: Rle


class Usage(Wire):
    """The compute that this image took. of: the encoder's depth; reason: what decided the plan."""

    plan: str
    depth: int
    of: int
    gflops: float
    reason: str
    predicted_quality: float


class Paused(Wire):
    """Where the encoder stopped early: the part of the image whose tokens it paused. share: of the
    pixels, 0..1."""

    share: float
    rle: Rle


class Segmentation(Wire):
    """The answer of /segment as application/json."""

    image: ImageInfo
    task: str = Field(description="semantic: a segment per class; instance: a segment per object")
    segments: list[Segment]
    usage: Usage
    timing_ms: dict[str, float]
    paused: Paused | None = Field(
        default=None,
        description="With include=paused only; null if the plan paused nothing, keep being 1",
    )


class PlanInfo(Wire):
    """A plan and its price. ms: one image on this node, as measured; null until the engine is
    warm."""

    name: str
    depth: int
    keep: float
    width: float
    gflops: float
    quality: float
    ms: float | None


class ClassName(Wire):
    """A class and its colour, RGB."""

    name: str
    color: tuple[int, int, int]


class BundleName(Wire):
    """What is served."""

    name: str
    revision: str


class LimitsInfo(Wire):
    """What an image may be: bytes of the body, pixels, and pixels of a side."""

    max_body_bytes: int
    max_pixels: int
    max_side: int
    min_side: int


class Plans(Wire):
    """The answer of /plans: all that a page needs to offer a budget."""

    plans: list[PlanInfo]
    task: str
    bundle: BundleName
    classes: list[ClassName]
    limits: LimitsInfo


class Problem(BaseModel):
    """RFC 9457. Some problems have further members, such as the header and key that were wrong."""

    type: str
    title: str
    status: int
    detail: str
    instance: str


class Tensor(Wire):
    """Open Inference Protocol v2: a tensor's metadata; -1 is a size that varies."""

    name: str
    datatype: str
    shape: list[int]


class Model(Wire):
    """Open Inference Protocol v2: a model's metadata."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


def plans(manifest: Manifest, plan_ms: Mapping[str, float], settings: Settings) -> Plans:
    """The answer of /plans. plan_ms: engine time per plan as measured; without the plans that were
    not yet."""
    measured = {name: round(ms, 3) for name, ms in plan_ms.items()}
    return Plans(
        plans=[
            PlanInfo(
                name=plan.name,
                depth=plan.depth,
                keep=plan.keep,
                width=plan.width,
                gflops=plan.gflops,
                quality=plan.quality,
                ms=measured.get(plan.name),
            )
            for plan in manifest.plans
        ],
        task=manifest.task,
        bundle=BundleName(name=manifest.name, revision=manifest.revision),
        classes=[ClassName(name=entry.name, color=entry.color) for entry in manifest.classes],
        limits=LimitsInfo(
            max_body_bytes=settings.max_body_bytes,
            max_pixels=settings.max_pixels,
            max_side=settings.max_side,
            min_side=settings.min_side,
        ),
    )


def segmentation(
    outcome: Outcome,
    segments: Iterable[dict[str, object]],
    paused: dict[str, object] | None,
    trace: Trace,
    manifest: Manifest,
) -> Segmentation:
    """The JSON answer, of what `masks` found. The trace's stages must be complete."""
    geometry, decision = outcome.geometry, outcome.decision
    return Segmentation(
        image=ImageInfo(
            width=geometry.width,
            height=geometry.height,
            orientation_applied=geometry.orientation_applied,
        ),
        task=manifest.task,
        segments=[Segment.model_validate(segment) for segment in segments],
        usage=Usage(
            plan=decision.plan.name,
            depth=decision.plan.depth,
            of=manifest.layers,
            gflops=decision.plan.gflops,
            reason=decision.reason.value,
            predicted_quality=round(decision.predicted_quality, 4),
        ),
        timing_ms={stage: round(seconds * 1000, 3) for stage, seconds in trace.stages.items()},
        paused=None if paused is None else Paused.model_validate(paused),
    )
