"""From what was measured of encoder plans and heads to complete plans, for one preference.

Efficient Controllable Multi-Task Architectures (arXiv 2308.11744) give the preferred task the
larger decoder, then search the encoder in what is left. Here both are searched at once, in the
measured table: a complete plan costs the sum of its parts, and its quality is the mean of its
heads', weighted by the preference. At the same budget, a head that matters more is never worse: of
two best plans, one each for two preferences, each is best for its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

from service.bundle.heads import EncoderPlan, Head
from service.core import HeadWidth, Plan


def complete_plans(
    encoder_plans: Iterable[EncoderPlan], heads: Sequence[Head], preference: Mapping[str, float]
) -> tuple[Plan, ...]:
    """The plans from which one is chosen, the cheapest first; the last is the full one.

    preference: weights of heads by name, at least one of them positive; a head without one is not
    in the plans. Left out is what costs as much as another plan or more and is no better. A bundle
    with one head of one width keeps all, since a search has chosen them.
    """
    asked = [head for head in heads if preference.get(head.name, 0) > 0]
    total = sum(preference[head.name] for head in asked)
    shares = {head.name: preference[head.name] / total for head in asked}
    plain = len(heads) == 1 and len(heads[0].widths) == 1
    plans: list[Plan] = []
    for encoder in encoder_plans:
        for widths in product(*(head.at_widths() for head in asked)):
            plans.append(_complete(encoder, widths, shares, plain=plain))
    return tuple(plans) if plain else tuple(_front(plans))


def open_to(tiled: Sequence[bool], *, larger: bool) -> list[int]:
    """Which of a bundle's plans are open to an image, the cheapest first; the last one is its full
    plan.

    tiled: of each plan, the cheapest first, whether its canvas is. larger: whether the image is
    larger than the largest plain canvas. Others take no tiled plan. For one that is, the full plan
    is the last tiled one: a plain plan that costs more looks at less.
    """
    if not larger or not any(tiled):
        return [row for row, each in enumerate(tiled) if not each]
    return list(range(len(tiled) - list(reversed(tiled)).index(True)))


def _complete(
    encoder: EncoderPlan, widths: Sequence[HeadWidth], shares: Mapping[str, float], *, plain: bool
) -> Plan:
    worth = [encoder.heads[head.key] for head in widths]
    qualities = (shares[head.name] * own.quality for head, own in zip(widths, worth, strict=True))
    return Plan(
        name=encoder.name if plain else "+".join([encoder.name, *(head.key for head in widths)]),
        depth=encoder.depth,
        keep=encoder.keep,
        width=encoder.width,
        gflops=round(encoder.gflops + sum(own.gflops for own in worth), 4),
        quality=sum(qualities),
        quality_quantiles=worth[0].quality_quantiles if len(worth) == 1 else (),
        canvas=encoder.canvas,
        heads=tuple(widths),
    )


def _front(plans: Sequence[Plan]) -> Iterator[Plan]:
    """Those that are better than all that cost no more, and the full plan, which came last.

    Costs count as they are told: of several plans of one price, that buys the last one alone.
    """
    best, full = -1.0, plans[-1]
    for plan in sorted(plans[:-1], key=lambda plan: (plan.price, -plan.quality)):
        if plan.quality > best and plan.price != full.price:
            best = plan.quality
            yield plan
    yield full
