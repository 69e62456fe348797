"""Python as a process of its own: the service, or a few lines in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
