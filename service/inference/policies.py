"""The policy for each preference among the heads of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from service.bundle import Manifest, complete_plans, is_larger, open_to
from service.core import Ask, Frames, Plan
from service.errors import BadPreference, did_you_mean, quoted
from service.inference.policy import Policy

KEPT = 256  # policies: a caller that sends ever new weights costs time and no memory
DIGITS = 3  # of a head's share; finer differences make no other plan


class Policies:
    """See the module. default_max_loss: the floor if neither the request nor the node sets one."""

    def __init__(self, manifest: Manifest, default_max_loss: float) -> None:
        self._manifest, self._default_max_loss = manifest, default_max_loss
        self._names = [head.name for head in manifest.heads]
        self._made = lru_cache(KEPT)(self._make)
        self._default_shares = self._shares(manifest.default_preference)

    @property
    def default(self) -> Policy:
        """For those who say nothing of heads, and for images that are not larger than the largest
        plain canvas."""
        return self.of(None)

    def of(self, preference: Mapping[str, float] | None, *, larger: bool = False) -> Policy:
        """preference: as in `Ask`, checked. larger: whether the image is larger than the largest
        plain canvas. May be called from any thread."""
        tiled = larger and bool(self._manifest.input.tiled)
        return self._made(tuple(self.shares(preference).items()), tiled)

    def for_image(self, preference: Mapping[str, float] | None, frames: Frames) -> Policy:
        """frames: the image, whose size decides whether it may take tiled plans."""
        spec = self._manifest.input
        if not spec.tiled:
            return self.of(preference)
        size = frames[self._manifest.glance.name].geometry
        return self.of(preference, larger=is_larger(spec.canvases, size.width, size.height))

    def plans(self, preference: Mapping[str, float] | None = None) -> list[Plan]:
        """All that some image may take, the cheapest first."""
        policies = (self.of(preference, larger=larger) for larger in (False, True))
        found = {plan.name: plan for policy in policies for plan in policy.plans}
        return sorted(found.values(), key=lambda plan: plan.gflops)

    def shares(self, preference: Mapping[str, float] | None) -> Mapping[str, float]:
        """The heads that are asked for, in the bundle's order, with weights that add up to 1."""
        return self._default_shares if preference is None else self._shares(preference)

    def check(self, ask: Ask) -> None:
        """Raises BadPreference for a head that the bundle does not have, BadBudget for a depth that
        no plan of it can have."""
        for name in ask.preference or ():
            if name not in self._names:
                hint = did_you_mean(name, self._names) or f"there is {quoted(self._names)}"
                raise BadPreference(f"the key '{name}' is no head of this bundle: {hint}", key=name)
        policies = (self.of(ask.preference, larger=larger) for larger in (False, True))
        max(policies, key=lambda policy: policy.deepest).check(ask.budget)

    def _shares(self, weights: Mapping[str, float]) -> Mapping[str, float]:
        most = max(weights.values())  # first of all: a sum could overflow
        asked = {name: weights[name] / most for name in self._names if weights.get(name, 0) > 0}
        total = sum(asked.values())
        return {
            name: float(f"{weight / total:.{DIGITS}g}")
            for name, weight in asked.items()
            if weight > 0
        }

    def _make(self, shares: tuple[tuple[str, float], ...], larger: bool) -> Policy:
        manifest, weights = self._manifest, dict(shares)
        tiled = [plan.canvas in manifest.input.tiled for plan in manifest.encoder_plans]
        own = [manifest.encoder_plans[row] for row in open_to(tiled, larger=larger)]
        plans = complete_plans(own, manifest.heads, weights)
        rows = {plan.name: row for row, plan in enumerate(manifest.encoder_plans)}
        keys = manifest.head_keys
        total = sum(weights.values())

        def columns(plan: Plan) -> tuple[tuple[int, float], ...]:
            first = rows[plan.encoder] * len(keys)
            return tuple(
                (first + keys.index(head.key), weights[head.name] / total) for head in plan.heads
            )

        return Policy(
            plans, manifest.margins, self._default_max_loss, tuple(columns(plan) for plan in plans)
        )
