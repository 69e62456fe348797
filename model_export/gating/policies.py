"""Ways to choose a plan for each image, and what a gate must beat. Pure functions of scores,
qualities and costs.

A policy is its shares, (images, plans), rows that sum to 1: how much of an image goes to each plan.
A row of a policy that chooses has a single 1; a random policy has fractions, and then every figure
is an expected value. All figures that add up over images (qualities, costs, counts) are sums over
`shares * figure`.

Compared at equal mean cost, from weak to strong: the same plans dealt to the images at random; the
best mix of fixed plans, which knows the plans' mean qualities on these very images; the oracle,
which knows each image's quality. A gate earns its name by what it wins over the mix, and the oracle
says how much there is to win.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BETAS = (0.0, 0.003, 0.01, 0.03, 0.1)  # quality that the full plan's cost must buy
DRAWS = 2000
LEVELS = (2.5, 97.5)  # percentiles: the bounds of a 95 % interval

Floats = NDArray[np.float64]
Shares = NDArray[np.float64]
Interval = tuple[float, float]


def all_to_one(chosen: NDArray[np.integer], plans: int) -> Shares:
    """chosen: (N,) index of each image's plan."""
    return np.eye(plans)[chosen]


def fixed(images: int, plans: int, plan: int) -> Shares:
    """The same plan for every image; -1 is the full one."""
    return all_to_one(np.full(images, plan), plans)


def by_beta(scores: NDArray[np.floating], cost: Floats, beta: float) -> Shares:
    """argmax of score - beta * cost share (ECO-M2F's utility, arXiv 2404.15244); the cheaper one of
    equals.

    scores: (N, plans); true qualities make it an oracle. cost: (plans,) or (N, plans), of which the
    most expensive is 1 share.
    """
    return all_to_one((scores - beta * cost / cost.max()).argmax(1), scores.shape[1])


def by_margin(scores: NDArray[np.floating], margin: float | None) -> Shares:
    """The service's rule: the cheapest plan with score[full] - score[plan] <= margin; None: the
    full plan."""
    safe = scores[:, -1:] - scores <= (-np.inf if margin is None else margin)
    safe[:, -1] = True
    return all_to_one(safe.argmax(1), scores.shape[1])


def dealt_at_random(shares: Shares) -> Shares:
    """The same plans, each as often, without a look at the images."""
    return np.tile(shares.mean(0), (len(shares), 1))


def best_mix(means: Floats, cost: Floats, budget: float) -> tuple[int, int]:
    """The two fixed plans (or one, twice) whose mix is best at a mean cost of no more than the
    budget.

    means: (plans,) mean quality. The budget is at least the cheapest plan's cost.
    """
    plans = range(len(cost))
    pairs = [(low, high) for low in plans for high in plans[low:]]
    # The cheapest plan alone, where rounding of the mean misses its cost.
    affordable = [pair for pair in pairs if cost[pair[0]] <= budget] or [(0, 0)]
    values = [
        float(means[[*pair]] @ mix_parts(cost, pair, np.array([budget]))[0]) for pair in affordable
    ]
    return affordable[int(np.argmax(values))]


def mix_parts(cost: Floats, pair: tuple[int, int], budget: Floats) -> Floats:
    """budget: (D,) mean costs -> (D, 2) shares of the pair that spend it, or no more than the more
    expensive one's cost. cost: (plans,) or (D, plans)."""
    low, high = cost[..., pair[0]], cost[..., pair[1]]
    gap = np.broadcast_to(high - low, budget.shape)
    upper = np.divide(budget - low, gap, out=np.ones(len(budget)), where=gap != 0).clip(0, 1)
    return np.stack((1 - upper, upper), 1)


def oracle_value(quality: Floats, cost: Floats, budget: Floats, weights: Floats) -> Floats:
    """(D,) highest mean quality at no more than the budget, when each image's quality per plan is
    known.

    The linear relaxation, solved exactly: from the cheapest plan up, spend where a unit of cost
    buys most, along each image's upper hull. quality: (N, plans), cost: (plans,) or (N, plans),
    budget: (D,), weights: (D, N), how often each image counts.
    """
    costs_of = np.broadcast_to(cost, quality.shape)
    steps = [
        (i, *step)
        for i, (prices, row) in enumerate(zip(costs_of, quality, strict=True))
        for step in _hull(*_ascending(prices, row))
    ]
    images, costs, gains = (
        (np.array(column) for column in zip(*steps, strict=True)) if steps else np.zeros((3, 0))
    )
    order = np.argsort(-gains / costs, kind="stable")
    images, costs, gains = images[order].astype(np.int64), costs[order], gains[order]
    total, base, least = weights.sum(1), weights @ quality[:, 0], weights @ costs_of[:, 0]
    value = np.empty(len(weights))
    for case, row in enumerate(weights):
        spent = np.append(0, (row[images] * costs).cumsum())
        won = np.append(0, (row[images] * gains).cumsum())
        left = budget[case] * total[case] - least[case]
        value[case] = base[case] + np.interp(left, spent, won)
    return value / total


def _ascending(cost: Floats, quality: Floats) -> tuple[Floats, Floats]:
    """An image's plans by cost: one that is not open to it costs what its full plan does."""
    order = cost.argsort(kind="stable")
    return cost[order], quality[order]


def _hull(cost: Floats, quality: Floats) -> list[tuple[float, float]]:
    """The rising part of the upper concave hull from the cheapest plan on: (cost, quality) of each
    step."""
    steps, at = [], 0
    while at < len(cost) - 1:
        rise = (quality[at + 1 :] - quality[at]) / np.maximum(cost[at + 1 :] - cost[at], 1e-12)
        steepest = int(len(rise) - 1 - rise[::-1].argmax())  # the farthest of equals
        if rise[steepest] <= 0:
            break
        to = at + 1 + steepest
        steps.append((max(float(cost[to] - cost[at]), 1e-12), float(quality[to] - quality[at])))
        at = to
    return steps


def resample(units: NDArray[np.integer], draws: int = DRAWS, seed: int = 0) -> Floats:
    """(draws, N) how often each image counts in a bootstrap sample; those of one unit (near
    duplicates) come together."""
    names, members = np.unique(units, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return drawn[:, members].astype(np.float64)


def interval(values: Floats) -> Interval:
    """The 95 % interval of bootstrapped values (percentiles); nan where there is none."""
    known = values[np.isfinite(values)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.percentile(known, LEVELS)
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Gain:
    """Mean quality per image of a policy and of the others at its mean cost. won: over the mix;
    share: of what the oracle wins over it, nan where that is nothing. Intervals are paired: all
    policies on the same resampled images.

    The mix's plans are those that are best on the set itself, and the same in each sample: choosing
    them again in each would count the chance in that choice twice.
    """

    quality: float
    random: float
    mix: float
    oracle: float
    won: float
    won_interval: Interval
    share: float
    share_interval: Interval


def compare(shares: Shares, quality: Floats, cost: Floats, weights: Floats) -> Gain:
    """shares, quality: (N, plans); cost: (plans,) or (N, plans); weights: (draws, N) from
    `resample`."""
    cost = np.broadcast_to(cost, quality.shape)
    # The first case is the images as they are.
    all_weights = np.concatenate((np.ones((1, len(quality))), weights))
    total = all_weights.sum(1)
    means, prices = (all_weights @ each / total[:, None] for each in (quality, cost))
    own = all_weights @ (shares * quality).sum(1) / total
    budget = all_weights @ (shares * cost).sum(1) / total
    random = ((all_weights @ shares / total[:, None]) * means).sum(1)
    pair = best_mix(means[0], prices[0], float(budget[0]))
    mix = (mix_parts(prices, pair, budget) * means[:, pair]).sum(1)
    oracle = oracle_value(quality, cost, budget, all_weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(oracle - mix > 1e-9, (own - mix) / (oracle - mix), np.nan)
    won = own - mix
    return Gain(
        *(float(values[0]) for values in (own, random, mix, oracle, won)),
        interval(won[1:]),
        float(share[0]),
        interval(share[1:]),
    )
