"""A bundle's stages on an engine: the glance, the front of a plan's canvas, its encoder, the head.

The pipeline, the warm-up and every evaluation run a bundle through these steps. A tiled canvas is
cut and joined here and nowhere else: each tile runs through the stages of the shape whose size it
has, and the answers are joined to one map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle import SIZE, EncoderPlan, Manifest, Shape, Tiles
from service.core import Frame, Plan
from service.engines.base import Backend, Tensors
from service.inference.tiles import join, split


@dataclass(frozen=True, slots=True)
class TileTensors:
    """A batch's tensors, tile by tile."""

    tiles: Sequence[Tensors]

    def __getitem__(self, name: str) -> NDArray[Any]:
        """(B, T, ...)"""
        return np.stack([tile[name] for tile in self.tiles], 1)

    def take(self, rows: Sequence[int]) -> TileTensors:
        return TileTensors([tile.take(rows) for tile in self.tiles])


class Stages:
    """See the module. Called from one thread only, as the backend is.

    All images of a call have one shape of one canvas; shape: its name.
    """

    def __init__(self, backend: Backend, manifest: Manifest) -> None:
        self.backend, self.manifest = backend, manifest
        canvases = {canvas.name: canvas for canvas in manifest.input.canvases}
        # Of each shape of a tiled canvas how it is cut, and the shape of its tiles.
        self._cut: dict[str, tuple[Tiles, Shape]] = {
            shape.name: (tiles, tile)
            for name, tiles in manifest.input.tiled.items()
            for shape, tile in zip(canvases[name].shapes, canvases[tiles.of].shapes, strict=True)
        }

    def glance(self, frames: Sequence[Frame]) -> tuple[Tensors, NDArray[np.float32]]:
        """B images on the smallest canvas -> features and the gate's predicted quality,
        (B, plans)."""
        features = self.front(frames)
        return features, features["quality"]

    def front(self, frames: Sequence[Frame]) -> Tensors:
        """B images on one canvas -> features."""
        shape = frames[0].geometry.shape
        if shape not in self._cut:
            return self._front(shape, frames, [frame.pixels for frame in frames])
        tiles, tile = self._cut[shape]
        # B images at a time, so that no batch is larger than it would be without tiles.
        pieces = zip(*(split(frame.pixels, tiles, tile) for frame in frames), strict=True)
        return TileTensors([self._front(tile.name, frames, piece) for piece in pieces])

    def encode(self, plan: Plan | EncoderPlan, shape: str, features: Tensors) -> Tensors:
        """Run the plan's truncated encoder on every image."""
        name = self.manifest.graphs[self._own(shape)].encoders[plan.encoder]
        if isinstance(features, TileTensors):
            return TileTensors([self.backend.run(name, tile) for tile in features.tiles])
        return self.backend.run(name, features)

    def paused(
        self, plan: Plan | EncoderPlan, shape: str, encoded: Tensors
    ) -> NDArray[np.uint8] | None:
        """The tokens that the plan's encoder paused, (B, rows, columns), 1 = paused.

        None if the plan pauses none.
        """
        graphs = self.manifest.graphs[self._own(shape)]
        if self.manifest.stages[graphs.encoders[plan.encoder]].paused is None:
            return None
        if isinstance(encoded, TileTensors):
            maps = [tile["paused"] for tile in encoded.tiles]
            return np.asarray(join(maps, *self._cut[shape], blend=False))
        return encoded["paused"]

    def head(
        self, shape: str, encoded: Tensors, key: str | None = None
    ) -> Mapping[str, NDArray[Any]]:
        """A head's tensors by name, each (B, ...).

        key: of a head at one of its widths, see `HeadWidth`; None: the first head's that counts.
        """
        graphs = self.manifest.graphs[self._own(shape)]
        name = graphs.heads[key or self.manifest.head.name]
        if not isinstance(encoded, TileTensors):
            return self._answers(name, encoded)
        answers = [self._answers(name, tile) for tile in encoded.tiles]
        return {
            output: join([answer[output] for answer in answers], *self._cut[shape])
            for output in answers[0]
        }

    def _own(self, shape: str) -> str:
        """The shape whose graphs run."""
        return self._cut[shape][1].name if shape in self._cut else shape

    def _front(
        self, shape: str, frames: Sequence[Frame], pixels: Sequence[NDArray[np.uint8]]
    ) -> Tensors:
        """pixels: of each frame, or of a tile of it."""
        name = self.manifest.graphs[shape].front
        inputs: dict[str, NDArray[Any]] = {"image": np.stack(pixels)}
        if SIZE in self.manifest.stages[name].inputs:
            sizes = [(frame.geometry.height, frame.geometry.width) for frame in frames]
            inputs[SIZE.name] = np.array(sizes, SIZE.dtype)
        return self.backend.run(name, inputs)

    def _answers(self, stage: str, encoded: Tensors) -> dict[str, NDArray[Any]]:
        tensors = self.backend.run(stage, encoded)
        return {spec.name: tensors[spec.name] for spec in self.manifest.stages[stage].outputs}
