"""Drawn fields of nuclei under a fluorescence microscope, with exact labels and no data of anyone.

Two kinds, of one size and from one camera: in an "apart" field a few large nuclei keep their
distance; in a "crowded" field many small ones lie in clusters, touch, and differ in brightness.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 512, 640
FINE = 2  # drawn at twice the size, then scaled down: smooth borders


@dataclass(frozen=True)
class Kind:
    """radius: mean, in pixels; spread: sigma of the logarithm of a nucleus' brightness; distance:
    least distance of two centres, in sums of their radii; clustered: share that lies in clusters;
    bright: share that shines three times as much, as dividing nuclei do."""

    count: int
    radius: float
    level: float
    spread: float
    distance: float
    clustered: float
    bright: float


KINDS = {
    "apart": Kind(36, 22, 90, spread=0.3, distance=1.35, clustered=0.0, bright=0.0),
    "crowded": Kind(220, 9, 55, spread=0.6, distance=0.8, clustered=0.95, bright=0.04),
}


def draw(kind: str, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Image (H, W, 3), gray, and labels (H, W): 0 = background, k = nucleus k."""
    what, random = KINDS[kind], np.random.default_rng(seed)
    shape = (HEIGHT * FINE, WIDTH * FINE)
    grain = cv2.GaussianBlur(_normal(random, shape), (0, 0), 0.18 * FINE * what.radius)
    grain /= grain.std()
    light, labels = np.zeros(shape, np.float32), np.zeros(shape, np.uint16)
    for number, (x, y, radius) in enumerate(_places(what, random), 1):
        left, top = max(0, int(x - 2 * radius)), max(0, int(y - 2 * radius))
        window = np.s_[top : int(y + 2 * radius), left : int(x + 2 * radius)]  # it lies in there
        inside = np.zeros(light[window].shape, np.uint8)
        cv2.fillPoly(inside, [_outline(x - left, y - top, radius, random)], 1)
        depth = np.clip(cv2.distanceTransform(inside, cv2.DIST_L2, 5) / (0.6 * radius), 0, 1)
        level = what.level * np.exp(random.normal(0, what.spread))
        level *= 3 if random.random() < what.bright else 1
        shine = inside * level * (0.7 + 0.3 * depth) * (1 + 0.2 * grain[window])
        light[window] = np.maximum(light[window], shine)
        labels[window][(inside > 0) & (labels[window] == 0)] = number
    light += 0.1 * cv2.GaussianBlur(light, (0, 0), 1.5 * FINE * what.radius)  # out of focus
    sharp = cv2.resize(light, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    seen = cv2.GaussianBlur(sharp, (0, 0), 0.11 * what.radius)
    uneven = cv2.resize(_normal(random, (4, 4)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    seen += 12 + 2 * uneven
    seen += _normal(random, seen.shape) * (2 + 0.15 * np.sqrt(np.maximum(seen, 0)))
    gray = np.clip(np.rint(seen), 0, 255).astype(np.uint8)
    middle = FINE // 2
    return np.repeat(gray[..., None], 3, axis=2), labels[middle::FINE, middle::FINE].copy()


def _normal(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return random.standard_normal(shape, np.float32)


def _places(what: Kind, random: np.random.Generator) -> list[tuple[float, float, float]]:
    """x, y and radius of each nucleus, in fine pixels."""
    high, wide, radius = HEIGHT * FINE, WIDTH * FINE, FINE * what.radius
    clusters = random.uniform(0.1, 0.9, (max(1, what.count // 12), 2)) * (wide, high)
    placed: list[tuple[float, float, float]] = []
    while len(placed) < what.count:
        r = radius * np.exp(random.normal(0, 0.15))
        if random.random() < what.clustered:
            x, y = random.choice(clusters) + random.normal(0, 4 * radius, 2)
        else:
            x, y = random.uniform(0, (wide, high))
        free = all(np.hypot(x - p, y - q) >= what.distance * (r + s) for p, q, s in placed)
        if free and 0 <= x < wide and 0 <= y < high:
            placed.append((float(x), float(y), float(r)))
    return placed


def _outline(x: float, y: float, radius: float, random: np.random.Generator) -> NDArray[np.int32]:
    """(64, 2): an ellipse of that area, turned and slightly dented."""
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    stretch, turn = np.sqrt(random.uniform(0.6, 0.95)), random.uniform(0, np.pi)
    dent = 1 + sum(random.normal(0, 0.03) * np.cos(k * t + random.uniform(0, 7)) for k in (2, 3))
    along, across = radius / stretch * dent * np.cos(t), radius * stretch * dent * np.sin(t)
    points = (
        x + along * np.cos(turn) - across * np.sin(turn),
        y + along * np.sin(turn) + across * np.cos(turn),
    )
    return np.stack(points, axis=1).round().astype(np.int32)
