"""Over real HTTP: every rejection that is promised, in the order of their status, and connections
that break."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from PIL import Image

from service.answer import Answer
from service.api import forms
from service.api.forms import FORMS
from service.bundle import Manifest
from service.trace import Span
from tests.api.server import Server, rejected, running
from tests.image_files import png
from tests.pictures import encoded, quarters

pytestmark = pytest.mark.filterwarnings(
    "ignore::PIL.Image.DecompressionBombWarning"
)  # as outside of tests


def bomb() -> bytes:
    """22 KB for 177 megapixels of one bit."""
    return png(13300, 13300, 1, 0, bytes(1 + 1663) * 13300)


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ("depth=9", "depth"),
        ("depth=1.5", "depth"),
        ("gflops=0", "gflops"),
        ("gflops=?1", "gflops"),
        ("ms=0", "ms"),
        ("ms=fast", "ms"),
        ("max-loss=1.5", "max-loss"),
        ("max-loss=0.0001", "max-loss"),
        ("strict=1", "strict"),
        ("layers=3", "layers"),
        ("Depth=3", "Depth"),
    ],
)
def test_400_budget_names_the_key(server: Server, field: str, key: str) -> None:
    document = rejected(server.post(quarters(), {"Compute-Budget": field}), 400, "bad-header")
    assert (document["header"], document["key"]) == ("Compute-Budget", key)
    assert f"'{key}'" in document["detail"]


def test_400_weight_in_accept(server: Server) -> None:
    rejected(server.post(quarters(), {"Accept": "image/png;q=7"}), 400, "bad-header")


def test_400_query(server: Server) -> None:
    assert (
        rejected(server.post(quarters(), params={"depth": 2}), 400, "bad-query")["key"] == "depth"
    )


def test_404_and_405_are_problem_documents(server: Server) -> None:
    rejected(server.http.get("/segments"), 404, "not-found")
    response = server.http.get("/segment")
    rejected(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("accept", ["text/html", "image/webp", "image/png;q=0"])
def test_406_form(server: Server, accept: str) -> None:
    document = rejected(server.post(quarters(), {"Accept": accept}), 406, "not-acceptable")
    assert document["offered"] == [form.media_type for form in FORMS]


def test_408_slow_body_and_the_connection_is_closed(fake_manifest: Manifest) -> None:
    with running(fake_manifest, body_timeout_s=0.1) as server:
        with raw(
            server,
            b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 99\r\n\r\nabc",
        ) as slow:
            answer = everything(slow)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"urn:fathom:problem:request-timeout" in answer
        assert server.value("fathom_requests_total", outcome="request-timeout") == 1


def test_413_bytes_by_content_length(server: Server) -> None:
    rejected(server.post(bytes(200_001)), 413, "too-large")


def test_413_bytes_of_a_chunked_body_that_has_no_length(server: Server) -> None:
    chunks: Iterator[bytes] = (bytes(50_000) for _ in range(8))
    rejected(server.post(chunks), 413, "too-large")


def test_413_bytes_of_a_form(server: Server) -> None:
    rejected(
        server.http.post("/segment", files={"file": ("x", bytes(200_000), "image/png")}),
        413,
        "too-large",
    )


def test_413_pixels_of_a_small_file(server: Server) -> None:
    began = time.process_time()  # the server runs in this process
    document = rejected(server.post(bomb()), 413, "too-large")
    assert "13300 x 13300" in document["detail"]
    assert time.process_time() - began < 1  # decoding it takes seconds


def test_413_side(server: Server) -> None:
    rejected(server.post(encoded(Image.new("1", (8193, 16)))), 413, "too-large")


@pytest.mark.parametrize("content_type", ["image/gif", "application/json", "text/plain", ""])
def test_415_type(server: Server, content_type: str) -> None:
    rejected(server.post(quarters(), {"Content-Type": content_type}), 415, "unsupported-media-type")


def test_415_bytes_of_another_format_than_the_type_says(server: Server) -> None:
    document = rejected(server.post(quarters(kind="WEBP")), 415, "unsupported-media-type")
    assert "WebP" in document["detail"]


def test_415_encoded_body(server: Server) -> None:
    rejected(server.post(quarters(), {"Content-Encoding": "gzip"}), 415, "unsupported-media-type")


@pytest.mark.parametrize(
    "data", [b"", b"no image", quarters()[:60], b"GIF89a" + bytes(50), b"%!PS-Adobe-3.0 EPSF-3.0"]
)
def test_422_undecodable(server: Server, data: bytes) -> None:
    rejected(server.post(data), 422, "undecodable-image")


def test_422_smaller_than_the_smallest_side(server: Server) -> None:
    rejected(server.post(quarters(15, 64)), 422, "undecodable-image")


@pytest.mark.parametrize("files", [[("a", quarters()), ("b", quarters())], []])
def test_422_form_without_exactly_one_file(
    server: Server, files: Sequence[tuple[str, bytes]]
) -> None:
    parts = [(name, ("x", data, "image/png")) for name, data in files] or [
        ("note", (None, "hello"))
    ]
    rejected(server.http.post("/segment", files=parts), 422, "undecodable-image")


def test_422_budget_under_the_cheapest_plan_says_what_that_costs(server: Server) -> None:
    document = rejected(
        server.post(quarters(), {"Compute-Budget": "gflops=1.5"}), 422, "unsatisfiable-budget"
    )
    assert document["cheapest"] == {"plan": "d1", "depth": 1, "gflops": 2.0}


def test_422_strict_floor_out_of_reach(server: Server) -> None:
    budget = {"Compute-Budget": "depth=1, max-loss=0, strict"}
    rejected(server.post(quarters(), budget), 422, "unsatisfiable-budget")


def test_429_full_queue_503_draining_and_admitted_work_is_finished(fake_manifest: Manifest) -> None:
    with running(fake_manifest, queue_size=1, max_batch=1) as server, ThreadPoolExecutor(2) as pool:
        server.gate.clear()
        runs = pool.submit(server.post, quarters())
        server.until("fathom_inflight", 1)
        waits = pool.submit(server.post, quarters())
        server.until("fathom_queue_depth", 1)
        rejected(server.post(quarters()), 429, "overloaded")
        assert server.value("fathom_shed_total", reason="full") == 1

        drained = asyncio.run_coroutine_threadsafe(server.model.drain(10), server.loop)
        end = time.monotonic() + 10
        while server.model.state != "draining":
            assert time.monotonic() < end
            time.sleep(0.005)
        assert "draining" in rejected(server.post(quarters()), 503, "not-ready")["detail"]
        assert server.value("fathom_shed_total", reason="draining") == 1
        rejected(server.http.get("/readyz"), 503, "not-ready")
        assert server.http.get("/healthz").status_code == 200

        server.gate.set()
        assert runs.result().status_code == waits.result().status_code == 200
        drained.result(10)


def test_429_deadline_that_cannot_be_met(fake_manifest: Manifest) -> None:
    with running(fake_manifest, delay_s={"front": 0.03}) as server:
        rejected(server.post(quarters(), {"Compute-Budget": "ms=15"}), 429, "overloaded")
        assert server.value("fathom_shed_total", reason="predicted") == 1


def test_503_starting_while_the_process_already_lives(fake_manifest: Manifest) -> None:
    with running(fake_manifest, closed=True) as server:
        assert "starting" in rejected(server.post(quarters()), 503, "not-ready")["detail"]
        for path in ("/readyz", "/v2/health/ready", "/v2/models/fake/ready"):
            rejected(server.http.get(path), 503, "not-ready")
        assert server.http.get("/healthz").status_code == 200


def test_504_deadline_that_passes_while_running(fake_manifest: Manifest) -> None:
    with running(fake_manifest) as server:
        server.gate.clear()
        rejected(server.post(quarters(), {"Compute-Budget": "ms=300"}), 504, "deadline-exceeded")
        assert server.value("fathom_budget_missed_total", kind="deadline") == 1
        assert server.value("fathom_requests_total", outcome="deadline-exceeded") == 1


def test_an_answer_that_is_made_too_late_is_a_missed_deadline_too(
    fake_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = forms.segmentation

    def slowly(answer: Answer, names: Sequence[str], include: Set[str]) -> tuple[bytes, Span]:
        time.sleep(2.1)
        return make(answer, names, include)

    monkeypatch.setattr(forms, "segmentation", slowly)
    with running(fake_manifest) as server:
        assert server.post(quarters(), {"Compute-Budget": "ms=2000"}).status_code == 200
        assert server.value("fathom_budget_missed_total", kind="deadline") == 1
        assert server.value("fathom_requests_total", outcome="ok") == 1


def raw(server: Server, request: bytes) -> socket.socket:
    connection = socket.create_connection(
        ("127.0.0.1", httpx.URL(server.url).port or 0), timeout=10
    )
    connection.sendall(request)
    return connection


def everything(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_a_client_that_leaves_takes_its_job_out_of_the_queue(fake_manifest: Manifest) -> None:
    with running(fake_manifest, max_batch=1) as server, ThreadPoolExecutor(1) as pool:
        server.gate.clear()
        runs = pool.submit(server.post, quarters())
        server.until("fathom_inflight", 1)
        data = quarters()
        head = (
            "POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        leaves = raw(server, head.encode() + data)
        server.until("fathom_queue_depth", 1)
        leaves.close()
        server.until("fathom_queue_depth", 0)
        server.until("fathom_requests_total", 1, outcome="cancelled")
        server.gate.set()
        assert runs.result().status_code == 200


def test_a_connection_survives_a_rejection_with_an_unread_body(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        headers = {"Content-Type": "image/png"}
        assert (
            client.post(
                "/segment", content=bytes(150_000), headers=headers | {"Accept": "x/y"}
            ).status_code
            == 406
        )
        assert client.post("/segment", content=bytes(900_000), headers=headers).status_code == 413
        assert client.post("/segment", content=quarters(), headers=headers).status_code == 200
