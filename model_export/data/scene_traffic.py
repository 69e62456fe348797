"""Who moves in the procedural street scenes: cars, people on foot, cyclists (see scenes.py).

All positions and sizes are metres in the frame of scene_paint.Painter, which every function gets
first and paints on.
"""

from __future__ import annotations

import math

from model_export.data.scene_paint import BICYCLIST, CAR, Colour, Painter, Point, scale

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


def car(p: Painter, x: float, z: float, way: int, paint: Colour, van: bool) -> None:
    """A car with its near end at z. way: 1 drives away, -1 comes towards us, 0 stands across the
    street."""
    shape, glass = list(_VAN if van else _SALOON), (1, 3)
    long, half = shape[-1][0], 1.0 if van else 0.88
    # The bonnet is at the near (or left) end.
    back = way == -1 or (way == 0 and p.rng.random() < 0.5)
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
        p.box(CAR, x + s * half * 0.78, z, 0.11, 0.0, 0.34, (22, 22, 24))
        lamp = (190, 30, 28) if way > 0 else (236, 236, 224)
        p.box(None, x + s * half * 0.8, z, 0.15, 0.62, 0.84 if way > 0 else 0.74, lamp)
    p.box(None, x, z, half * 0.98, 0.3, 0.44, scale(paint, 0.5))
    if way < 0:
        p.box(None, x, z, half * 0.5, 0.5, 0.66, (34, 34, 36))
    p.box(None, x, z, 0.26, 0.46, 0.57, (214, 178, 60) if way > 0 else (226, 226, 222))


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
        p.box(label, x + w * 1.3, z, 0.12, hip - 0.15, hip + 0.2, scale(rng.choice(_CLOTHES), 0.8))


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
        hub = (x + s * reach, 0.34, z)
        p.mark_disc(BICYCLIST, hub, wide, 0.34)
        p.ink.ellipse(
            p.around(hub, wide, 0.34),
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
