"""Core and border of objects: what a network learns so that objects that touch come apart."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from model_export.tasks.core_and_border import (
    BACKGROUND,
    BORDER,
    BORDER_SHARE,
    CORE,
    core_and_border,
    gaps,
)


def _blobs(seed: int, height: int = 70, width: int = 90) -> NDArray[np.uint16]:
    """Objects of all sizes that touch each other: each pixel goes to the nearest of some points, if
    one is near."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    points = rng.uniform((0, 0), (height, width), (25, 2))
    distance = np.hypot(y[..., None] - points[:, 0], x[..., None] - points[:, 1])
    return np.where(distance.min(-1) < rng.uniform(5, 15), distance.argmin(-1) * 7 + 1, 0).astype(
        np.uint16
    )


def _disc(radius: float, size: int) -> NDArray[np.uint16]:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return (np.hypot(y, x) <= radius).astype(np.uint16)


@pytest.mark.parametrize("seed", range(5))
def test_every_object_has_a_core_and_no_two_cores_touch(seed: int) -> None:
    objects = _blobs(seed)
    found = core_and_border(objects)
    assert np.array_equal(found == BACKGROUND, objects == 0)
    assert set(np.unique(objects[found == CORE])) == set(np.unique(objects)) - {0}
    parts, count = ndimage.label(found == CORE)
    assert all(len(np.unique(objects[parts == k])) == 1 for k in range(1, count + 1))
    whole, objects_that_touch = ndimage.label(objects > 0)
    assert objects_that_touch < count, "the test has no objects that touch"
    assert whole.max() > 0


@pytest.mark.parametrize("share", [0.2, BORDER_SHARE, 0.6])
def test_border_is_the_same_share_of_discs_of_any_size(share: float) -> None:
    for radius in (15, 30, 60):
        found = core_and_border(_disc(radius, 2 * radius + 9), share)
        core, whole = (found == CORE).sum(), (found > 0).sum()
        assert (core / whole) ** 0.5 == pytest.approx(1 - share, abs=0.04)


def test_depth_is_that_of_one_distance_transform_per_object() -> None:
    """The reference treats objects one by one; distances differ by the half pixel to the border
    between two."""
    objects = _blobs(3)
    found = core_and_border(objects)
    wrong = 0
    for k in set(np.unique(objects)) - {0}:
        mask = objects == k
        depth = ndimage.distance_transform_edt(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1] - 0.5
        wrong += ((depth > BORDER_SHARE * depth.max()) & mask != ((found == CORE) & mask)).sum()
    assert wrong < 0.03 * (objects > 0).sum()


def test_border_of_the_image_is_no_outline() -> None:
    disc = _disc(20, 61)
    whole, half = core_and_border(disc), core_and_border(disc[:, :31])
    assert np.array_equal(half, whole[:, :31])
    assert (core_and_border(np.ones((9, 5), np.uint16)) == CORE).all()


def test_tiny_objects_are_all_core_and_no_object_is_background() -> None:
    objects = np.zeros((7, 9), np.uint16)
    objects[1, 1], objects[3:5, 5:7] = 65535, 2
    assert np.array_equal(core_and_border(objects) == CORE, objects > 0)
    assert not core_and_border(np.zeros((7, 9), np.uint16)).any()
    assert {BACKGROUND, CORE, BORDER} == {0, 1, 2}


def test_gaps_lie_where_two_objects_touch_and_nowhere_else() -> None:
    objects = np.zeros((40, 60), np.uint16)
    objects[5:25, 5:20], objects[5:25, 20:35] = 1, 2  # they touch along a column
    objects[5:25, 38:55] = 3  # 3 pixels of background apart from the second
    found = gaps(core_and_border(objects))
    rows, columns = np.nonzero(found)
    assert set(columns.tolist()) <= {18, 19, 20, 21}
    assert {19, 20} <= set(columns.tolist())
    assert set(range(7, 23)) <= set(rows.tolist())
    wide = gaps(core_and_border(objects), reach=3)
    assert wide.sum() > found.sum()
    assert (core_and_border(objects)[wide] == BORDER).all()


@pytest.mark.parametrize(
    "mask", [np.full((8, 8), BACKGROUND, np.uint8), np.full((8, 8), CORE, np.uint8)]
)
def test_no_gap_without_two_objects(mask: NDArray[np.uint8]) -> None:
    assert not gaps(mask).any()
