"""The answer of /plans: its types, from which /openapi.json is made too, and its content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from service.api.image_info import Wire
from service.bundle import Head, Tiles
from service.core import told
from service.model import Model
from service.settings import Settings
from service.tasks import Boxes, Masks, Shown, Task, Values

_GIVES: dict[type[Shown], Literal["masks", "boxes", "values"]] = {
    Masks: "masks",
    Boxes: "boxes",
    Values: "values",
}


class ShapeInfo(Wire):
    """A size in pixels."""

    height: int
    width: int


class PlanInfo(Wire):
    """A plan and its cost. canvas: the name of one of `canvases`. tiled: whether that canvas is:
    such a plan is for images alone that are larger than the largest canvas that is not. heads:
    those that run, with their widths. ms: for one image on this node; null until the engine is
    warm."""

    name: str
    canvas: str
    tiled: bool
    depth: int
    keep: float
    width: float
    heads: dict[str, float]
    gflops: float
    quality: float
    ms: float | None


class TilesInfo(Wire):
    """Overlapping tiles, each as large as a shape of the canvas `of`, and run as if it were an
    image there. overlap: that neighbours share, in pixels."""

    of: str
    rows: int
    columns: int
    overlap: int


class CanvasInfo(Wire):
    """A size at which images are looked at. Each gets the shape that it fills best. tiles: into
    which it is cut, null if it is not."""

    name: str
    shapes: list[ShapeInfo]
    tiles: TilesInfo | None


class ClassName(Wire):
    """A class and its colour, RGB."""

    name: str
    color: tuple[int, int, int]


class HeadInfo(Wire):
    """What a head answers. gives: masks, boxes or values; objects: whether a segment is one object,
    not all pixels of a class; weight: how much it matters, of 1 in all, 0 if it does not run; unit,
    range: of values, else null."""

    name: str
    task: str
    gives: Literal["masks", "boxes", "values"]
    objects: bool
    weight: float
    widths: list[float]
    classes: list[ClassName]
    unit: str | None
    range: tuple[float, float] | None


class BundleName(Wire):
    """What is served."""

    name: str
    revision: str


class LimitsInfo(Wire):
    """The limits of an image: bytes of the body, pixels in all, pixels per side."""

    max_body_bytes: int
    max_pixels: int
    max_side: int
    min_side: int


class Plans(Wire):
    """The answer of /plans: all that a page needs to let a user set a budget and a preference."""

    plans: list[PlanInfo] = Field(
        description="From the cheapest to the most expensive; for the Task-Preference of the "
        "request, or the bundle's own"
    )
    canvases: list[CanvasInfo] = Field(description="From small to large")
    glance: str = Field(description="The canvas on which the gate sees every image")
    heads: list[HeadInfo]
    task: str = Field(description="Of the head that matters most to those who say nothing of it")
    objects: bool = Field(description="Of the same head")
    bundle: BundleName
    classes: list[ClassName] = Field(description="Of the same head")
    limits: LimitsInfo


def plans(model: Model, settings: Settings, preference: Mapping[str, float] | None) -> Plans:
    """The answer of /plans. preference: checked."""
    manifest, complete = model.manifest, model.policies.plans(preference)
    shares = model.policies.shares(preference)
    measured = {name: told(ms) for name, ms in model.plan_ms(complete).items()}
    heads = [_head(head, model.tasks[head.name], shares) for head in manifest.heads]
    main = next(head for head in heads if head.name == manifest.head.name)
    return Plans(
        plans=[
            PlanInfo(
                name=plan.name,
                canvas=plan.canvas,
                tiled=plan.canvas in manifest.input.tiled,
                depth=plan.depth,
                keep=plan.keep,
                width=plan.width,
                heads={head.name: head.width for head in plan.heads},
                gflops=plan.price,
                quality=plan.quality,
                ms=measured.get(plan.name),
            )
            for plan in complete
        ],
        canvases=[
            CanvasInfo(
                name=canvas.name,
                shapes=[
                    ShapeInfo(height=shape.height, width=shape.width) for shape in canvas.shapes
                ],
                tiles=_tiles(canvas.tiles),
            )
            for canvas in manifest.input.canvases
        ],
        glance=manifest.glance.name,
        heads=heads,
        task=main.task,
        objects=main.objects,
        bundle=BundleName(name=manifest.name, revision=manifest.revision),
        classes=main.classes,
        limits=LimitsInfo(
            max_body_bytes=settings.max_body_bytes,
            max_pixels=settings.max_pixels,
            max_side=settings.max_side,
            min_side=settings.min_side,
        ),
    )


def _tiles(tiles: Tiles | None) -> TilesInfo | None:
    if tiles is None:
        return None
    return TilesInfo(of=tiles.of, rows=tiles.rows, columns=tiles.columns, overlap=tiles.overlap)


def _head(head: Head, task: Task, shares: Mapping[str, float]) -> HeadInfo:
    return HeadInfo(
        name=head.name,
        task=head.task,
        gives=_GIVES[task.gives],
        objects=task.objects,
        weight=round(shares.get(head.name, 0.0), 4),
        widths=list(head.widths),
        classes=[ClassName(name=entry.name, color=entry.color) for entry in head.classes],
        unit=head.unit,
        range=head.range,
    )
