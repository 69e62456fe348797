"""Each image has plans of its own: those on tiled canvases are open to larger images alone.

What is measured and predicted stands in tables of (images, plans, ...). A plan that is not open to
an image gets the numbers of that image's full plan there, its cost too: whatever chooses such a
plan has chosen the full one, so that every figure is what the service would do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle import open_to

Flags = NDArray[np.bool_]


def open_plans(larger: Flags, tiled: Sequence[bool]) -> Flags:
    """(N, plans): which plans are open to each image. larger: (N,), whether an image is larger than
    the largest plain canvas. tiled: of each plan, whether its canvas is."""
    table = np.zeros((len(larger), len(tiled)), np.bool_)
    for kind in (False, True):
        table[np.ix_(larger == kind, open_to(tiled, larger=kind))] = True
    return table


def levelled(values: NDArray[Any], is_open: Flags) -> NDArray[Any]:
    """(N, plans, ...) -> the same, each image's full plan in place of those not open to it."""
    own = values[np.arange(len(values)), full_plans(is_open)]
    mask = is_open.reshape((*is_open.shape, *(1,) * (values.ndim - 2)))
    return np.where(mask, values, own[:, None])


def owned(shares: NDArray[np.float64], is_open: Flags) -> NDArray[np.float64]:
    """(N, plans) shares of a policy -> the same, what went to plans that are not open given to the
    image's full plan, by which it was meant."""
    kept = np.where(is_open, shares, 0.0)
    kept[np.arange(len(shares)), full_plans(is_open)] += (shares - kept).sum(1)
    return kept


def full_plans(is_open: Flags) -> NDArray[np.int64]:
    """(N,): each image's full plan, the last that is open to it."""
    last: NDArray[np.int64] = is_open.shape[1] - 1 - is_open[:, ::-1].argmax(1)
    return last
