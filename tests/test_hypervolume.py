"""How much of the space a set of trade-offs dominates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.evaluation.hypervolume import hypervolume


@pytest.mark.parametrize(
    ("points", "volume"),
    [
        ([[2.0, 3.0]], 6.0),
        ([[2.0, 3.0], [1.0, 2.0]], 6.0),
        ([[2.0, 1.0], [1.0, 2.0]], 3.0),
        ([[1.0, 1.0, 1.0], [0.5, 2.0, 1.0]], 1.5),
        ([[1.0, 1.0, 0.0]], 0.0),
        ([[2.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 3.0]], 4.0),
    ],
)
def test_of_boxes_that_are_known(points: list[list[float]], volume: float) -> None:
    assert hypervolume(np.array(points)) == pytest.approx(volume)


def test_nothing_dominates_nothing() -> None:
    assert hypervolume(np.empty((0, 3))) == 0.0


@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(1, 8))
def test_is_that_of_a_count_on_a_grid(seed: int, dimensions: int, count: int) -> None:
    points = np.random.default_rng(seed).integers(0, 6, (count, dimensions)).astype(float)
    cells = np.stack(np.meshgrid(*[np.arange(6) + 0.5] * dimensions), -1).reshape(-1, dimensions)
    inside = (cells[:, None] < points[None]).all(-1).any(1)
    assert hypervolume(points) == pytest.approx(inside.sum())
