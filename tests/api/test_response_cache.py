"""The response cache over real sockets: what is kept and for whom, what is shared while it is
computed, and that whoever leaves takes nothing from the others."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import http_sf
import httpx
import pytest

from service.api.response_cache import OVERHEAD, Made, ResponseCache, bypasses, key_of
from service.bundle import Manifest
from service.core import Budget, Decision, Plan, Reason
from service.metrics import Metrics
from service.trace import Trace
from tests.api.server import Server, rejected, running
from tests.api.test_admission import connected
from tests.api_keys import KEY, OTHER, line
from tests.pictures import quarters

PLAN = Plan("d1", 1, 1.0, 1.0, 2.0, 0.5)


@contextmanager
def caching(manifest: Manifest, **settings: object) -> Iterator[Server]:
    with running(manifest, response_cache_mb=1, max_batch=1, **settings) as server:
        yield server


def status(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    (entry,) = http_sf.parse(answer.headers["cache-status"].encode(), tltype="list")
    name, parameters = entry
    assert str(name) == "fathom"
    return ", ".join(
        key if value is True else f"{key}={value}" for key, value in parameters.items()
    )


def results(server: Server) -> dict[str, float]:
    name = "fathom_response_cache_requests_total"
    return {each: server.value(name, result=each) for each in ("hit", "collapsed", "miss")}


def ran(server: Server) -> float:
    return server.value("fathom_compute_gflops_total")


def layers_counted(server: Server) -> float:
    """Images of which the layers that ran were counted."""
    name = "fathom_exit_depth_layers_count"
    return sum(server.value(name, canvas=each, reason="gate") for each in ("", "c64"))


def test_without_the_setting_nothing_is_kept(server: Server) -> None:
    for _ in range(2):
        assert "cache-status" not in server.post(quarters()).headers


def test_an_answer_is_kept_as_it_was_computed(fake_manifest: Manifest) -> None:
    with caching(fake_manifest) as server:
        first = server.post(quarters())
        assert status(first) == "fwd=miss, stored"
        spent = ran(server)
        again = server.post(quarters())
        assert status(again) == "hit"
        assert again.content == first.content
        for field in ("content-type", "compute-used", "vary"):
            assert again.headers[field] == first.headers[field]
        assert "server-timing" not in again.headers
        assert ran(server) == spent
        assert results(server) == {"hit": 1, "collapsed": 0, "miss": 1}
        assert server.value("fathom_response_cache_bytes") == len(first.content) + OVERHEAD
        assert server.value("fathom_requests_total", outcome="ok") == 2
        assert layers_counted(server) == 1  # an image ran once
        server.until("fathom_places_taken", 0)


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"Compute-Budget": "depth=2"}, ""),
        ({"Compute-Budget": "ms=60000"}, ""),
        ({"Accept": "image/png"}, ""),
        ({"Value-Range": "auto"}, ""),
        ({"Content-Type": "application/octet-stream"}, ""),
        ({}, "?include=paused"),
    ],
)
def test_another_ask_is_another_answer(
    instance_manifest: Manifest, headers: dict[str, str], query: str
) -> None:
    with caching(instance_manifest) as server:
        assert status(server.post(quarters())) == "fwd=miss, stored"
        other = server.http.post(
            f"/segment{query}", content=quarters(), headers={"Content-Type": "image/png"} | headers
        )
        assert status(other) == "fwd=miss, stored"


def test_other_ceilings_of_the_node_make_other_answers(fake_manifest: Manifest) -> None:
    with caching(fake_manifest) as server:
        assert "depth=4" in server.post(quarters()).headers["compute-used"]
        server.model.node_budget = Budget(depth=1)
        answer = server.post(quarters())
        assert (status(answer), "depth=1" in answer.headers["compute-used"]) == (
            "fwd=miss, stored",
            True,
        )


def test_what_ceilings_decided_that_came_later_is_not_kept(fake_manifest: Manifest) -> None:
    with caching(fake_manifest) as server, ThreadPoolExecutor(2) as pool:
        server.gate.clear()
        runs = pool.submit(server.post, quarters(width=32))
        server.until("fathom_inflight", 1)
        waits = pool.submit(server.post, quarters())
        server.until("fathom_queue_depth", 1)
        server.model.node_budget = Budget(depth=1)
        server.gate.set()
        assert runs.result().status_code == 200
        assert "depth=1" in waits.result().headers["compute-used"]
        assert status(waits.result()) == "fwd=miss"
        server.model.node_budget = Budget()
        again = server.post(quarters())
        assert "depth=4" in again.headers["compute-used"]
        assert status(again) == "fwd=miss, stored"


@pytest.mark.parametrize("directive", ["no-cache", "max-age=0, No-Store"])
def test_a_request_may_want_an_answer_of_its_own(fake_manifest: Manifest, directive: str) -> None:
    with caching(fake_manifest) as server:
        fields = {"Cache-Control": directive}
        assert status(server.post(quarters(), fields)) == "fwd=request"
        assert status(server.post(quarters())) == "fwd=miss, stored"
        assert status(server.post(quarters(), fields)) == "fwd=request"


def test_errors_are_not_kept(fake_manifest: Manifest) -> None:
    with caching(fake_manifest) as server:
        for _ in range(2):
            rejected(server.post(b"no image"), 422, "undecodable-image")
        assert results(server)["hit"] == 0


def test_callers_with_keys_share_nothing(fake_manifest: Manifest, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(line("one", KEY) + line("two", OTHER))
    with caching(fake_manifest, api_keys_file=str(file)) as server:
        rejected_first = server.post(quarters())
        assert rejected_first.status_code == 401
        seen = [status(server.post(quarters(), {"X-API-Key": key})) for key in (KEY, OTHER, KEY)]
        assert seen == ["fwd=miss, stored", "fwd=miss, stored", "hit"]
        assert server.post(quarters()).status_code == 401


@contextmanager
def posting(server: Server, count: int) -> Iterator[list[Future[httpx.Response]]]:
    """That many posts of one image; the engine stands still until the block ends."""
    server.gate.clear()
    with ThreadPoolExecutor(count) as pool:
        posts = [pool.submit(server.post, quarters())]
        server.until("fathom_inflight", 1)
        posts += [pool.submit(server.post, quarters()) for _ in range(count - 1)]
        server.until("fathom_response_cache_requests_total", count - 1, result="collapsed")
        try:
            yield posts
        finally:
            server.gate.set()


def test_duplicates_in_flight_share_one_computation_and_one_place(
    fake_manifest: Manifest,
) -> None:
    with caching(fake_manifest, queue_size=2) as server:
        with posting(server, 6) as posts:
            server.until("fathom_places_taken", 0)  # the first one runs; the others need no place
            assert server.value("fathom_queue_depth") == 0
        answers = [post.result() for post in posts]
        assert len({answer.content for answer in answers}) == 1
        assert len({answer.headers["compute-used"] for answer in answers}) == 1
        seen = sorted(status(answer) for answer in answers)
        assert seen == [*["fwd=miss, collapsed"] * 5, "fwd=miss, stored"]
        used = http_sf.parse(answers[0].headers["compute-used"].encode(), tltype="dictionary")
        assert ran(server) == pytest.approx(float(used["gflops"][0]), abs=0.001)  # of one image
        assert status(server.post(quarters())) == "hit"


def test_bodies_of_those_who_wait_for_another_are_free(fake_manifest: Manifest) -> None:
    picture, followers = quarters() + bytes(1_000_000), 4
    with caching(fake_manifest) as server, ThreadPoolExecutor(1 + followers) as pool:
        server.gate.clear()
        leading = pool.submit(server.post, picture)
        server.until("fathom_inflight", 1)
        tracemalloc.start()
        try:
            following = [pool.submit(server.post, picture) for _ in range(followers)]
            name = "fathom_response_cache_requests_total"
            server.until(name, followers, result="collapsed")
            server.until("fathom_held_bytes", 0)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            server.gate.set()
        assert {each.result().status_code for each in (leading, *following)} == {200}
        assert held < followers * len(picture) / 2


def test_a_leader_that_leaves_loses_its_followers_nothing(fake_manifest: Manifest) -> None:
    with caching(fake_manifest) as server:
        server.gate.clear()
        data = quarters()
        with connected(server, len(data)) as leader, ThreadPoolExecutor(2) as pool:
            leader.sendall(data)
            server.until("fathom_inflight", 1)
            posts = [pool.submit(server.post, data) for _ in range(2)]
            server.until("fathom_response_cache_requests_total", 2, result="collapsed")
            leader.close()
            server.until("fathom_requests_total", 1, outcome="cancelled")
            server.gate.set()
            answers = [post.result() for post in posts]
            assert [status(answer) for answer in answers] == ["fwd=miss, collapsed"] * 2
        server.until("fathom_places_taken", 0)
        # The image ran once, and is counted once, though whoever began it is gone.
        assert layers_counted(server) == 1
        assert server.value("fathom_quality_given_up_count", reason="gate") == 1
        waited = server.value("fathom_stage_duration_seconds_count", stage="queue")
        ran = server.value("fathom_stage_duration_seconds_count", stage="encoder")
        assert (waited, ran) == (1, 1)
        assert server.value("fathom_stage_duration_seconds_count", stage="decode") == 1
        assert sum("server-timing" in answer.headers for answer in answers) == 1


def test_when_all_have_left_the_computation_ends(fake_manifest: Manifest) -> None:
    with caching(fake_manifest) as server:
        data = quarters()
        with ThreadPoolExecutor(1) as pool, posting(server, 1) as first:
            # Another image runs, so that the one that all leave still waits.
            other = quarters(width=32)
            with connected(server, len(other)) as leader, connected(server, len(other)) as follows:
                leader.sendall(other)
                server.until("fathom_queue_depth", 1)
                follows.sendall(other)
                server.until("fathom_response_cache_requests_total", 1, result="collapsed")
                leader.close()
                server.until("fathom_requests_total", 1, outcome="cancelled")
                assert server.value("fathom_queue_depth") == 1
                follows.close()
                server.until("fathom_queue_depth", 0)
            again = pool.submit(server.post, other)  # nobody joins what was cancelled
            server.until("fathom_queue_depth", 1)
        assert status(first[0].result()) == "fwd=miss, stored"
        assert status(again.result()) == "fwd=miss, stored"
        assert status(server.post(data)) == "hit"


def test_an_error_is_that_of_all_who_wait_for_it(fake_manifest: Manifest) -> None:
    fields = {"Compute-Budget": "ms=400"}
    with caching(fake_manifest) as server, ThreadPoolExecutor(2) as pool:
        server.post(quarters())
        server.gate.clear()
        posts = [pool.submit(server.post, quarters(), fields) for _ in range(2)]
        server.until("fathom_response_cache_requests_total", 1, result="collapsed")
        assert {post.result().status_code for post in posts} == {504}
        server.gate.set()
        answer = server.post(quarters(), fields)
        assert status(answer).startswith("fwd=miss")


def made(size: int, reason: Reason = Reason.GATE) -> Made:
    return Made(bytes(size), "image/png", Decision(PLAN, reason, 0.5), 1, (4, 4))


def cache(max_bytes: int) -> ResponseCache:
    return ResponseCache(max_bytes, Metrics(layers=4, max_batch=1))


def test_the_answers_asked_for_longest_ago_make_room() -> None:
    kept = cache(3 * OVERHEAD + 30)
    for name in (b"a", b"b", b"c"):
        kept._keep(name, made(10))
    assert kept.bytes == 3 * OVERHEAD + 30
    assert kept.find(b"a") is not None
    kept._keep(b"d", made(10))
    assert [kept.find(name) is not None for name in (b"a", b"b", b"c", b"d")] == [
        *(True, False, True, True)
    ]
    kept._keep(b"d", made(4))  # in place of the old one
    assert kept.bytes == 3 * OVERHEAD + 24
    kept._keep(b"e", made(3 * OVERHEAD))  # it would not even fit alone
    assert (kept.find(b"e"), kept.bytes) == (None, 3 * OVERHEAD + 24)


@pytest.mark.parametrize("reason", list(Reason))
def test_what_load_or_a_deadline_decided_is_for_its_caller_only(reason: Reason) -> None:
    kept, passing = cache(10_000), reason in (Reason.LOAD, Reason.DEADLINE)
    answer = made(10, reason)
    kept._keep(b"a", answer)
    assert (kept.find(b"a") is None) == passing
    assert ("stored" not in kept.status(answer)) == passing


def test_who_has_found_a_computation_gets_its_answer_though_all_others_leave_just_then() -> None:
    async def scenario() -> None:
        shared, ready = cache(10_000), asyncio.Event()

        async def work() -> Made:
            await ready.wait()
            return made(10)

        flight = shared.begin(b"a", work(), Trace("1"), lambda: None)
        leader = asyncio.create_task(shared.lead(flight))
        await asyncio.sleep(0)
        leader.cancel()
        assert shared.find(b"a") is flight
        follower = asyncio.create_task(shared.join(flight))
        await asyncio.wait([leader])
        ready.set()
        assert await follower == made(10)

    asyncio.run(scenario())


def test_keys_tell_all_values_apart() -> None:
    asks = [(1,), ("1",), ("1", ""), ("", "1"), (None,), (), ("a, b",), ("a", "b")]
    assert len({key_of(image, *ask) for image in (b"", b"1") for ask in asks}) == 2 * len(asks)
    assert key_of(b"1", "a") == key_of(b"1", "a")


@pytest.mark.parametrize(
    ("lines", "own"),
    [([], False), (["max-age=0"], False), (["no-cache"], True), (["a", "b, NO-STORE "], True)],
)
def test_cache_control_is_read_leniently(lines: list[str], own: bool) -> None:
    assert bypasses(lines) is own
