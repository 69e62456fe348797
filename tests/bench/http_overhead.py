"""What the HTTP server costs: ours (h11, with its limits) beside uvicorn's on httptools, in turns.

    python tests/bench/http_overhead.py [--requests 2000]

Both serve the same app with the fake engine, in one process; the client is a plain socket in
another. Needs httptools, which the service itself does not. Prints a table and ends in one JSON
line. Bar: p50 of an answer and of an early refusal within 0.3 ms.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import uvicorn
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from service import bundle  # noqa: E402
from service.api.app import create_app  # noqa: E402
from service.api.http1.connection import protocol  # noqa: E402
from service.engines.fake import FakeBackend  # noqa: E402
from service.model import Model, metrics_of  # noqa: E402
from service.segmenting import Segmenter  # noqa: E402
from service.settings import Settings  # noqa: E402

SERVERS = ("httptools", "h11")
BAR_MS = 0.3
ANSWER_BYTES = 20_000
TURN = 10  # requests of one kind to one server, before the other one's turn


def serve(http: str) -> int:
    """Start one server in a thread; returns its port."""
    settings = Settings(log_level="error")
    served = bundle.load(settings.bundle)
    metrics = metrics_of(served.manifest, settings)
    model = Model(served, settings, metrics, lambda: FakeBackend(served.manifest))
    app = create_app(settings, Segmenter(model, settings), metrics)

    @app.post("/echo")  # what a segmentation would be without its engine, whose noise is larger
    async def echo(request: Request) -> Response:
        return Response((await request.body())[:ANSWER_BYTES], media_type="image/png")

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        loop="uvloop",
        http=protocol(settings) if http == "h11" else http,  # type: ignore[arg-type]
        ws="none",
        timeout_keep_alive=60,  # httptools' server alone minds it
    )
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, args=([listener],), daemon=True).start()
    while model.state != "ready":
        time.sleep(0.01)
    return int(listener.getsockname()[1])


def requests_of(photo: bytes) -> dict[str, bytes]:
    """Kind of request -> its bytes."""
    post = (
        f" HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(photo)}\r\nAccept: "
    ).encode()
    return {
        "health": b"GET /healthz HTTP/1.1\r\nHost: x\r\nUser-Agent: bench\r\n\r\n",
        "refusal, 406": b"POST /segment" + post + b"text/html\r\n\r\n" + photo,
        "answer": b"POST /echo" + post + b"image/png\r\n\r\n" + photo,
    }


def ask(connection: socket.socket, sent: bytes) -> float:
    """Milliseconds until the whole answer is there."""
    began = time.perf_counter()
    connection.sendall(sent)
    read = b""
    while b"\r\n\r\n" not in read:
        part = connection.recv(262144)
        assert part, "the server closed the connection"
        read += part
    head, _, body = read.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(262144)
    return 1000 * (time.perf_counter() - began)


def measure(ports: list[int], sent: bytes, count: int) -> list[list[float]]:
    """Milliseconds per server, in turns on connections that are kept."""
    connections = [socket.create_connection(("127.0.0.1", port)) for port in ports]
    for connection in connections:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    spent: list[list[float]] = [[] for _ in ports]
    for turn in range(-1, count // TURN):  # one turn to warm up
        for index in (range(len(ports)), reversed(range(len(ports))))[turn % 2]:
            found = [ask(connections[index], sent) for _ in range(TURN)]
            if turn >= 0:
                spent[index] += found
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--serve", action="store_true", help="what the bench starts by itself")
    args = parser.parse_args()
    if args.serve:
        print(json.dumps([serve(http) for http in SERVERS]), flush=True)
        sys.stdin.read()
        return
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (45, 60, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((480, 360)).save(file, "JPEG", quality=92)
    command = [sys.executable, __file__, "--serve"]
    result: dict[str, dict[str, float]] = {}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        ports = json.loads(child.stdout.readline())
        print(f"{'p50 in ms':<16}" + "".join(f"{name:>12}" for name in SERVERS) + f"{'more':>9}")
        for kind, sent in requests_of(file.getvalue()).items():
            spent = measure(ports, sent, args.requests)
            p50 = [statistics.median(values) for values in spent]
            more = p50[1] - p50[0]
            result[kind] = {name: round(ms, 4) for name, ms in zip(SERVERS, p50, strict=True)}
            print(f"{kind:<16}" + "".join(f"{ms:>12.3f}" for ms in p50) + f"{more:>9.3f}")
        child.stdin.close()
    worst = max(kinds["h11"] - kinds["httptools"] for kinds in result.values())
    met = not math.isnan(worst) and worst <= BAR_MS
    print(json.dumps({"p50_ms": result, "most_more_ms": round(worst, 4), "met": met}))


if __name__ == "__main__":
    main()
