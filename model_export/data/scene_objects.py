"""What stands in the procedural street scenes: houses, trees, street furniture, vehicles and people
(see scenes.py).

All positions and sizes are metres in the frame of scene_paint.Painter, which every function gets
first and paints on.
"""

from __future__ import annotations

import math

from model_export.data.scene_paint import (
    BICYCLIST,
    BUILDING,
    CAR,
    FENCE,
    POLE,
    SIGN,
    TREE,
    Colour,
    Painter,
    Point,
    scale,
)

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
_CLOTHES: tuple[Colour, ...] = (
    (30, 32, 42),
    (52, 62, 92),
    (120, 36, 40),
    (180, 176, 168),
    (70, 66, 58),
    (36, 76, 66),
    (196, 160, 60),
)
# Side profiles (metres along, metres up) from the rear bumper over the roof to the front bumper.
_SALOON = ((0.0, 0.3), (0.0, 0.92), (0.55, 1.42), (2.2, 1.46), (3.0, 0.98), (4.1, 0.8), (4.2, 0.3))
_VAN = ((0.0, 0.35), (0.0, 1.15), (0.12, 2.05), (3.6, 2.1), (4.3, 1.25), (4.9, 1.0), (5.0, 0.35))


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
        if (
            a < 2 or p.focal * abs(x) * wide / (a * a) < 1.5
        ):  # invisible or below a pixel and a half
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
        box(p, SIGN, x, z, 0.2, tall - 0.55, tall + 0.45, (26, 28, 28))
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
            box(p, SIGN, x, z, r * 1.6, y - r * 0.7, y + r * 0.7, board)
            for k in (-0.3, 0.1):
                p.limb(SIGN, (x - r, y + k * r, z), (x + r, y + k * r, z), 0.06, (214, 214, 210))


def box(
    p: Painter,
    label: int | None,
    x: float,
    z: float,
    half: float,
    lo: float,
    hi: float,
    tone: Colour,
) -> None:
    """An upright rectangle facing the camera, metres."""
    p.poly(
        label, [(x - half, lo, z), (x + half, lo, z), (x + half, hi, z), (x - half, hi, z)], tone
    )


def fence(
    p: Painter, x: float, z0: float, z1: float, high: float, style: int, tone: Colour
) -> None:
    """One panel along the street: railings (0), boards (1) or a low wall (2). The gaps of railings
    count as Fence."""
    panel = [(x, 0.0, z0), (x, 0.0, z1), (x, high, z1), (x, high, z0)]
    if style:
        p.poly(FENCE, panel, tone)
    else:
        p.pen.polygon([p.at(q) for q in panel], fill=FENCE)
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


def car(p: Painter, x: float, z: float, way: int, paint: Colour, van: bool) -> None:
    """A car with its near end at z. way: 1 drives away, -1 comes towards us, 0 stands across the
    street."""
    shape, glass = list(_VAN if van else _SALOON), (1, 3)
    long, half = shape[-1][0], 1.0 if van else 0.88
    back = way == -1 or (
        way == 0 and p.rng.random() < 0.5
    )  # the bonnet is at the near (or left) end
    if back:
        shape, glass = [(long - a, b) for a, b in shape[::-1]], (2, 4)
    flank = -1.0 if way == 0 or x > 0 else 1.0

    def put(a: float, y: float, s: float) -> Point:
        return (x + a, y, z + half + half * s) if way == 0 else (x + s * half, y, z + a)

    if way == 0:
        p.poly(CAR, [put(a, b, 1) for a, b in shape], scale(paint, 0.7))
    dark = _glass(p)
    for k in range(len(shape) - 2, -1, -1):  # far strips first, near ones cover them
        (a0, y0), (a1, y1) = shape[k], shape[k + 1]
        up = 1.15 if abs(y1 - y0) < 0.3 else 0.92
        p.poly(
            CAR,
            [put(a0, y0, -1), put(a0, y0, 1), put(a1, y1, 1), put(a1, y1, -1)],
            scale(paint, up),
        )
        if k in glass:
            b0, c0, b1, c1 = (
                a0 + (a1 - a0) * 0.1,
                y0 + (y1 - y0) * 0.1,
                a0 + (a1 - a0) * 0.9,
                y0 + (y1 - y0) * 0.9,
            )
            p.poly(
                None,
                [put(b0, c0, -0.86), put(b0, c0, 0.86), put(b1, c1, 0.78), put(b1, c1, -0.78)],
                dark,
            )
    p.poly(CAR, [put(a, b, flank) for a, b in shape], scale(paint, 0.82 if flank == p.sun else 1.0))
    belt, roof = (1.2, 1.9) if van else (0.94, 1.36)
    lo, hi = (long * 0.62, long * 0.82) if van else (long * 0.12, long * 0.7)
    if back:
        lo, hi = long - hi, long - lo
    slope = 0.12 * (hi - lo)
    p.poly(
        None,
        [
            put(lo, belt, flank),
            put(lo + slope, roof, flank),
            put(hi - slope, roof, flank),
            put(hi, belt, flank),
        ],
        dark,
    )
    if not van:
        p.stroke(put((lo + hi) / 2, belt, flank), put((lo + hi) / 2, roof, flank), 0.08, paint)
    ring = [(math.cos(t * math.pi / 6) * 0.33, math.sin(t * math.pi / 6) * 0.33) for t in range(12)]
    for hub in (long * 0.19, long * 0.8):
        p.poly(CAR, [put(hub + a, 0.33 + b, flank) for a, b in ring], (24, 24, 26))
        p.poly(
            None, [put(hub + a * 0.55, 0.33 + b * 0.55, flank) for a, b in ring], (112, 114, 118)
        )
    if way == 0:
        return
    for s in (-1, 1):  # what the near end shows: tyres, lamps, bumper, plate
        box(p, CAR, x + s * half * 0.78, z, 0.11, 0.0, 0.34, (22, 22, 24))
        lamp = (190, 30, 28) if way > 0 else (236, 236, 224)
        box(p, None, x + s * half * 0.8, z, 0.15, 0.62, 0.84 if way > 0 else 0.74, lamp)
    box(p, None, x, z, half * 0.98, 0.3, 0.44, scale(paint, 0.5))
    if way < 0:
        box(p, None, x, z, half * 0.5, 0.5, 0.66, (34, 34, 36))
    box(p, None, x, z, 0.26, 0.46, 0.57, (214, 178, 60) if way > 0 else (226, 226, 222))


def _glass(p: Painter) -> Colour:
    """Car glass: dark, with a little of the sky in it."""
    return scale(p.haze, p.rng.uniform(0.14, 0.36))


def person(
    p: Painter, label: int, x: float, y: float, z: float, size: float, lean: float = 0.0
) -> None:
    """Head, trunk, arms and, on foot (lean 0), legs; y is the height of the ground, lean the
    forward tilt in metres."""
    rng, u = p.rng, p.rng.uniform
    coat, jeans = scale(rng.choice(_CLOTHES), u(0.7, 1.2)), scale(rng.choice(_CLOTHES), u(0.5, 0.9))
    skin = scale((206, 160, 132), u(0.45, 1.05))
    hip, neck, tip = y + 0.48 * size, y + 0.83 * size, x + lean
    if not lean:
        step = u(0.03, 0.16) * size
        for s in (-1, 1):
            p.limb(
                label,
                (x + s * 0.05 * size, hip, z),
                (x + s * step, y, z),
                0.1 * size,
                scale(jeans, 1 + 0.1 * s),
            )
            p.limb(
                label,
                (x + s * step, y + 0.02, z),
                (x + s * step + 0.1, y + 0.02, z),
                0.05 * size,
                (30, 28, 28),
            )
    w = 0.13 * size
    p.poly(
        label,
        [
            (x - w * 0.8, hip - 0.06 * size, z),
            (x + w * 0.8, hip - 0.06 * size, z),
            (tip + w, neck - 0.08, z),
            (tip + w * 0.5, neck, z),
            (tip - w * 0.5, neck, z),
            (tip - w, neck - 0.08, z),
        ],
        coat,
    )
    for s in (-1, 1):
        hand = (
            (tip + lean * 0.8 + s * w, hip + 0.12 * size, z)
            if lean
            else (x + s * w * u(1.1, 1.5), hip, z)
        )
        p.limb(label, (tip + s * w * 0.9, neck - 0.05, z), hand, 0.055 * size, scale(coat, 0.85))
    p.disc(label, (tip + lean * 0.2, y + 0.92 * size, z), 0.062 * size, 0.08 * size, skin)
    hair = rng.choice(((34, 26, 22), (92, 66, 40), (230, 230, 226))) if lean else (40, 30, 26)
    p.disc(None, (tip + lean * 0.2, y + 0.96 * size, z), 0.06 * size, 0.045 * size, hair)
    if not lean and rng.random() < 0.3:
        box(p, label, x + w * 1.3, z, 0.12, hip - 0.15, hip + 0.2, scale(rng.choice(_CLOTHES), 0.8))


def cyclist(p: Painter, x: float, z: float, side_on: bool) -> None:
    """Two wheels, frame and rider. Wheels are filled in the mask, as annotators do; the image shows
    their tyres alone."""
    way, metal = (
        p.rng.choice((-1, 1)),
        p.rng.choice(((150, 30, 34), (40, 60, 120), (40, 42, 44), (170, 172, 176))),
    )
    reach = 0.52 if side_on else 0.0
    for s in (-1, 1) if side_on else (0,):
        wide = 0.34 if side_on else 0.05
        (x0, y0), (x1, y1) = (p.at((x + s * reach + k * wide, 0.34 - k * 0.34, z)) for k in (-1, 1))
        p.pen.ellipse((x0, y0, x1, y1), fill=BICYCLIST)
        p.ink.ellipse(
            (x0, y0, x1, y1),
            outline=p.tint((28, 28, 30), z),
            width=max(1, round(p.focal * 0.05 / z)),
        )
    for a, b in (
        ((-reach, 0.34), (0, 0.32)),
        ((0, 0.32), (reach * 0.75, 0.82)),
        ((-reach, 0.34), (-reach * 0.4, 0.85)),
        ((-reach * 0.4, 0.82), (reach * 0.75, 0.82)),
        ((reach, 0.34), (reach * 0.75, 0.98)),
    ):
        p.limb(BICYCLIST, (x + way * a[0], a[1], z), (x + way * b[0], b[1], z), 0.045, metal)
    jeans = scale(p.rng.choice(_CLOTHES), 0.7)
    for s in (-1, 1):  # a bent leg each side: hip, knee, pedal
        hip, knee = (
            (x - way * reach * 0.4 + s * 0.05, 0.92, z),
            (x + way * reach * 0.3 + s * 0.1, 0.68 + 0.1 * s, z),
        )
        p.limb(BICYCLIST, hip, knee, 0.14, jeans)
        p.limb(BICYCLIST, knee, (x + s * 0.1, 0.26 + 0.12 * s, z), 0.1, jeans)
    if not side_on:
        p.limb(BICYCLIST, (x - 0.28, 1.0, z), (x + 0.28, 1.0, z), 0.04, metal)
    person(p, BICYCLIST, x - way * reach * 0.4, 0.08, z, 1.68, way * (0.28 if side_on else 0.02))
