"""Which plan an image gets, and why. Pure functions on plain numbers: no engine, no clock, no
state.

A floor on quality says which plan is wanted; ceilings say which plans are allowed. Ceilings beat
the floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from service.core import Budget, Decision, Margin, Plan, Reason
from service.errors import DeadlineExceeded, UnsatisfiableBudget


def choose(
    scores: Sequence[float],
    request: Budget,
    node: Budget,
    plans: Sequence[Plan],
    *,
    margins: Sequence[Margin],
    default_max_loss: float,
    remaining_ms: float | None,
    costs_ms: Sequence[float],
    load: float,
    load_start: float,
) -> Decision:
    """The cheapest plan that keeps the floor, if the ceilings allow it; else the best that they
    allow.

    scores: the gate's predicted quality per plan, 0..1; plans: from cheap to dear, the last one is
    the full plan. margins: how far below the full plan's a score may be, per max-loss; see
    `margin_for`. default_max_loss: the floor when neither the request nor the node sets one.
    remaining_ms: until the deadline, None = there is none; costs_ms: what each plan still needs
    after the front. load: fill of the queue, 0..1; from load_start on, the dearest plans are closed
    one by one. Raises UnsatisfiableBudget when no plan is under the depth and gflops ceilings, or
    when a strict floor is out of reach; DeadlineExceeded when no plan fits into remaining_ms. Load
    never refuses: one plan stays open, and a strict request, which would rather wait than lose
    quality, is not cheapened by it.
    """
    affordable = under_budget(request, node, plans)
    full = len(plans) - 1
    max_loss = next(
        (b.max_loss for b in (request, node) if b.max_loss is not None), default_max_loss
    )

    margin = margin_for(max_loss, margins)

    def keeps_floor(plan: int) -> bool:
        return plan == full or (margin is not None and scores[full] - scores[plan] <= margin)

    wanted = next(plan for plan in range(len(plans)) if keeps_floor(plan))
    ceilings = {
        Reason.REQUEST: _under(request, plans),
        Reason.NODE: _under(node, plans),
        Reason.DEADLINE: {
            i for i, cost in enumerate(costs_ms) if remaining_ms is None or cost <= remaining_ms
        },
    }
    allowed = sorted(affordable & ceilings[Reason.DEADLINE])
    if not allowed:
        raise DeadlineExceeded(
            "The deadline leaves no time for any plan: raise ms, or send less at a time."
        )
    if not request.strict:
        ceilings[Reason.LOAD] = set(range(_open_plans(load, load_start, len(plans))))
        allowed = [plan for plan in allowed if plan in ceilings[Reason.LOAD]] or allowed[:1]

    chosen = next((plan for plan in allowed if keeps_floor(plan)), None)
    if chosen is None and request.strict:
        raise _unsatisfiable(
            "The floor max-loss is out of reach under the ceilings, and strict asks for it",
            plans[wanted],
        )
    if chosen is None:
        below = [plan for plan in allowed if plan < wanted] or allowed
        chosen = below[-1] if max_loss == 0 else max(below, key=lambda plan: (scores[plan], -plan))
    binding = [reason for reason, kept in ceilings.items() if wanted not in kept]
    reason = Reason.GATE if chosen == wanted else min(binding, key=lambda each: len(ceilings[each]))
    if chosen == wanted:
        return Decision(plans[chosen], reason, float(scores[chosen]))
    given_up = max(0.0, float(scores[wanted] - scores[chosen]))
    return Decision(
        plans[chosen], reason, float(scores[chosen]), plans[wanted], given_up, keeps_floor(chosen)
    )


def margin_for(max_loss: float, margins: Sequence[Margin]) -> float | None:
    """The margin on the gate's scores that keeps the expected loss within max_loss; None: only the
    full plan does.

    margins: ascending in `asked`. Between two rows the lower one holds, and below the first one
    there is no promise.
    """
    return next((row.margin for row in reversed(margins) if row.asked <= max_loss), None)


def under_budget(request: Budget, node: Budget, plans: Sequence[Plan]) -> set[int]:
    """The plans under the depth and gflops ceilings of both. Raises UnsatisfiableBudget when there
    is none."""
    kept = _under(request, plans) & _under(node, plans)
    if not kept:
        whose = "this node's" if _under(request, plans) else "the request's"
        raise _unsatisfiable(f"No plan is under {whose} ceilings", plans[0])
    return kept


def _under(budget: Budget, plans: Sequence[Plan]) -> set[int]:
    depth = math.inf if budget.depth is None else budget.depth
    gflops = math.inf if budget.gflops is None else budget.gflops
    return {i for i, plan in enumerate(plans) if plan.depth <= depth and plan.gflops <= gflops}


def _open_plans(load: float, start: float, plans: int) -> int:
    """How many plans, counted from the cheapest, load leaves open: all up to `start`, then linearly
    down to 1 at 1."""
    if load <= start:
        return plans
    closed = min((load - start) / (1 - start), 1.0) if start < 1 else 1.0
    return 1 + round((plans - 1) * (1 - closed))


def _unsatisfiable(detail: str, plan: Plan) -> UnsatisfiableBudget:
    return UnsatisfiableBudget(
        f"{detail}: the cheapest plan that would do is {plan.name}, depth={plan.depth} and "
        f"gflops={plan.gflops:g}.",
        cheapest={"plan": plan.name, "depth": plan.depth, "gflops": plan.gflops},
    )
