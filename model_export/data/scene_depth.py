"""Which surface every pixel of a procedural street scene shows, and so how far away it is.

Every shape that the mask shows is also painted, with a number of its own, into a canvas of
surfaces. A surface is a plane in the metric world of scene_paint.py; in the end the depth of all
pixels follows from their planes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

# Metres. What is closer slides forward along Z (Painter.at), which is exact for planes parallel to
# the street.
NEAR = 0.9
_ROUNDS = 4  # of the search for where the bend of the street has put a point
Point = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Camera:
    """focal length and principal point (x, horizon) in pixels, height above the road in metres, and
    the bend of the street: how far it has gone to the side, as a share of the focal length, per
    metre."""

    focal: float
    x: float
    horizon: float
    height: float
    bend: float


class Surfaces:
    """order: the canvas of numbers; 0 is the sky. pen: draws there."""

    def __init__(self, height: int, width: int) -> None:
        self.order = Image.new("I", (width, height), 0)
        self.pen = ImageDraw.Draw(self.order)
        # of each surface: normal, distance of the plane, nearest and farthest z; the sky is none
        self._planes: list[tuple[float, ...]] = [(0.0, 0.0, 1.0, 0.0, 0.0, 0.0)]
        self._things, self._thing = [0], 0

    def next_thing(self) -> None:
        """All surfaces from here on belong to another thing."""
        self._thing += 1

    def plane(self, points: Sequence[Point]) -> int:
        """The number of a new surface through points that lie in one plane, in metres."""
        a, b, c = (np.array(points[i]) for i in (0, 1, -1))
        normal = np.cross(b - a, c - a)
        if not normal.any():  # the points lie in a line: any plane through it will do
            return self.upright(points[0][2])
        depths = [point[2] for point in points]
        self._planes.append((*normal, float(normal @ a), min(depths), max(depths)))
        return self._added()

    def upright(self, z: float) -> int:
        """The number of a new surface that faces the camera."""
        self._planes.append((0.0, 0.0, 1.0, z, z, z))
        return self._added()

    def _added(self) -> int:
        self._things.append(self._thing)
        return len(self._planes) - 1

    def numbers(self) -> NDArray[np.int32]:
        return np.asarray(self.order, np.int32)

    def things(self, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        """(height, width): which thing each pixel belongs to; 0 = ground, sky and what ends the
        street."""
        return np.array(self._things, np.int32)[numbers]

    def depth(self, numbers: NDArray[np.int32], camera: Camera) -> NDArray[np.float32]:
        """(height, width) float32, metres along the camera's axis; 0 where nothing is.

        A pixel sees (z * a, height - z * b, z) with a, b its distances from the principal point
        over the focal length, a less the bend at z: so the plane's equation gives z, which the bend
        takes some rounds to settle. Planes are cut at their nearest and farthest points.
        """
        height, width = numbers.shape
        planes = np.array(self._planes)[numbers]  # (height, width, 6)
        nx, ny, nz, distance, near, far = np.moveaxis(planes, -1, 0)
        a = (np.arange(width) - camera.x) / camera.focal
        b = ((np.arange(height) - camera.horizon) / camera.focal)[:, None]
        near = np.minimum(np.maximum(near, NEAR), far)  # the sky, which is nowhere, stays there
        z = (near + far) / 2
        for _ in range(_ROUNDS):
            slope = nx * (a - camera.bend * z) - ny * b + nz
            with np.errstate(divide="ignore", invalid="ignore"):
                found = (distance - ny * camera.height) / slope
            z = np.clip(np.where(np.isfinite(found) & (found > 0), found, far), near, far)
        return z.astype(np.float32)
