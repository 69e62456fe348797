"""A client that openapi-python-client generates from /openapi.json, with no setting of its own,
segments an image and reads segments, plans and errors."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from service.bundle import Manifest
from tests.api.server import running
from tests.needs import missing
from tests.pictures import quarters

PACKAGE = "generated_fathom_client"


def generate(url: str, folder: Path, package: str = PACKAGE) -> None:
    """A package in a folder, without the generator's own formatting."""
    config = folder / "config.yaml"
    config.write_text("post_hooks: []\n")
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"]
    command += ["--url", f"{url}/openapi.json", "--config", str(config)]
    command += ["--output-path", str(folder / package)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def part(name: str) -> ModuleType:
    return importlib.import_module(f"{PACKAGE}.{name}")


def test_a_generated_client_works(
    tmp_path: Path, fake_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("openapi_python_client") is None:
        missing("OPENAPI", "no openapi-python-client: pip install '.[test-service]'")
    with running(fake_manifest) as server:
        generate(server.url, tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        segment, plans = part("api.segment.segment"), part("api.operations.plans")
        models, types = part("models"), part("types")

        def form(content: bytes) -> object:
            return models.ImageForm(types.File(content, "photo.png", "image/png"))

        with part("client").Client(base_url=server.url) as client:
            answer = segment.sync_detailed(
                client=client, body=form(quarters()), compute_budget="depth=2"
            )
            assert answer.headers["Compute-Used"].startswith("depth=2, of=4")
            found = answer.parsed
            assert isinstance(found, models.Segmentation)
            assert (found.image.width, found.image.height) == (64, 48)
            assert [one.label for one in found.segments] == ["Road", "Building", "Car", "Sky"]
            assert found.segments[0].area == 32 * 24
            assert found.segments[0].box == [0, 0, 32, 24]
            assert found.segments[0].rle.counts
            assert (found.usage.plan, found.usage.of) == ("d2", 4)

            wrong = segment.sync(client=client, body=form(quarters()), compute_budget="depth=9")
            assert isinstance(wrong, models.Problem)
            assert (wrong.status, wrong["key"]) == (400, "depth")
            broken = segment.sync(client=client, body=form(b"no image"))
            assert (broken.status, broken.title) == (422, "The image cannot be decoded")
            poor = segment.sync(client=client, body=form(quarters()), compute_budget="gflops=1")
            assert (poor.status, poor["cheapest"]["gflops"]) == (422, 2.0)

            known = plans.sync(client=client)
            assert [plan.name for plan in known.plans] == ["d1", "d2", "d3", "d4"]
