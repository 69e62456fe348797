"""Real service processes, as replicas that a test starts, asks and ends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.processes import ROOT, environment, until

_LINE = re.compile(r"request_id=(\S+) status=(\d+) outcome=(\S+)")


@dataclass
class Replica:
    """A service process. listed: whether the Service sends it requests."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""
    listed: bool = False

    def ready(self) -> bool:
        if not self.url:
            found = re.search(r"listening on (http://\S+?)[\"\s]", self.log.read_text())
            if found is None:
                return False
            self.url = found[1]
        try:
            return httpx.get(f"{self.url}/readyz", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def outcomes(self) -> dict[str, str]:
        """Request id -> outcome, of every request that the service has answered."""
        return {found[1]: found[3] for found in _LINE.finditer(self.log.read_text())}

    def end(self) -> None:
        """SIGTERM; the process must end by itself, cleanly."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(120) == 0, self.log.read_text()


@contextmanager
def replica(log: Path, *flags: str) -> Iterator[Replica]:
    """A process that is ready."""
    command = [sys.executable, "-m", "service", "--port", "0", *flags]
    with (
        log.open("wb") as file,
        subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=file) as process,
    ):
        try:
            started = Replica(process, log)
            until(started.ready, 120)
            started.listed = True
            yield started
        finally:
            process.kill()
