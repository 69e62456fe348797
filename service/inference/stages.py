"""A bundle's stages on an engine: the front, then a plan's encoder, then the head.

The pipeline, the warm-up and every evaluation run a bundle through these steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle import Manifest
from service.core import Plan
from service.engines.base import Backend, Tensors


class Stages:
    """See the module. Called from one thread only, as the backend is."""

    def __init__(self, backend: Backend, manifest: Manifest) -> None:
        self.backend, self.manifest = backend, manifest
        self._answers = [spec.name for spec in manifest.stages["decoder"].outputs]

    def front(self, images: NDArray[np.uint8]) -> tuple[Tensors, NDArray[np.float32]]:
        """(B, H, W, 3) canvas images -> features and the gate's predicted quality (B, plans)."""
        features = self.backend.run("front", {"image": images})
        return features, features["quality"]

    def encode(self, plan: Plan, features: Tensors) -> Tensors:
        """Run the plan's truncated encoder on every image."""
        return self.backend.run(self.manifest.encoder_of[plan.name], features)

    def paused(self, plan: Plan, encoded: Tensors) -> NDArray[np.uint8] | None:
        """The tokens that the plan's encoder paused, (B, rows, columns), 1 = paused.

        None if the plan pauses none.
        """
        stage = self.manifest.stages[self.manifest.encoder_of[plan.name]]
        return None if stage.paused is None else encoded["paused"]

    def head(self, encoded: Tensors) -> Mapping[str, NDArray[Any]]:
        """The head's tensors by name, each (B, ...)."""
        tensors = self.backend.run("decoder", encoded)
        return {name: tensors[name] for name in self._answers}
