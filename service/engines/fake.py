"""A backend without an engine: deterministic masks from the image's own pixels. Every service test runs on it.

Brightness decides the class: the darkest of C equal bands is class 0, the brightest class C - 1. Clutter (the spread
of brightness) decides how much depth helps: on a flat image every plan is as good as the dearest.
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
    """images: (B, H, W, 3) uint8; plan: the encoder that these went through, None before."""

    images: NDArray[np.uint8]
    plan: Plan | None = None

    def take(self, rows: Sequence[int]) -> FakeFeatures:
        return FakeFeatures(self.images[list(rows)], self.plan)


class FakeBackend:
    """See the module. delay_s: seconds to sleep per image, by plan name, "front" or "decoder".

    quality: the gate's scores, one per plan, for every image; None derives them from the image's clutter.
    """

    name = "fake"

    def __init__(
        self, manifest: Manifest, *, delay_s: Mapping[str, float] | None = None, quality: Sequence[float] | None = None
    ) -> None:
        self._plans = manifest.plans
        self._shape = manifest.mask_shape
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
        return FakeFeatures(images, plan)

    def decode(self, features: Features) -> NDArray[np.float32]:
        own = _own(features)
        self._sleep("decoder", len(own.images))
        if own.plan is None:
            raise ValueError("features must be encoded before they are decoded")
        classes, height, width = self._shape
        rows = np.arange(height) * own.images.shape[1] // height
        columns = np.arange(width) * own.images.shape[2] // width
        brightness = own.images[:, rows][:, :, columns].mean(axis=3)  # (B, h, w)
        label = (brightness * classes / 256).astype(np.intp)
        # Deeper plans are surer, so that a test can see from the mask which plan ran.
        sure = 0.5 + 0.4 * own.plan.depth / self._plans[-1].depth if classes > 1 else 1.0
        rest = (1 - sure) / max(classes - 1, 1)
        probabilities = np.full((len(label), classes, height, width), rest, np.float32)
        np.put_along_axis(probabilities, label[:, None], np.float32(sure), axis=1)
        return probabilities

    def close(self) -> None:
        """Nothing is held."""

    def _sleep(self, stage: str, images: int) -> None:
        if stage in self._delay_s:
            time.sleep(self._delay_s[stage] * images)


def _own(features: Features) -> FakeFeatures:
    if not isinstance(features, FakeFeatures):
        raise TypeError(f"features of another backend: {type(features).__name__}")
    return features
