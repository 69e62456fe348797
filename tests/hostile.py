"""Requests that no sound client sends, made from a seed: for the suite and for tests/bench/hostile.

Each is the bytes of one connection. Some stop in the middle; who sends them closes.
"""

from __future__ import annotations

import random
import re

METHODS = ("GET", "POST", "HEAD", "PUT", "OPTIONS", "CONNECT", "TRACE", "get", "", "G\0T", "PRI")
PATHS = (
    *("/segment", "/segment/", "/", "/plans", "/metrics", "/v2/models/x/infer", "/static/..%2f"),
    *(
        "*",
        "http://x/segment",
        "//x",
        "/%00",
        "/%ff%fe",
        "/" + "a" * 9000,
        "segment",
        "/?include=x",
    ),
    *("/segment?include=paused&include=paused", "/segment?depth=1", "/\xe9", "/a b", "/docs#x"),
)
VERSIONS = ("HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "http/1.1", "", "HTTP/1.1 x")
FIELDS = (
    *("Content-Type: image/png", "Content-Type: image/jpeg", "Content-Type: image/*"),
    *("Content-Type: multipart/form-data; boundary=b", "Content-Type: multipart/form-data"),
    *("Content-Type: multipart/form-data; boundary=" + "b" * 300, "Content-Type: \xff/\x01"),
    *("Content-Encoding: gzip", "Content-Encoding: Identity", "Expect: 100-continue"),
    *("Expect: x", "Upgrade: h2c", "Connection: Upgrade", "Connection: close", "Connection: x, y"),
    *("Compute-Budget: depth=1", "Compute-Budget: gflops=1e9", "Compute-Budget: depth=" + "9" * 99),
    *("Compute-Budget: \xe9", "Compute-Budget: ms=1", "Compute-Budget: a=(1 2);x", "Accept: x/y"),
    *("Accept: image/png;q=nan", "Accept: " + "a/b," * 2000, "Accept: */*;q=0", "Origin: null"),
    *(
        "Sec-Fetch-Site: cross-site",
        "traceparent: 00-zz",
        "X-Request-Id: \x7f",
        "Cookie: " + "c" * 9999,
    ),
    *(
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: chunked, chunked",
    ),
    *(
        "Content-Length: 5",
        "Content-Length: -5",
        "Content-Length: 0x5",
        "Content-Length: " + "9" * 30,
    ),
    *("Content-Length: 5, 5", "Content-Length:", "Host: y", "Host:", "Host: [::1", ": v", "A B: c"),
    *(" folded", "\tfolded", "X", "X: \0", "X: \r", "X: " + "x" * 40_000, "Trailer: X-API-Key"),
    *("Authorization: Bearer \xff", "X-API-Key:", "Forwarded: for=\x00", "X-Forwarded-For: a, b"),
)
ENDS = ("\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", "\r\n\r\n")
PARTS = (
    b'Content-Disposition: form-data; name="a"; filename="a"\r\n\r\nx\r\n',
    b'Content-Disposition: form-data; name="a"\r\n\r\n' + b"y" * 3000 + b"\r\n",
    b"Content-Disposition: form-data\r\n\r\n\r\n",
    b"\r\n\r\n",
    b"X: " + b"x" * 9000 + b"\r\n\r\n\r\n",
)


class Hostile:
    """photo: a sound image, which is sent whole, cut or changed."""

    def __init__(self, seed: int, photo: bytes) -> None:
        self._random, self._photo = random.Random(seed), photo

    def connection(self) -> bytes:
        """The bytes of one connection."""
        draw = self._random
        kind = draw.random()
        if kind < 0.05:
            return draw.randbytes(draw.choice((1, 10, 1000, 100_000)))
        sent = b"".join(self._request() for _ in range(draw.choice((1, 1, 1, 2, 5))))
        if kind < 0.2:
            sent = self._changed(sent)
        return sent[: draw.randrange(len(sent) + 1)] if kind > 0.9 else sent

    def _request(self) -> bytes:
        draw = self._random
        sound = draw.random() < 0.7
        method = "POST" if sound and draw.random() < 0.7 else draw.choice(METHODS)
        path = "/segment" if sound and draw.random() < 0.7 else draw.choice(PATHS)
        line = f"{method} {path} {'HTTP/1.1' if sound else draw.choice(VERSIONS)}"
        fields = draw.choices(FIELDS, k=draw.choice((0, 1, 2, 3, 8)))
        if draw.random() < 0.02:
            fields += [f"X-{i}: y" for i in range(draw.choice((90, 2000)))]
        if draw.random() < 0.9:
            fields.append("Host: x")
        body = self._body()
        if draw.random() < 0.8:
            fields.append(f"Content-Length: {len(body)}")
        draw.shuffle(fields)
        end = "\r\n" if sound else draw.choice(ENDS)
        return end.join([line, *fields, "", ""]).encode("latin-1") + body

    def _body(self) -> bytes:
        draw = self._random
        kind = draw.randrange(7)
        if kind == 0:
            return b""
        if kind == 1:
            return draw.randbytes(draw.choice((1, 100, 70_000)))
        if kind == 2:
            return self._photo
        if kind == 3:
            return self._changed(self._photo)
        if kind == 4:
            return b"".join(
                draw.choice(
                    (b"1\r\nx\r\n", b"zz\r\n", b"ffffffff\r\n", b"0\r\n\r\n", b"5;a=b\r\nabcde")
                )
                for _ in range(draw.choice((1, 10, 3000)))
            )
        if kind == 5:
            parts = draw.choices(PARTS, k=draw.choice((1, 3, 20)))
            return b"".join(b"--b\r\n" + part for part in parts) + b"--b--\r\n"
        return b"%x\r\n%s\r\n0\r\nX-API-Key: k\r\n\r\n" % (len(self._photo), self._photo)

    def _changed(self, data: bytes) -> bytes:
        draw, changed = self._random, bytearray(data)
        for _ in range(draw.choice((1, 3, 30))):
            if changed:
                changed[draw.randrange(len(changed))] = draw.randrange(256)
        return bytes(changed)


def statuses(answers: bytes) -> list[int]:
    """Of all that a connection answered."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) [A-Z]", answers)]


def is_failure(status: int) -> bool:
    """Whether it blames the service. 505 does not: it answers another version of HTTP."""
    return status >= 500 and status != 505
