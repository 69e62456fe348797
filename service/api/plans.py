"""The answer of /plans: its types, from which /openapi.json is made too, and its content."""

from __future__ import annotations

from pydantic import Field

from service.api.image_info import Wire
from service.core import told
from service.model import Model
from service.settings import Settings


class ShapeInfo(Wire):
    """A size in pixels."""

    height: int
    width: int


class PlanInfo(Wire):
    """A plan and its cost. canvas: the name of one of `canvases`. ms: for one image on this node;
    null until the engine is warm."""

    name: str
    canvas: str
    depth: int
    keep: float
    width: float
    gflops: float
    quality: float
    ms: float | None


class CanvasInfo(Wire):
    """A size at which images are looked at. Each gets the shape that it fills best."""

    name: str
    shapes: list[ShapeInfo]


class ClassName(Wire):
    """A class and its colour, RGB."""

    name: str
    color: tuple[int, int, int]


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
    """The answer of /plans: all that a page needs to let a user set a budget."""

    plans: list[PlanInfo] = Field(description="From the cheapest to the most expensive")
    canvases: list[CanvasInfo] = Field(description="From small to large")
    glance: str = Field(description="The canvas on which the gate sees every image")
    task: str
    objects: bool = Field(description="A segment is one object, not all pixels of a class")
    bundle: BundleName
    classes: list[ClassName]
    limits: LimitsInfo


def plans(model: Model, settings: Settings) -> Plans:
    """The answer of /plans."""
    manifest = model.manifest
    measured = {name: told(ms) for name, ms in model.plan_ms(manifest.plans).items()}
    return Plans(
        plans=[
            PlanInfo(
                name=plan.name,
                canvas=plan.canvas,
                depth=plan.depth,
                keep=plan.keep,
                width=plan.width,
                gflops=plan.price,
                quality=plan.quality,
                ms=measured.get(plan.name),
            )
            for plan in manifest.plans
        ],
        canvases=[
            CanvasInfo(
                name=canvas.name,
                shapes=[
                    ShapeInfo(height=shape.height, width=shape.width) for shape in canvas.shapes
                ],
            )
            for canvas in manifest.input.canvases
        ],
        glance=manifest.glance.name,
        task=model.task.name,
        objects=model.task.objects,
        bundle=BundleName(name=manifest.name, revision=manifest.revision),
        classes=[ClassName(name=entry.name, color=entry.color) for entry in manifest.head.classes],
        limits=LimitsInfo(
            max_body_bytes=settings.max_body_bytes,
            max_pixels=settings.max_pixels,
            max_side=settings.max_side,
            min_side=settings.min_side,
        ),
    )
