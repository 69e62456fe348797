"""Costs that a test makes up: of each canvas' front, and of each plan all the rest."""

from __future__ import annotations

from collections.abc import Mapping

from service.core import Plan
from service.inference.costs import Cost, Costs


def known_costs(
    front_ms: Mapping[str, float | Cost], rest_ms: Mapping[Plan, float | Cost]
) -> Costs:
    """The rest is the encoder's; heads take no time."""
    encoders = {plan.encoder: ms for plan, ms in rest_ms.items()}
    heads = {(plan.canvas, head.key): 0.0 for plan in rest_ms for head in plan.heads}
    return Costs(front_ms, encoders, heads)
