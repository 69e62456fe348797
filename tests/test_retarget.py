"""retarget: a new gate and new margins in an old bundle, whose graphs stay what they are."""

from __future__ import annotations

import errno
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model_export.data.augment import on_canvases
from model_export.data.datasets import Scenes
from model_export.network.gate import gate_input
from model_export.network.knobs import Knobs
from model_export.tasks import TASKS, qualities
from model_export.training.bundle_weights import WEIGHTS, read_weights
from model_export.training.quality import counts_by_knobs
from service import bundle
from service.engines.onnxruntime import OnnxRuntimeBackend
from service.inference.stages import Stages
from tests.toy import CANVASES, PLANS, command, last_json

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = ("--fit", "scenes:6:8", "--held", "scenes:3:9")


@pytest.fixture(scope="module")
def retargeted(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retargeted") / "other"
    assert command("retarget", toy_bundle, "-o", folder, *WORDS) == 0
    return folder


def test_the_service_s_gate_is_the_new_one(toy_bundle: Path, retargeted: Path) -> None:
    """The front graph was not written again: it must find the new tensors where the old ones
    were."""
    model, gate, canvases = read_weights(retargeted / WEIGHTS)
    frame = on_canvases(Scenes(1, 9)[0], canvases)[canvases[0].name]
    with torch.inference_mode():
        _, maps = model.features(torch.from_numpy(frame.pixels)[None])
        size = torch.tensor([[360.0, 480.0]])
        wanted = gate(gate_input(maps, model.front_head(maps), size)).numpy()
    scores = {}
    for folder in (toy_bundle, retargeted):
        served = bundle.load(folder)
        backend = OnnxRuntimeBackend(served, threads=1)
        scores[folder] = Stages(backend, served.manifest).glance([frame])[1]
        backend.close()
    assert np.abs(scores[retargeted] - wanted).max() < 1e-4
    assert np.abs(scores[toy_bundle] - wanted).max() > 1e-3


def test_graphs_stay_and_qualities_are_those_of_the_held_out_images(
    toy_bundle: Path, retargeted: Path
) -> None:
    for graph in toy_bundle.glob("*.onnx"):
        assert graph.read_bytes() == (retargeted / graph.name).read_bytes()
    manifest, (model, _, canvases) = (
        bundle.load(retargeted).manifest,
        read_weights(retargeted / WEIGHTS),
    )
    assert canvases == CANVASES
    assert manifest.name == "other"
    assert (manifest.calibration["data"], manifest.calibration["images"]) == ("scenes:3:9", 3)
    knobs = [Knobs.parse(name) for name in PLANS]
    counts = np.stack(
        [counts_by_knobs(model, sample, canvases, knobs)[0] for sample in iter_of(Scenes(3, 9))]
    )
    wanted = qualities(TASKS[model.config.task], counts).mean(0)
    assert [plan.quality for plan in manifest.plans] == pytest.approx(wanted.tolist(), abs=1e-4)
    assert [plan.gflops for plan in manifest.plans] == [
        p.gflops for p in bundle.load(toy_bundle).manifest.plans
    ]


def iter_of(data: Scenes) -> list[object]:
    return [data[i] for i in range(len(data))]


def test_it_says_how_long_it_took_and_what_may_be_promised(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("retarget", toy_bundle, "-o", tmp_path / "new", *WORDS) == 0
    found = last_json(capsys.readouterr().out)
    assert found["images"] == 9
    assert float(str(found["seconds"])) > 0
    margins = bundle.load(tmp_path / "new").manifest.margins
    assert found["margins"] == [{"asked": row.asked, "margin": row.margin} for row in margins]


def without_canvases(folder: Path) -> Path:
    """The bundle with the plans' names of before there were canvases."""
    manifest = bundle.load(folder).manifest
    graphs = {
        shape: replace(
            own, encoders={Knobs.parse(name).encoder: stage for name, stage in own.encoders.items()}
        )
        for shape, own in manifest.graphs.items()
    }
    plans = tuple(
        replace(plan, name=Knobs.parse(plan.name).encoder) for plan in manifest.encoder_plans
    )
    bundle.save(folder, replace(manifest, encoder_plans=plans, graphs=graphs))
    return folder


def test_what_cannot_be_retargeted_is_refused_and_nothing_is_written(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    broken = shutil.copytree(toy_bundle, tmp_path / "broken")
    (broken / WEIGHTS).write_bytes(b"")
    older = without_canvases(shutil.copytree(toy_bundle, tmp_path / "older"))
    for source, out, words, message in (
        (toy_bundle, full, WORDS, "not empty"),
        (broken, tmp_path / "new", WORDS, "sha256"),
        (older, tmp_path / "new", WORDS, "is of an older version"),
        (tmp_path / "none", tmp_path / "new", WORDS, "manifest.json"),
        (toy_bundle, tmp_path / "new", ("--fit", "scenes:2", "--held", "scenes:3:9"), "--fit"),
        (
            toy_bundle,
            tmp_path / "new",
            ("--fit", "scenes:6:8", "--held", "scenes:9"),
            "which the network learned from",
        ),
        (
            toy_bundle,
            tmp_path / "new",
            ("--fit", "scenes:6", "--held", "scenes:3:9"),
            "was not trained on",
        ),
        (toy_bundle, tmp_path / "new", ("--fit", "camvid:gate", "--held", "camvid:dev"), "--data"),
    ):
        assert command("retarget", source, "-o", out, *words) == 1
        assert message in capsys.readouterr().err
    # What was measured before the gate could not be fitted serves a retry with more to --fit.
    kept = ["new-fit.partial.npz", "new-held.partial.npz"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["broken", "full", *kept, "older"]
    assert [file.name for file in full.iterdir()] == ["mine.txt"]


def test_a_disk_that_is_full_at_the_end_loses_no_measurement(
    toy_bundle: Path,
    retargeted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "new"

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "manifest.json")

    with monkeypatch.context() as patch:
        patch.setattr(bundle, "save", full)
        assert command("retarget", toy_bundle, "-o", out, *WORDS) == 1
    assert capsys.readouterr().err.endswith("retarget: manifest.json: No space left on device\n")
    kept = ["new-fit.partial.npz", "new-held.partial.npz"]
    assert sorted(file.name for file in tmp_path.iterdir()) == kept
    with monkeypatch.context() as patch:
        patch.setattr("model_export.gating.derive_targets.counts_by_knobs", None)
        assert command("retarget", toy_bundle, "-o", out, *WORDS) == 0, "nothing is measured anew"
    assert [file.name for file in tmp_path.iterdir()] == ["new"]
    again, first = bundle.load(out).manifest, bundle.load(retargeted).manifest
    assert (again.plans, again.margins) == (first.plans, first.margins)
