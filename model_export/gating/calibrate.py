"""Which margin on the gate's scores keeps a promised `max-loss`: conformal risk control
(Angelopoulos et al. 2022, arXiv 2208.02814).

The router takes the cheapest plan with score[full] - score[plan] <= margin. What an image loses by
it is quality[full] - quality[plan]; the table holds, for each promise, the largest margin whose
controlled risk meets it.

**The loss keeps its sign.** The promise is about the mean difference to the full plan, as anybody
measures it. Clipped at 0 the mean is larger, so a promise on it would hold as well, but it charges
the noise between two plans that are equally good as if it were a loss, and nothing but the full
plan could be promised. The theorem allows losses below 0.

**Monotone.** The theorem needs a risk that only grows with the margin. Ours may fall: a larger
margin sometimes finds a better plan. The mean is therefore replaced by its largest value over all
smaller margins. (Doing so image by image would be exact, and the same as clipping at 0.) Then the
promise holds up to an excess that vanishes with the number of images (arXiv 2604.01502 bounds it by
a multiple of sqrt(log margins / images)).

**Not only on average.** The theorem is about the mean over many calibrations and test sets: with a
good gate the bound is met so exactly that two single test sets in five come out above it. So the
mean must also stay below the promise by `DEVIATIONS` standard errors, which leaves it broken for
about one table in twenty. In simulated sets of 130 images it costs a good gate up to 0.4 layers of
6.

**Groups.** One margin serves all images, since the router knows no groups; it must meet the promise
in each group that has `LEAST` units, in the union of the smaller groups, and over all images.

**Recordings.** Where groups are recordings, the next one will be a new one, and may lose more than
those at hand. How much their means differ beyond what their own spread explains (one-way analysis
of variance, random effects) counts as a part of the standard error.

**Units** are images, or blocks of neighbours where images are near duplicates (video): duplicates
tell nothing new, so n counts blocks.

**The gate must not have seen these images.** Scores are out of fold: image i is scored by a gate
that was fitted without i (and its block), and the quality is that of a network which was not
trained on i. Scores of the gate's own training images look better than those of new ones will be,
and the margin would come out too large. The shipped gate is fitted on all folds by the same
procedure; that it then sees somewhat more images is the one liberty taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

ASKED = (0.0025, 0.005, 0.01, 0.02, 0.05)  # levels of max-loss
CAP = 0.1  # B of the theorem: what the one image not yet seen is allowed to lose
DEVIATIONS = 1.645  # standard errors: 95 %, one-sided
LEAST = 20  # units of a group that is controlled by itself
NUDGE = 1e-4  # how far above the last score a margin may lie: graphs round unlike torch

Floats = NDArray[np.float64]
Row = dict[str, float | None]
# What a growing margin changes, in that order: at which margin, for which image, and by how much
# its loss; each (switches,).
Switches = tuple[Floats, NDArray[np.int64], Floats]


class CalibrationError(ValueError):
    """Scores and qualities that cannot be calibrated. The message names the image, or what to
    change."""


def margin_table(
    scores: NDArray[np.floating],
    quality: NDArray[np.floating],
    groups: NDArray[np.str_],
    *,
    blocks: NDArray[np.integer] | None = None,
    asked: Sequence[float] = ASKED,
    cap: float = CAP,
    deviations: float = DEVIATIONS,
    least: int = LEAST,
    recordings: bool = False,
) -> list[Row]:
    """[{"asked": max-loss, "margin": largest safe margin}], ascending; None: nothing but the full
    plan is safe.

    scores, quality: (N, plans), from the cheapest to the most expensive, the last is the full plan;
    scores out of fold. groups: (N,) names. blocks: (N,) ids of what is one unit, None = every image
    is one. cap: losses that were seen count in full, but the image to come is allowed no more than
    this: the promise is on losses cut off at the cap. deviations: standard errors to spare, 0 = the
    theorem's bound alone. least: units of a group that is controlled by itself. recordings: whether
    groups are a few of many, so that images to come are of another one. Raises CalibrationError.
    """
    scores, quality = np.asarray(scores, np.float64), np.asarray(quality, np.float64)
    groups, units = (
        np.asarray(groups),
        np.arange(len(scores)) if blocks is None else np.asarray(blocks),
    )
    _check(scores, quality, groups, units, asked)
    switches = _switches(scores, quality[:, -1:] - quality)
    margins = np.unique(switches[0])
    risk = np.full(len(margins), -np.inf)
    families = groups if recordings else np.zeros(len(groups), np.int64)
    for part in _parts(groups, units, least):
        risk = np.maximum(
            risk, _controlled(margins, switches, part, units, families, cap, deviations)
        )
    risk = np.maximum.accumulate(risk)
    return [{"asked": float(level), "margin": _largest(margins, risk, level)} for level in asked]


def contiguous_blocks(groups: NDArray[np.str_], length: int) -> NDArray[np.int64]:
    """(N,) ids: rows of one group that follow each other, cut into stretches of about `length`
    (never much shorter)."""
    starts = np.flatnonzero(np.append(True, groups[1:] != groups[:-1]))
    sizes = np.diff(np.append(starts, len(groups)))
    pieces = [
        part
        for size in sizes
        for part in np.array_split(np.arange(size), max(1, round(size / length)))
    ]
    return np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])


def _check(
    scores: Floats,
    quality: Floats,
    groups: NDArray[np.str_],
    units: NDArray[np.integer],
    asked: Sequence[float],
) -> None:
    if (
        scores.ndim != 2
        or scores.shape != quality.shape
        or not (len(scores) == len(groups) == len(units) > 0)
    ):
        shapes = (scores.shape, quality.shape, groups.shape, units.shape)
        raise CalibrationError(
            f"scores and quality must be (images, plans), groups and blocks (images,): got {shapes}"
        )
    broken = np.flatnonzero(~np.isfinite(scores + quality).all(1))
    if broken.size:
        raise CalibrationError(
            f"image {broken[0]} (of {len(scores)}) has no score or no quality: leave it out"
        )
    if not all(a < b for a, b in pairwise((0.0, *asked))):
        raise CalibrationError(f"the levels of max-loss must be above 0 and ascend: {asked}")


def _switches(scores: Floats, losses: Floats) -> Switches:
    gaps = scores[:, -1:] - scores[:, :-1]  # a plan is taken once the margin reaches its gap
    order = gaps.argsort(1, kind="stable")
    taken = np.minimum.accumulate(order, axis=1)  # the cheapest of those within the margin
    # From the full plan, which loses 0.
    changes = np.diff(np.take_along_axis(losses, taken, 1), axis=1, prepend=0.0)
    margins = np.take_along_axis(gaps, order, 1).ravel()
    images = np.repeat(np.arange(len(scores)), gaps.shape[1])
    ascending = margins.argsort(kind="stable")
    return margins[ascending], images[ascending], changes.ravel()[ascending]


def _parts(
    groups: NDArray[np.str_], units: NDArray[np.integer], least: int
) -> list[NDArray[np.bool_]]:
    """Masks of the images in which the promise is to hold: all, each large group, and the small
    ones together."""
    own = {name: groups == name for name in np.unique(groups)}
    large = [mask for mask in own.values() if len(np.unique(units[mask])) >= least]
    rest = ~np.any(large, axis=0) if large else np.zeros(len(groups), bool)
    pooled = [rest] if len(np.unique(units[rest])) >= least else []
    return [np.ones(len(groups), bool), *large, *pooled]


def _controlled(
    margins: Floats,
    switches: Switches,
    part: NDArray[np.bool_],
    units: NDArray[np.integer],
    families: NDArray[np.generic],
    cap: float,
    deviations: float,
) -> Floats:
    """(len(margins),) risk of this part at each margin: the theorem's bound, or the mean and its
    error if larger.

    families: (N,), of which one is to come that is not among them; a unit's is that of its first
    image.
    """
    own = part[switches[1]]
    at, images, changes = (values[own] for values in switches)
    _, first, unit_of, sizes = np.unique(
        units[part], return_index=True, return_inverse=True, return_counts=True
    )
    count, unit = len(sizes), np.zeros(len(part), np.int64)
    unit[part] = unit_of
    _, family = np.unique(families[part][first], return_inverse=True)
    members, sums = np.bincount(family).astype(np.float64), np.zeros(family.max() + 1)
    losses, total, squares = [0.0] * count, 0.0, 0.0  # of the units, as the margin grows
    risk = [cap / (count + 1)]
    for place, change in zip(
        unit[images].tolist(), (changes / sizes[unit[images]]).tolist(), strict=True
    ):
        before, losses[place] = losses[place], losses[place] + change
        total, squares = total + change, squares + losses[place] ** 2 - before**2
        sums[family[place]] += change
        mean = total / count
        error = max(squares / count - mean**2, 0.0) / max(count - 1, 1) + _between(
            sums, members, squares
        )
        risk.append(max((total + cap) / (count + 1), mean + deviations * math.sqrt(error)))
    return np.array(risk)[np.searchsorted(at, margins, side="right")]


def _between(sums: Floats, members: Floats, squares: float) -> float:
    """Variance of the families' means, their members' spread taken off: one-way analysis of
    variance.

    sums, members: (families,), of each its members' sum and number. squares: the sum of all
    members' squares.
    """
    families = len(members)
    if families < 2 or (count := float(members.sum())) <= families:
        return 0.0
    explained = float((sums**2 / members).sum())
    within = (squares - explained) / (count - families)
    excess = explained - float(sums.sum()) ** 2 / count - (families - 1) * within
    return max(excess / (count - float((members**2).sum()) / count), 0.0)


def _largest(margins: Floats, risk: Floats, level: float) -> float | None:
    """risk: monotone. Up to the next switch nothing changes: stay clear of rounding, but not
    far."""
    safe = int(np.searchsorted(risk, level, side="right"))
    if safe == 0:
        return None
    gap = margins[safe] - margins[safe - 1] if safe < len(margins) else 2 * NUDGE
    return float(min(margins[safe - 1] + min(gap / 2, NUDGE), 1.0))
