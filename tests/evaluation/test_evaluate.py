"""What a run is worth: the measures by hand, the policies that are compared, and the table that
people read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_export.data.datasets import VOID, Sample, Scenes
from model_export.evaluation.evaluate import correlations, policy_rows, rank_correlation
from model_export.network.knobs import Knobs
from model_export.tasks import TASKS, qualities
from model_export.tasks.semantic import class_iou, confusion, image_quality, mean_iou
from model_export.training.runs import read_targets
from tests.toy import PLANS as PLAN_NAMES
from tests.toy import command, last_json

TASK = TASKS["semantic"]


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
    assert qualities(TASK, np.stack([np.stack([stray, stray.T])])).shape == (1, 2)


def _counts(seed: int = 0) -> np.ndarray:
    """(20, 4, 3, 3): images of different difficulty, where deeper is mostly better."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 9, (20, 4, 3, 3))
    for depth in range(4):
        found[:, depth, range(3), range(3)] += rng.integers(5, 30, (20, 1)) + 3 * depth
    return found


PLANS = [Knobs(1), Knobs(2), Knobs(2, keep=0.5), Knobs(3)]
MARGINS = [
    {"asked": 0.005, "margin": None},
    {"asked": 0.01, "margin": 0.004},
    {"asked": 0.05, "margin": 0.03},
]


def _rows(counts: np.ndarray, scores: np.ndarray) -> dict[str, dict[str, Any]]:
    return {row["policy"]: row for row in policy_rows(counts, scores, PLANS, MARGINS, TASK)}


def test_rank_correlation_is_of_ranks_and_none_without_them() -> None:
    rising = np.array([0.1, 0.2, 0.3, 0.9])
    assert rank_correlation(rising, rising**3) == 1
    assert rank_correlation(rising, -rising) == -1
    assert rank_correlation(rising, np.full(4, 0.5)) is None
    scores = np.stack([rising, rising[::-1], np.full(4, 0.2)], 1)
    assert correlations(scores, np.stack([rising] * 3, 1)) == {
        "per_plan": [1.0, -1.0, None],
        "gain": None,
    }


def test_oracle_beats_every_plan_and_a_gate_that_knows_is_the_oracle() -> None:
    counts = _counts()
    truth = qualities(TASK, counts)
    rows = _rows(counts, truth)
    fixed = [rows[f"fixed {plan.name}"]["image_quality"] for plan in PLANS]
    assert fixed == pytest.approx(truth.mean(0), abs=1e-4)
    assert rows["oracle beta 0"]["image_quality"] > max(fixed)
    assert {**rows["gate beta 0"], "policy": ""} == {**rows["oracle beta 0"], "policy": ""}
    assert rows["fixed d2-k50"]["mean_depth"] == 2
    assert rows["fixed d2-k50"]["plans"] == [0, 0, 20, 0]
    assert rows["fixed d2-k50"]["quality"] == round(mean_iou(counts[:, 2].sum(0)), 4)
    assert all(sum(row["plans"]) == 20 for row in rows.values())


def test_max_loss_goes_by_the_run_s_margins() -> None:
    counts = _counts()
    truth = qualities(TASK, counts)
    rows = _rows(counts, truth)
    assert rows["gate max-loss 0.005"]["plans"] == [0, 0, 0, 20]
    depths = [rows[f"gate max-loss {row['asked']:g}"]["mean_depth"] for row in MARGINS]
    assert depths == sorted(depths, reverse=True)
    near = truth[:, -1:] - truth <= 0.03
    assert rows["gate max-loss 0.05"]["plans"] == np.bincount(near.argmax(1), minlength=4).tolist()


def test_random_is_the_mean_over_all_ways_to_deal_the_same_plans() -> None:
    counts = _counts()
    row = _rows(counts, qualities(TASK, counts))["gate beta 0"]
    chosen = np.repeat(np.arange(4), row["plans"])
    rng = np.random.default_rng(0)
    total = sum(counts[np.arange(20), rng.permutation(chosen)].sum(0) for _ in range(4000))
    assert row["random_quality"] == pytest.approx(mean_iou(np.asarray(total)), abs=2e-3)
    assert row["random_quality"] < row["quality"]


def _check(run: Path, found: dict[str, Any], table: list[str], images: int) -> None:
    rows = {row["policy"]: row for row in found["policies"]}
    assert found["images"] == images
    assert found["measure"] == "mIoU"
    assert list(found["quality"]) == list(PLAN_NAMES)
    best = max(rows[f"fixed {name}"]["image_quality"] for name in PLAN_NAMES)
    assert rows["oracle beta 0"]["image_quality"] >= best
    for name in PLAN_NAMES:
        assert (
            rows[f"fixed {name}"]["quality"]
            == found["quality"][name]
            == rows[f"fixed {name}"]["random_quality"]
        )
    for name, row in rows.items():
        line = next(line for line in table if line.startswith(f"{name} "))
        cells = line.removeprefix(name).split(maxsplit=4)
        assert [float(cell) for cell in cells[:4]] == pytest.approx(
            [row["mean_depth"], row["quality"], row["image_quality"], row["random_quality"]],
            abs=6e-3,
        )
        assert json.loads(cells[4]) == row["plans"]
    assert len(found["spearman"]["per_plan"]) == len(PLAN_NAMES)
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_prints_a_table_and_ends_in_one_json_line(
    toy_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("evaluate", toy_run) == 0
    shown = capsys.readouterr().out
    found: dict[str, Any] = last_json(shown)
    _check(toy_run, found, shown.splitlines()[:-1], 4)
    assert found["data"] == "scenes:4:5"
    held = read_targets(toy_run, "held")["counts"]
    assert list(found["quality"].values()) == [
        round(mean_iou(held[:, k].sum(0)), 4) for k in range(len(PLAN_NAMES))
    ]


def test_a_run_that_is_the_mean_of_others_is_judged_without_a_log(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "mean"
    shutil.copytree(toy_run, run)
    for name in ("log.csv", "curves.png"):
        (run / name).unlink(missing_ok=True)
    assert command("evaluate", run) == 0
    assert last_json(capsys.readouterr().out)["images"] == 4
    assert not (run / "curves.png").exists()


def test_a_folder_that_nothing_would_read_is_refused(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with a bundle, which needs no --on."""
    assert command("evaluate", toy_run, "--data", tmp_path) == 1
    assert "would not be read: name a data set in it, e.g. --on folder" in capsys.readouterr().err


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
        return Sample(
            f"plain-{index}", np.full((64, 96, 3), index, np.uint8), np.full((64, 96), 3, np.uint8)
        )


def test_class_that_is_neither_there_nor_predicted_has_no_iou(
    toy_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "model_export.evaluation.evaluate.open_dataset", lambda spec, root, **_: _Plain(2)
    )
    assert command("evaluate", toy_run, "--on", "plain") == 0
    found: dict[str, Any] = last_json(capsys.readouterr().out)
    assert None in found["class_iou"].values()
    assert found["class_iou"]["Road"] is not None
