"""Polygons of label maps: drawn again, they are the label map, and they are valid."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from service.pixels.polygons import Polygon, Ring, polygons
from service.pixels.runs import Runs
from service.tasks.connected import Components

Labels = NDArray[np.uint8]


def drawn(parts: list[Polygon], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The pixels inside: each edge down or up turns what is right of it, once per ring."""
    inside = np.zeros(shape, np.bool_)
    for ring in (ring for part in parts for ring in part):
        for (x, y), (to_x, to_y) in pairwise(ring):
            assert (x == to_x) != (y == to_y)  # along one axis
            if x == to_x:
                inside[min(y, to_y) : max(y, to_y), x:] ^= True
    return inside


def area(ring: Ring) -> float:
    """By the shoelace formula; an outline's is positive."""
    return sum(x * to_y - to_x * y for (x, y), (to_x, to_y) in pairwise(ring)) / 2


def checked(labels: Labels, values: list[int]) -> list[list[Polygon]]:
    found = polygons(Runs.of(labels), values)
    for value, parts in zip(values, found, strict=True):
        assert np.array_equal(drawn(parts, labels.shape), labels == value)
        assert len(parts) == Components.of(labels == value).total
        for outline, *holes in parts:
            assert area(outline) > 0
            assert all(area(hole) < 0 for hole in holes)
        for ring in (ring for part in parts for ring in part):
            assert ring[0] == ring[-1]
            assert len(set(ring)) == len(ring) - 1  # it touches itself nowhere
            around = zip([ring[-2], *ring[:-2]], ring[1:], strict=True)
            assert all(x != to_x and y != to_y for (x, y), (to_x, to_y) in around)  # it turns
    return found


def test_a_pixel_is_a_square_and_a_frame_has_a_hole() -> None:
    labels = np.zeros((4, 5), np.uint8)
    labels[1, 2] = 1
    (one,), (frame,) = checked(labels, [1, 0])
    assert one == [[(2, 1), (3, 1), (3, 2), (2, 2), (2, 1)]]
    assert frame[0] == [(0, 0), (5, 0), (5, 4), (0, 4), (0, 0)]
    assert set(frame[1]) == set(one[0])


def test_pixels_that_meet_at_a_corner_are_two_parts_and_two_holes() -> None:
    labels = np.zeros((4, 4), np.uint8)
    labels[1, 1] = labels[2, 2] = 1
    two, (frame,) = checked(labels, [1, 0])
    assert len(two) == 2
    assert len(frame) == 3


def test_a_hole_that_touches_the_outline_at_a_corner_is_a_hole() -> None:
    labels = np.ones((4, 4), np.uint8)
    labels[0, 0] = labels[1, 1] = 0
    _, (part,) = checked(labels, [0, 1])
    assert len(part) == 2


def test_an_island_in_a_lake_on_an_island() -> None:
    labels = np.zeros((9, 9), np.uint8)
    labels[1:8, 1:8], labels[2:7, 2:7], labels[3:6, 3:6], labels[4, 4] = 1, 0, 1, 2
    land, water, peak = checked(labels, [1, 0, 2])
    assert sorted(len(part) for part in land) == [2, 2]
    assert sorted(len(part) for part in water) == [2, 2]
    assert len(peak) == 1


def test_a_value_that_is_nowhere_has_no_polygon() -> None:
    assert checked(np.zeros((3, 2), np.uint8), [1, 7]) == [[], []]
    assert polygons(Runs.of(np.zeros((3, 2), np.uint8)), []) == []


@pytest.mark.parametrize("seed", range(60))
def test_polygons_are_exactly_the_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width, values = *rng.integers(1, 16, 2), int(rng.integers(1, 4))
    labels = rng.integers(0, values + 1, (height, width)).astype(np.uint8)
    if seed % 3 == 0:
        labels = np.kron(labels, np.ones((2, 3), np.uint8))
    checked(labels, list(range(seed % 2, values + 1)))


def test_neighbours_share_their_border() -> None:
    labels = np.random.default_rng(1).integers(0, 5, (20, 30)).astype(np.uint8)
    found = checked(labels, [0, 1, 2, 3, 4])
    assert sum(area(ring) for parts in found for part in parts for ring in part) == labels.size


def test_outlines_of_400_objects_take_a_fraction_of_a_second() -> None:
    y, x = np.mgrid[:1000, :1400]
    inside = np.hypot(y % 50 - 25, x % 70 - 35) < 20
    labels = np.where(inside, y // 50 * 20 + x // 70 + 1, 0).astype(np.uint16)
    began = time.thread_time()
    found = polygons(Runs.of(labels), list(range(1, 401)))
    assert time.thread_time() - began < 1  # 0.1 s where it was written
    assert [len(parts) for parts in found] == [1] * 400
