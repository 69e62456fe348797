"""An archive on Ray: examples/ray_batch.py, by its worker and as people run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from service.bundle import Bundle
from tests.needs import missing
from tests.pictures import quarters

ROOT = Path(__file__).resolve().parents[1]
QUARTERS = quarters(64, 48)


@pytest.fixture(autouse=True)
def needs_ray() -> None:
    if find_spec("ray") is None:
        missing("RAY", "Ray is not installed: make test-batch")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos" / "2026"
    folder.mkdir(parents=True)
    for i in range(5):
        (folder / f"{i}.png").write_bytes(QUARTERS)
    (folder / "bad.jpg").write_bytes(b"hello")
    (folder / "notes.md").write_text("no image")
    return folder.parent


def run(*words: object) -> str:
    """What the command said."""
    environment = os.environ | {"RAY_worker_niceness": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "examples/ray_batch.py", *map(str, words)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_bad_image_fails_alone(onnx_bundle: Bundle, photos: Path) -> None:
    from examples.ray_batch import Segment

    paths = [str(photos / "2026" / name) for name in ("0.png", "bad.jpg", "missing.png", "1.png")]
    worker = Segment(str(onnx_bundle.root), 1, {"gflops": 3.0}, png=True)
    found = worker({"path": np.array(paths)})
    assert found["path"] == paths
    assert [error and error.partition(":")[0] for error in found["error"]] == [
        None,
        "UndecodableImage",
        "FileNotFoundError",
        None,
    ]
    assert found["plan"] == ["d2", None, None, "d2"]
    assert json.loads(found["answer"][3])["usage"]["plan"] == "d2"
    assert found["png"][0] == found["png"][3]
    assert found["png"][0].startswith(b"\x89PNG")


def test_images_that_wait_make_no_plan_cheaper(onnx_bundle: Bundle, photos: Path) -> None:
    from examples.ray_batch import Segment

    worker = Segment(str(onnx_bundle.root), 1, {"max_loss": 0.0}, png=False)
    found = worker({"path": np.array([str(photos / "2026" / "0.png")] * 40)})
    assert set(found["plan"]) == {"d4"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_command_goes_on_where_it_was(
    onnx_bundle: Bundle, photos: Path, tmp_path: Path
) -> None:
    from pyarrow import parquet

    results = tmp_path / "results"
    words = (onnx_bundle.root, photos, results, "--workers", 2, "--rows", 1)
    assert "6 images, 0 of them done before" in run(*words)
    table = parquet.read_table(results).to_pylist()
    assert sorted(row["path"] for row in table) == sorted(
        str(file) for file in photos.rglob("*.*g")
    )
    assert [Path(row["path"]).name for row in table if row["error"]] == ["bad.jpg"]
    assert "6 images, 6 of them done before" in run(*words)
    one = min(results.glob("*.parquet"))
    again = parquet.read_table(one).num_rows
    one.write_bytes(one.read_bytes()[:-20])
    said = run(*words)
    assert f"{one} was cut: its images run again" in said
    assert f"6 images, {6 - again} of them done before" in said
    assert len(parquet.read_table(results)) == 6
    assert not one.exists()
    listing = tmp_path / "photos.txt"
    listing.write_text(f"{photos / '2026' / '0.png'}\n")
    assert "1 images, 1 of them done before" in run(onnx_bundle.root, listing, results)
