"""What a run is worth: the measures by hand, the policies that are compared, and the table that people read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_export.recipe.datasets import VOID, Sample, Scenes
from model_export.recipe.evaluate import (
    by_beta,
    by_max_loss,
    correlations,
    miou_of,
    policies,
    random_miou,
    rank_correlation,
)
from model_export.recipe.quality import class_iou, confusion, image_quality, mean_iou, qualities
from model_export.recipe.runs import read_targets
from tests.toy import command, last_json


def test_confusion_counts_known_pixels_with_truth_in_rows() -> None:
    truth = np.uint8([[0, 0, 1], [1, VOID, 2]])
    predicted = np.uint8([[0, 1, 1], [1, 2, 0]])
    assert confusion(predicted, truth, 3).tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]


def test_iou_is_hits_over_union_and_absent_classes_have_none() -> None:
    matrix = np.array([[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    assert class_iou(matrix)[:3].tolist() == [1 / 3, 2 / 3, 0.0]
    assert np.isnan(class_iou(matrix)[3])
    assert mean_iou(matrix) == pytest.approx(1 / 3)


def test_image_quality_is_over_the_classes_that_the_image_shows() -> None:
    stray = np.array([[8, 0, 2], [0, 5, 0], [0, 0, 0]])  # class 2 is predicted, but not there
    assert image_quality(stray) == pytest.approx((0.8 + 1) / 2)
    assert mean_iou(stray) == pytest.approx((0.8 + 1 + 0) / 3)
    assert np.isnan(image_quality(np.zeros((3, 3), int)))
    assert qualities(np.stack([np.stack([stray, stray.T])])).shape == (1, 2)


def test_max_loss_takes_the_cheapest_exit_near_the_deepest() -> None:
    scores = np.array([[0.50, 0.58, 0.60], [0.60, 0.55, 0.60], [0.70, 0.50, 0.60]])
    assert by_max_loss(scores, 0.0).tolist() == [2, 2, 2]
    assert by_max_loss(scores, 0.01).tolist() == [2, 0, 0]
    assert by_max_loss(scores, 0.03).tolist() == [1, 0, 0]
    assert by_max_loss(scores, 0.2).tolist() == [0, 0, 0]


def test_beta_is_the_price_of_a_layer() -> None:
    scores = np.array([[0.50, 0.58, 0.60], [0.60, 0.55, 0.60]])
    assert by_beta(scores, 0.0).tolist() == [2, 0]
    assert by_beta(scores, 0.03).tolist() == [1, 0]
    assert by_beta(scores, 0.1).tolist() == [0, 0]


def _confusions(seed: int = 0) -> np.ndarray:
    """(20, 4, 3, 3): images of different difficulty, where deeper is mostly better."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 9, (20, 4, 3, 3))
    for depth in range(4):
        found[:, depth, range(3), range(3)] += rng.integers(5, 30, (20, 1)) + 3 * depth
    return found


def test_set_miou_adds_pixels_of_the_chosen_exits() -> None:
    confusions = _confusions()
    exits = np.arange(20) % 4
    assert miou_of(confusions, exits) == mean_iou(sum(confusions[i, k] for i, k in enumerate(exits)))


def test_random_gate_is_the_mean_over_all_ways_to_deal_the_same_exits() -> None:
    confusions = _confusions()
    exits = np.array([0] * 10 + [1] * 5 + [3] * 5)
    dealt = np.random.default_rng(0)
    total = sum(confusions[np.arange(20), dealt.permutation(exits)].sum(0) for _ in range(4000))
    assert random_miou(confusions, exits) == pytest.approx(mean_iou(np.asarray(total)), abs=2e-3)
    fixed = np.full(20, 2)
    assert random_miou(confusions, fixed) == miou_of(confusions, fixed)


def test_rank_correlation_is_of_ranks_and_none_without_them() -> None:
    rising = np.array([0.1, 0.2, 0.3, 0.9])
    assert rank_correlation(rising, rising**3) == 1
    assert rank_correlation(rising, -rising) == -1
    assert rank_correlation(rising, np.full(4, 0.5)) is None
    scores = np.stack([rising, rising[::-1], np.full(4, 0.2)], 1)
    assert correlations(scores, np.stack([rising] * 3, 1)) == {"per_exit": [1.0, -1.0, None], "gain": None}


def _by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["policy"]: row for row in rows}


def test_oracle_beats_every_exit_and_a_gate_that_knows_is_the_oracle() -> None:
    confusions = _confusions()
    truth = qualities(confusions)
    rows = _by_name(policies(confusions, truth, classifies=False))
    fixed = [rows[f"fixed {k}"]["image_quality"] for k in range(1, 5)]
    assert fixed == pytest.approx(truth.mean(0), abs=1e-4)
    assert rows["oracle beta 0"]["image_quality"] > max(fixed)
    assert {**rows["gate beta 0"], "policy": ""} == {**rows["oracle beta 0"], "policy": ""}
    assert rows["fixed 3"]["mean_depth"] == 3
    assert rows["fixed 3"]["depths"] == [0, 0, 20, 0]
    assert rows["fixed 3"]["miou"] == round(mean_iou(confusions[:, 2].sum(0)), 4)
    depths = [rows[f"gate max-loss {loss:g}"]["mean_depth"] for loss in (0.0025, 0.005, 0.01, 0.02, 0.05)]
    assert depths == sorted(depths, reverse=True)
    assert all(sum(row["depths"]) == 20 for row in rows.values())


def test_gate_of_classes_takes_its_likeliest_class() -> None:
    confusions = _confusions()
    scores = np.eye(4)[np.arange(20) % 4]
    rows = _by_name(policies(confusions, scores, classifies=True))
    assert rows["gate (classes)"]["depths"] == [5, 5, 5, 5]
    assert not [name for name in rows if name.startswith("gate ") and name != "gate (classes)"]


def _check(run: Path, found: dict[str, Any], table: list[str], images: int) -> None:
    rows = _by_name(found["policies"])
    assert found["images"] == images
    assert len(found["miou"]) == 3
    best = max(rows[f"fixed {k}"]["image_quality"] for k in (1, 2, 3))
    assert rows["oracle beta 0"]["image_quality"] >= best
    for k in (1, 2, 3):
        assert rows[f"fixed {k}"]["miou"] == found["miou"][k - 1] == rows[f"fixed {k}"]["random_miou"]
    for name, row in rows.items():
        line = next(line for line in table if line.startswith(f"{name} "))
        cells = line.removeprefix(name).split(maxsplit=4)
        assert [float(cell) for cell in cells[:4]] == pytest.approx(
            [row["mean_depth"], row["miou"], row["image_quality"], row["random_miou"]], abs=6e-3
        )
        assert json.loads(cells[4]) == row["depths"]
    assert len(found["spearman"]["per_exit"]) == 3
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_prints_a_table_and_ends_in_one_json_line(toy_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("evaluate", toy_run) == 0
    shown = capsys.readouterr().out
    found: dict[str, Any] = last_json(shown)
    _check(toy_run, found, shown.splitlines()[:-1], 4)
    assert found["data"] == "scenes:4:5"
    held = read_targets(toy_run, "held")["confusions"]
    assert found["miou"] == [round(mean_iou(held[:, k].sum(0)), 4) for k in range(3)]


def test_evaluate_on_another_set_measures_it_and_tells_each_class(
    toy_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("evaluate", toy_run, "--on", "scenes:4:5") == 0
    again: dict[str, Any] = last_json(capsys.readouterr().out)
    assert command("evaluate", toy_run) == 0
    held: dict[str, Any] = last_json(capsys.readouterr().out)
    assert len(again.pop("class_iou")) == 11
    assert again == held  # the same images as in step B, so the same numbers
    assert command("evaluate", toy_run, "--on", "scenes:2:8") == 0
    shown = capsys.readouterr().out
    _check(toy_run, last_json(shown), shown.splitlines()[:-1], 2)


class _Plain(Scenes):
    def __getitem__(self, index: int) -> Sample:
        return Sample(f"plain-{index}", np.full((64, 96, 3), index, np.uint8), np.full((64, 96), 3, np.uint8))


def test_class_that_is_neither_there_nor_predicted_has_no_iou(
    toy_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_export.recipe.evaluate.open_dataset", lambda spec, root: _Plain(2))
    assert command("evaluate", toy_run, "--on", "plain") == 0
    found: dict[str, Any] = last_json(capsys.readouterr().out)
    assert None in found["class_iou"].values()
    assert found["class_iou"]["Road"] is not None
