"""/openapi.json is true: schemathesis asks the running service what the document allows and what it
forbids, and holds every answer against it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from service.bundle import Manifest
from tests.api.server import running
from tests.api_keys import line
from tests.needs import missing
from tests.processes import ROOT, environment

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).with_name("schemathesis.toml")
KEY = "a-key-of-the-test"
# The first test tries every value of every field: most of the time goes there.
BRIEFLY = ("--phases", "examples,fuzzing", "--max-examples", "10")
ANSWERS_ONLY = (
    "status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance"
)


@pytest.fixture(autouse=True)
def _schemathesis() -> None:
    if importlib.util.find_spec("schemathesis") is None:
        missing("OPENAPI", "no schemathesis: pip install '.[test-service]'")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The configuration, with the path parameters of the manifests of these tests."""
    path = tmp_path / "schemathesis.toml"
    known = '[parameters]\n"path.name" = "fake"\n"path.version" = "1"\n'
    path.write_text(f"{CONFIG.read_text('utf-8')}\n{known}")
    return path


def test_every_check_passes(config: Path, fake_manifest: Manifest) -> None:
    with running(fake_manifest) as server:
        check(config, server.url, "--max-examples", "30")


def test_every_check_passes_where_keys_are_asked_for(
    config: Path, tmp_path: Path, instance_manifest: Manifest
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(line("tester", KEY))
    with config.open("a") as file:
        file.write(f'[auth.openapi]\nAPIKeyHeader = {{ api_key = "{KEY}" }}\n')
        file.write(f'HTTPBearer = {{ bearer = "{KEY}" }}\n')
    with running(instance_manifest, api_keys_file=str(keys)) as server:
        check(config, server.url, *BRIEFLY)


def test_answers_of_a_bundle_with_several_heads_are_documented(
    config: Path, several_heads: Manifest
) -> None:
    """What is not asked for cannot be named, which the document has no words for."""
    with running(several_heads) as server:
        checks = f"not_a_server_error,{ANSWERS_ONLY}"
        check(config, server.url, *BRIEFLY, checks=checks)


def test_answers_of_a_service_that_is_not_ready_are_documented(
    config: Path, fake_manifest: Manifest
) -> None:
    with running(fake_manifest, closed=True) as server:
        check(config, server.url, *BRIEFLY, checks=ANSWERS_ONLY)


def check(config: Path, url: str, *words: str, checks: str = "all") -> None:
    """Fails with schemathesis's report, which has a curl command for every failure."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"]
    command += [f"{url}/openapi.json", "--checks", checks, "--seed", "1", "--no-color", *words]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
