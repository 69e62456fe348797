"""The answers of the fake engine: deterministic tensors from an image's own pixels, for tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.bundle import Manifest, TensorSpec

Images = NDArray[np.uint8]  # (B, H, W, 3)


def shares(manifest: Manifest) -> NDArray[np.float64]:
    """(S,): by plan, head and width, the share of the full plan's layers, and of its channels."""
    depths = np.array([plan.depth for plan in manifest.encoder_plans])
    widths = np.array([at.width for at in manifest.head_widths])
    return np.outer(depths / depths.max(), 0.5 + widths / 2).ravel()


def scores(images: Images, shares: NDArray[np.float64]) -> NDArray[np.float32]:
    """(B, S) predicted quality. On a flat image every plan is as good as the full one.

    shares: (S,), the share of the full plan's layers and of its head, by plan and head.
    """
    clutter = np.minimum(images.std(axis=(1, 2, 3)) / 64, 1)[:, None]  # (B, 1)
    return np.asarray(0.9 - 0.4 * clutter * (1 - shares), np.float32)


def paused(images: Images, grid: TensorSpec, share: float) -> NDArray[np.uint8]:
    """(B, rows, columns): 1 for the darkest cells, as many as `share` says."""
    rows, columns = grid.sizes
    cells = brightness(images, rows, columns).reshape(len(images), -1)
    order = cells.argsort(axis=1, kind="stable")
    chosen = np.zeros_like(order, np.uint8)
    np.put_along_axis(chosen, order[:, : round(share * rows * columns)], 1, axis=1)
    return chosen.reshape(-1, rows, columns)


def brightness(images: Images, height: int, width: int) -> NDArray[np.float64]:
    """(B, height, width), 0..255: the mean of the channels of one pixel per cell."""
    rows = np.arange(height) * images.shape[1] // height
    columns = np.arange(width) * images.shape[2] // width
    return np.asarray(images[:, rows][:, :, columns].mean(axis=3))


def planes(
    likely: NDArray[np.intp], certainty: NDArray[np.float64], channels: int
) -> NDArray[np.float32]:
    """Probabilities (B, channels, h, w) from the likely channels (B, h, w).

    certainty: (B,), the probability of the likely channel; the others share the rest.
    """
    highest = (certainty if channels > 1 else np.ones_like(certainty))[:, None, None, None]
    rest = (1 - highest) / max(channels - 1, 1)
    stack = np.tile(rest, (1, channels, *likely.shape[1:])).astype(np.float32)
    np.put_along_axis(stack, likely[:, None], highest.astype(np.float32), axis=1)
    return stack
