"""Camera, canvases and ground of the procedural street scenes (see scenes.py for what stands in
them).

The world is metric and seen by a dash camera at the origin: X to the right, Y up from the road
surface, Z ahead. Everything is painted back to front into the image and the mask together, and
into a third canvas that numbers the surfaces (scene_depth.py), which keeps occlusion right in all.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from model_export.data.scene_depth import NEAR, Surfaces

CLASSES: tuple[str, ...] = (
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
)
SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(
    len(CLASSES)
)

Colour = tuple[float, float, float]
Point = tuple[float, float, float]

WALLS: tuple[Colour, ...] = (
    (176, 152, 112),
    (150, 98, 76),
    (128, 84, 66),
    (206, 198, 180),
    (168, 164, 156),
    (112, 108, 104),
    (190, 170, 140),
)
PAINT: tuple[Colour, ...] = (
    (28, 30, 34),
    (150, 154, 160),
    (205, 207, 208),
    (120, 22, 26),
    (30, 48, 96),
    (84, 90, 96),
    (36, 70, 60),
)

FAR = 110.0  # metres; where the street is closed off by a backdrop
_JOINT = 0.22  # how much darker than the slabs their joints are, at the camera
_TILE = 256  # side of the wrap-around noise tile, pixels


def scale(colour: Sequence[float], factor: float) -> Colour:
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def noise(gen: np.random.Generator, height: int, width: int, octaves: Sequence[int]) -> np.ndarray:
    """Sum of upscaled random grids, float32 (height, width), zero mean and about unit spread;
    octaves = grid sizes."""
    total = np.zeros((height, width), np.float32)
    for cells in octaves:
        rows = max(1, round(cells * height / max(height, width)))
        cols = max(1, round(cells * width / max(height, width)))
        grid = Image.fromarray(gen.integers(0, 256, (rows, cols), dtype=np.uint8))
        total += np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    total -= total.mean()
    return total / max(float(total.std()), 1e-6)


def _wrapping(field: np.ndarray) -> np.ndarray:
    """Crossfade the surplus rows and columns of a square field into its start, so that the tile
    repeats unseen."""
    extra = field.shape[0] - _TILE
    fade = np.linspace(0, 1, extra, dtype=np.float32)
    for _ in range(2):  # rows, then columns
        head = field[:extra] * fade[:, None] + field[_TILE:] * (1 - fade[:, None])
        field = np.concatenate([head, field[extra:_TILE]]).T
    return np.ascontiguousarray(field)


class Painter:
    """One street: the camera, the canvases of image, mask and surfaces, and what can be painted on
    them. Sizes and places are in metres. clutter: 0..1, how difficult it is."""

    def __init__(self, seed: int, height: int, width: int, clutter: float) -> None:
        self.rng = random.Random(seed)
        self.gen = np.random.default_rng(self.rng.getrandbits(63))
        self.height, self.width, self.clutter = height, width, clutter
        u = self.rng.uniform
        self.focal = width * u(0.85, 1.15)
        self.vx, self.hy = width * u(0.38, 0.62), height * u(0.38, 0.54)
        self.cam, self.bend = u(1.25, 1.75), u(-1, 1) * 0.0025
        self.half = u(2.7, 5.0)  # half the road, metres
        self.shift = self.half * u(-0.65, 0.3)  # road centre relative to the camera is -shift
        self.walk = u(2.0, 5.5)  # pavement width, metres
        self.dusk = max(0.0, u(-0.8, 1.0)) * clutter
        self.haze_rate = u(0.001, 0.003) + 0.008 * clutter * u(0.2, 1.0)
        grey = u(0, 1) * (0.3 + 0.9 * min(clutter, 0.78))  # overcast share of the sky
        self.zenith = tuple(
            a + (b - a) * grey for a, b in zip((96, 148, 214), (206, 210, 216), strict=True)
        )
        self.haze = tuple(
            a + (b - a) * grey for a, b in zip((204, 222, 240), (232, 234, 236), strict=True)
        )
        self.sun = self.rng.choice((-1, 1))
        self.tile = _wrapping(noise(self.gen, _TILE + 48, _TILE + 48, (9, 22, 56, 128)))
        # near and far edge of a crossing road
        self.junction: tuple[float, float] | None = None
        if self.rng.random() < 0.3 + 0.2 * clutter:
            start = u(9, 35)
            self.junction = (start, start + u(6, 10))
        self.image = Image.new("RGB", (width, height))
        self.mask = Image.new("L", (width, height), SKY)
        self.ink, self.pen = ImageDraw.Draw(self.image), ImageDraw.Draw(self.mask)
        self.surfaces = Surfaces(height, width)

    # Camera
    # ----------------------------------------------------------------------------------------------

    def at(self, point: Point) -> tuple[float, float]:
        """Pixel (x, y) of a point in metres; the bend of the street is applied here, so all objects
        follow it."""
        z = max(point[2], NEAR)
        return self.vx + self.focal * (point[0] / z + self.bend * z), self.hy + self.focal * (
            self.cam - point[1]
        ) / z

    def tint(self, colour: Sequence[float], z: float) -> tuple[int, int, int]:
        """Colour seen through the haze at distance z, as 8-bit RGB."""
        keep = math.exp(-self.haze_rate * max(z, 0.0))
        r, g, b = (
            min(255, max(0, int(c * keep + h * (1 - keep))))
            for c, h in zip(colour, self.haze, strict=True)
        )
        return r, g, b

    def poly(self, label: int | None, points: Sequence[Point], colour: Sequence[float]) -> None:
        """Fill a polygon given in metres; label None leaves the mask, for details on a surface
        already painted."""
        flat = [self.at(p) for p in points]
        self.ink.polygon(flat, fill=self.tint(colour, points[0][2]))
        if label is not None:
            self.mark(label, points)

    def mark(self, label: int, points: Sequence[Point]) -> None:
        """A polygon that the mask shows, whatever the image does."""
        flat = [self.at(p) for p in points]
        self.pen.polygon(flat, fill=label)
        self.surfaces.pen.polygon(flat, fill=self.surfaces.plane(points))

    def limb(self, label: int, a: Point, b: Point, thick: float, colour: Sequence[float]) -> None:
        """A line of a thickness in metres, never thinner than a pixel."""
        flat, wide = [self.at(a), self.at(b)], max(1, round(self.focal * thick / max(a[2], NEAR)))
        self.ink.line(flat, fill=self.tint(colour, a[2]), width=wide)
        self.pen.line(flat, fill=label, width=wide)
        self.surfaces.pen.line(flat, fill=self.surfaces.upright(a[2]), width=wide)

    def stroke(self, a: Point, b: Point, thick: float, colour: Sequence[float]) -> None:
        """A line on a surface already painted: image only."""
        wide = max(1, round(self.focal * thick / max(a[2], NEAR)))
        self.ink.line([self.at(a), self.at(b)], fill=self.tint(colour, a[2]), width=wide)

    def disc(
        self, label: int | None, centre: Point, rx: float, ry: float, colour: Sequence[float]
    ) -> None:
        """A filled upright ellipse facing the camera, radii in metres."""
        self.ink.ellipse(self.around(centre, rx, ry), fill=self.tint(colour, centre[2]))
        if label is not None:
            self.mark_disc(label, centre, rx, ry)

    def around(self, centre: Point, rx: float, ry: float) -> tuple[float, float, float, float]:
        """Pixels (left, top, right, bottom) of an upright ellipse, radii in metres."""
        corners = (self.at((centre[0] + s * rx, centre[1] - s * ry, centre[2])) for s in (-1, 1))
        (x0, y0), (x1, y1) = corners
        return x0, y0, x1, y1

    def mark_disc(self, label: int, centre: Point, rx: float, ry: float) -> None:
        """A disc that the mask shows, whatever the image does."""
        box = self.around(centre, rx, ry)
        self.pen.ellipse(box, fill=label)
        self.surfaces.pen.ellipse(box, fill=self.surfaces.upright(centre[2]))

    def box(
        self,
        label: int | None,
        x: float,
        z: float,
        half: float,
        low: float,
        high: float,
        colour: Colour,
    ) -> None:
        """An upright rectangle that faces the camera, metres."""
        corners = [(x - half, low, z), (x + half, low, z), (x + half, high, z), (x - half, high, z)]
        self.poly(label, corners, colour)

    # Ground and sky
    # ---------------------------------------------------------------------------------------------

    def backdrop(self, shadows: Sequence[tuple[Sequence[Point], float]]) -> None:
        """Sky, pavement, road with its marks, then the shadows (ground polygons and how dark they
        are, 0 to 1)."""
        u, high, wide, c = self.rng.uniform, self.height, self.width, self.clutter
        tarmac, slab = scale((104, 104, 108), u(0.7, 1.25)), scale((150, 146, 138), u(0.75, 1.15))
        ground = self.at((0, 0, FAR * 2))[1]
        self.ink.rectangle((0, ground, wide, high), fill=self.tint(slab, 0))
        self.pen.rectangle((0, ground, wide, high), fill=PAVEMENT)
        level = [(-1.0, 0.0, NEAR), (1.0, 0.0, NEAR), (0.0, 0.0, FAR * 2)]
        self.surfaces.pen.rectangle((0, ground, wide, high), fill=self.surfaces.plane(level))
        steps = [NEAR, 1.5, 2.5, 4, 6, 9, 13, 18, 25, 35, 50, 75, FAR, FAR * 2]

        def strip(label: int | None, x0: float, x1: float, colour: Sequence[float]) -> None:
            edge = [(x0 - self.shift, 0.0, z) for z in steps] + [
                (x1 - self.shift, 0.0, z) for z in steps[::-1]
            ]
            self.poly(label, edge, colour)

        # Kerb stones, part of the pavement.
        strip(None, -self.half - 0.2, self.half + 0.2, scale(slab, 1.18))
        strip(ROAD, -self.half, self.half, tarmac)
        if self.junction is not None:
            z0, z1 = self.junction
            self.poly(ROAD, [(-60, 0, z0), (60, 0, z0), (60, 0, z1), (-60, 0, z1)], tarmac)
        white, yellow = scale((226, 226, 222), u(0.75, 1.05)), (196, 172, 70)
        for side in (-1, 1):
            if self.rng.random() < 0.25 + 0.5 * c:
                strip(
                    None,
                    side * (self.half - 0.35),
                    side * (self.half - 0.25),
                    self.rng.choice((white, yellow)),
                )
        joint, line = u(0.7, 1.2), self.half + 0.2
        for k in range(int(26 / joint)):  # joints between the paving slabs
            z = 1.2 + k * joint
            if self.junction is None or not self.junction[0] - 0.5 < z < self.junction[1]:
                for a, b in ((-line - self.walk, -line), (line, line + self.walk)):
                    tone = _JOINT * (1 - z / 40)
                    self.stroke(
                        (a - self.shift, 0, z), (b - self.shift, 0, z), 0.01, scale(slab, 1 - tone)
                    )
        z, dash, gap = u(1.0, 4.0), u(1.5, 4), u(2, 5)
        while z < 80:
            if self.junction is None or not self.junction[0] - dash < z < self.junction[1]:
                a, b = -self.shift - 0.07, -self.shift + 0.07
                self.poly(None, [(a, 0, z), (b, 0, z), (b, 0, z + dash), (a, 0, z + dash)], white)
            z += dash + gap
        if self.rng.random() < 0.35:  # zebra crossing or stop line
            z0 = (self.junction[0] - 4) if self.junction else u(6, 22)
            for k in range(int(self.half * 2 / 1.1)):
                a = -self.half - self.shift + 1.1 * k + 0.3
                self.poly(
                    None,
                    [(a, 0, z0), (a + 0.55, 0, z0), (a + 0.55, 0, z0 + 2.6), (a, 0, z0 + 2.6)],
                    white,
                )
        # Texture in ground coordinates, so that patches and stains foreshorten as real ones do.
        rgb = np.array(self.image, np.float32)
        top = min(high, max(0, math.ceil(ground)))
        depth = (
            self.focal
            * self.cam
            / np.maximum(np.arange(top, high, dtype=np.float32) - self.hy, 0.5)[:, None]
        )
        across = (np.arange(wide, dtype=np.float32)[None, :] - self.vx) / self.focal * depth
        rough = self.tile[
            np.floor(depth * 9).astype(np.int32) % _TILE,
            np.floor(across * 22).astype(np.int32) % _TILE,
        ]
        rough = (
            rough
            + self.tile[
                np.floor(depth * 1.7).astype(np.int32) % _TILE,
                np.floor(across * 14).astype(np.int32) % _TILE,
            ]
        )
        shade = Image.new("L", (wide, high), 255)
        draw = ImageDraw.Draw(shade)
        for points, dark in shadows:
            draw.polygon([self.at(p) for p in points], fill=int(255 * (1 - dark)))
        shade = shade.filter(ImageFilter.BoxBlur(max(1, wide // 240)))
        dim = (
            np.asarray(shade, np.float32)[top:]
            / 255
            * (1 + (0.025 + 0.02 * c) * rough * np.minimum(1, 25 / depth))
        )
        rgb[top:] *= dim[..., None]
        ramp = np.clip(np.arange(high, dtype=np.float32) / max(self.hy, 1.0), 0, 1)[
            :top, None, None
        ]
        sky = (
            np.asarray(self.zenith, np.float32) * (1 - ramp)
            + np.asarray(self.haze, np.float32) * ramp
        )
        if top:
            cloud = np.clip(
                noise(self.gen, top, wide, (3, 7, 16, 34)) * 0.6 - u(-0.2, 0.9) + c * 0.4, 0, 1
            )[..., None]
            sky = sky + (u(225, 250) - sky) * cloud * (0.15 + 0.75 * c * u(0.4, 1))
        rgb[:top] = sky
        self.image.paste(Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8)))

    # Foliage
    # ----------------------------------------------------------------------------------------------

    def leaves(self, cx: float, cy: float, rx: float, ry: float, z: float, green: Colour) -> None:
        """A blotchy ellipse of foliage in pixels, its outline broken by the noise tile."""
        x0, x1 = max(0, int(cx - rx * 1.3)), min(self.width, int(cx + rx * 1.3) + 1)
        y0, y1 = max(0, int(cy - ry * 1.3)), min(self.height, int(cy + ry * 1.3) + 1)
        if x0 >= x1 or y0 >= y1:
            return
        dx, dy = (
            (np.arange(x0, x1, dtype=np.float32) - cx) / rx,
            (np.arange(y0, y1, dtype=np.float32) - cy) / ry,
        )
        ox, oy = self.rng.randrange(_TILE), self.rng.randrange(_TILE)
        big = self.tile[
            np.ix_((dy * 22 + oy).astype(int) % _TILE, (dx * 22 + ox).astype(int) % _TILE)
        ]
        fine = self.tile[
            np.ix_((dy * 75 + ox).astype(int) % _TILE, (dx * 75 + oy).astype(int) % _TILE)
        ]
        ragged = 0.5 + 0.6 * self.clutter
        gauge = dx[None, :] ** 2 + dy[:, None] ** 2 + ragged * (0.22 * big + 0.07 * fine)
        inside = gauge < 1.0
        light = 0.95 - 0.3 * dy[:, None] + 0.12 * self.sun * dx[None, :] + 0.15 * big + 0.24 * fine
        tone = np.asarray(self.tint(green, z), np.float32)
        patch = np.clip(tone * np.maximum(light, 0.25)[..., None], 0, 255).astype(np.uint8)
        seen = inside & ((gauge < 0.45) | (fine > -0.9))
        self.image.paste(
            Image.fromarray(patch), (x0, y0), Image.fromarray(seen.astype(np.uint8) * 255)
        )
        crown = Image.fromarray(inside.astype(np.uint8) * 255)
        self.mask.paste(TREE, (x0, y0, x1, y1), crown)
        self.surfaces.order.paste(self.surfaces.upright(z), (x0, y0, x1, y1), crown)
