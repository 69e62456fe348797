"""What the pipeline needs of a backend. Features are opaque to everybody but the backend that made
them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.core import Plan


class Features(Protocol):
    """A batch of feature maps that stays where the backend put it (host or device)."""

    @property
    def paused(self) -> NDArray[np.uint8] | None:
        """Which tokens the encoder paused, (B, rows, columns), 1 = paused; None before it and where
        it pauses none."""
        ...

    def take(self, rows: Sequence[int]) -> Features:
        """The images at these rows, in this order."""
        ...


class Backend(Protocol):
    """Three stages, each for a batch of B images. Called from one thread only."""

    @property
    def name(self) -> str:
        """The label of `build_info`, e.g. "onnxruntime"."""
        ...

    def front(self, images: NDArray[np.uint8]) -> tuple[Features, NDArray[np.float32]]:
        """(B, H, W, 3) uint8 canvas images -> features and the gate's predicted quality (B, plans),
        0..1."""
        ...

    def encode(self, plan: Plan, features: Features) -> Features:
        """Run the plan's truncated encoder on every image of `features`."""
        ...

    def decode(self, features: Features) -> NDArray[np.float32]:
        """Probabilities (B, channels, h, w), 0..1."""
        ...

    def close(self) -> None: ...
