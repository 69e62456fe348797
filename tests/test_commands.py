"""The command line of model_export: unknown commands, steps in the wrong order, the probe."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from model_export.network.knobs import Knobs
from model_export.training.runs import write_plans
from tests.toy import command, last_json

pytestmark = pytest.mark.usefixtures("one_thread")


def test_steps_in_the_wrong_order_name_the_missing_one(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    for words, missing in (
        (
            ("derive-targets", tmp_path / "none", "--fit", "scenes:5", "--held", "scenes:5"),
            "train-exits",
        ),
        (("derive-targets", run, "--fit", "scenes:5", "--held", "scenes:5"), "search-plans"),
        (("train-gate", run), "search-plans"),
        (("evaluate", run), "train-gate"),
    ):
        assert command(*words) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"{words[0]}: ")
        assert f"python -m model_export {missing}" in error
    write_plans(run, [Knobs(3)], {})  # of before there were several canvases
    assert command("derive-targets", run, "--fit", "scenes:5", "--held", "scenes:5") == 1
    error = capsys.readouterr().err
    assert "plans without a canvas" in error
    assert f"python -m model_export search-plans {run}" in error
    write_plans(run, [Knobs(3, canvas="c96")], {})
    assert command("train-gate", run) == 1
    assert "python -m model_export derive-targets" in capsys.readouterr().err
    (run / "model.safetensors").unlink()
    assert command("derive-targets", run, "--fit", "scenes:5", "--held", "scenes:5") == 1
    assert f"python -m model_export train-exits --out {run}" in capsys.readouterr().err


def test_unknown_command_shows_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    for words, code in (((), 2), (("train",), 2), (("--help",), 0)):
        assert command(*words) == code
        shown = capsys.readouterr().out
        for name in (
            "train-exits",
            "search-plans",
            "derive-targets",
            "train-gate",
            "evaluate",
            "export",
        ):
            assert name in shown


def test_probe_scores_a_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "probe",
        "--backbone",
        "mobilenet_v2",
        "--train",
        "scenes:3",
        "--dev",
        "scenes:1:1",
        "--canvas",
        "96x128",
    )
    assert command(*words) == 0
    found = last_json(capsys.readouterr().out)
    assert (found["backbone"], found["weights"]) == ("mobilenet_v2", "random")
    assert 0.05 < float(str(found["miou"])) < 1  # sky and road lie where they always lie
