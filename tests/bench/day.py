"""One day of a fleet under an autoscaler: traffic -> replicas -> metrics -> replicas."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray

from tests.bench.autoscaler import SYNC_S, Autoscaler, Behaviour, from_utilisation, from_value
from tests.bench.fleet import CPU_WHILE_BUSY, DAY_S, Look, Policy, Replica, Tally

STEP_S = 5.0
SLO_S = 0.5
NODES = 3
NOTICED_S = 50.0  # kube-controller-manager's --node-monitor-grace-period
RATE_WINDOWS = 4  # rate(...[1m]), looked at every 15 s


@dataclass(frozen=True, slots=True)
class Scaling:
    """Targets, None = not used. cpu: share of the request. Over one minute: wait_s: mean time in
    the queue; given_up: mean share of the wanted plans' compute that was not spent."""

    cpu: float | None = None
    wait_s: float | None = None
    given_up: float | None = None
    behaviour: Behaviour = field(default_factory=Behaviour)


@dataclass(frozen=True, slots=True)
class World:
    """start_s: from the decision to a ready pod; evicted_s: from noticing a lost node to its pods'
    replacement."""

    start_s: float = 20.0
    evicted_s: float = 30.0
    least: int = 2
    most: int = 40


@dataclass(frozen=True, slots=True)
class Day:
    """Shares are of all requests. late: answered after SLO_S; bad_minutes: minutes in which over 1
    % missed it."""

    replica_hours: float
    most: int
    p99_s: float
    late: float
    shed: float
    lost: float
    bad_minutes: int
    quality: float
    depth: float

    @property
    def missed(self) -> float:
        return self.late + self.shed + self.lost


@dataclass(slots=True)
class _Fleet:
    policy: Policy
    world: World
    tally: Tally
    pods: list[Replica] = field(default_factory=list)
    numbers: count[int] = field(default_factory=count)

    def add(self, pods: int, now: float, start_s: float) -> None:
        """The scheduler spreads them over the nodes."""
        self.pods += [Replica(now, now + start_s, next(self.numbers) % NODES) for _ in range(pods)]

    def resize(self, target: int, now: float) -> None:
        """Kubernetes takes those first that are not ready, then the youngest; they finish what they
        hold."""
        self.add(target - len(self.pods), now, self.world.start_s)
        self.pods.sort(key=lambda pod: (not pod.listed(now), -pod.created))
        for pod in self.pods[: len(self.pods) - target]:
            if pod.lost > now:
                pod.serve((), math.inf, self.policy, self.tally)
                pod.look(self.policy, self.tally)
        self.pods = self.pods[len(self.pods) - target :]

    def serve(self, arrivals: NDArray[np.float64], now: float, rng: np.random.Generator) -> None:
        """Each request goes to a listed pod at random, as kube-proxy sends connections."""
        listed = [pod for pod in self.pods if pod.listed(now)]
        if not listed:
            self.tally.shed += len(arrivals)
            return
        to = rng.integers(len(listed), size=len(arrivals))
        for index, pod in enumerate(listed):
            mine = arrivals[to == index].tolist()
            if pod.lost <= now:
                self.tally.lost += len(mine)
            else:
                pod.serve(mine, now + STEP_S, self.policy, self.tally)

    def replace_lost(self, now: float) -> None:
        kept = [pod for pod in self.pods if now < pod.unlisted + self.world.evicted_s]
        gone, self.pods = len(self.pods) - len(kept), kept
        self.add(gone, now, self.world.start_s)


def simulate(
    policy: Policy,
    scaling: Scaling,
    arrivals: NDArray[np.float64],
    rng: np.random.Generator,
    world: World,
) -> Day:
    """arrivals: ascending, in s. One of NODES nodes dies at a random time in the middle half of the
    day."""
    seconds = math.ceil(arrivals[-1] / SYNC_S) * SYNC_S
    marks = np.searchsorted(arrivals, np.arange(0.0, seconds + STEP_S, STEP_S))
    dies, node = rng.uniform(0.25, 0.75) * seconds, int(rng.integers(NODES))
    fleet = _Fleet(policy, world, Tally([0] * policy.queue_size))
    tally, scaler = fleet.tally, Autoscaler(scaling.behaviour, world.least, world.most)
    first_load = marks[60] / (60 * STEP_S) * policy.seconds[0]
    fleet.add(max(world.least, math.ceil(first_load / 0.6)), 0.0, 0.0)
    looks: deque[dict[Replica, Look]] = deque(maxlen=RATE_WINDOWS)
    replica_s, most, missed = 0.0, 0, np.zeros(len(marks) - 1)
    for step in range(len(marks) - 1):
        now = step * STEP_S
        answered, refused = len(tally.latency), tally.shed + tally.lost
        for pod in fleet.pods:
            if dies <= now < dies + STEP_S and pod.node == node:
                pod.die(now, now + NOTICED_S, tally)
        fleet.replace_lost(now)
        fleet.serve(arrivals[marks[step] : marks[step + 1]], now, rng)
        replica_s, most = replica_s + STEP_S * len(fleet.pods), max(most, len(fleet.pods))
        late = sum(each > SLO_S for each in tally.latency[answered:])
        missed[step] = late + tally.shed + tally.lost - refused
        now += STEP_S
        if now % SYNC_S == 0:
            looks.append(
                {
                    pod: pod.look(policy, tally)
                    for pod in fleet.pods
                    if pod.listed(now) and pod.lost > now
                }
            )
            fleet.resize(
                scaler.decide(now, len(fleet.pods), _wanted(scaling, fleet.pods, looks, now)), now
            )
    fleet.resize(0, seconds)
    latency, requests, ran = np.asarray(tally.latency), len(arrivals), np.asarray(tally.ran)
    per_minute = round(60 / STEP_S)
    whole = len(missed) // per_minute * per_minute
    share = missed[:whole].reshape(-1, per_minute).sum(1) / np.diff(marks)[:whole].reshape(
        -1, per_minute
    ).sum(1)
    return Day(
        replica_hours=replica_s / 3600 * DAY_S / seconds,
        most=most,
        p99_s=float(np.quantile(latency, 0.99)),
        late=float((latency > SLO_S).mean() * len(latency) / requests),
        shed=tally.shed / requests,
        lost=tally.lost / requests,
        bad_minutes=int((share > 0.01).sum()),
        quality=float(ran @ policy.quality / ran.sum()),
        depth=float(ran @ policy.depth / ran.sum()),
    )


def _wanted(
    scaling: Scaling, pods: list[Replica], looks: deque[dict[Replica, Look]], now: float
) -> list[int]:
    """What each metric asks for."""
    current, ready, found = len(pods), sum(pod.listed(now) for pod in pods), []
    if scaling.cpu is not None:
        # metrics-server is a window behind, and a pod without a full window after its start counts
        # as not ready.
        before = looks[-2] if len(looks) > 1 else {}
        old = [pod for pod in pods if pod in before and pod.lost > now]
        usage = [before[pod].busy_s / SYNC_S * CPU_WHILE_BUSY for pod in old]
        missing = sum(pod.lost <= now for pod in pods)
        found.append(
            from_utilisation(usage, current - len(old) - missing, missing, scaling.cpu, current)
        )
    images = sum(look.images for window in looks for look in window.values())
    for target, total in ((scaling.wait_s, "wait_s"), (scaling.given_up, "given_up")):
        if target is not None:
            value = sum(getattr(look, total) for window in looks for look in window.values())
            found.append(from_value(value / images if images else None, target, current, ready))
    return found
