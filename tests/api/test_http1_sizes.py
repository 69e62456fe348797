"""HTTP/1.1 with heads, targets and chunks at their limits: refused quickly, and with an answer."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import psutil
import pytest

from service.api.http1.reading import MAX_FIELDS, MAX_HEAD, MAX_TARGET
from service.bundle import Manifest
from tests import api_keys
from tests.api.server import Server, running
from tests.api.wire import CHUNKED, Wire, chunked, get, request, segmented
from tests.pictures import quarters


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
        slug = {431: "request-header-fields-too-large", 414: "uri-too-long"}[status]
        assert reply.problem["type"] == f"urn:fathom:problem:{slug}"  # by any version of Python
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
    keys.write_text(api_keys.line("caller", api_keys.KEY))
    with running(fake_manifest, api_keys_file=str(keys)) as server:
        for secret in (api_keys.KEY, "another"):
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
