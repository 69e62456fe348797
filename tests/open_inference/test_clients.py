"""Unmodified clients run every call that they have, against the service on a port of loopback.

They cannot be installed beside what the tests need (kserve wants psutil below 6 and protobuf below
7, tritonclient an older ml-dtypes), so they run in an environment of their own: `make test-clients`
makes it. CLIENTS_PYTHON names its interpreter if it lies elsewhere.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from service.bundle import Manifest
from tests.api.server import running
from tests.needs import missing
from tests.pictures import quarters

HERE = Path(__file__).parent
DEFAULT = HERE.parent.parent / ".venv" / "clients" / "bin" / "python"


def run(script: str, module: str, *arguments: str, sent: str = "") -> str:
    """What a script prints. sent: to its standard input. Skips where its client is not installed;
    REQUIRE_CLIENTS."""
    python = os.environ.get("CLIENTS_PYTHON", str(DEFAULT))
    if not Path(python).exists():
        missing("CLIENTS", f"there is no {python}: make test-clients")
    command = [python, "-c", f"import {module}"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        missing("CLIENTS", f"{module} is not installed for {python}")
    done = subprocess.run(
        [python, str(HERE / script), *arguments],
        input=sent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "image.png"
    path.write_bytes(quarters(64, 48))
    return str(path)


def test_every_call_of_tritons_http_client(fake_manifest: Manifest, image: str) -> None:
    with running(fake_manifest) as server:
        printed = run(
            "triton_http_calls.py", "tritonclient.http", server.url.removeprefix("http://"), image
        )
    assert "all calls: 24" in printed


def test_every_call_of_kserves_rest_client(fake_manifest: Manifest, image: str) -> None:
    with running(fake_manifest) as server:
        printed = run("kserve_calls.py", "kserve", server.url, image)
    assert "all calls: 6" in printed
