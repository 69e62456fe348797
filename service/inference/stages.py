"""A bundle's stages on an engine: the glance, the front of a plan's canvas, its encoder, the head.

The pipeline, the warm-up and every evaluation run a bundle through these steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle import SIZE, EncoderPlan, Manifest
from service.core import Frame, Plan
from service.engines.base import Backend, Tensors


class Stages:
    """See the module. Called from one thread only, as the backend is.

    All images of a call have one shape of one canvas; shape: its name.
    """

    def __init__(self, backend: Backend, manifest: Manifest) -> None:
        self.backend, self.manifest = backend, manifest

    def glance(self, frames: Sequence[Frame]) -> tuple[Tensors, NDArray[np.float32]]:
        """B images on the smallest canvas -> features and the gate's predicted quality,
        (B, plans)."""
        features = self.front(frames)
        return features, features["quality"]

    def front(self, frames: Sequence[Frame]) -> Tensors:
        """B images on one canvas -> features."""
        name = self.manifest.graphs[frames[0].geometry.shape].front
        inputs: dict[str, NDArray[Any]] = {"image": np.stack([frame.pixels for frame in frames])}
        if SIZE in self.manifest.stages[name].inputs:
            sizes = [(frame.geometry.height, frame.geometry.width) for frame in frames]
            inputs[SIZE.name] = np.array(sizes, SIZE.dtype)
        return self.backend.run(name, inputs)

    def encode(self, plan: Plan | EncoderPlan, shape: str, features: Tensors) -> Tensors:
        """Run the plan's truncated encoder on every image."""
        return self.backend.run(self.manifest.graphs[shape].encoders[plan.encoder], features)

    def paused(
        self, plan: Plan | EncoderPlan, shape: str, encoded: Tensors
    ) -> NDArray[np.uint8] | None:
        """The tokens that the plan's encoder paused, (B, rows, columns), 1 = paused.

        None if the plan pauses none.
        """
        stage = self.manifest.stages[self.manifest.graphs[shape].encoders[plan.encoder]]
        return None if stage.paused is None else encoded["paused"]

    def head(
        self, shape: str, encoded: Tensors, key: str | None = None
    ) -> Mapping[str, NDArray[Any]]:
        """A head's tensors by name, each (B, ...).

        key: of a head at one of its widths, see `HeadWidth`; None: the first head's that counts.
        """
        name = self.manifest.graphs[shape].heads[key or self.manifest.head.name]
        tensors = self.backend.run(name, encoded)
        return {spec.name: tensors[spec.name] for spec in self.manifest.stages[name].outputs}
