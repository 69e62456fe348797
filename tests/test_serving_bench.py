"""The benchmark of serving: what it sends and when, against the service with the fake engine."""

from __future__ import annotations

import numpy as np
import pytest

from service.bundle import Manifest
from tests.api.server import running
from tests.bench.open_loop import Load, bursts, poisson, send, step
from tests.bench.serving import PHOTOS, Point


def test_loads_have_the_rate_that_was_asked_for() -> None:
    times = poisson(50.0, 100.0, 1)
    assert len(times) == pytest.approx(5000, rel=0.05)
    assert np.std(np.diff(times)) == pytest.approx(1 / 50, rel=0.1)  # exponential gaps
    swings = bursts((10.0, 100.0), (10.0, 10.0), 1000.0, 2)
    assert swings == sorted(swings)
    per_second = np.histogram(swings, 1000)[0]
    assert np.var(per_second) > 5 * np.mean(per_second)  # far more than a Poisson process has
    burst = np.array(step(1.0, 50.0, 10.0, 10.0, 3))
    during = int(((burst >= 10) & (burst < 20)).sum())
    assert (during, len(burst) - during) == (pytest.approx(500, rel=0.2), pytest.approx(10, abs=9))


def test_a_stalled_service_is_seen_from_the_planned_times(fake_manifest: Manifest) -> None:
    """A client that waits for answers before it sends again would see one slow answer of many."""
    with running(fake_manifest, delay_s={"front": 0.1}, max_batch=1, target_ms=60_000) as server:
        times = [0.01 * index for index in range(10)]
        answers = send(Load(server.url, times, PHOTOS, "depth=1"))
    assert [answer.status for answer in answers] == [200] * 10
    took = [answer.took_s for answer in answers]
    assert took[-1] - took[0] > 0.6  # the last waited for nine of 0.1 s
    assert {answer.gflops for answer in answers} == {2.0}
    assert max(answer.late_s for answer in answers) < 0.2


def test_refusals_and_failures_are_answers_too(fake_manifest: Manifest) -> None:
    with running(fake_manifest) as server:
        (refused,) = send(Load(server.url, [0.0], PHOTOS, "gflops=0.5"))
    (nobody,) = send(Load(server.url, [0.0], PHOTOS))
    assert (refused.status, refused.gflops, nobody.status) == (422, 0.0, 0)


@pytest.mark.parametrize(
    ("offered", "in_time", "held"),
    [(50, 50, True), (50, 49, True), (50, 48, False), (1000, 990, True), (1000, 989, False)],
)
def test_an_objective_is_held_if_one_in_a_hundred_misses_it(
    offered: int, in_time: int, held: bool
) -> None:
    point = Point("", 1.0, offered, offered, in_time, 1.0, 1.0, 0.7, 1.0, 0.0, 0.0)
    assert point.held is held
