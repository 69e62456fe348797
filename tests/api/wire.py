"""A plain socket to a running service, for what HTTP clients would not send, and what they would
hide."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from tests.api.server import Server

CHUNKED = "Transfer-Encoding: chunked"


@dataclass(frozen=True)
class Reply:
    """headers: the names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        document: dict[str, Any] = json.loads(self.body)
        assert document["status"] == self.status
        return document


class Wire:
    """One connection. Nothing on it may take longer than 10 s."""

    def __init__(self, server: Server, *sent: bytes) -> None:
        port = httpx.URL(server.url).port or 0
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._read = b""
        for data in sent:
            self.send(data)

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def reply(self, method: str = "POST") -> Reply:
        """The next answer, its length known from its head."""
        while b"\r\n\r\n" not in self._read:
            self._more()
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:])
        }
        status = int(lines[0].split()[1])
        bodiless = method == "HEAD" or status < 200 or status == 204
        length = 0 if bodiless else int(headers["content-length"])
        while len(self._read) < length:
            self._more()
        body, self._read = self._read[:length], self._read[length:]
        return Reply(status, headers, body)

    def ask(self, data: bytes, method: str = "POST") -> Reply:
        self.send(data)
        return self.reply(method)

    def ended(self) -> bool:
        """Whether nothing more comes, and the other side has closed."""
        try:
            return self._read == b"" and self._socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _more(self) -> None:
        part = self._socket.recv(65536)
        assert part, f"the connection ended after {self._read!r}"
        self._read += part


def request(
    body: bytes = b"", *fields: str, line: str = "POST /segment HTTP/1.1", host: bool = True
) -> bytes:
    """A request with a sound length. fields: as `Name: value`."""
    lines = [line, *(["Host: x"] if host else []), *fields]
    if line.startswith("POST") and not any("transfer-encoding" in f.lower() for f in fields):
        lines.append(f"Content-Length: {len(body)}")
    if line.startswith("POST") and not any("content-type" in f.lower() for f in fields):
        lines.append("Content-Type: image/png")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def get(path: str = "/healthz", *fields: str) -> bytes:
    return request(b"", *fields, line=f"GET {path} HTTP/1.1")


def chunked(*chunks: bytes, trailers: tuple[str, ...] = ()) -> bytes:
    """A body in chunks, with its end."""
    data = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return data + "\r\n".join(["0", *trailers, "", ""]).encode()


def segmented(reply: Reply) -> bool:
    """Whether an image was answered."""
    return reply.status == 200 and "compute-used" in reply.headers
