"""Preferences among heads, and the complete plans that each of them leaves to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from service.bundle import EncoderPlan, Head, complete_plans
from service.core import Plan

Preference = Mapping[str, float]
Floats = NDArray[np.float64]
STRONG = 0.9  # of one head against one other


def preference_grid(names: Sequence[str]) -> list[dict[str, float]]:
    """Each head alone, all alike, and of each pair one 0.9 and the other 0.1."""
    alone = [{name: 1.0} for name in names]
    if len(names) == 1:
        return alone
    alike = {name: round(1 / len(names), 4) for name in names}
    pairs = permutations(names, 2)
    return [*alone, alike, *({a: STRONG, b: round(1 - STRONG, 4)} for a, b in pairs)]


def shares_of(preference: Preference) -> dict[str, float]:
    """Weights that sum to 1, of the heads that run."""
    total = sum(preference.values())
    return {name: weight / total for name, weight in preference.items() if weight > 0}


def columns_of(
    plans: Sequence[Plan], encoders: Sequence[str], keys: Sequence[str]
) -> list[list[int]]:
    """Of each complete plan the places of its heads in a table (encoder plan, head at a width) that
    is flattened: where the gate has their scores."""
    rows = {name: i for i, name in enumerate(encoders)}
    places = {key: i for i, key in enumerate(keys)}
    return [
        [rows[plan.encoder] * len(keys) + places[head.key] for head in plan.heads] for plan in plans
    ]


def weighted(
    table: Floats,
    plans: Sequence[Plan],
    preference: Preference,
    encoders: Sequence[str],
    keys: Sequence[str],
) -> Floats:
    """(N, encoder plans, heads at widths) -> (N, complete plans): the mean weighted by the
    preference."""
    shares, flat = shares_of(preference), table.reshape(len(table), -1)
    columns = columns_of(plans, encoders, keys)
    return np.stack(
        [
            sum(
                shares[head.name] * flat[:, column]
                for head, column in zip(plan.heads, own, strict=True)
            )
            for plan, own in zip(plans, columns, strict=True)
        ],
        1,
    )


def under(plans: Sequence[Plan], gflops: float) -> Plan:
    """The best of the complete plans that costs no more, by its measured quality; the cheapest
    where none does."""
    allowed = [plan for plan in plans if plan.gflops <= gflops] or [plans[0]]
    return max(allowed, key=lambda plan: plan.quality)


def area_under_front(
    encoder_plans: Sequence[EncoderPlan],
    heads: Sequence[Head],
    preference: Preference,
    span: tuple[float, float],
) -> float:
    """Mean over budgets, alike on a logarithmic scale from span[0] to span[1] GFLOPs, of the best
    weighted quality that a budget buys; 0 where it buys nothing."""
    plans = complete_plans(encoder_plans, heads, preference)
    budgets = np.geomspace(*span, 33)
    best = [max((p.quality for p in plans if p.gflops <= b + 1e-9), default=0.0) for b in budgets]
    return float(np.mean(best))


def worth_having(
    encoder_plans: Sequence[EncoderPlan], heads: Sequence[Head], most: int
) -> list[EncoderPlan]:
    """At most `most` of the encoder plans, the last one among them: one after the other that serves
    least is left out, by the mean over the grid of preferences of what budgets buy."""
    names = [head.name for head in heads]
    grid, chosen = preference_grid(names), list(encoder_plans)
    full = encoder_plans[-1]
    span = (
        min(plan.gflops + min(own.gflops for own in plan.heads.values()) for plan in chosen),
        full.gflops + sum(full.heads[name].gflops for name in names),
    )

    def value(plans: Sequence[EncoderPlan]) -> float:
        return sum(area_under_front(plans, heads, preference, span) for preference in grid)

    while len(chosen) > most:
        rest = [[plan for plan in chosen if plan is not out] for out in chosen[:-1]]
        chosen = max(rest, key=value)
    return chosen
