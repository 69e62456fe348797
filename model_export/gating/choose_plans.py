"""Which of the candidates become plans: those that are worth their price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from model_export.network.knobs import Knobs

NOISE = 0.001  # of quality: a more expensive plan must be better by at least this much


@dataclass(frozen=True, slots=True)
class Candidate:
    """gflops, ms: of all that runs, the glance included. quality: mean over images, 0..1."""

    knobs: Knobs
    gflops: float
    ms: float
    quality: float


def undominated(combinations: Sequence[Knobs], quality: Sequence[float], full: Knobs) -> list[int]:
    """The places of the combinations that can be worth their price, whatever that is: those that no
    other one on their canvas, with no knob above theirs, comes within NOISE of. The full plan is
    always among them.
    """
    spent = [(each.depth, each.keep, each.width) for each in combinations]

    def beaten(place: int) -> bool:
        return any(
            other != place
            and combinations[other].canvas == combinations[place].canvas
            and all(a <= b for a, b in zip(spent[other], spent[place], strict=True))
            and quality[other] > quality[place] - NOISE
            for other in range(len(spent))
        )

    return [place for place, each in enumerate(combinations) if each == full or not beaten(place)]


def choose_plans(candidates: list[Candidate], most: int, least: int = 2) -> list[Candidate]:
    """At most `most` plans, from the cheapest to the most expensive; the last one is the full plan.

    Only the Pareto front in quality and cost stays. A plan counts as cheaper than another only if
    it is by GFLOPs and by milliseconds: whatever is no better than a plan that stays, and not more
    expensive in either, is out. So both measures order the chosen plans alike. A more expensive
    plan must be better by NOISE. The full plan is always in, and no other plan as expensive.

    Of a longer front those plans stay that serve most: a plan is for budgets from its cost to that
    of the next one, and there gains what it is better than all that are cheaper; cost here is the
    mean of both, as shares of the full plan's. The cheapest one always stays. A front shorter than
    `least` is filled up where the steps in cost are widest, with the best plan in between: quality
    was measured on these images, and on others what is in between may be worth having.
    """
    full = max(candidates, key=lambda c: c.gflops)

    def cost(candidate: Candidate) -> float:
        return candidate.gflops / full.gflops + candidate.ms / full.ms

    def cheaper(low: Candidate, high: Candidate) -> bool:
        return low.gflops < high.gflops and low.ms < high.ms

    chain: list[Candidate] = []
    eligible = [candidate for candidate in candidates if cheaper(candidate, full)]
    for candidate in sorted(eligible, key=lambda c: (-c.quality, cost(c))):
        if not chain or cheaper(candidate, chain[0]):
            chain.insert(0, candidate)
    front: list[Candidate] = []
    for candidate in chain:
        if not front or candidate.quality - front[-1].quality >= NOISE:
            front.append(candidate)
    while len(front) >= most:
        gains = np.diff([candidate.quality for candidate in front])
        steps = np.diff([cost(candidate) for candidate in (*front, full)])
        front.pop(1 + int(np.argmin(gains * steps[1:])))
    while len(front) + 1 < least:
        steps_in_cost = pairwise([*front, full])
        widest_first = sorted(steps_in_cost, key=lambda step: cost(step[0]) - cost(step[1]))
        between = [
            [c for c in candidates if cheaper(low, c) and cheaper(c, high)]
            for low, high in widest_first
        ]
        widest = next((inside for inside in between if inside), None)
        if widest is None:
            break
        front.append(max(widest, key=lambda c: c.quality))
        front.sort(key=cost)
    return [*front, full]


def choose_tiled(
    plain: Sequence[Candidate], tiled: Sequence[Candidate], most: int
) -> list[Candidate]:
    """The plans on tiled canvases that are worth having, the cheapest first: those that are better
    by NOISE than all that cost no more, at most `most`.

    quality: over the images that are large enough for them. plain: the other plans that such an
    image may take. Of more than `most` those go first that gain least over what is cheaper; the
    best one always stays.
    """
    kept: list[Candidate] = []

    def gain(candidate: Candidate) -> float:
        others = [c for c in (*plain, *kept) if c is not candidate]
        return candidate.quality - max(c.quality for c in others if c.gflops <= candidate.gflops)

    for candidate in sorted(tiled, key=lambda c: (c.gflops, -c.quality)):
        if gain(candidate) >= NOISE:
            kept.append(candidate)
    while len(kept) > most:
        kept.remove(min(kept[:-1], key=gain))
    return kept
