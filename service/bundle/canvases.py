"""Canvases: the sizes at which a bundle looks at images, and their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """One fixed size that graphs are made for, in pixels."""

    height: int
    width: int

    @property
    def name(self) -> str:
        """HEIGHTxWIDTH, as in the names of graphs."""
        return f"{self.height}x{self.width}"

    @property
    def area(self) -> int:
        """In pixels."""
        return self.height * self.width


@dataclass(frozen=True, slots=True)
class Canvas:
    """One size to look at an image, in one or several shapes (landscape, square, portrait).

    name: the letter c and the longest side of its first shape, e.g. c640.
    """

    name: str
    shapes: tuple[Shape, ...]

    @classmethod
    def of(cls, shapes: Sequence[Shape]) -> Canvas:
        """A canvas with these shapes, named."""
        return cls(f"c{max(shapes[0].height, shapes[0].width)}", tuple(shapes))

    @property
    def largest(self) -> Shape:
        """The shape with the most pixels, by which canvases are ordered; the first of equals."""
        return max(self.shapes, key=lambda shape: shape.area)

    def fitting(self, width: int, height: int) -> Shape:
        """The shape that an image of this size leaves the least of empty; the first of equals."""
        return max(self.shapes, key=lambda shape: _filled(shape, width, height))


def _filled(shape: Shape, width: int, height: int) -> float:
    """The share of the shape that an image covers when it is scaled to fit."""
    scale = min(shape.width / width, shape.height / height)
    return scale * width * scale * height / shape.area
