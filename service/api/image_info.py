"""What JSON answers say about the image itself, and the base of all wire types."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from service.api.fields import VALUE_RANGE
from service.core import Geometry

NARROW_RANGE_HINT = (
    "The image's 16-bit values use under a quarter of their range, as those of 10- and 12-bit "
    f"cameras do: send {VALUE_RANGE}: auto to scale them by the range that they use"
)


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
    damaged: bool = Field(
        default=False,
        description="Pixels of the file are missing or do not match their checksum; it was read as "
        "far as browsers do",
    )
    hint: str | None = Field(
        default=None, description="What the caller may change to get more out of this image"
    )


def image_info(geometry: Geometry) -> ImageInfo:
    return ImageInfo(
        width=geometry.width,
        height=geometry.height,
        orientation_applied=geometry.orientation_applied,
        damaged=geometry.damaged,
        hint=NARROW_RANGE_HINT if geometry.narrow_range else None,
    )
