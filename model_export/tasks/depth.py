"""The task of dense regression: a depth for every pixel, judged by the share of pixels that are
right to a quarter.

Counts are (3,): pixels within the factor, the sum of absolute differences of logarithms, and known
pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.core import Geometry
from service.tasks import Values

WITHIN = 1.25  # max(p / t, t / p) below it is right (Eigen et al. 2014, arXiv 1406.2283)


class Depth:
    """See the module, and Task (base.py) for the names of its methods."""

    name, measure = "depth", "within 1.25"

    def read(
        self, cells: NDArray[np.float32], geometry: Geometry, ends: tuple[float, float]
    ) -> NDArray[np.float32]:
        """cells: (h, w), over the whole canvas -> (H, W) at the image's own size, as the service
        reads them. ends: of the head's range."""
        return Values(cells, geometry, "m", *ends).values

    def counts(
        self, answer: NDArray[np.float32], truth: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """truth: (H, W), 0 = not known."""
        known = truth > 0
        gaps = np.abs(np.log(np.maximum(answer[known], 1e-6) / truth[known]))
        return np.array([(gaps < np.log(WITHIN)).sum(), gaps.sum(), known.sum()], np.float64)

    def of_set(self, counts: Sequence[NDArray[np.float64]]) -> float:
        within, _, known = np.sum(counts, 0)
        return float(within / known) if known else float("nan")

    def of_image(self, counts: NDArray[np.float64]) -> float:
        return self.of_set([counts])
