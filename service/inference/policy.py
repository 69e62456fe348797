"""Which plan an image gets, and why. Pure functions on plain numbers: no engine, clock or state.

A floor on quality says which plan is wanted; ceilings say which plans are allowed. Ceilings take
precedence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from service.ask import out_of_range
from service.core import Ask, Budget, Decision, Margin, Plan, Reason
from service.errors import DeadlineExceeded, UnsatisfiableBudget


@dataclass(frozen=True, slots=True)
class Pressure:
    """What can keep an image from the plan that it would get on an idle node.

    closed: indices of plans that would take too long for those behind. remaining_ms: until the
    image's deadline, if it has one.
    """

    closed: frozenset[int] = frozenset()
    remaining_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """The choice of a plan, with what is constant while a bundle is served.

    plans: the cheapest first; the last one is the full plan.
    margins: per max-loss, ascending: how far a score may be below the full plan's.
    default_max_loss: the floor if neither the request nor the node sets one.
    columns: of each plan, which of the gate's scores count, and their weights, which add up to 1;
        without them, the gate has one score per plan.
    """

    plans: tuple[Plan, ...]
    margins: tuple[Margin, ...]
    default_max_loss: float
    columns: tuple[tuple[tuple[int, float], ...], ...] = ()

    @property
    def deepest(self) -> int:
        """The most layers of a plan."""
        return max(plan.depth for plan in self.plans)

    def scores(self, predicted: Sequence[float]) -> list[float]:
        """The predicted quality of each plan, weighted. predicted: all scores of the gate."""
        if not self.columns:
            return list(predicted)
        return [sum(weight * predicted[at] for at, weight in plan) for plan in self.columns]

    def check(self, budget: Budget) -> None:
        """Raises BadBudget for a depth that no plan of this bundle can have."""
        if budget.depth is not None and not 1 <= budget.depth <= self.deepest:
            raise out_of_range("depth", budget.depth, 1, self.deepest)

    def affordable(self, request: Budget, node: Budget) -> set[int]:
        """The indices of the plans under both budgets' ceilings on depth and gflops.

        Raises UnsatisfiableBudget if there are none.
        """
        affordable = self._under(request) & self._under(node)
        if not affordable:
            owner = "this node's" if self._under(request) else "the request's"
            raise _unsatisfiable(f"No plan is under {owner} ceilings", self.plans[0])
        return affordable

    def possible(self, request: Budget, node: Budget) -> list[Plan]:
        """The plans that an image may get, whatever its scores: a strict request that only the full
        plan can satisfy gets no other. Raises UnsatisfiableBudget if there are none."""
        affordable = self.affordable(request, node)
        full = len(self.plans) - 1
        only_full = (
            request.strict and margin_for(self._max_loss(request, node), self.margins) is None
        )
        indices = {full} if only_full and full in affordable else affordable
        return [self.plans[index] for index in sorted(indices)]

    def choose(
        self,
        scores: Sequence[float],
        ask: Ask,
        node: Budget,
        costs_ms: Sequence[float],
        pressure: Pressure,
    ) -> Decision:
        """The cheapest plan that keeps the floor, if the ceilings allow it; else the best allowed.

        scores: the gate's predicted quality per plan, 0..1.
        costs_ms: the time that each plan still needs after the glance.

        Load never refuses an image: one plan stays open. It never makes a strict request cheaper,
        since that prefers waiting to losing quality. Raises UnsatisfiableBudget if no plan is under
        the ceilings on depth and gflops, or if a strict floor is out of reach under them;
        DeadlineExceeded if no plan fits into the time that remains, or none that keeps the floor.
        """
        request, plans, full = ask.budget, self.plans, len(self.plans) - 1
        affordable = self.affordable(request, node)
        max_loss = self._max_loss(request, node)
        margin = margin_for(max_loss, self.margins)

        def keeps_floor(plan: int) -> bool:
            return plan == full or (margin is not None and scores[full] - scores[plan] <= margin)

        wanted = next(plan for plan in range(len(plans)) if keeps_floor(plan))

        def best_of(allowed: Sequence[int]) -> int | None:
            """None: the request is strict, and none of them keeps the floor."""
            kept = next((plan for plan in allowed if keeps_floor(plan)), None)
            if kept is not None or request.strict:
                return kept
            below = [plan for plan in allowed if plan < wanted] or allowed
            return below[-1] if max_loss == 0 else max(below, key=lambda p: (scores[p], -p))

        left_ms = math.inf if pressure.remaining_ms is None else pressure.remaining_ms
        # From the most lasting to the most passing.
        ceilings = {
            Reason.REQUEST: self._under(request),
            Reason.NODE: self._under(node),
            Reason.DEADLINE: {plan for plan, cost in enumerate(costs_ms) if cost <= left_ms},
        }
        if not affordable & ceilings[Reason.DEADLINE]:
            fastest = plans[min(affordable, key=lambda plan: costs_ms[plan])]
            raise DeadlineExceeded(
                "The deadline leaves no time for any plan: raise ms, or send less at a time.",
                plan=fastest.name,
            )
        if not request.strict:
            ceilings[Reason.LOAD] = set(range(len(plans))) - pressure.closed

        # The last one that changed the choice decided: what load took from a request with a ceiling
        # of its own is the load's doing, and passes with it.
        allowed, decided = list(range(len(plans))), Reason.GATE
        chosen: int | None = wanted
        for reason, open_ in ceilings.items():
            allowed = [plan for plan in allowed if plan in open_] or allowed[:1]
            if (choice := best_of(allowed)) != chosen:
                chosen, decided = choice, reason
        if chosen is None:
            # With more time they would do: nothing is wrong with the request.
            if late := [plans[plan] for plan in sorted(affordable) if keeps_floor(plan)]:
                raise DeadlineExceeded(
                    f"The deadline leaves no time for {late[0].name}, the cheapest plan that keeps "
                    "max-loss, and the request is strict: raise ms, or send less at a time.",
                    plan=late[0].name,
                )
            raise _unsatisfiable(
                "max-loss cannot be kept under the ceilings, and the request is strict",
                plans[wanted],
            )
        if chosen == wanted:
            return Decision(plans[chosen], Reason.GATE, float(scores[chosen]))
        return Decision(
            plan=plans[chosen],
            reason=decided,
            predicted_quality=float(scores[chosen]),
            wanted=plans[wanted],
            quality_given_up=max(0.0, float(scores[wanted] - scores[chosen])),
            floor_kept=keeps_floor(chosen),
        )

    def _max_loss(self, request: Budget, node: Budget) -> float:
        """The floor that is in force."""
        floors = (request.max_loss, node.max_loss, self.default_max_loss)
        return next(floor for floor in floors if floor is not None)

    def _under(self, budget: Budget) -> set[int]:
        depth = math.inf if budget.depth is None else budget.depth
        gflops = math.inf if budget.gflops is None else budget.gflops
        return {
            index
            for index, plan in enumerate(self.plans)
            if plan.depth <= depth and plan.gflops <= gflops
        }


def margin_for(max_loss: float, margins: Sequence[Margin]) -> float | None:
    """The margin on the gate's scores that keeps the expected loss within max_loss.

    None: only the full plan keeps it. margins: ascending in `asked`. Between two rows the lower one
    applies; below the first one only the full plan is safe.
    """
    return next((row.margin for row in reversed(margins) if row.asked <= max_loss), None)


def _unsatisfiable(detail: str, plan: Plan) -> UnsatisfiableBudget:
    return UnsatisfiableBudget(
        f"{detail}: the cheapest plan that would do is {plan.name}, "
        f"depth={plan.depth} and gflops={plan.price}.",
        cheapest={"plan": plan.name, "depth": plan.depth, "gflops": plan.price},
    )
