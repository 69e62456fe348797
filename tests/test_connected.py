"""Connected parts of grids and their growth, against slow references."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from service.pixels.runs import Runs
from service.tasks.connected import (
    Components,
    Flags,
    Ids,
    grow,
    in_one_piece,
    largest_around,
)


def flags(seed: int) -> Flags:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2)
    return rng.random((height, width)) < rng.random()


def flooded(inside: Flags) -> Ids:
    """A part for each point that none has reached, in the order of reading."""
    labels, count = np.zeros(inside.shape, np.int32), 0
    for start in zip(*np.nonzero(inside), strict=True):
        if labels[start]:
            continue
        count += 1
        waiting = [start]
        while waiting:
            y, x = waiting.pop()
            if not (0 <= y < inside.shape[0] and 0 <= x < inside.shape[1]):
                continue
            if inside[y, x] and not labels[y, x]:
                labels[y, x] = count
                waiting += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return labels


@pytest.mark.parametrize("seed", range(40))
def test_parts_are_those_that_a_flood_finds_in_the_order_of_reading(seed: int) -> None:
    inside = flags(seed)
    components, expected = Components.of(inside), flooded(inside)
    assert components.total == expected.max(initial=0)
    assert np.array_equal(components.painted(components.ids), expected)
    assert components.areas()[1:].tolist() == np.bincount(expected.ravel())[1:].tolist()


def test_a_spiral_is_one_part() -> None:
    inside = np.zeros((21, 21), np.bool_)
    for k in range(0, 10, 2):
        inside[k, k : 21 - k] = inside[20 - k, k : 21 - k] = True
        inside[k : 21 - k, 20 - k] = inside[k + 2 : 21 - k, k] = True
        inside[k + 2, k + 1] = True
    assert Components.of(inside).total == flooded(inside).max()


def step_by_step(labels: Ids, inside: Flags) -> NDArray[np.int32]:
    """All free points beside a label take the largest one, until none is left."""
    grown = np.pad(labels, 1)
    free = np.pad(inside & (labels == 0), 1)
    while True:
        around = np.max([np.roll(grown, step, axis) for axis in (0, 1) for step in (1, -1)], axis=0)
        reached = free & (around > 0)
        if not reached.any():
            return grown[1:-1, 1:-1]
        grown[reached] = around[reached]
        free &= ~reached


@pytest.mark.parametrize("seed", range(40))
def test_labels_grow_at_one_speed_and_the_larger_one_wins(seed: int) -> None:
    inside = flags(seed)
    rng = np.random.default_rng(seed)
    labels = (rng.integers(1, 9, inside.shape) * (rng.random(inside.shape) < 0.1)).astype(np.int32)
    labels *= inside
    assert np.array_equal(grow(labels, inside), step_by_step(labels, inside))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 1), (9, 12)])
def test_largest_around_is_that_of_the_neighbours(shape: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 900, shape).astype(np.uint16)
    padded = np.pad(labels, 1)
    expected = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).max(axis=(2, 3))
    assert np.array_equal(largest_around(labels), expected)


@pytest.mark.parametrize("seed", range(40))
def test_of_each_value_only_the_largest_piece_is_left(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, rng.integers(1, 6), rng.integers(1, 20, 2)).astype(np.uint16)
    left = in_one_piece(Runs.of(labels)).labels()
    assert np.array_equal(left[left > 0], labels[left > 0])
    for value in set(np.unique(labels).tolist()) - {0}:
        pieces = flooded(labels == value)
        areas = np.bincount(pieces.ravel())[1:]
        assert flooded(left == value).max() == 1
        assert (left == value).sum() == areas.max()
