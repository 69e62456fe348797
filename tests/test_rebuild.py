"""rebuild: the graphs of a bundle again, with the costs that they have now."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from model_export.training.bundle_weights import WEIGHTS
from service import bundle
from tests.toy import command

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(900)]


@pytest.fixture
def dearer(toy_bundle: Path, tmp_path: Path) -> Path:
    """The toy bundle as if its graphs had cost twice as much, when they were written."""
    folder = tmp_path / "dearer"
    shutil.copytree(toy_bundle, folder)
    manifest = bundle.load(folder).manifest
    plans = (replace(plan, gflops=2 * plan.gflops) for plan in manifest.encoder_plans)
    bundle.save(folder, replace(manifest, encoder_plans=tuple(plans), revision="before"))
    return folder


def test_graphs_and_costs_are_of_this_version_and_the_rest_stays(
    toy_bundle: Path, dearer: Path, tmp_path: Path
) -> None:
    assert command("rebuild", dearer, "-o", tmp_path / "new") == 0
    want, got = bundle.load(toy_bundle).manifest, bundle.load(tmp_path / "new").manifest
    assert got.encoder_plans == want.encoder_plans
    assert (got.margins, got.heads, got.provenance) == (want.margins, want.heads, want.provenance)
    assert {name: stage.sha256 for name, stage in got.stages.items()} == {
        name: stage.sha256 for name, stage in want.stages.items()
    }
    assert (tmp_path / "new" / WEIGHTS).read_bytes() == (dearer / WEIGHTS).read_bytes()
    assert got.revision != "before"
    assert command("rebuild", dearer, "-o", tmp_path / "new") == 1, "nothing is overwritten"
