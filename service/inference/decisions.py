"""The plans of the images of a batch, once the gate has seen them. A pure function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from service.core import Budget, Decision, Plan
from service.errors import FathomError
from service.inference.batches import Job
from service.inference.costs import Costs
from service.inference.policy import Policy, Pressure


def decide(
    policies: Sequence[Policy],
    costs: Costs,
    jobs: Sequence[Job],
    scores: Sequence[Sequence[float]],
    node: Budget,
    limit_ms: float,
    now: float,
) -> list[Decision | FathomError]:
    """Per image, its plan or why it has none.

    policies: of each image. scores: per image, the predicted quality of each plan. limit_ms: the
    most that load lets each take, all in all, where they run together. now: in seconds of
    time.perf_counter.
    """
    images, known = len(jobs), dict[int, _Known]()
    found: list[Decision | FathomError] = []
    promised_ms = 0.0  # what the images before this one will take
    for row, (job, policy) in enumerate(zip(jobs, policies, strict=True)):
        plans = policy.plans
        if id(policy) not in known:
            known[id(policy)] = _Known.of(plans, costs, images)
        one_ms, each_ms, before_ms = known[id(policy)]
        past_ms = 1000 * now + promised_ms
        left_ms = None if job.deadline is None else 1000 * job.deadline - past_ms
        due_ms = 1000 * job.due - past_ms
        closed = frozenset(
            plan
            for plan in range(len(plans))
            if each_ms[plan] > limit_ms - before_ms or one_ms[plan] > due_ms
        )
        # Later images may join this one.
        count = len(jobs) - row
        fitting_ms = one_ms if left_ms is None else _fitting_ms(plans, costs, count)
        pressure = Pressure(closed, left_ms)
        try:
            decision = policy.choose(scores[row], job.ask, node, fitting_ms, pressure)
        except FathomError as error:
            found.append(error)
            continue
        found.append(decision)
        promised_ms += one_ms[plans.index(decision.plan)]
    return found


class _Known(NamedTuple):
    """By plan, what it takes for one image alone, and for each of all together; and of the latter
    the glance, which is over."""

    one_ms: list[float]
    each_ms: list[float]
    before_ms: float

    @classmethod
    def of(cls, plans: Sequence[Plan], costs: Costs, images: int) -> _Known:
        one_ms = [costs.after_glance_ms(plan) for plan in plans]
        each_ms = [costs.after_glance_ms(plan, images) / images for plan in plans]
        return cls(one_ms, each_ms, costs.total_ms(plans[0], images) / images - each_ms[0])


def _fitting_ms(plans: Sequence[Plan], costs: Costs, images: int) -> list[float]:
    """By plan, what it takes to be in time, as few runs exceed it."""
    fitting_ms = [costs.after_glance_ms(plan, images, high=True) for plan in plans]
    # The least that it can take: a margin on it would only refuse what can still be in time.
    likely_ms = [costs.after_glance_ms(plan, images) for plan in plans]
    fastest = likely_ms.index(min(likely_ms))
    fitting_ms[fastest] = likely_ms[fastest]
    return fitting_ms
