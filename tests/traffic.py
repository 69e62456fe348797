"""The service as a process, and callers of it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import httpx
from PIL import Image

from tests.pictures import encoded
from tests.processes import ROOT, answers, environment

PHOTOS = [(ROOT / "docs" / f"scene-{name}.jpg").read_bytes() for name in ("clear", "cluttered")]


def noise() -> bytes:
    """A picture on which, for the fake backend, depth helps much."""
    return encoded(Image.effect_noise((64, 48), 120).convert("RGB"))


class Traffic:
    """Callers of one service: threads that send again as soon as they are answered. answered: good
    answers so far."""

    def __init__(self, url: str) -> None:
        self.answered = 0
        self._http = httpx.Client(base_url=url, timeout=60, limits=httpx.Limits(max_connections=64))

    def send(self, image: bytes, budget: str = "") -> int:
        kind = "image/png" if image.startswith(b"\x89PNG") else "image/jpeg"
        headers = {"Content-Type": kind, "Accept": "image/png"} | (
            {"Compute-Budget": budget} if budget else {}
        )
        try:
            status = self._http.post("/segment", content=image, headers=headers).status_code
        except httpx.TransportError:
            return 0  # the service is being restarted
        self.answered += status == 200
        return status

    @contextmanager
    def running(self, callers: int, request: Callable[[int], tuple[bytes, str]]) -> Iterator[None]:
        """While this runs, `callers` threads send request(0), request(1), ..."""
        stop, numbers = threading.Event(), count()

        def call() -> None:
            while not stop.is_set():
                if self.send(*request(next(numbers))) == 429:
                    time.sleep(0.02)

        with ThreadPoolExecutor(callers) as pool:
            futures = [pool.submit(call) for _ in range(callers)]
            try:
                yield
            finally:
                stop.set()
        for future in futures:
            future.result()

    def close(self) -> None:
        self._http.close()


@contextmanager
def service(port: int, log: Path, *flags: str, module: str = "service") -> Iterator[None]:
    """The service as a process on that port of loopback, once it is ready. module:
    tests.faulty_service is another one.

    log: file that gets its words. Raises RuntimeError with them when it is not ready within 90 s.
    """
    command = [sys.executable, "-m", module, "--port", str(port), *flags]
    with (
        log.open("a") as words,
        subprocess.Popen(
            command, cwd=ROOT, stdout=words, stderr=words, env=environment()
        ) as process,
    ):
        try:
            end = time.monotonic() + 90
            while not answers(f"http://127.0.0.1:{port}/readyz"):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{module} did not get ready:\n{log.read_text()}")
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
