"""How connections end: by time, by a refusal, with the service; and when they stay."""

from __future__ import annotations

import contextlib
import time

import pytest
from PIL import Image

from service.api.http1 import flow
from service.bundle import Manifest
from service.settings import Settings
from tests.api.server import Server, running
from tests.api.wire import CHUNKED, Wire, chunked, get, request, segmented
from tests.open_inference.asking import INFER, binary, elements
from tests.pictures import encoded, quarters


def test_a_head_that_does_not_arrive_is_408_and_a_silent_connection_ends(
    fake_manifest: Manifest,
) -> None:
    with running(fake_manifest, head_timeout_s=0.3) as server:
        began = time.monotonic()
        with Wire(server, b"GET /healthz HT") as partial, Wire(server) as silent:
            assert partial.reply().problem["type"] == "urn:fathom:problem:request-timeout"
            assert partial.ended()
            assert silent.ended()
        with Wire(server, get()) as second:  # behind a sound one
            second.reply()
            second.send(b"GET")
            assert second.reply().status == 408
        with Wire(server) as trickle:
            with contextlib.suppress(OSError):
                for byte in get("/healthz", "X: " + "x" * 100):
                    trickle.send(bytes([byte]))
                    time.sleep(0.02)
            assert trickle.reply().status == 408
        assert time.monotonic() - began < 8


def test_an_idle_connection_is_kept_longer_than_proxies_keep_it_and_not_for_ever(
    fake_manifest: Manifest,
) -> None:
    assert Settings().keep_alive_s > 75
    settings = {"keep_alive_s": 1.0, "head_timeout_s": 0.2}
    with running(fake_manifest, **settings) as server, Wire(server) as wire:
        for _ in range(3):
            assert wire.ask(get()).status == 200
            time.sleep(0.5)
        began = time.monotonic()
        assert wire.ended()
        assert time.monotonic() - began < 8


@pytest.mark.parametrize("framing", ["length", "chunks", "form"])
def test_a_body_that_keeps_coming_is_taken_however_long_and_a_trickle_is_not(
    fake_manifest: Manifest, framing: str
) -> None:
    data, step, wrap = quarters() + bytes(40_000), 2000, bytes
    head = request(data)
    if framing == "chunks":
        head, wrap = request(b"", CHUNKED), lambda part: b"%x\r\n%s\r\n" % (len(part), part)
    if framing == "form":
        part = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
        data = part + data + b"\r\n--b--\r\n"
        head = request(data, "Content-Type: multipart/form-data; boundary=b")
    head = head.removesuffix(data)
    with running(fake_manifest, body_timeout_s=0.25, body_min_rate=10_000) as server:
        with Wire(server, head) as wire:  # 40 kB/s for a second
            for i in range(0, len(data), step):
                wire.send(wrap(data[i : i + step]))
                time.sleep(0.05)
            if framing == "chunks":
                wire.send(b"0\r\n\r\n")
            assert segmented(wire.reply())
        began = time.monotonic()
        with Wire(server, head) as wire:  # a byte now and then
            with contextlib.suppress(OSError):
                for i in range(20):
                    wire.send(wrap(data[i : i + 1]))
                    time.sleep(0.05)
            reply = wire.reply()
            assert (reply.status, reply.headers["connection"]) == (408, "close")
        with Wire(server, head, wrap(data[:20_000])) as wire:  # a halt
            assert wire.reply().status == 408
            assert wire.ended()
        assert time.monotonic() - began < 5
        assert server.value("fathom_requests_total", outcome="request-timeout") == 2


def test_the_rest_of_an_unwanted_body_is_not_waited_for_for_ever(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.http1.connection.REST_S", 0.3)
    with Wire(server, request(bytes(1000), "Accept: x/y")[:-500]) as wire:
        assert wire.reply().status == 406
        assert wire.ended()


def test_a_client_that_does_not_read_its_answers_loses_the_connection(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "STALLED_S", 0.3)
    end = time.monotonic() + 60  # on a busy machine a thousand answers take seconds
    with Wire(server, get("/openapi.json") * 1000) as wire:
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < end:
                wire.send(get())
                time.sleep(0.05)
        assert time.monotonic() < end
    assert server.http.get("/healthz").status_code == 200


def test_answers_that_nobody_reads_are_bounded_over_all_connections(
    fake_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "UNREAD_BYTES", 8_000_000)
    file = elements([encoded(Image.new("L", (4000, 4000)))])  # its labels have 16 MB
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
    asked = {
        "inputs": [tensor | {"parameters": {"binary_data_size": len(file)}}],
        "outputs": [{"name": "labels", "parameters": {"binary_data": True}}],
    }
    body, fields = binary(asked, file)
    lines = [f"{name}: {value}" for name, value in fields.items()]
    sent = request(body, *lines, line=f"POST {INFER} HTTP/1.1")
    with (
        running(fake_manifest) as server,
        Wire(server, sent) as first,
        Wire(server) as reads,
        Wire(server) as second,
    ):
        server.until("fathom_requests_total", 1, outcome="ok")
        assert reads.ask(get()).status == 200
        second.send(sent)
        server.until("fathom_requests_total", 2, outcome="ok")
        with pytest.raises((ConnectionError, AssertionError)):
            first.reply()
        assert len(second.reply().body) > 16_000_000
        assert reads.ask(get()).status == 200


def test_expect_100_continue_is_answered_before_the_body(server: Server) -> None:
    sent = request(quarters(), "Expect: 100-continue")
    head = sent.removesuffix(quarters())
    with Wire(server, head) as wire:
        assert wire.reply().status == 100
        assert segmented(wire.ask(quarters()))
        assert wire.ask(get()).status == 200
        assert segmented(wire.ask(sent)) or segmented(wire.reply())  # who does not wait


@pytest.mark.parametrize(
    ("fields", "status"), [(("Accept: x/y",), 406), (("Compute-Budget: depth=99",), 400)]
)
def test_a_refusal_while_the_body_is_withheld_closes(
    server: Server, fields: tuple[str, ...], status: int
) -> None:
    data = quarters()
    head = request(data, "Expect: 100-continue", *fields).removesuffix(data)
    with Wire(server, head) as wire:
        reply = wire.reply()
        assert (reply.status, reply.headers["connection"]) == (status, "close")
        assert wire.ended()
    with Wire(server, head) as wire:
        wire.reply()
        with contextlib.suppress(OSError):  # a client that sends it after all
            wire.send(data + get())
        assert wire.ended()


@pytest.mark.parametrize("declared", [True, False])
def test_a_refusal_with_an_unread_body_leaves_a_usable_connection_or_closes_it(
    server: Server, declared: bool
) -> None:
    for size in (0, 1, 1000, 100_000, 3_000_000):
        body = bytes(size)
        sent = request(body, "Accept: x/y")
        if not declared:
            sent = request(b"", "Accept: x/y", CHUNKED) + chunked(body or b"x")
        with Wire(server) as wire:
            with contextlib.suppress(ConnectionError):
                wire.send(sent)
                wire.send(get())
            reply = wire.reply()
            assert reply.status == 406
            if reply.headers.get("connection") == "close":
                assert wire.ended()
            else:
                assert wire.reply().body == b'{"status":"alive"}'


def test_a_large_body_that_is_refused_does_not_cost_the_answer(server: Server) -> None:
    with Wire(server, request(bytes(20_000_000))) as wire:
        reply = wire.reply()
        assert (reply.status, reply.headers["connection"]) == (413, "close")
        assert wire.ended()


def test_a_broken_chunk_while_the_app_waits_ends_the_request(fake_manifest: Manifest) -> None:
    with running(fake_manifest) as server:
        with Wire(server, request(b"", CHUNKED) + b"3\r\nabc\r\n") as wire:
            time.sleep(0.1)  # the app has begun to read
            assert wire.ask(b"nonsense\r\n").status == 400
        server.until("fathom_requests_total", 1, outcome="cancelled")


def test_the_service_ends_with_open_connections_of_every_state(fake_manifest: Manifest) -> None:
    begun = b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    with contextlib.ExitStack() as stack:
        with running(fake_manifest, body_timeout_s=1.0) as server:
            for sent in (b"", b"GET", begun, get(), request(b"", host=False)):
                stack.enter_context(Wire(server, sent))
            stack.enter_context(Wire(server, begun + b"Content-Length: 9\r\n\r\nabc"))
            stack.enter_context(Wire(server, begun + b"Transfer-Encoding: chunked\r\n\r\n3\r\n"))
            time.sleep(0.2)
            began = time.monotonic()
        assert time.monotonic() - began < 8
