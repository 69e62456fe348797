"""The HorizontalPodAutoscaler's algorithm, as pure functions: what kube-controller-manager does
every 15 s.

Follows autoscaling/v2: the ratio formula with its tolerance, pods that are not ready or have no
metrics yet, the largest of several metrics, stabilisation windows, and policies that limit the
speed. KEDA builds such an autoscaler out of a ScaledObject; its Prometheus triggers arrive as
external metrics of type Value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

SYNC_S = 15.0
TOLERANCE = 0.1


def from_utilisation(
    usage: Sequence[float], unready: int, missing: int, target: float, current: int
) -> int:
    """Replicas by a Resource metric. usage: shares of the request, of the ready pods; target: a
    share, too.

    unready: pods that start; they are left out, but if the others ask for more they count as idle,
    so that what is about to help is not ordered twice. missing: pods that report nothing any more;
    they count against any change: as idle when the others ask for more, as fully used when they ask
    for less. Without any usage nothing changes.
    """
    if not usage:
        return current
    ratio = sum(usage) / len(usage) / target
    if not (unready and ratio > 1) and not missing:
        return current if abs(1 - ratio) <= TOLERANCE else math.ceil(ratio * len(usage))
    pods = len(usage) + missing + (unready if ratio > 1 else 0)
    again = (sum(usage) + (missing if ratio < 1 else 0)) / pods / target
    if abs(1 - again) <= TOLERANCE or (ratio > 1) != (again > 1):
        return current
    replicas = math.ceil(again * pods)
    return max(replicas, current) if again > 1 else min(replicas, current)


def from_value(value: float | None, target: float, current: int, ready: int) -> int:
    """Replicas by an external metric of type Value. None: nothing was measured; then nothing
    changes."""
    if value is None:
        return current
    ratio = value / target
    return current if abs(1 - ratio) <= TOLERANCE else math.ceil(ratio * ready)


@dataclass(frozen=True, slots=True)
class Policy:
    """At most so many pods, or so many percent of them, within a period."""

    kind: str  # "Pods" or "Percent"
    value: int
    period_s: float


@dataclass(frozen=True, slots=True)
class Behaviour:
    """spec.behavior; the policy that allows most counts, as by default."""

    up: tuple[Policy, ...] = (Policy("Percent", 100, 15), Policy("Pods", 4, 15))
    down: tuple[Policy, ...] = (Policy("Percent", 100, 15),)
    up_window_s: float = 0.0
    down_window_s: float = 300.0


@dataclass(slots=True)
class Autoscaler:
    """least, most: minReplicas and maxReplicas. Remembers what it recommended and did."""

    behaviour: Behaviour
    least: int
    most: int
    _recommended: list[tuple[float, int]] = field(default_factory=list)
    _changes: list[tuple[float, int]] = field(default_factory=list)

    def decide(self, now: float, current: int, wanted: Sequence[int]) -> int:
        """The new number of replicas. wanted: by each metric."""
        desired = max(wanted)
        self._recommended.append((now, desired))
        longest = max(self.behaviour.up_window_s, self.behaviour.down_window_s)
        self._recommended = [
            (when, each) for when, each in self._recommended if now - when < longest
        ]
        floor = min([desired, *self._within(now, self.behaviour.up_window_s)])
        ceiling = max([desired, *self._within(now, self.behaviour.down_window_s)])
        steady = min(max(current, floor), ceiling)
        bounded = min(max(steady, self.least), self.most)
        if bounded > current:
            bounded = max(current, min(bounded, self._limit_up(now, current)))
        elif bounded < current:
            bounded = min(current, max(bounded, self._limit_down(now, current)))
        if bounded != current:
            periods = (each.period_s for each in (*self.behaviour.up, *self.behaviour.down))
            oldest = now - max(periods)
            self._changes = [change for change in self._changes if change[0] > oldest] + [
                (now, bounded - current)
            ]
        return bounded

    def _within(self, now: float, window_s: float) -> list[int]:
        return [each for when, each in self._recommended if now - when < window_s]

    def _limit_up(self, now: float, current: int) -> int:
        def allowed(policy: Policy) -> int:
            start = current - sum(
                by for when, by in self._changes if by > 0 and now - when < policy.period_s
            )
            return (
                start + policy.value
                if policy.kind == "Pods"
                else math.ceil(start * (1 + policy.value / 100))
            )

        return max(map(allowed, self.behaviour.up))

    def _limit_down(self, now: float, current: int) -> int:
        def allowed(policy: Policy) -> int:
            start = current - sum(
                by for when, by in self._changes if by < 0 and now - when < policy.period_s
            )
            return (
                start - policy.value
                if policy.kind == "Pods"
                else int(start * (1 - policy.value / 100))
            )

        return min(map(allowed, self.behaviour.down))
