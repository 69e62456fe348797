"""The server itself, over plain sockets: framing, limits of size and time, and what becomes of a
connection."""

from __future__ import annotations

import contextlib
import hashlib
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from service.api.http1 import flow
from service.api.http1.reading import MAX_FIELDS, MAX_HEAD, MAX_TARGET
from service.bundle import Manifest
from service.settings import Settings
from tests.api.server import Server, running
from tests.api.wire import Reply, Wire, chunked, get, request
from tests.open_inference.asking import INFER, binary, elements
from tests.pictures import encoded, quarters

CHUNKED = "Transfer-Encoding: chunked"
KEY = "the caller's key"


def segmented(reply: Reply) -> bool:
    return reply.status == 200 and "compute-used" in reply.headers


# Framing.


@pytest.mark.parametrize(
    "fields",
    [
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAA"),
        (
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
        ),
        ("Connection: keep-alive, Upgrade", "Upgrade: made-up/7"),
        ("Upgrade: h2c",),
    ],
)
def test_an_unknown_upgrade_is_ignored_with_any_framing(
    server: Server, fields: tuple[str, ...]
) -> None:
    with Wire(server) as wire:
        assert segmented(wire.ask(request(quarters(), *fields)))
        in_chunks = request(b"", *fields, CHUNKED) + chunked(quarters())
        assert segmented(wire.ask(in_chunks))
        assert wire.ask(get("/healthz", *fields)).status == 200
        # before the first answer, as who hopes for another protocol would not
        wire.send(request(quarters(), *fields) + get())
        assert segmented(wire.reply())
        assert wire.reply().body == b'{"status":"alive"}'


@pytest.mark.parametrize("pieces", [1, 7])
def test_trailers_are_no_headers(fake_manifest: Manifest, tmp_path: Path, pieces: int) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"caller sha256:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
    with running(fake_manifest, api_keys_file=str(keys)) as server:
        secret = (f"X-API-Key: {KEY}", f"Authorization: Bearer {KEY}")
        sent = request(b"", CHUNKED) + chunked(quarters(), trailers=secret)
        step = -(-len(sent) // pieces)
        with Wire(server, *(sent[i : i + step] for i in range(0, len(sent), step))) as wire:
            assert wire.reply().status == 401
        budget = chunked(quarters(), trailers=("Compute-Budget: depth=9", "Host: y"))
        with Wire(server, request(b"", CHUNKED, secret[0]) + budget) as wire:
            assert segmented(wire.reply())
            assert wire.ask(get()).status == 200


@pytest.mark.parametrize(
    "sent",
    [
        request(quarters(), host=False),
        request(quarters(), "Host: y"),
        request(b"", CHUNKED, "Content-Length: 4") + chunked(b"abcd"),
        request(b"", "Transfer-Encoding: gzip, chunked") + chunked(b"abcd"),
        request(b"", "Transfer-Encoding: x"),
        request(b"", CHUNKED, line="POST /segment HTTP/1.0") + chunked(b"abcd"),
        request(b"", "Content-Length: 3", "Content-Length: 4"),
        b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: 1e3\r\n\r\n",
        request(b"", CHUNKED) + b"zz\r\n",
        request(b"", CHUNKED) + b"3\r\nabcdef\r\n",
        request(b"", CHUNKED) + b"f" * 30 + b"\r\n",
        request(line="GET / HTTP/1.2", host=False),
        request(line="GET / HTTP/11.1"),
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n: v\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA B: v\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),  # TLS to the wrong port
        bytes(100),
    ],
)
def test_400_what_cannot_be_read_in_one_way_alone_and_the_connection_ends(
    server: Server, sent: bytes
) -> None:
    with Wire(server, sent) as wire:
        reply = wire.reply()
        assert reply.status == 400
        assert reply.problem["type"] == "urn:fathom:problem:bad-request"
        assert "bytearray" not in reply.problem["detail"]
        assert reply.headers["connection"] == "close"
        assert reply.headers["x-request-id"] in reply.problem["instance"]
        assert wire.ended()


HOSTS = (
    "a b",
    "a,b",
    "u@x",
    "[::1",
    "::1",
    "[x]",
    "<script>",
    "x:abc",
    "x:1:2",
    "x/y",
    "%zz",
    "\xe9",
)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_400_a_host_that_can_be_none(server: Server, host: str, version: str) -> None:
    line = f"GET /healthz HTTP/{version}"
    with Wire(server, request(b"", f"Host: {host}", line=line, host=False)) as wire:
        reply = wire.reply()
        assert (reply.status, reply.headers["connection"]) == (400, "close")
        assert "Host must be" in reply.problem["detail"]


@pytest.mark.parametrize(
    "host",
    [
        *(
            "",
            "x",
            "x:",
            "x:80",
            "A-1_b.example.",
            "127.0.0.1:8000",
            "[::1]:8000",
            "[::ffff:1.2.3.4]",
        ),
        *("[fe80::1%25eth0]", "a~b!c", "a%20b"),
    ],
)
def test_names_and_addresses_are_hosts(server: Server, host: str) -> None:
    with Wire(
        server, request(b"", f"Host: {host}", line="GET /healthz HTTP/1.1", host=False)
    ) as wire:
        assert wire.reply().status == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        request(line="GET / HTTP/2.0"),
        request(line="GET / HTTP/3.1"),
        request(line="GET / HTTP/0.9", host=False),
    ],
)
def test_505_another_major_version(server: Server, sent: bytes) -> None:
    with Wire(server, sent) as wire:
        reply = wire.reply()
        assert reply.problem["type"] == "urn:fathom:problem:http-version-not-supported"
        assert "HTTP/1.1" in reply.problem["detail"]
        assert (reply.status, reply.headers["connection"]) == (505, "close")
        assert wire.ended()


@pytest.mark.parametrize("version", ["1.2", "1.9"])
def test_a_later_minor_version_is_read_as_1_1(server: Server, version: str) -> None:
    line = f"POST /segment HTTP/{version}"
    with Wire(server, request(b"", CHUNKED, line=line) + chunked(quarters())) as wire:
        assert segmented(wire.reply())
        assert segmented(wire.ask(request(quarters(), line=line)))  # the connection stays


def test_what_other_clients_send_is_read(server: Server) -> None:
    with Wire(server) as wire:
        assert wire.ask(b"\r\n" + get()).status == 200  # RFC 9112, 2.2
        assert wire.ask(get("http://elsewhere.example/healthz?x=1")).status == 200  # 3.2.2
        assert wire.ask(get("http://elsewhere.example")).status == 200
        assert wire.ask(get("/healthz", "Connection: keep-alive")).status == 200
        assert wire.ask(request(line="OPTIONS * HTTP/1.1")).status == 404
        assert wire.ask(request(line="GET /healthz HTTP/1.0", host=False)).status == 200
        assert wire.ended()


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    paths = ["/healthz", "/plans", "/nothing", "/readyz"] * 5
    with Wire(server, b"".join(map(get, paths)) + request(quarters()) + get()) as wire:
        assert [wire.reply().status for _ in paths] == [200, 200, 404, 200] * 5
        assert segmented(wire.reply())
        assert wire.reply().status == 200


@pytest.mark.parametrize("tail", [b"\n", b"\r\n", b"junk", get(), bytes(100_000)])
@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("HTTP/1.0", "A: b"),
        ("HTTP/1.0", "Connection: keep-alive"),
        ("HTTP/1.1", "Connection: close"),
    ],
)
def test_what_follows_a_last_request_costs_no_answer(
    server: Server, line: str, field: str, tail: bytes
) -> None:
    """RFC 9112, 9.6. The tail comes with the request, or behind it."""
    for sent in (
        request(quarters(), field, line=f"POST /segment {line}"),
        request(b"", field, line=f"GET /healthz {line}"),
    ):
        for pieces in ((sent + tail,), (sent, tail)):
            with Wire(server, *pieces) as wire:
                reply = wire.reply()
                assert (reply.status, reply.headers["connection"]) == (200, "close")
                assert wire.ended()


@pytest.mark.parametrize("between", [b"\n", b"\r\n", b"\r\n" * 1000])
def test_empty_lines_between_requests_are_ignored(server: Server, between: bytes) -> None:
    """RFC 9112, 2.2: in the same packet as the request before them, as well."""
    in_chunks = request(b"", CHUNKED) + chunked(quarters())
    with Wire(server, between.join([request(quarters()), in_chunks, get(), get(), b""])) as wire:
        assert segmented(wire.reply())
        assert segmented(wire.reply())
        assert wire.reply().body == wire.reply().body == b'{"status":"alive"}'
        assert wire.ask(between[:1] + get()).status == 200


def test_head_is_get_without_a_body(server: Server) -> None:
    paths = ["/", "/docs", "/static/docs.js", "/openapi.json", "/plans", "/healthz", "/readyz"]
    paths += ["/metrics", "/v2", "/v2/health/live", "/v2/models/fake", "/v2/models/fake/ready"]
    for path in (*paths, "/nothing", "/v2/models/other", "/static/none.js"):
        with Wire(server) as wire:
            reply = wire.ask(request(line=f"HEAD {path} HTTP/1.1"), "HEAD")
            other = wire.ask(get(path))
            assert reply.status == other.status, path
            assert reply.headers["content-type"] == other.headers["content-type"]
            if path != "/metrics":  # another one each time
                assert reply.headers["content-length"] == other.headers["content-length"]
    with Wire(server) as wire:
        reply = wire.ask(request(line="HEAD /segment HTTP/1.1"), "HEAD")
        assert (reply.status, reply.headers["allow"]) == (405, "POST")
        assert wire.ask(request(line="PUT /healthz HTTP/1.1")).headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/segment/", "/plans/", "/segment//", "//evil.example/segment"])
def test_no_redirect_is_made_from_the_callers_host(server: Server, path: str) -> None:
    for line in (f"POST {path} HTTP/1.1", f"GET {path} HTTP/1.1"):
        with Wire(server, request(b"", line=line)) as wire:
            reply = wire.reply()
            assert reply.status == 404
            assert "location" not in reply.headers


# Sizes.


def flood(name: str) -> tuple[bytes, bytes, int]:
    """The beginning of a request, what follows it again and again, and the answer's status."""
    start = b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    return {
        "one header": (start + b"X: ", b"x" * 65536, 431),
        "a name": (start, b"x" * 65536, 431),
        "many headers": (start, b"abcdefg: hijklmnopq\r\n" * 3000, 431),
        "tiny headers": (start, b"a:\n" * 20000, 431),
        "a folded header": (start + b"X: x\r\n", b" x\r\n" * 16000, 431),
        "a target": (b"GET /", b"x" * 65536, 414),
        "a query": (b"GET /?", b"x=1&" * 16384, 414),
        "a method": (b"", b"G" * 65536, 414),
        "trailers": (start + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n" * 9000, 431),
        "a chunk's extension": (
            start + b"Transfer-Encoding: chunked\r\n\r\n5;x=",
            b"x" * 65536,
            431,
        ),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        *("one header", "a name", "many headers", "tiny headers", "a folded header"),
        *("a target", "a query", "a method", "trailers", "a chunk's extension"),
    ],
)
def test_heads_are_bounded_quickly_and_without_memory(server: Server, name: str) -> None:
    start, more, status = flood(name)
    process, began = psutil.Process(), time.monotonic()
    before = process.memory_info().rss
    with Wire(server, start) as wire:
        with contextlib.suppress(ConnectionError):
            for _ in range(1600):  # about 100 MB
                wire.send(more)
        assert process.memory_info().rss - before < 8e6
        with contextlib.suppress(ConnectionResetError):
            reply = wire.reply()
            assert reply.status == status
            assert reply.headers["connection"] == "close"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("name", ["one header", "many headers", "a target", "trailers"])
def test_who_reads_gets_the_answer_to_too_large_a_head_and_the_log_has_its_id(
    server: Server, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    start, more, status = flood(name)
    with caplog.at_level("INFO", "fathom.http"), Wire(server, start, more) as wire:
        reply = wire.reply()
        assert reply.problem["type"].endswith(
            {431: "request-header-fields-too-large"}.get(status, "-uri-too-long").lstrip("-")
        )
    (line,) = (record.getMessage() for record in caplog.records if record.name == "fathom.http")
    assert line.startswith(f"request_id={reply.headers['x-request-id']} status={status} detail=")


def test_what_fits_is_taken(server: Server) -> None:
    with Wire(server) as wire:
        assert wire.ask(get("/healthz", "X: " + "x" * (MAX_HEAD - 100))).status == 200
        many = [f"X-{i}: y" for i in range(MAX_FIELDS - 1)]
        assert wire.ask(get("/healthz", *many)).status == 200
        query = "/healthz?" + "x" * (MAX_TARGET - len("/healthz?"))
        assert wire.ask(get(query)).status == 200
        assert wire.ask(get("/healthz", *many, "Y: z")).status == 431


def framed(kind: str, size: int) -> bytes:
    """A request whose head, trailers or chunk's line has this many bytes, with its line ends."""
    if kind == "head":
        short = request(quarters()).removesuffix(quarters())
        return request(quarters(), "X: " + "x" * (size - len(short) - 5))
    if kind == "trailers":
        return request(b"", CHUNKED) + chunked(quarters(), trailers=("X: " + "x" * (size - 7),))
    line = b"%x;x=" % len(quarters())
    line += b"x" * (size - len(line) - 2) + b"\r\n"
    return request(b"", CHUNKED) + line + quarters() + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize("kind", ["head", "trailers", "line"])
@pytest.mark.parametrize("size", [1000, MAX_HEAD, MAX_HEAD + 1, 40_000, 60_000])
def test_the_limit_does_not_depend_on_how_the_bytes_come(
    server: Server, kind: str, size: int
) -> None:
    sent = framed(kind, size)
    for step in (len(sent), 10_000, 3 * len(sent) // 4):
        with Wire(server) as wire:
            with contextlib.suppress(ConnectionError):
                for i in range(0, len(sent), step):
                    wire.send(sent[i : i + step])
                    time.sleep(0.005)
            reply = wire.reply()
            assert (reply.status == 431) if size > MAX_HEAD else segmented(reply)


def test_a_head_over_the_limit_is_refused_before_the_key_is_looked_at(
    fake_manifest: Manifest, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"caller sha256:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
    with running(fake_manifest, api_keys_file=str(keys)) as server:
        for secret in (KEY, "another"):
            fields = (f"X-API-Key: {secret}", "X: " + "x" * MAX_HEAD)
            with Wire(server, request(b"", *fields)) as wire:
                assert wire.reply().status == 431


def test_floods_of_tiny_chunks_are_refused_and_small_ones_are_not(server: Server) -> None:
    with Wire(server, request(b"", CHUNKED) + chunked(*(b"x" for _ in range(30_000)))) as wire:
        assert "chunks" in wire.reply().problem["detail"]
    data = quarters() + bytes(150_000)
    pieces = [data[i : i + 300] for i in range(0, len(data), 300)]
    with Wire(server, request(b"", CHUNKED) + chunked(*pieces)) as wire:
        assert wire.reply().status in (200, 422)
        assert wire.ask(get()).status == 200


# Times.


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
    end = time.monotonic() + 10
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


# What becomes of a connection.


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
