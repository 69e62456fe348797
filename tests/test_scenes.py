"""The procedural scenes: deterministic, complete in classes, harder with clutter, strict about arguments."""

from __future__ import annotations

import numpy as np
import pytest

from model_export.recipe.scenes import CLASSES, render


def _edges(mask: np.ndarray) -> float:
    """Share of horizontally or vertically neighbouring pixels whose classes differ."""
    return float((mask[:, 1:] != mask[:, :-1]).mean() + (mask[1:] != mask[:-1]).mean())


def test_deterministic() -> None:
    first, again, other = (render(seed, height=120, width=160) for seed in (7, 7, 8))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def test_all_classes_occur() -> None:
    seen: set[int] = set()
    for seed in range(12):
        seen |= set(np.unique(render(seed, height=180, width=240, clutter=0.6)[1]).tolist())
    assert seen - {255} == set(range(len(CLASSES)))


def test_clutter_raises_edge_density_and_noise() -> None:
    def measure(clutter: float) -> tuple[float, float]:
        pairs = [render(seed, height=180, width=240, clutter=clutter) for seed in range(10)]
        grain = [np.abs(np.diff(image[-40:].astype(np.float32), axis=1)).mean() for image, _ in pairs]
        return float(np.mean([_edges(mask) for _, mask in pairs])), float(np.mean(grain))

    calm, busy = measure(0.0), measure(1.0)
    assert busy[0] > 1.25 * calm[0]
    assert busy[1] > 1.25 * calm[1]


@pytest.mark.parametrize(("height", "width"), [(64, 96), (37, 61), (1, 1), (5, 200), (200, 5)])
@pytest.mark.parametrize("clutter", [0.0, 1.0])
def test_any_size(height: int, width: int, clutter: float) -> None:
    image, mask = render(3, height=height, width=width, clutter=clutter)
    assert image.shape == (height, width, 3)
    assert mask.shape == (height, width)
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask).tolist()) <= {*range(len(CLASSES)), 255}


def test_layout_is_a_street() -> None:
    """Sky above road: the mean row of Sky lies over that of Road in every scene."""
    for seed in range(6):
        mask = render(seed, height=120, width=160, clutter=0.3)[1]
        assert np.nonzero(mask == CLASSES.index("Sky"))[0].mean() < np.nonzero(mask == CLASSES.index("Road"))[0].mean()


@pytest.mark.parametrize("clutter", [-0.01, 1.01, float("nan")])
def test_bad_clutter(clutter: float) -> None:
    with pytest.raises(ValueError, match="clutter"):
        render(0, clutter=clutter)


@pytest.mark.parametrize(("height", "width"), [(0, 10), (10, 0), (-4, 8)])
def test_bad_size(height: int, width: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        render(0, height=height, width=width)
