"""A backend without an engine: deterministic masks from the image's own pixels. Every service test
runs on it.

Brightness decides the class: the darkest of equal bands is the lowest, which for the instance task
is the background. There, a cell whose neighbours are of its own band is core, another one rim.
Clutter (the spread of brightness) decides how much depth helps: on a flat image every plan is as
good as the dearest. The darkest tokens are paused.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.bundle import Manifest
from service.core import Plan
from service.engines.base import Features


@dataclass(frozen=True, slots=True)
class FakeFeatures:
    """images: (B, H, W, 3) uint8; plan: the encoder that these went through, None before; paused:
    what it paused."""

    images: NDArray[np.uint8]
    plan: Plan | None = None
    paused: NDArray[np.uint8] | None = None

    def take(self, rows: Sequence[int]) -> FakeFeatures:
        kept = list(rows)
        return FakeFeatures(
            self.images[kept], self.plan, None if self.paused is None else self.paused[kept]
        )


class FakeBackend:
    """See the module. delay_s: seconds to sleep per image, by plan name, "front" or "decoder".

    quality: the gate's scores, one per plan, for every image; None derives them from the image's
    clutter.
    """

    name = "fake"

    def __init__(
        self,
        manifest: Manifest,
        *,
        delay_s: Mapping[str, float] | None = None,
        quality: Sequence[float] | None = None,
    ) -> None:
        self._plans = manifest.plans
        self._shape = manifest.mask_shape
        self._instances = manifest.task == "instance"
        self._paused = {
            plan: manifest.stages[manifest.encoder_of[plan.name]].paused for plan in manifest.plans
        }
        self._delay_s = dict(delay_s or {})
        self._quality = None if quality is None else np.asarray(quality, np.float32)

    def front(self, images: NDArray[np.uint8]) -> tuple[FakeFeatures, NDArray[np.float32]]:
        self._sleep("front", len(images))
        if self._quality is not None:
            return FakeFeatures(images), np.tile(self._quality, (len(images), 1))
        clutter = np.minimum(images.std(axis=(1, 2, 3)) / 64, 1)[:, None]  # (B, 1)
        missing = np.array([1 - plan.depth / self._plans[-1].depth for plan in self._plans])  # (P,)
        return FakeFeatures(images), (0.9 - 0.4 * clutter * missing).astype(np.float32)

    def encode(self, plan: Plan, features: Features) -> FakeFeatures:
        images = _own(features).images
        self._sleep(plan.name, len(images))
        spec = self._paused[plan]
        if spec is None:
            return FakeFeatures(images, plan)
        rows, columns = (int(size) for size in spec.dims[1:])
        order = (
            _brightness(images, rows, columns)
            .reshape(len(images), -1)
            .argsort(axis=1, kind="stable")
        )
        paused = np.zeros_like(order, np.uint8)
        np.put_along_axis(paused, order[:, : round((1 - plan.keep) * rows * columns)], 1, axis=1)
        return FakeFeatures(images, plan, paused.reshape(-1, rows, columns))

    def decode(self, features: Features) -> NDArray[np.float32]:
        own = _own(features)
        self._sleep("decoder", len(own.images))
        if own.plan is None:
            raise ValueError("features must be encoded before they are decoded")
        channels, height, width = self._shape
        bands = (channels + 1) // 2 if self._instances else channels
        label = (_brightness(own.images, height, width) * bands / 256).astype(np.intp)  # (B, h, w)
        if self._instances:
            label = np.where(label > 0, 2 * label - _inside(label), 0)
        # Deeper plans are surer, so that a test can see from the mask which plan ran.
        sure = 0.5 + 0.4 * own.plan.depth / self._plans[-1].depth if channels > 1 else 1.0
        rest = (1 - sure) / max(channels - 1, 1)
        probabilities = np.full((len(label), channels, height, width), rest, np.float32)
        np.put_along_axis(probabilities, label[:, None], np.float32(sure), axis=1)
        return probabilities

    def close(self) -> None:
        """Nothing is held."""

    def _sleep(self, stage: str, images: int) -> None:
        if stage in self._delay_s:
            time.sleep(self._delay_s[stage] * images)


def _brightness(images: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float64]:
    """(B, H, W, 3) -> (B, height, width), of one pixel per cell."""
    rows = np.arange(height) * images.shape[1] // height
    columns = np.arange(width) * images.shape[2] // width
    return np.asarray(images[:, rows][:, :, columns].mean(axis=3))


def _inside(label: NDArray[np.intp]) -> NDArray[np.bool_]:
    """(B, h, w): whether a cell and its eight neighbours are of one band."""
    edged = np.pad(label, ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(edged, (3, 3), axis=(1, 2))  # (B, h, w, 3, 3)
    return np.asarray((around == label[..., None, None]).all(axis=(3, 4)))


def _own(features: Features) -> FakeFeatures:
    if not isinstance(features, FakeFeatures):
        raise TypeError(f"features of another backend: {type(features).__name__}")
    return features
