"""Steps B and C: what they compute, and what the commands refuse."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model_export.network.segmenter import Segmenter, semantic_probabilities
from model_export.recipe.augment import on_canvas
from model_export.recipe.datasets import VOID, Sample, Scenes
from model_export.recipe.derive_targets import measure
from model_export.recipe.quality import confusion, confusions_by_exit, labels_at, qualities
from model_export.recipe.runs import load_model, read_targets
from model_export.recipe.train_gate import class_loss, constant_loss, cross_validate, fit, quality_loss
from tests.toy import CANVAS, Stripes, command, last_json, toy

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- step B


def test_targets_are_what_each_exit_alone_predicts(toy_run: Path) -> None:
    """Layers run once for all exits; the answer must be that of a network that stops at the exit."""
    held, model = read_targets(toy_run, "held"), load_model(toy_run)
    assert held["names"].tolist() == [f"scene-5-{i}" for i in range(4)]
    assert str(held["spec"]) == "scenes:4:5"
    assert held["confusions"].shape == (4, 3, 11, 11)
    data = Scenes(4, 5)
    for i in range(2):
        pixels, inner = on_canvas(data[i], CANVAS)
        batch = torch.from_numpy(pixels)[None]
        with torch.inference_mode():
            for depth in (1, 2, 3):
                probabilities = semantic_probabilities(model(batch, depth)[-1])
                labels = labels_at(probabilities, CANVAS, inner, data[i].mask.shape)
                assert np.array_equal(held["confusions"][i, depth - 1], confusion(labels, data[i].mask, 11))
            pooled = model.gate.pool(model.features(batch)[1][0])[0]
        assert np.allclose(held["pooled"][i], pooled.numpy(), atol=1e-6)
        assert held["confusions"][i, 0].sum() == (data[i].mask != VOID).sum()


def test_fitting_targets_come_from_all_sets_and_only_from_them(toy_run: Path) -> None:
    fit_on = read_targets(toy_run, "fit")
    assert fit_on["names"].tolist() == ["scene-3-0", "scene-3-1", "scene-3-2", "scene-4-0", "scene-4-1"]
    assert not set(fit_on["names"].tolist()) & set(read_targets(toy_run, "held")["names"].tolist())


def test_a_subset_of_exits_can_be_asked_for(toy_run: Path) -> None:
    model, sample = load_model(toy_run), Scenes(1, 5)[0]
    every = read_targets(toy_run, "held")["confusions"][0]
    assert np.array_equal(confusions_by_exit(model, sample, CANVAS, [1, 3]), every[[0, 2]])


class _Void(Stripes):
    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return sample if index == 0 else Sample(sample.name, sample.image, np.full_like(sample.mask, VOID))


def test_views_of_an_image_stay_together_and_void_images_are_left_out() -> None:
    """Cross-validation takes contiguous folds: a view in another fold than its image would give the answer away."""
    model = Segmenter(toy(2, 1)).eval()
    found = measure(model, [Stripes(), _Void()], CANVAS, 3, 0)
    first = ["stripe-0", "stripe-0-1", "stripe-0-2"]
    assert found["names"].tolist() == [*first, "stripe-1", "stripe-1-1", "stripe-1-2", *first]
    assert not np.array_equal(found["confusions"][0], found["confusions"][1])
    assert np.array_equal(found["confusions"][0], found["confusions"][6])
    assert np.isfinite(qualities(found["confusions"])).all()


# ---- step C


def test_train_gate_changes_the_gate_and_nothing_else(trained_run: Path, toy_run: Path) -> None:
    before, after = (load_file(run / "model.safetensors") for run in (trained_run, toy_run))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("gate.") for name in changed)
    report = json.loads((toy_run / "gate.json").read_text())
    assert (report["loss"], report["images"]) == ("quality", 5)
    assert 1 <= report["epochs"] <= 3
    assert report["parameters"] == sum(p.numel() for p in load_model(toy_run).gate.parameters())


def test_train_gate_on_classes(toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(toy_run, tmp_path / "run")
    assert command("train-gate", run, "--loss", "class", "--epochs", 2) == 0
    report = last_json(capsys.readouterr().out)
    assert report["loss"] == "class"
    assert report == json.loads((run / "gate.json").read_text())
    assert command("evaluate", run) == 0
    found = last_json(capsys.readouterr().out)
    assert "gate (classes)" in [row["policy"] for row in found["policies"]]  # type: ignore[attr-defined]
    assert "spearman" not in found


def test_quality_loss_is_zero_for_the_truth_and_weighs_gains() -> None:
    quality = torch.tensor([[0.5, 0.6, 0.7], [0.3, 0.3, 0.6]])
    assert float(quality_loss(torch.logit(quality), quality, 10.0)) == pytest.approx(0, abs=1e-10)
    level = torch.logit(quality + 0.1)  # every exit off by as much: no error in the gains
    assert float(quality_loss(level, quality, 10.0)) == pytest.approx(0.01, rel=1e-4)
    gain = torch.logit(quality + torch.tensor([-0.1, 0.0, 0.1]))  # the mean is right, the gains are not
    assert float(quality_loss(gain, quality, 10.0)) == pytest.approx(10 * 0.02 / 3, rel=1e-4)


def test_class_loss_wants_the_exit_of_the_best_utility() -> None:
    quality = torch.tensor([[0.50, 0.52, 0.53]])
    for beta, best in ((0.0, 2), (0.015, 1), (0.05, 0)):
        sure = torch.full((1, 3), -20.0).index_fill(1, torch.tensor(best), 20.0)
        assert float(class_loss(sure, quality, beta)) < 1e-6
        assert float(class_loss(-sure, quality, beta)) > 20


def _gate_arguments(**changes: object) -> argparse.Namespace:
    values = {"loss": "quality", "beta": 0.003, "gain_weight": 10.0, "epochs": 25, "lr": 3e-3, "seed": 0}
    return argparse.Namespace(**{**values, **changes})


def test_gate_learns_a_quality_that_its_input_tells() -> None:
    """Cross-validated error far below that of a gate without eyes, which is the mean over images."""
    generator = torch.Generator().manual_seed(0)
    config = toy()
    level, gain = torch.randn(2, 100, 1, generator=generator)
    pooled = torch.cat([level, gain], 1) @ torch.randn(2, 2 * config.channels, generator=generator)
    quality = (0.5 + 0.1 * torch.cat([level, level + 0.5, level + gain], 1)).clamp(0, 1)
    decay, epochs, loss = cross_validate(config, pooled, quality, _gate_arguments())
    assert loss < 0.5 * constant_loss(quality.numpy(), _gate_arguments())
    assert decay in (0.01, 0.1, 1.0)
    assert 1 < epochs <= 25


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gate_stays_finite_where_every_image_is_all_right_or_all_wrong(value: float) -> None:
    config = toy()
    pooled, quality = torch.randn(6, 2 * config.channels), torch.full((6, 3), value)
    gate, history = fit(config, pooled, quality, _gate_arguments(), 0.01, 3, (pooled, quality))
    assert np.isfinite(history).all()
    assert all(p.isfinite().all() for p in gate.parameters())
    assert (gate(pooled).sigmoid() - value).abs().max() < 0.01


# ---- the command line


def test_steps_in_the_wrong_order_name_the_missing_one(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    for words, missing in (
        (("derive-targets", tmp_path / "none", "--fit", "scenes:5", "--held", "scenes:5"), "train-exits"),
        (("train-gate", run), "derive-targets"),
        (("evaluate", run), "train-gate"),
    ):
        assert command(*words) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"{words[0]}: ")
        assert f"python -m model_export {missing}" in error
    (run / "model.safetensors").unlink()
    assert command("derive-targets", run, "--fit", "scenes:5", "--held", "scenes:5") == 1
    assert f"python -m model_export train-exits --out {run}" in capsys.readouterr().err


def test_train_gate_refuses_fewer_images_than_folds(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(toy_run, tmp_path / "run")
    shutil.copy(run / "targets-held.npz", run / "targets-fit.npz")  # four images
    assert command("train-gate", run) == 1
    assert "--fit" in capsys.readouterr().err


def test_unknown_command_shows_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    for words, code in (((), 2), (("train",), 2), (("--help",), 0)):
        assert command(*words) == code
        shown = capsys.readouterr().out
        for name in ("train-exits", "derive-targets", "train-gate", "evaluate", "export"):
            assert name in shown


def test_probe_scores_a_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("probe", "--backbone", "mobilenet_v2", "--train", "scenes:3", "--dev", "scenes:1:1", "--canvas", "96x128")
    assert command(*words) == 0
    found = last_json(capsys.readouterr().out)
    assert (found["backbone"], found["weights"]) == ("mobilenet_v2", "random")
    assert 0.05 < float(str(found["miou"])) < 1  # sky and road lie where they always lie
