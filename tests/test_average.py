"""The mean of several runs' weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_export.data.scenes import CLASSES
from model_export.export.write_manifest import provenance_of
from model_export.training.bundle_weights import WEIGHTS
from model_export.training.runs import (
    load_model,
    read_config,
    read_plans,
    trained_on,
    write_config,
)
from tests.toy import Words, command

pytestmark = pytest.mark.usefixtures("toy_config")


@pytest.fixture
def shifted(trained_run: Path, tmp_path: Path) -> Path:
    """The trained run with 1 added to every weight."""
    run = tmp_path / "shifted"
    shutil.copytree(trained_run, run)
    state = load_file(run / "model.safetensors")
    save_file({name: value + 1 for name, value in state.items()}, run / "model.safetensors")
    return run


def test_the_average_of_runs_is_a_run_that_later_steps_take(
    trained_run: Path, shifted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mean"
    (config, canvases, arguments), before = (
        read_config(trained_run),
        load_file(trained_run / "model.safetensors"),
    )
    assert command("average", trained_run, shifted, shifted, trained_run, "--out", out) == 0
    after = load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.allclose(after[name], before[name] + 0.5, atol=1e-5) for name in before)
    assert read_config(out)[:2] == (config, canvases)
    assert read_config(out)[2] == arguments | {
        "averaged": [str(run) for run in (trained_run, shifted, shifted, trained_run)]
    }
    assert trained_on(out) == trained_on(trained_run), "the same images once"
    assert provenance_of(None, read_config(out)[2])["recipe"].endswith("mean of 4 runs")
    load_model(out)
    plans = out / "plans.json"
    plans.write_text("{}")
    assert command("average", trained_run, shifted, shifted, trained_run, "--out", out) == 0
    assert plans.exists(), "the same runs again: what was found out about their mean still holds"
    assert command("average", trained_run, shifted, "--out", out) == 0
    assert not plans.exists(), "of other runs"
    plans.write_text("{}")
    shutil.copy(trained_run / "model.safetensors", shifted)
    assert command("average", trained_run, shifted, "--out", out) == 0
    assert not plans.exists(), "of the same runs with other weights"


def test_the_average_can_have_other_canvases(
    trained_run: Path, shifted: Path, tmp_path: Path
) -> None:
    words = ("average", trained_run, shifted, "--out", tmp_path / "mean", "--canvases")
    assert command(*words, "32x32", "64x64,64x96") == 0
    assert [canvas.name for canvas in read_config(tmp_path / "mean")[1]] == ["c32", "c64"]
    assert command(*words, "64x64", "32x32") == 1, "they must go from small to large"


def test_a_bundle_alone_becomes_a_run_with_its_weights_and_plans(
    toy_bundle: Path, toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "reopened"
    assert command("average", toy_bundle, "--out", out) == 0
    assert f"{out}: the weights of {toy_bundle}" in capsys.readouterr().out
    recipe = provenance_of(None, read_config(out)[2])["recipe"]
    assert recipe.endswith(f"weights of {toy_bundle.name}")
    after, stored = load_file(out / "model.safetensors"), load_file(toy_bundle / WEIGHTS)
    assert all(torch.equal(after[n], stored[n].float()) for n in after if n in stored)
    assert read_config(out)[:2] == read_config(toy_run)[:2]
    (plans, report), (wanted, found) = read_plans(out), read_plans(toy_run)
    assert (plans, report["search"]) == (wanted, found["search"])
    for alone, message in ((toy_run, "nothing to average"), (tmp_path / "no", "is no run")):
        assert command("average", alone, "--out", tmp_path / "none") == 1
        assert message in capsys.readouterr().err


def test_a_bundle_may_be_among_them_but_not_the_first(
    shifted: Path, toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, before = tmp_path / "mean", load_file(shifted / "model.safetensors")
    assert command("average", shifted, toy_bundle, "--out", out) == 0
    # The bundle is of the run that was shifted, in fp16.
    after = load_file(out / "model.safetensors")
    assert all(torch.allclose(after[name], before[name] - 0.5, atol=2e-3) for name in before)
    write_config(shifted, *read_config(shifted), [("camvid:dev", tmp_path)], CLASSES)
    assert command("average", shifted, toy_bundle, "--out", out) == 0
    assert trained_on(out) == [("camvid:dev", tmp_path), ("scenes:4", None)]
    assert command("average", toy_bundle, shifted, "--out", tmp_path / "other") == 1
    assert "is no run" in capsys.readouterr().err


def test_average_refuses_what_cannot_be_averaged(
    trained_run: Path,
    shifted: Path,
    train_words: Words,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "mean"
    assert (
        command(*train_words, "--steps", "1", "--schedule", "0,0,3", "--out", tmp_path / "other")
        == 0
    )
    for runs, to, message in (
        ([trained_run], out, "name two runs or more"),
        ([trained_run, tmp_path / "other"], out, "has another config"),
        ([trained_run, tmp_path / "none"], out, "is no run"),
        ([trained_run, shifted], shifted, "is one of the runs"),
    ):
        assert command("average", *runs, "--out", to) == 1
        assert message in capsys.readouterr().err
    assert not out.exists()
