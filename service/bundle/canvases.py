"""Canvases: the sizes at which a bundle looks at images, and their shapes.

A tiled canvas has no graphs of its own. It is cut into overlapping tiles, each of which is as large
as a shape of a smaller canvas and runs through that one's graphs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

    def scale(self, width: int, height: int) -> float:
        """The factor by which an image of this size is scaled to fit."""
        return min(self.width / width, self.height / height)


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a canvas is cut. of: the name of the canvas whose graphs run on each tile. rows, columns:
    of tiles. overlap: that neighbours share, in pixels, a multiple of 32."""

    of: str
    rows: int
    columns: int
    overlap: int

    @property
    def count(self) -> int:
        """The tiles of an image."""
        return self.rows * self.columns

    def covered(self, tile: Shape) -> Shape:
        """What tiles of a shape cover together."""
        return Shape(
            self.rows * tile.height - (self.rows - 1) * self.overlap,
            self.columns * tile.width - (self.columns - 1) * self.overlap,
        )

    def stride(self, height: int, width: int, tile: Shape) -> int | None:
        """The pixels along a side of a cell, where a tile's map has so many cells; None if cells do
        not fit the tile or the overlap."""
        stride = tile.height // height
        fits = stride > 0 and (stride * height, stride * width) == (tile.height, tile.width)
        return stride if fits and self.overlap % stride == 0 else None


@dataclass(frozen=True, slots=True)
class Canvas:
    """One size to look at an image, in one or several shapes (landscape, square, portrait).

    name: the letter c and the longest side of its first shape, e.g. c640; of a tiled canvas the
        letter t, e.g. t1024. tiles: how it is cut; None: it is not.
    """

    name: str
    shapes: tuple[Shape, ...]
    tiles: Tiles | None = None

    @classmethod
    def of(cls, shapes: Sequence[Shape]) -> Canvas:
        """A canvas with these shapes, named."""
        return cls(f"c{max(shapes[0].height, shapes[0].width)}", tuple(shapes))

    @classmethod
    def tiled(cls, base: Canvas, rows: int, columns: int, overlap: int) -> Canvas:
        """A canvas that is cut into tiles of another one's shapes, named. Its shapes are in the
        order of the other's."""
        tiles = Tiles(base.name, rows, columns, overlap)
        shapes = tuple(tiles.covered(shape) for shape in base.shapes)
        return cls(f"t{max(shapes[0].height, shapes[0].width)}", shapes, tiles)

    @property
    def largest(self) -> Shape:
        """The shape with the most pixels, by which canvases are ordered; the first of equals."""
        return max(self.shapes, key=lambda shape: shape.area)

    def fitting(self, width: int, height: int) -> Shape:
        """The shape that an image of this size leaves the least of empty; the first of equals."""
        return max(self.shapes, key=lambda shape: _filled(shape, width, height))


def plain_of(canvases: Iterable[Canvas]) -> tuple[Canvas, ...]:
    """Those that are not tiled."""
    return tuple(canvas for canvas in canvases if canvas.tiles is None)


def is_larger(canvases: Sequence[Canvas], width: int, height: int) -> bool:
    """Whether an image of this size is larger than the largest plain canvas, which would shrink it:
    only such images are looked at on tiled canvases.

    canvases: from small to large.
    """
    return plain_of(canvases)[-1].fitting(width, height).scale(width, height) < 1


def _filled(shape: Shape, width: int, height: int) -> float:
    """The share of the shape that an image covers when it is scaled to fit."""
    scale = shape.scale(width, height)
    return scale * width * scale * height / shape.area
