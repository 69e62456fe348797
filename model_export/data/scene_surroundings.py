"""What stands still in the procedural street scenes: houses, trees, street furniture, fences (see
scenes.py).

All positions and sizes are metres in the frame of scene_paint.Painter, which every function gets
first and paints on.
"""

from __future__ import annotations

import math

from model_export.data.scene_paint import (
    BUILDING,
    FENCE,
    PAINT,
    POLE,
    SIGN,
    TREE,
    WALLS,
    Colour,
    Painter,
    scale,
)


def building(p: Painter, side: int, x: float, z0: float, z1: float) -> None:
    """A house whose facade runs along the street at x from z0 to z1, with an end wall facing the
    camera."""
    rng, u, c = p.rng, p.rng.uniform, p.clutter
    wall = scale(rng.choice(WALLS), u(0.8, 1.15))
    lit = wall if side != p.sun else scale(wall, 0.78)
    floors = rng.randint(2, 4 + rng.randint(0, 2))
    storey = u(2.7, 3.3)
    high, out = floors * storey + 0.4, x + side * 11
    pitched = floors <= 3 and rng.random() < 0.65
    roof = rng.choice(((92, 84, 82), (120, 80, 64), (76, 78, 84)))
    if pitched:
        ridge, mid = high + u(1.8, 3.2), x + side * 5
        p.poly(BUILDING, [(x, high, z0), (x, high, z1), (mid, ridge, z1), (mid, ridge, z0)], roof)
        p.poly(BUILDING, [(x, high, z0), (mid, ridge, z0), (out, high, z0)], scale(wall, 0.9))
        if rng.random() < 0.7:
            p.poly(
                BUILDING,
                [
                    (mid, ridge - 0.5, z0),
                    (mid, ridge + 1.2, z0),
                    (mid + 0.9, ridge + 1.2, z0),
                    (mid + 0.9, ridge - 0.5, z0),
                ],
                scale(wall, 0.75),
            )
    p.poly(BUILDING, [(x, 0, z0), (x, high, z0), (out, high, z0), (out, 0, z0)], scale(wall, 0.88))
    p.poly(BUILDING, [(x, 0, z0), (x, 0, z1), (x, high, z1), (x, high, z0)], lit)
    p.poly(
        None,
        [(x, high - 0.3, z0), (x, high - 0.3, z1), (x, high, z1), (x, high, z0)],
        scale(lit, 0.7),
    )
    shop = rng.random() < 0.2 + 0.3 * c
    if shop:
        fascia = scale(rng.choice(PAINT), 1.1)
        for lo, hi, tone in ((0.4, 2.4, (52, 58, 64)), (2.4, 3.0, fascia)):
            p.poly(
                None,
                [(x, lo, z0 + 0.5), (x, lo, z1 - 0.5), (x, hi, z1 - 0.5), (x, hi, z0 + 0.5)],
                tone,
            )
    pitch, wide, tall = u(2.2, 3.6), u(0.9, 1.4), u(1.2, 1.7)
    frame, glass = scale((222, 220, 212), u(0.7, 1.05)), u(0.25, 0.6)
    for col in range(int((z1 - z0 - 0.8) / pitch)):
        a = z0 + 0.8 + col * pitch
        # Invisible or below a pixel and a half.
        if a < 2 or p.focal * abs(x) * wide / (a * a) < 1.5:
            continue
        for row in range(1 if shop else 0, floors):
            lo, hi, b = row * storey + 0.9, row * storey + 0.9 + tall, a + wide
            if row == 0 and col % 3 == 1:
                lo, hi = 0.0, 2.1  # front door
            f = 0.1
            p.poly(
                None,
                [(x, lo - f, a - f), (x, lo - f, b + f), (x, hi + f, b + f), (x, hi + f, a - f)],
                frame,
            )
            bright = scale((250, 206, 130), 0.95) if rng.random() < p.dusk * 0.4 else None
            tone = bright or scale(p.haze, glass * u(0.5, 1.2))
            p.poly(None, [(x, lo, a), (x, lo, b), (x, hi, b), (x, hi, a)], tone)


def tree(p: Painter, x: float, z: float, tall: float, spread: float) -> None:
    """Trunk and a ragged crown; the mask takes the whole silhouette although the image lets light
    through it."""
    u = p.rng.uniform
    bark = scale((74, 62, 50), u(0.7, 1.2))
    p.limb(TREE, (x, 0, z), (x + u(-0.2, 0.2), tall * 0.6, z), 0.12 + tall * 0.03, bark)
    for lean in (-1, 1):
        p.limb(TREE, (x, tall * 0.4, z), (x + lean * spread * 0.5, tall * 0.65, z), 0.1, bark)
    cx, cy = p.at((x, tall * 0.66, z))
    rx, ry = p.focal * spread / z, p.focal * tall * 0.36 / z
    p.leaves(
        cx,
        cy,
        max(rx, 2),
        max(ry, 2),
        z,
        scale((72 + u(-14, 30), 92 + u(-10, 14), 48), u(0.65, 1.1)),
    )


def pole(p: Painter, x: float, z: float, kind: str) -> None:
    """A lamp post, a signpost or a traffic light; what hangs on the pole is SignSymbol, the rest is
    Pole."""
    u, grey = p.rng.uniform, scale((112, 114, 112), p.rng.uniform(0.5, 1.2))
    tall = u(5.5, 8.0) if kind == "lamp" else u(2.6, 3.4)
    p.limb(POLE, (x, 0, z), (x, tall, z), 0.14 if kind == "lamp" else 0.1, grey)
    if kind == "lamp":
        arm = -math.copysign(u(0.8, 1.8), x)
        p.limb(POLE, (x, tall, z), (x + arm, tall + 0.15, z), 0.1, grey)
        p.limb(POLE, (x + arm * 0.7, tall + 0.1, z), (x + arm * 1.2, tall + 0.15, z), 0.2, grey)
    elif kind == "light":
        p.box(SIGN, x, z, 0.2, tall - 0.55, tall + 0.45, (26, 28, 28))
        on = p.rng.randrange(3)
        for k, lamp in enumerate(((228, 50, 40), (236, 170, 50), (60, 214, 130))):
            p.disc(
                None,
                (x, tall + 0.27 - 0.32 * k, z),
                0.11,
                0.11,
                lamp if k == on else scale(lamp, 0.25),
            )
    else:
        y, r = tall - 0.1, u(0.3, 0.5)
        shape = p.rng.randrange(4)
        if shape == 0:
            p.disc(SIGN, (x, y, z), r, r, (196, 34, 40))
            p.disc(None, (x, y, z), r * 0.74, r * 0.74, (236, 236, 232))
        elif shape == 1:
            p.disc(SIGN, (x, y, z), r, r, (34, 80, 170))
            p.limb(SIGN, (x, y - r * 0.6, z), (x, y + r * 0.6, z), r * 0.25, (236, 236, 236))
        elif shape == 2:
            for k, tone in ((1.0, (200, 36, 40)), (0.62, (238, 238, 234))):
                p.poly(
                    SIGN,
                    [
                        (x - r * k * 1.1, y - r * k * 0.7, z),
                        (x + r * k * 1.1, y - r * k * 0.7, z),
                        (x, y + r * k * 1.15, z),
                    ],
                    tone,
                )
        else:
            board = p.rng.choice(((30, 92, 64), (36, 84, 160), (230, 228, 220)))
            p.box(SIGN, x, z, r * 1.6, y - r * 0.7, y + r * 0.7, board)
            for k in (-0.3, 0.1):
                p.limb(SIGN, (x - r, y + k * r, z), (x + r, y + k * r, z), 0.06, (214, 214, 210))


def fence(
    p: Painter, x: float, z0: float, z1: float, high: float, style: int, tone: Colour
) -> None:
    """One panel along the street: railings (0), boards (1) or a low wall (2). The gaps of railings
    count as Fence."""
    panel = [(x, 0.0, z0), (x, 0.0, z1), (x, high, z1), (x, high, z0)]
    if style:
        p.poly(FENCE, panel, tone)
    else:
        p.mark(FENCE, panel)
    if style == 2:
        p.poly(None, [(x, high * 0.88, z0), (x, high * 0.88, z1), *panel[2:]], scale(tone, 1.2))
        return
    bars = 5 if style == 1 else 12
    for k in range(bars):
        z = z0 + (z1 - z0) * k / bars
        p.stroke((x, 0, z), (x, high, z), 0.03, scale(tone, 0.65 if style else 1.0))
    if not style:
        for y in (0.15, high):
            p.stroke((x, y, z0), (x, y, z1), 0.05, tone)
