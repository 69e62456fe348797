"""A real service process on a free loopback port, for benchmarks and pictures."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.processes import ROOT, environment


@dataclass(frozen=True)
class Served:
    """url: http://127.0.0.1:PORT; start_s: from exec to the first 200 of /readyz."""

    url: str
    pid: int
    start_s: float


@contextmanager
def served(
    bundle: str, *flags: str, limit_s: float = 60, module: str = "service", folder: Path = ROOT
) -> Iterator[Served]:
    """module: what to run. folder: the checkout whose it is. Raises RuntimeError with the
    service's last words when it is not ready within limit_s."""
    begun, bundle = time.monotonic(), str(Path(bundle).resolve())
    command = [sys.executable, "-m", module, "--bundle", bundle, "--port", "0", *flags]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**environment(), "PYTHONPATH": str(folder)},
    )
    words: list[str] = []
    found = threading.Event()

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:  # read to the end: a full pipe would stop the service
            words.append(line)
            del words[:-50]
            if "listening on " in line:
                words.insert(0, line.split("listening on ")[1].strip())
                found.set()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        while not found.wait(0.05):
            if process.poll() is not None or time.monotonic() - begun > limit_s:
                listener.join(5)  # its last words may still be on their way
                raise RuntimeError("the service did not listen:\n" + "".join(words))
        url = words[0]
        while True:
            try:
                if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None or time.monotonic() - begun > limit_s:
                raise RuntimeError("the service did not get ready:\n" + "".join(words))
            time.sleep(0.01)
        yield Served(url, process.pid, time.monotonic() - begun)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        listener.join()  # ends with the pipe
        assert process.stderr is not None
        process.stderr.close()
