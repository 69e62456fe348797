"""HTTP/1.1 on the wire: what is read as a request, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.bundle import Manifest
from tests import api_keys
from tests.api.server import Server, running
from tests.api.wire import CHUNKED, Wire, chunked, get, request, segmented
from tests.pictures import quarters


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
    keys.write_text(api_keys.line("caller", api_keys.KEY))
    with running(fake_manifest, api_keys_file=str(keys)) as server:
        secret = (f"X-API-Key: {api_keys.KEY}", f"Authorization: Bearer {api_keys.KEY}")
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
