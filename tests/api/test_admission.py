"""Places in the queue over real sockets: taken before the body is read, given back on every way
out; what is held in memory has a bound; estimates recover; a broken engine ends the service."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from service.api.fields import parse_urgency
from service.bundle import Manifest
from service.core import Budget
from service.engines.fake import FakeBackend
from service.inference.runner import FAILURES
from tests.api.server import Server, rejected, running
from tests.pictures import quarters

MIB = 2**20


@contextmanager
def filled(server: Server, waiting: int) -> Iterator[None]:
    """The engine stands still with one image, and that many wait."""
    server.gate.clear()
    with ThreadPoolExecutor(waiting + 1) as pool:
        posts = [pool.submit(server.post, quarters())]
        server.until("fathom_inflight", 1)
        posts += [pool.submit(server.post, quarters()) for _ in range(waiting)]
        server.until("fathom_queue_depth", waiting)
        try:
            yield
        finally:
            server.gate.set()
        assert {post.result().status_code for post in posts} == {200}


def connected(server: Server, length: int, *fields: str) -> socket.socket:
    """A connection with the head of a POST of that many bytes."""
    lines = ["POST /segment HTTP/1.1", "Host: x", "Content-Type: image/png", *fields]
    return opened(server, *lines, f"Content-Length: {length}")


def opened(server: Server, *lines: str) -> socket.socket:
    """A connection with those lines for a request's head."""
    port = httpx.URL(server.url).port or 0
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


def test_a_full_queue_refuses_at_once_and_reads_no_body(fake_manifest: Manifest) -> None:
    """Within about the time in which the service says that it lives: 1.2 times that when quiet."""
    with running(fake_manifest, queue_size=2, max_batch=1) as server, filled(server, 2):
        took_s: dict[str, list[float]] = {"lives": [], "refuses": []}
        for _ in range(20):
            began = time.perf_counter()
            with opened(server, "GET /v2/health/live HTTP/1.1", "Host: x") as connection:
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            between = time.perf_counter()
            # 7 MiB are promised and none is sent: whoever waits for the body waits for ever.
            with connected(server, 7 * MIB) as connection:
                answer = connection.recv(65536)
            took_s["lives"].append(between - began)
            took_s["refuses"].append(time.perf_counter() - between)
            assert answer.startswith(b"HTTP/1.1 429")
            assert b"retry-after" in answer.lower()
            assert b"connection: close" in answer.lower()
        print({name: min(seconds) for name, seconds in took_s.items()})
        assert min(took_s["refuses"]) < 3 * min(took_s["lives"])
        assert server.value("fathom_places_taken") == 2


def test_a_place_is_given_back_on_every_way_out(fake_manifest: Manifest) -> None:
    with running(fake_manifest, queue_size=64, max_body_bytes=100_000) as server:
        assert server.post(b"no image").status_code == 422
        assert server.post(quarters(), {"Content-Encoding": "gzip"}).status_code == 415
        assert server.post(bytes(200_000)).status_code == 413
        strict = {"Compute-Budget": "depth=1, max-loss=0, strict"}
        assert server.post(quarters(), strict).status_code == 422
        assert server.post(quarters(), {"Compute-Budget": "gflops=0.5"}).status_code == 422
        assert server.post(quarters()).status_code == 200
        infer = server.http.post("/v2/models/fake/infer", json={"inputs": []})
        assert infer.status_code == 400
        server.until("fathom_places_taken", 0)
        half = connected(server, 1000)
        server.until("fathom_places_taken", 1)  # while the body comes
        half.close()
        server.until("fathom_places_taken", 0)
        server.gate.clear()
        with connected(server, len(data := quarters())) as leaves:
            leaves.sendall(data)
            server.until("fathom_inflight", 1)
            waits = connected(server, len(data))
            waits.sendall(data)
            server.until("fathom_queue_depth", 1)
            waits.close()
            server.until("fathom_queue_depth", 0)
        server.gate.set()
        server.until("fathom_places_taken", 0)
        server.until("fathom_inflight", 0)
        queue = server.model.engine._queue
        end = time.monotonic() + 5
        while queue.answering:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_bytes_of_callers_that_left_count_until_they_are_free(
    fake_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threads that decode are busy: what waits for them is freed when its caller leaves, and
    what they hold counts until they are done."""
    decoding, held_up = threading.Semaphore(0), threading.Event()

    with running(fake_manifest, image_threads=2, queue_size=32) as server:
        frames = server.segmenter._frames

        def slow(*arguments: object) -> object:
            decoding.release()
            assert held_up.wait(20)
            return frames(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(server.segmenter, "_frames", slow)
        callers = [connected(server, MIB) for _ in range(8)]
        for caller in callers:
            caller.sendall(bytes(MIB))
        for _ in range(2):
            assert decoding.acquire(timeout=10)
        server.until("fathom_places_taken", 8)
        for caller in callers:
            caller.close()
        server.until("fathom_places_taken", 2)  # two are being decoded
        assert server.value("fathom_held_bytes") == 2 * MIB
        held_up.set()
        server.until("fathom_places_taken", 0)
        server.until("fathom_held_bytes", 0)


@pytest.mark.parametrize("of_the_node", [False, True])
def test_a_process_that_started_slowly_serves_all_the_same(
    fake_manifest: Manifest, of_the_node: bool
) -> None:
    with running(fake_manifest) as server:
        costs = server.model.engine._costs
        for cost in (*costs.front.values(), *costs.encoders.values(), *costs.heads.values()):
            cost.__init__(1e5 * cost.ms())  # type: ignore[misc]
        headers = {} if of_the_node else {"Compute-Budget": "ms=2000"}
        if of_the_node:
            server.model.node_budget = Budget(depth=4, ms=2000)
        rejected(server.post(quarters(), headers), 429, "overloaded")
        end = time.monotonic() + 10
        while server.post(quarters(), headers).status_code == 429:
            assert time.monotonic() < end, "it is refused for good"
            time.sleep(0.05)
        assert [server.post(quarters(), headers).status_code for _ in range(5)] == [200] * 5


def test_every_plan_is_used_before_anything_is_refused(fake_manifest: Manifest) -> None:
    """More and more callers that send again as soon as they are answered."""
    delays = {"front": 0.005, **{f"encoder-d{depth}": 0.02 * depth for depth in (1, 2, 3, 4)}}
    with running(fake_manifest, delay_s=delays, queue_size=5, max_batch=1) as server:
        plans: list[str] = []
        for callers in range(1, 12):
            with ThreadPoolExecutor(callers) as pool:
                posts = list(pool.map(lambda _: server.post(quarters()), range(3 * callers)))
            plans += [
                post.json()["usage"]["plan"]
                for post in posts
                if post.status_code == 200 and post.headers["content-type"] == "application/json"
            ]
            if any(post.status_code == 429 for post in posts):
                break
        else:
            pytest.fail("nothing was refused")
        assert {"d1", "d4"} <= set(plans)
        assert len(set(plans)) >= 3


@pytest.mark.parametrize(("wait_ms", "ms"), [(1000, 500), (1000, 800)])
def test_a_batch_wait_costs_no_deadline(fake_manifest: Manifest, wait_ms: int, ms: int) -> None:
    with running(fake_manifest, batch_wait_ms=wait_ms) as server:
        server.post(quarters())
        answers = [server.post(quarters(), {"Compute-Budget": f"ms={ms}"}) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200] * 3


def test_an_engine_that_fails_for_every_batch_is_not_ready_and_ends(
    fake_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> object:
        raise RuntimeError("the device is gone")

    with running(fake_manifest) as server:
        monkeypatch.setattr(FakeBackend, "run", broken)
        for _ in range(FAILURES):
            rejected(server.post(quarters()), 500, "internal")
        server.model.engine.ended.result(10)  # the process ends with this, see test_main
        rejected(server.http.get("/readyz"), 503, "not-ready")
        rejected(server.post(quarters()), 503, "not-ready")
        assert "the device is gone" in str(server.model.engine.failure)


def test_a_more_urgent_request_goes_first(fake_manifest: Manifest) -> None:
    slow = {"front": 0.05}
    with running(fake_manifest, delay_s=slow, max_batch=1) as server, ThreadPoolExecutor(4) as pool:
        server.gate.clear()
        ended: list[str] = []

        def post(name: str, priority: str) -> None:
            assert server.post(quarters(), {"Priority": priority}).status_code == 200
            ended.append(name)

        posts = [pool.submit(post, "runs", "")]
        server.until("fathom_inflight", 1)
        for waiting, (name, priority) in enumerate(
            (("background", "u=7"), ("usual", "what?"), ("urgent", "u=0, i")), start=1
        ):
            posts.append(pool.submit(post, name, priority))
            server.until("fathom_queue_depth", waiting)
        server.gate.set()
        for each in posts:
            each.result()
        assert ended == ["runs", "urgent", "usual", "background"]


@pytest.mark.parametrize(
    ("lines", "urgency"),
    [([], 3), ([""], 3), (["", "u=1"], 1), (["u=1", " ", "i"], 1), (["u=8"], 3), (["?"], 3)],
)
def test_empty_lines_of_priority_hide_no_other_line(lines: list[str], urgency: int) -> None:
    assert parse_urgency(lines) == urgency


def test_a_strict_request_waits_for_the_full_plan_or_is_refused(fake_manifest: Manifest) -> None:
    """An objective that the cheapest plans would hold, and the full plan for all would not."""
    delays = {"encoder-d1": 0.01, "encoder-d2": 0.1, "encoder-d3": 0.2, "encoder-d4": 0.3}
    settings = {"delay_s": delays, "max_batch": 1, "target_ms": 1000}
    with running(fake_manifest, **settings) as server, ThreadPoolExecutor(12) as pool:
        fields = {"Compute-Budget": "max-loss=0, strict"}
        strict = list(pool.map(lambda _: server.post(quarters(), fields), range(12)))
        refused = [answer for answer in strict if answer.status_code == 429]
        assert 6 <= len(refused) < 12
        assert all("depth=4" in a.headers["compute-used"] for a in strict if a not in refused)
        others = list(pool.map(lambda _: server.post(quarters()), range(12)))
        assert sum(answer.status_code == 429 for answer in others) < len(refused) / 2
