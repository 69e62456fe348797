"""Other servers of the full plan, each as a process of its own environment on a loopback port."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.open_loop import Load, Wrap, send
from tests.bench.peers.full_plan import BATCHED, BUNDLE, KERNEL, THREADS
from tests.bench.served import Served
from tests.observed import free_port
from tests.processes import environment

ROOT = Path(__file__).resolve().parents[3]
START_S = 180.0
# Name -> how it takes images, and what its environment's bin/ runs; the port comes last.
PEERS: dict[str, tuple[Wrap, tuple[str, ...]]] = {
    "litserve": ("json", ("python", "-m", "tests.bench.peers.litserve_server")),
    "bentoml": (
        "form",
        (
            *("bentoml", "serve", "tests.bench.peers.bentoml_server:Service"),
            *("--host", "127.0.0.1", "--port"),
        ),
    ),
    "ray": ("body", ("python", "-m", "tests.bench.peers.ray_server")),
}
VARIANTS = ("", "batched", "our kernel")  # see full_plan.py
SETTINGS = {
    "BENTOML_DO_NOT_TRACK": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # 15 would let all other work of the machine go first
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # two busy cores take longer than its 5 s
}


@contextmanager
def peer(name: str, bundle: str, photo: str, *, threads: int, variant: str) -> Iterator[Served]:
    """A server, once it answers. name: one of PEERS; its environment: .venv/bench-NAME.
    variant: one of VARIANTS.

    Raises RuntimeError with its last words if it does not start.
    """
    wrap, (command, *words) = PEERS[name]
    folder = ROOT / ".venv" / f"bench-{name}" / "bin"
    if not (folder / command).exists():
        raise RuntimeError(f"{folder} has no {command}: make bench-peers-serving sets it up")
    port = free_port()
    own = {
        **environment(),
        **SETTINGS,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        BUNDLE: str(Path(bundle).resolve()),
        THREADS: str(threads),
        BATCHED: "1" if variant == "batched" else "0",
        KERNEL: "1" if variant == "our kernel" else "0",
    }
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [str(folder / command), *words, str(port)],
            cwd=ROOT,
            env=own,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # it has processes of its own, which end with it
        )
        try:
            url, begun = f"http://127.0.0.1:{port}", time.monotonic()
            while send(Load(url, [0.0], [photo], wrap=wrap))[0].status != 200:
                if process.poll() is not None or time.monotonic() - begun > START_S:
                    log.seek(0)
                    raise RuntimeError(f"{name} did not start:\n{log.read()[-4000:]}")
                time.sleep(0.5)
            yield Served(url, process.pid, time.monotonic() - begun)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """It and its children, politely at first."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            return
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            continue
        time.sleep(1.0)  # for its children
