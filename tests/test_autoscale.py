"""The simulated autoscaler decides as Kubernetes documents it, and the simulated replica runs as
the real scheduler."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service import bundle
from service.bundle import Manifest
from service.core import Ask, Frame, Geometry
from service.engines.fake import FakeBackend
from service.errors import Overloaded
from service.settings import Settings
from service.trace import Trace
from tests.bench import autoscale, fleet
from tests.bench.autoscaler import Autoscaler, Behaviour, Policy, from_utilisation, from_value
from tests.bench.day import Scaling, World, simulate
from tests.serving import answered, segmenter_of

SHIPPED = Path(__file__).resolve().parents[1] / "trained_weights/camvid-tiny"


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return bundle.load(SHIPPED).manifest


@pytest.mark.parametrize(
    ("usage", "unready", "missing", "replicas"),
    [
        ([0.5, 0.5], 0, 0, 2),
        ([0.54, 0.54], 0, 0, 2),  # within the tolerance of 10 %
        ([0.6, 0.6], 0, 0, 3),  # ceil(2 x 1.2)
        ([1.0, 1.0, 1.0, 1.0], 0, 0, 8),
        ([0.1, 0.1, 0.1, 0.1], 0, 0, 1),
        (
            [0.8, 0.8],
            2,
            0,
            4,
        ),  # the two that start count as idle: 0.4 of 0.5 would turn the direction
        ([1.0, 1.0], 1, 0, 4),  # ceil(3 x 2 / 3 / 0.5)
        ([0.2, 0.2], 1, 0, 1),  # on the way down those that start are left out
        (
            [0.2, 0.2],
            0,
            1,
            3,
        ),  # one that reports nothing counts as full: 1.4 / 3 is within the tolerance
        ([], 3, 0, 3),
    ],
)
def test_replicas_by_a_share_of_the_request(
    usage: list[float], unready: int, missing: int, replicas: int
) -> None:
    assert (
        from_utilisation(usage, unready, missing, 0.5, max(1, len(usage) + unready + missing))
        == replicas
    )


@pytest.mark.parametrize(
    ("value", "replicas"), [(None, 4), (1.05, 4), (1.2, 5), (3.0, 12), (0.5, 2), (0.0, 0)]
)
def test_replicas_by_a_value(value: float | None, replicas: int) -> None:
    assert from_value(value, 1.0, 4, 4) == replicas


def test_the_largest_metric_counts_within_the_bounds() -> None:
    assert Autoscaler(Behaviour(), 2, 40).decide(0, 4, [3, 6, 5]) == 6
    assert Autoscaler(Behaviour(), 2, 5).decide(0, 4, [6]) == 5
    assert Autoscaler(Behaviour(down_window_s=0), 2, 5).decide(0, 4, [0]) == 2


def test_scaling_down_waits_for_five_minutes_of_lower_advice() -> None:
    scaler, replicas, seen = Autoscaler(Behaviour(), 1, 40), 8, []
    for sync in range(24):
        replicas = scaler.decide(15.0 * sync, replicas, [8 if sync == 0 else 3])
        seen.append(replicas)
    assert seen[:20] == [8] * 20  # 20 syncs are 300 s
    assert seen[20:] == [3] * 4


def test_policies_limit_the_speed() -> None:
    up = Behaviour(up=(Policy("Percent", 100, 60), Policy("Pods", 4, 60)))
    scaler, replicas, seen = Autoscaler(up, 1, 40), 3, []
    for sync in range(9):
        replicas = scaler.decide(15.0 * sync, replicas, [40])
        seen.append(replicas)
    assert seen == [7, 7, 7, 7, 14, 14, 14, 14, 28]  # the larger of +4 and +100 % a minute
    down = Behaviour(down=(Policy("Percent", 10, 60),), down_window_s=0)
    assert Autoscaler(down, 1, 40).decide(0, 20, [5]) == 18


def test_a_replica_of_one_plan_waits_as_the_formula_of_pollaczek_and_khinchine_says() -> None:
    rng, service_s, use = np.random.default_rng(3), 0.1, 0.7
    arrivals = np.cumsum(rng.exponential(service_s / use, 100_000))
    policy = fleet.Policy("one", (service_s,) * 1000, (1.0,) * 1000, (0,) * 1000, (1,) * 1000)
    tally, pod = fleet.Tally([0] * 1000), fleet.Replica(0, 0, 0)
    pod.serve(arrivals.tolist(), math.inf, policy, tally)
    look = pod.look(policy, tally)
    assert look.images == len(arrivals)
    assert look.busy_s == pytest.approx(service_s * len(arrivals))
    waited = use * service_s / (2 * (1 - use))
    assert look.wait_s / look.images == pytest.approx(waited, rel=0.05)
    assert np.mean(tally.latency) == pytest.approx(waited + service_s, rel=0.05)


def test_a_cheaper_plan_gives_up_compute_even_if_it_has_as_many_layers(manifest: Manifest) -> None:
    deep = tuple(replace(plan, depth=6) for plan in manifest.encoder_plans)
    manifest = replace(manifest, encoder_plans=deep)
    plans = manifest.plans
    policy = fleet.policy("x", manifest, queue_size=5, target_s=2.0, max_loss=0.0)
    assert policy.given_up[0] == 0
    assert list(policy.given_up) == sorted(policy.given_up)
    assert policy.given_up[-1] > policy.given_up[1]
    ran = next(plan for plan in plans if plan.quality == policy.quality[-1])
    assert policy.given_up[-1] == pytest.approx(1 - ran.gflops / plans[-1].gflops)


def test_every_request_of_a_day_is_accounted_for(manifest: Manifest) -> None:
    policy = fleet.policy("x", manifest, queue_size=4, target_s=1.0, max_loss=0.005)
    arrivals = fleet.traffic(np.random.default_rng(1), 60.0, 1800.0)
    day = simulate(policy, Scaling(cpu=0.6), arrivals, np.random.default_rng(2), World())
    assert day.shed > 0
    assert day.lost > 0
    assert 0.69 < day.quality <= policy.quality[0]
    again = simulate(policy, Scaling(cpu=0.6), arrivals, np.random.default_rng(2), World())
    assert again == day
    assert (
        simulate(
            policy, Scaling(cpu=0.3), arrivals, np.random.default_rng(2), World()
        ).replica_hours
        > day.replica_hours
    )


def test_adaptive_depth_misses_less_than_the_full_plan_on_the_same_fleet(
    manifest: Manifest,
) -> None:
    arrivals = fleet.traffic(np.random.default_rng(5), 20.0, 3600.0)
    missed = [
        simulate(case.policy, Scaling(cpu=0.5), arrivals, np.random.default_rng(2), World()).missed
        for case in autoscale.cases(manifest)
        if case.table == "cpu"
        and case.policy.name in ("adaptive", "full")
        and case.scaling.cpu == 0.5
    ]
    assert missed[0] < 0.5 * missed[1]


def test_the_simulation_takes_its_settings_from_the_manifests(manifest: Manifest) -> None:
    chosen = [case for case in autoscale.cases(manifest) if case.chosen]
    assert [case.table for case in chosen] == ["queue", "cpu", "keda"]
    assert {case.policy.seconds for case in chosen} == {chosen[0].policy.seconds}
    target_s = autoscale.settings().target_ms / 1000
    # The last that is admitted waits for the others' cheapest plans, within the objective.
    last_s = min(chosen[0].policy.seconds) * (chosen[0].policy.queue_size + 1)
    assert 0.9 * target_s < last_s <= target_s
    assert chosen[1].scaling == autoscale.hpa()
    assert chosen[2].scaling == autoscale.keda()
    assert autoscale.settings().max_batch == 1  # what the simulated replica does


def test_the_page_names_the_plan_of_the_shallow_policy(manifest: Manifest) -> None:
    """It is not the cheapest plan: that one's canvas is smaller."""
    (seconds,) = {
        case.policy.seconds[0]
        for case in autoscale.cases(manifest)
        if case.policy.name == "shallow"
    }
    row = next(
        row
        for row in manifest.calibration["search"]
        if row["ms"] / 1000 + fleet.BESIDE_ENGINE_S == pytest.approx(seconds)
    )
    page = Path(__file__).resolve().parent.parent / "docs" / "autoscaling.md"
    assert f"shallow: `{row['plan']}`" in page.read_text("utf-8")


def test_a_simulated_replica_sheds_waits_and_cheapens_as_the_real_one_does(
    fake_manifest: Manifest,
) -> None:
    # The same arrivals for both, twice as many as the full plan can serve; the engine sleeps
    # instead of computing.
    delays = {"front": 0.04, **{f"encoder-d{depth}": 0.04 * depth for depth in (1, 2, 3, 4)}}
    arrivals = np.cumsum(np.random.default_rng(11).exponential(0.1, 60)).tolist()
    settings = Settings(queue_size=6, target_ms=5000, max_batch=1, max_loss=0.0)
    latency, depths, engine_s, shed = asyncio.run(_real(fake_manifest, settings, delays, arrivals))

    # What each depth took here, on a machine that may be busy: only the policy is compared.
    took = {
        depth: np.mean([s for d, s in zip(depths, engine_s, strict=True) if d == depth])
        for depth in set(depths)
    }
    search = [
        {"plan": f"d{depth}", "ms": 1000 * took.get(depth, depth / 10)} for depth in (1, 2, 3, 4)
    ]
    policy = fleet.policy(
        "x",
        replace(fake_manifest, calibration={"search": search}),
        queue_size=6,
        target_s=5.0,
        max_loss=0.0,
    )
    # Nothing is decoded.
    policy = replace(policy, seconds=tuple(s - fleet.BESIDE_ENGINE_S for s in policy.seconds))
    tally, pod = fleet.Tally([0] * policy.queue_size), fleet.Replica(0, 0, 0)
    pod.serve(arrivals, math.inf, policy, tally)
    pod.look(policy, tally)
    assert tally.shed > 0
    assert shed == pytest.approx(tally.shed, abs=6)
    assert np.mean(latency) == pytest.approx(np.mean(tally.latency), rel=0.25)
    assert np.mean(depths) == pytest.approx(
        np.asarray(tally.ran) @ policy.depth / sum(tally.ran), abs=0.4
    )


async def _real(
    manifest: Manifest, settings: Settings, delays: dict[str, float], arrivals: list[float]
) -> tuple[list[float], list[int], list[float], int]:
    """Of what was answered: latencies, depths, and seconds in the engine; and how many it
    refused."""
    backend = FakeBackend(manifest, delay_s=delays)
    segmenter = segmenter_of(manifest, replace(settings, max_batch=1), backend=backend)
    segmenter.start()
    await asyncio.to_thread(segmenter.model.engine.warm.result)
    geometry = Geometry(64, 48, 64, 48, (48, 64))
    frame = Frame(np.zeros((48, 64, 3), np.uint8), geometry)
    answers: list[tuple[float, int, float]] = []
    begun = time.perf_counter()

    async def ask(after: float) -> None:
        await asyncio.sleep(max(0.0, begun + after - time.perf_counter()))
        at, trace = time.perf_counter(), Trace()
        with suppress(Overloaded):
            answer = await answered(segmenter, {"c64": frame}, Ask(), trace, at)
            engine_s = sum(trace.stages[stage] for stage in ("front", "encoder", "decoder"))
            answers.append((time.perf_counter() - at, answer.decision.plan.depth, engine_s))

    await asyncio.gather(*map(ask, arrivals))
    await segmenter.model.drain(10)
    latency, depths, engine_s = (list(each) for each in zip(*answers, strict=True))
    return latency, depths, engine_s, len(arrivals) - len(answers)
