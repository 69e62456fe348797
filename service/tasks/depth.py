"""The depth task: a distance per pixel, from one plane, (h, w), in the head's unit over the canvas.

Its quality is the share of pixels with max(p / t, t / p) < 1.25 (Eigen et al., arXiv 1406.2283).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from service.bundle import ClassInfo, Head, TensorSpec
from service.core import Geometry
from service.errors import BundleError
from service.tasks import made_up
from service.tasks.base import Tensors
from service.tasks.values import Values

TENSOR = "depth"


@dataclass(frozen=True)
class Depth:
    """See the module, and Task for the methods. unit, range: of the head; None: of no head in
    particular, which can be described, and nothing else."""

    unit: str | None = None
    range: tuple[float, float] | None = None

    name: ClassVar[str] = "depth"
    objects: ClassVar[bool] = False
    dense: ClassVar[bool] = True
    png: ClassVar[str] = "the value times the scale that is told as 16-bit gray"
    gives: ClassVar[type[Values]] = Values

    @classmethod
    def of(cls, head: Head) -> Depth:
        return cls(head.unit, head.range)

    def check(self, classes: Sequence[ClassInfo], outputs: Sequence[TensorSpec], key: str) -> None:
        if classes:
            raise BundleError("classes: a head of depth has none")
        if not self.unit or self.range is None:
            raise BundleError("unit, range: a head of depth needs both")
        sizes = outputs[0].sizes if [spec.name for spec in outputs] == [TENSOR] else ()
        if len(sizes) != 2:
            raise BundleError(f"{key}: it must be {TENSOR} (batch, h, w)")

    def read(self, tensors: Tensors, geometry: Geometry) -> Values:
        assert self.unit is not None  # both are checked with the bundle
        assert self.range is not None
        return Values(tensors[TENSOR], geometry, self.unit, *self.range)

    def made_up(
        self, images: NDArray[np.uint8], certainty: NDArray[np.float64], spec: TensorSpec
    ) -> NDArray[np.float32]:
        """What is dark is near, and what is bright is far."""
        assert self.range is not None
        height, width = spec.sizes
        share = made_up.brightness(images, height, width) / 255
        least, most = self.range
        return (least + (most - least) * share).astype(np.float32)
