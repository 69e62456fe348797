"""Processes: the service, or a few lines in a fresh interpreter, and waiting for what they do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
# The service on a free port of loopback; a warning ends it.
STRICT_SERVICE = (sys.executable, "-W", "error", "-m", "service", "--port", "0")


def environment() -> dict[str, str]:
    """The environment without what would set up the service."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FATHOM_", "OTEL_"))
    }


def python(*words: str) -> subprocess.CompletedProcess[str]:
    """`python WORDS` in the repository's root, to its end."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def answers(url: str) -> bool:
    """Whether it answers with 200 now."""
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def until(true: Callable[[], bool], limit_s: float, what: str = "what never came") -> float:
    """Waits, and returns the seconds that it took."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < limit_s, f"waited {limit_s} s for {what}"
        time.sleep(0.1)
    return time.monotonic() - begun
