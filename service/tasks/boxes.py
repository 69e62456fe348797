"""What a detector finds: boxes with a class and a score, without masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.bundle import ClassInfo
from service.core import Geometry

Corners: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Box:
    """One object. id: from 1 on. score: 0..1. box: COCO's [x, y, width, height], in pixels of the
    image, within it."""

    id: int
    class_id: int
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class BoxSegment:
    """A box with the name of its class. thing: whether that is countable."""

    id: int
    class_id: int
    label: str
    thing: bool
    score: float
    box: tuple[float, float, float, float]

    def as_json(self) -> dict[str, object]:
        """As every transport tells it."""
        return {
            "id": self.id,
            "class_id": self.class_id,
            "label": self.label,
            "is_thing": self.thing,
            "score": round(self.score, 4),
            "box": [round(side, 2) for side in self.box],
        }


@dataclass(frozen=True, slots=True)
class Boxes:
    """The objects of an image, the most certain first."""

    found: Sequence[Box]

    def segments(self, classes: Sequence[ClassInfo]) -> list[BoxSegment]:
        """The objects with their names, in order of id."""
        return [
            BoxSegment(
                each.id,
                each.class_id,
                classes[each.class_id].name,
                classes[each.class_id].thing,
                each.score,
                each.box,
            )
            for each in self.found
        ]


def in_image(boxes: NDArray[np.float32], geometry: Geometry) -> Corners:
    """(N, 4) centre x, centre y, width, height in 0..1 of the canvas -> (N, 4) left, top, right,
    bottom in pixels of the image, cut off at its edges."""
    height, width = geometry.canvas
    across = width * geometry.width / geometry.scaled_width
    down = height * geometry.height / geometry.scaled_height
    centre, half = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64) / 2
    corners = np.concatenate((centre - half, centre + half), 1) * (across, down, across, down)
    size = (geometry.width, geometry.height)
    return np.asarray(corners.clip(0, size * 2), np.float64)
