"""Wire types of the forms that other tools read: COCO panoptic and GeoJSON."""

from __future__ import annotations

import base64
from typing import Literal

from pydantic import Field

from service.answer import Answer
from service.api.image_info import ImageInfo, Wire
from service.api.schemas import Usage, UsageOfHeads
from service.pixels.polygons import Polygon


class Told(Wire):
    """What every form in JSON says beside its segments."""

    image: ImageInfo
    head: str | None = Field(
        default=None, description="The head's name, where the bundle has several"
    )
    task: str
    usage: UsageOfHeads | Usage


class Category(Wire):
    """A class as COCO has it. isthing: 1 of things, 0 of stuff; color: RGB."""

    id: int
    name: str
    isthing: int
    color: tuple[int, int, int]


class SegmentInfo(Wire):
    """A segment as COCO has it. id: of its pixels in the PNG; bbox: [x, y, width, height]."""

    id: int
    category_id: int
    area: int
    bbox: tuple[int, int, int, int]
    iscrowd: int = 0
    score: float


class Panoptic(Told):
    """One annotation of COCO's panoptic format, with its PNG and its categories."""

    segments_info: list[SegmentInfo]
    categories: list[Category]
    png: str = Field(
        description="The PNG in base64: a pixel is R + 256 G + 65536 B = the id of its segment; "
        "0 is none",
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/png"},
    )


class Outline(Wire):
    """A GeoJSON polygon: its outline, then its holes. Corners of pixels, x to the right, y down."""

    type: Literal["Polygon"] = "Polygon"
    coordinates: Polygon


class Outlines(Wire):
    """A GeoJSON multipolygon, of a segment in several parts."""

    type: Literal["MultiPolygon"] = "MultiPolygon"
    coordinates: list[Polygon]


class Properties(Wire):
    """A segment, as the JSON answer has it."""

    id: int
    class_id: int
    label: str
    score: float
    area: int


class Feature(Wire):
    """A segment as GeoJSON has it."""

    type: Literal["Feature"] = "Feature"
    id: int
    geometry: Outline | Outlines
    properties: Properties


class FeatureCollection(Told):
    """The answer as GeoJSON (RFC 7946), but in pixels of the image as shown, y down."""

    type: Literal["FeatureCollection"] = "FeatureCollection"
    features: list[Feature]


def panoptic(answer: Answer, told: Told) -> Panoptic:
    """The answer in COCO's panoptic format."""
    return Panoptic(
        **dict(told),
        segments_info=[
            SegmentInfo(
                id=segment.id,
                category_id=segment.class_id,
                area=segment.mask.area,
                bbox=segment.mask.box,
                score=round(segment.score, 4),
            )
            for segment in answer.segments
        ],
        categories=[
            Category(id=i, name=entry.name, isthing=int(entry.thing), color=entry.color)
            for i, entry in enumerate(answer.head.classes)
        ],
        png=base64.b64encode(answer.panoptic_png()).decode("ascii"),
    )


def feature_collection(answer: Answer, told: Told) -> FeatureCollection:
    """The answer as GeoJSON."""
    return FeatureCollection(
        **dict(told),
        features=[
            Feature(
                id=segment.id,
                geometry=_geometry(answer.polygons(segment)),
                properties=Properties(
                    id=segment.id,
                    class_id=segment.class_id,
                    label=segment.label,
                    score=round(segment.score, 4),
                    area=segment.mask.area,
                ),
            )
            for segment in answer.segments
        ],
    )


def _geometry(parts: list[Polygon]) -> Outline | Outlines:
    if len(parts) == 1:
        return Outline(coordinates=parts[0])
    return Outlines(coordinates=parts)
