"""Procedural street scenes with exact label masks, so that training runs without any download.

render() lays out a street in metres as a dash camera sees it and paints it back to front:
scene_paint has the camera and the ground, scene_surroundings what stands on it, scene_traffic who
moves there. Then it adds light, weather and the camera's own faults. One number, clutter, sets the
difficulty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import ImageFilter

from model_export.data.scene_depth import Camera
from model_export.data.scene_paint import (
    BICYCLIST,
    BUILDING,
    CAR,
    CLASSES,
    PAINT,
    PEDESTRIAN,
    WALLS,
    Painter,
    Point,
    noise,
    scale,
)
from model_export.data.scene_surroundings import building, fence, pole, tree
from model_export.data.scene_traffic import car, cyclist, person

__all__ = ["CLASSES", "COUNTABLE", "Street", "draw", "render"]

COUNTABLE = (CAR, PEDESTRIAN, BICYCLIST)  # what has boxes

# How strongly the surface texture shows on each class, as a fraction of the brightness.
_ROUGH = np.array([0.006, 0.10, 0.08, 0.035, 0.05, 0.16, 0.04, 0.13, 0.035, 0.11, 0.11], np.float32)


def _street(p: Painter, bare: float) -> None:
    """Lay out the street, then paint ground, houses and everything in front of them, each from far
    to near.

    bare: share of the things in front of the houses, and of the gaps between those, that are left
    out.
    """
    rng, u, c = p.rng, p.rng.uniform, p.clutter
    things: list[tuple[float, Callable[[], None]]] = []
    shadows: list[tuple[list[Point], float]] = []
    depth = 0.35 * (1 - 0.7 * p.dusk) * u(0.5, 1.2)

    def add(z: float, work: Callable[..., None], *args: object) -> None:
        things.append((z, partial(work, p, *args)))

    def spared() -> bool:
        return bare > 0 and rng.random() < bare  # no number is drawn for a street that is not bare

    def shade(x: float, z: float, half: float, long: float, dark: float) -> None:
        lean = p.sun * -half * 0.7
        shadows.append(
            (
                [
                    (x - half + lean, 0, z - 0.3),
                    (x + half, 0, z - 0.3),
                    (x + half, 0, z + long),
                    (x - half + lean, 0, z + long),
                ],
                dark,
            )
        )

    def crossing(z: float) -> bool:
        return p.junction is not None and p.junction[0] - 2.5 < z < p.junction[1] + 1

    houses: list[tuple[float, Callable[[], None]]] = []
    for side in (-1, 1):
        kerb = side * p.half - p.shift
        line, z = kerb + side * p.walk, u(1.5, 5.0)
        while z < 100:
            run = u(7, 16) * (1.7 - 0.8 * c)
            if p.junction is not None and z < p.junction[1] + 1 and z + run > p.junction[0] - 1:
                run = p.junction[0] - 1 - z
                if run < 4:
                    z = p.junction[1] + 1.5
                    continue
            if rng.random() < 0.72 or spared():
                x = line + side * rng.choice((0.0, u(0, 4)))
                houses.append((z, partial(building, p, side, x, z, z + run)))
                if side == p.sun:
                    shadows.append(
                        (
                            [
                                (x, 0, z),
                                (x, 0, z + run),
                                (x - side * 5 * depth * 8, 0, z + run + 2),
                                (x - side * 5 * depth * 8, 0, z + 2),
                            ],
                            depth,
                        )
                    )
            else:
                for _ in range(1 + round(2 * c + u(0, 1))):
                    tz, tall = u(z, z + run), u(5, 10)
                    houses.append(
                        (tz, partial(tree, p, line + side * u(2, 6), tz, tall, tall * 0.4))
                    )
            z += run + (u(0, 2.5) if rng.random() < 0.4 else 0.0)
        for low, chance in ((line - side * 0.1, 0.45), (kerb + side * 0.3, 0.2 * c)):
            if rng.random() < chance + 0.25 * c and not spared():
                style, high, tone = (
                    rng.randrange(3),
                    u(0.8, 1.6),
                    scale(rng.choice(WALLS), u(0.3, 0.8)),
                )
                z, end = u(1, 12), u(20, 60)
                while z < end:
                    if not crossing(z) and not crossing(z + 3):
                        add(z, fence, low, z, z + 3.0, high, style, tone)
                    z += 3.0
        z = u(5, 16)
        while z < 90:
            if not crossing(z) and not spared():
                kind = rng.choices(("lamp", "sign", "light"), (2, 2, 1))[0]
                add(z, pole, kerb + side * u(0.3, 0.7), z, kind)
            z += u(9, 26) * (2.2 - 1.6 * c)
        z = u(6, 25)
        while rng.random() < 0.45 + 0.4 * c and z < 90:
            tall = u(4.0, 8.5)
            if not crossing(z) and not spared():
                add(z, tree, kerb + side * u(0.6, 1.2), z, tall, tall * u(0.25, 0.38))
                shade(kerb - p.sun * tall * 0.3, z, tall * 0.3, tall * 0.4, depth)
            z += u(5, 18) * (1.5 - 0.9 * c)
        z = u(5, 14)
        parked = rng.random() < 0.1 + 0.9 * c
        while parked and z < 70:
            if not crossing(z) and not crossing(z + 4.5) and rng.random() < 0.75 and not spared():
                x, van = kerb - side * u(1.05, 1.3), rng.random() < 0.15
                add(
                    z,
                    car,
                    x,
                    z,
                    rng.choice((1, side * -1 if rng.random() < 0.8 else 1)),
                    rng.choice(PAINT),
                    van,
                )
                shade(x, z, 1.1, 4.6, 0.5)
            z += u(5.2, 9)
        for _ in range(0 if spared() else round(u(0, 0.65) + 9 * c * u(0.3, 1))):
            z = 5 + 45 * u(0, 1) ** (1.6 - c)
            x = (
                line - side * u(0.3, p.walk - 0.3)
                if rng.random() < 0.85
                else u(-1, 1) * p.half - p.shift
            )
            add(z, person, PEDESTRIAN, x, 0.0, z, u(1.5, 1.88))
            shade(x, z, 0.25, 0.3, 0.3)
    for _ in range(0 if spared() else round(u(0, 0.75) + 4 * c * u(0.2, 1))):
        z = 8 + 55 * u(0, 1) ** (1.4 - 0.6 * c)
        lane = rng.choice((-1, 1))
        x = lane * p.half * 0.5 - p.shift
        if rng.random() < 0.15:
            add(z, car, u(-4, 2), z, 0, rng.choice(PAINT), rng.random() < 0.2)
        else:
            add(
                z, car, x, z, 1 if lane * p.shift > 0 else -1, rng.choice(PAINT), rng.random() < 0.2
            )
        shade(x, z, 1.1, 4.6, 0.5)
    for _ in range(0 if spared() else round(u(0, 0.65) + 3 * c * u(0.2, 1))):
        z = 4.5 + 28 * u(0, 1) ** 1.3
        x = rng.choice((-1, 1)) * (p.half - u(0.4, 1.3)) - p.shift
        add(z, cyclist, x, z, rng.random() < 0.4)
        shade(x, z, 0.35, 1.2, 0.35)
    p.backdrop(shadows)
    for x in range(-60, 61, 6):  # what closes the view at the end of the street
        if rng.random() < 0.45 and not spared():
            p.leaves(
                *p.at((x, 2.5, 110)),
                p.focal * u(4, 7) / 110,
                p.focal * u(3, 6) / 110,
                110,
                (74, 92, 56),
            )
        else:
            p.box(BUILDING, x, 110, u(4, 8), 0, u(4, 10), scale(rng.choice(WALLS), u(0.8, 1)))
    for group in (houses, things):
        for _, paint in sorted(group, key=lambda item: -item[0]):
            p.surfaces.next_thing()
            paint()


def _expose(p: Painter) -> np.ndarray:
    """Light, weather and camera faults on the finished painting: uint8 (height, width, 3)."""
    u, gen, c, high, wide = p.rng.uniform, p.gen, p.clutter, p.height, p.width
    if c > 0 and p.rng.random() < c * 0.7 - 0.1:  # rain
        for _ in range(int(140 * c * u(0.3, 1))):
            x, y, long = u(0, wide), u(0, high), u(0.01, 0.04) * high
            p.ink.line((x, y, x + long * 0.2, y + long), fill=(188, 194, 200), width=1)
    soft = p.image.filter(
        ImageFilter.GaussianBlur(max(wide, high) / 480 * (0.45 + 0.45 * c * u(0.2, 1)))
    )
    rgb = np.asarray(soft, np.float32)
    rough = _ROUGH[np.asarray(p.mask)] * (0.45 + 0.55 * c)
    grain = noise(
        gen, high, wide, (max(high, wide) // 7, max(high, wide) // 3, max(high, wide) // 2)
    )
    night = np.array([1 - 0.62 * p.dusk, 1 - 0.58 * p.dusk, 1 - 0.45 * p.dusk], np.float32)
    warm = 1 + (0.03 + 0.05 * c) * np.array([u(-1, 1), u(-0.4, 0.4), u(-1, 1)], np.float32)
    gain = night * warm * np.float32(u(0.9, 1.15) + 0.12 * c * u(-1, 1))
    rgb = rgb * gain * (1 + rough * grain)[..., None]
    flat = 1 - 0.3 * c * u(0, 1)
    rgb = 118 + (rgb - 118) * flat if p.dusk < 0.2 else rgb * (0.7 + 0.3 * flat)
    pool = gen.standard_normal((high, wide), np.float32)
    rgb += (pool * (1.0 + 6.0 * c * u(0.3, 1)))[..., None]
    return np.clip(rgb, 0, 255).astype(np.uint8)


def render(
    seed: int, *, height: int = 360, width: int = 480, clutter: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one street.

    Returns the image, uint8 RGB (height, width, 3), and the mask, uint8 (height, width), whose
    values index CLASSES; 255 is void. Deterministic in its arguments. clutter from -1 (nothing but
    sky, road, pavement and walls) over 0 (few things, clear sky) to 1 (many small overlapping
    objects, low contrast, rain, dusk and sensor noise).
    """
    scene = draw(seed, height=height, width=width, clutter=clutter)
    return scene.image, scene.mask


@dataclass(frozen=True, slots=True)
class Street:
    """image, mask: as `render` returns them. depth: (height, width) float32, metres along the
    camera's axis, 0 where nothing is (the sky). boxes: (N, 5) float32, of every car, pedestrian and
    cyclist that shows: place in COUNTABLE, then left, top, width and height of its visible pixels.
    """

    image: np.ndarray
    mask: np.ndarray
    depth: np.ndarray
    boxes: np.ndarray


def draw(seed: int, *, height: int = 360, width: int = 480, clutter: float = 0.5) -> Street:
    """The street of `render`, with all that the generator knows of it."""
    if not -1.0 <= clutter <= 1.0:
        raise ValueError(f"clutter must be in [-1, 1], got {clutter}")
    if height <= 0 or width <= 0:
        raise ValueError(f"height and width must be positive, got {height} x {width}")
    painter = Painter(seed, height, width, max(clutter, 0.0))
    _street(painter, max(-clutter, 0.0))
    mask = np.asarray(painter.mask).copy()
    order = painter.surfaces.numbers()
    camera = Camera(painter.focal, painter.vx, painter.hy, painter.cam, painter.bend)
    depth = painter.surfaces.depth(order, camera)
    things = painter.surfaces.things(order)
    return Street(_expose(painter), mask, depth, boxes_of(mask, things))


def boxes_of(mask: np.ndarray, things: np.ndarray) -> np.ndarray:
    """(N, 5), see Street. things: (height, width), the number of what each pixel belongs to."""
    rows = []
    for place, label in enumerate(COUNTABLE):
        y, x = np.nonzero((mask == label) & (things > 0))
        numbers = things[y, x]
        for number in np.unique(numbers):
            own = numbers == number
            left, top = x[own].min(), y[own].min()
            rows.append((place, left, top, x[own].max() + 1 - left, y[own].max() + 1 - top))
    return np.array(rows, np.float32).reshape(-1, 5)
