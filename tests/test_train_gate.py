"""Step C: what the gate learns, what its report says, and what the command refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from model_export.gating.gate_regression import STRENGTHS, cross_validate, fit, out_of_fold, predict
from model_export.gating.policies import by_beta, compare, resample
from model_export.gating.train_gate import (
    Images,
    alike,
    by_size,
    left_out,
    limit,
    specs_of,
    winnings,
)
from model_export.network.gate import SIDES
from model_export.training.runs import read_gate, read_targets
from tests.toy import PLANS, command, last_json

pytestmark = pytest.mark.usefixtures("one_thread")


def test_train_gate_leaves_the_network_alone_and_says_what_it_did(
    trained_run: Path, toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (trained_run / "model.safetensors").read_bytes() == (
        toy_run / "model.safetensors"
    ).read_bytes()
    run = shutil.copytree(toy_run, tmp_path / "run")
    assert command("train-gate", run) == 0
    report = last_json(capsys.readouterr().out)
    gate, kept = read_gate(run)
    assert report == kept
    assert report["images"] == 5
    assert [row["asked"] for row in report["margins"]] == [0.0025, 0.005, 0.01, 0.02, 0.05]  # type: ignore[attr-defined]
    assert [row["beta"] for row in report["wins"]] == [0.0, 0.003, 0.01, 0.03, 0.1]  # type: ignore[attr-defined]
    inputs = torch.from_numpy(read_targets(run, "held")["inputs"])
    assert gate(inputs).shape == (4, len(PLANS))


def _images(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, and qualities of three plans: the level and what plan 0 loses are two directions of
    the inputs."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(count, 2))
    inputs = hidden @ rng.normal(size=(2, 40)) + 0.3 * rng.normal(size=(count, 40))
    full = 0.6 + 0.05 * hidden[:, :1]
    loss = np.concatenate(
        (0.03 + 0.01 * hidden[:, 1:], np.full((count, 1), 0.01), np.zeros((count, 1))), 1
    )
    return 100 * inputs + 7, full - loss


def none(count: int) -> np.ndarray:
    """No image was in the network's training."""
    return np.zeros(count, bool)


def test_gate_predicts_level_and_loss_where_the_inputs_tell_them() -> None:
    inputs, quality = _images(160)
    blocks = np.arange(160)
    scores = out_of_fold(
        inputs, quality, none(160), blocks, *cross_validate(inputs, quality, none(160), blocks)
    )
    assert np.square(scores[:, -1] - quality[:, -1]).mean() < 0.2 * quality[:, -1].var()
    lost, wanted = scores[:, -1] - scores[:, 0], quality[:, -1] - quality[:, 0]
    assert np.square(lost - wanted).mean() < 0.2 * wanted.var()


def test_gate_follows_visible_difficulty_though_most_loss_is_an_images_own() -> None:
    """`make mechanism` in numbers: half of the images lose nothing at the cheap plan, the others
    0.02 +- 0.013."""
    rng = np.random.default_rng(0)
    hard = np.tile([0.0, 1.0], 220)
    inputs = hard[:, None] * rng.normal(size=40) + rng.normal(size=(440, 40))
    lost = np.where(hard > 0, rng.normal(0.02, 0.013, 440), rng.normal(0.0002, 0.001, 440))
    full = np.where(hard > 0, 0.75, 0.97) + rng.normal(0, 0.03, 440)
    quality = np.stack((full - lost, full), 1)
    judged, fitted = slice(240, 440), (inputs[:240], quality[:240], none(240))
    gate = fit(*fitted, *cross_validate(*fitted, np.arange(240)))
    cost = np.array([5.3, 9.3])
    shares = by_beta(predict(gate, inputs[judged]), cost, 0.02)
    gain = compare(shares, quality[judged], cost, resample(np.arange(200), 200))
    assert gain.share > 0.7
    assert gain.won_interval[0] > 0
    chance = by_beta(predict(gate, rng.permutation(inputs[judged])), cost, 0.02)
    assert compare(chance, quality[judged], cost, resample(np.arange(200), 200)).share < 0.2


def test_report_says_what_a_gate_wins_on_images_that_it_has_not_seen() -> None:
    quality, cost, blocks = _images(60)[1], np.array([5.0, 7.0, 9.0]), np.arange(60)
    knows = winnings(quality, quality, cost, blocks)[4]
    assert knows["beta"] == 0.1
    assert knows["share"] == pytest.approx(1, abs=0.01)
    assert knows["interval"][0] > 0
    blind = winnings(quality[::-1], quality, cost, blocks)[4]
    assert blind["interval"][0] < 0 < knows["won"] - blind["won"]
    same = np.full((60, 3), 0.5)
    assert winnings(same, same, cost, blocks)[0] == {
        "beta": 0.0,
        "won": 0.0,
        "interval": [0.0, 0.0],
        "share": None,
        "share_interval": [None, None],
    }


def test_the_limit_is_what_knowing_other_views_wins_on_the_plain_ones() -> None:
    rng, cost = np.random.default_rng(0), np.array([5.0, 9.0])
    # What an image gains by the expensive plan; each view adds its luck.
    own = rng.normal(0, 0.03, 80)
    luck = rng.normal(0, 0.03, (80, 8))
    gain = (own[:, None] + luck).ravel()
    quality, views = np.stack((np.full(640, 0.7), 0.7 + gain), 1), np.tile(np.arange(8), 80)
    plain, blocks = views == 0, np.repeat(np.arange(80), 8)
    found = limit(quality, views, plain, cost, blocks)
    told = np.stack((np.full(80, 0.7), 0.7 + gain.reshape(80, 8)[:, 1:].mean(1)), 1)
    assert found == winnings(told, quality[plain], cost, blocks[plain])
    assert 0.4 < found[0]["share"] < 0.9, (
        "without luck it would be 1, without what is the image's own 0"
    )
    half = limit(quality, views, plain & (blocks < 40), cost, blocks)
    assert half == winnings(told[:40], quality[plain][:40], cost, blocks[plain][:40])
    assert limit(quality[plain], views[plain], plain[plain], cost, blocks[plain]) == []


@pytest.mark.parametrize("told", [True, False])
def test_report_says_what_the_image_s_size_alone_would_win(told: bool) -> None:
    """Half of the images are large and lose at the cheap plan. Where it is the size that decides, a
    gate of the size alone wins as much as an oracle; else it wins nothing."""
    rng, cost = np.random.default_rng(0), np.array([5.0, 9.0])
    large = np.arange(200) % 2 == 1
    hats = np.zeros((200, len(SIDES)))
    at = np.where(large if told else rng.permutation(large), SIDES.index(10.0), SIDES.index(8.0))
    hats[np.arange(200), at] = 1
    lost = np.where(large, 0.05, 0.0) + rng.normal(0, 0.001, 200)
    quality = np.stack((0.8 - lost, np.full(200, 0.8)), 1)
    inputs = np.concatenate((rng.normal(size=(200, 30)), hats), 1)
    names, everything = np.full(200, "a"), np.full(200, True)
    images = Images(
        *(inputs, quality, np.tile(cost, (200, 1)), np.full((200, 2), True)),
        *(names, np.arange(200), none(200), everything, everything),
    )
    found = by_size(images)
    assert found["sides"] == list(SIDES)
    assert len(found["quality"]) == len(SIDES)
    small, great = (found["quality"][SIDES.index(side)] for side in (8.0, 10.0))
    at_beta = next(row for row in found["wins"] if row["beta"] == 0.01)
    if told:
        assert small == pytest.approx([0.8, 0.8], abs=0.005)
        assert great == pytest.approx([0.75, 0.8], abs=0.005)
        assert at_beta["share"] > 0.9
    else:
        assert small == pytest.approx([0.775, 0.8], abs=0.01)
        assert great == pytest.approx([0.775, 0.8], abs=0.01)
        assert (at_beta["share"] or 0) < 0.1


def _recordings(harder: float) -> Images:
    """Three recordings of 60 real images, the last of which loses `harder` times as much, and 40
    drawn ones."""
    inputs, quality = _images(220)
    names = np.repeat(["a", "b", "c", ""], (60, 60, 60, 40))
    quality[names == "c"] = (
        quality[names == "c", -1:] - harder * (quality[:, -1:] - quality)[names == "c"]
    )
    blocks, everything = np.arange(220) // 3, np.full(220, True)
    return Images(
        inputs,
        quality,
        np.tile([5.0, 7.0, 9.0], (220, 1)),
        np.full((220, 3), True),
        names,
        blocks,
        none(220),
        np.arange(220) % 4 > 0,
        everything & (names != ""),
    )


def test_a_recording_that_was_left_out_taught_neither_gate_nor_margins() -> None:
    alike, harder = (left_out(_recordings(factor)) for factor in (1.0, 3.0))
    assert [(row["recording"], row["images"]) for row in alike] == [
        (name, 60) for name in "abc" for _ in range(5)
    ]
    assert all(row["lost"] <= row["asked"] for row in alike)
    same = [
        [(row["asked"], row["gflops"]) for row in rows if row["recording"] == "c"]
        for rows in (alike, harder)
    ]
    assert same[0] == same[1], "what c loses changes nothing that was fitted without it"
    assert any(row["lost"] > row["asked"] for row in harder if row["recording"] == "c")
    few = _recordings(1.0).where(np.arange(220) < 66)  # without a there are two blocks
    assert {row["recording"] for row in left_out(few)} == {"b"}


def test_gate_falls_back_to_the_mean_of_each_plan_where_nothing_can_be_predicted() -> None:
    quality = _images(60)[1]
    inputs = np.random.default_rng(1).normal(size=(60, 40))
    strengths = cross_validate(inputs, quality, none(60), np.arange(60))
    scores = predict(fit(inputs, quality, none(60), *strengths), inputs)
    assert np.abs((scores[:, -1:] - scores) - (quality[:, -1:] - quality).mean(0)).max() < 0.004


def test_level_and_losses_are_shrunk_as_far_as_a_standard_error_allows() -> None:
    inputs, quality = _images(160)
    nobody, blocks = none(160), np.arange(160)
    chosen = cross_validate(inputs, quality, nobody, blocks)

    def errors(strength: float) -> tuple[np.ndarray, np.ndarray]:
        wrong = out_of_fold(inputs, quality, nobody, blocks, strength, strength) - quality
        return np.square(wrong[:, -1]), np.square(wrong[:, -1:] - wrong[:, :-1]).mean(1)

    for strength, each in zip(chosen, zip(*map(errors, STRENGTHS), strict=True), strict=True):
        lowest = min(each, key=np.mean)
        limit = lowest.mean() + lowest.std() / 160**0.5
        assert strength == max(
            one for one, error in zip(STRENGTHS, each, strict=True) if error.mean() <= limit
        )
        assert strength > STRENGTHS[int(np.argmin([error.mean() for error in each]))]


def test_images_that_the_network_was_trained_on_teach_the_gate_slopes_and_no_intercepts() -> None:
    """On them the network is better by 0.1, and the cheapest plan loses 0.02 less; what differs
    among them is alike."""
    inputs, quality = _images(360)
    seen, judged = np.arange(240) >= 40, slice(240, 360)
    known = quality[:240] + np.where(seen[:, None], [0.12, 0.1, 0.1], 0)

    def errors(rows: np.ndarray, of_seen: np.ndarray) -> tuple[float, float]:
        strengths = cross_validate(
            inputs[:240][rows], known[rows], of_seen, np.arange(len(of_seen))
        )
        scores = predict(fit(inputs[:240][rows], known[rows], of_seen, *strengths), inputs[judged])
        wrong = (scores[:, -1] - scores[:, 0]) - (quality[judged, -1] - quality[judged, 0])
        return float(abs(wrong.mean())), float(np.square(wrong).mean())

    every = np.full(240, True)
    bias, square = errors(every, seen)
    assert bias < 0.002
    assert square < 0.8 * errors(~seen, none(40))[1]  # five times the images
    assert errors(every, none(240))[0] > 0.01  # as if they were like the others


def test_names_of_data_sets_may_have_spaces() -> None:
    specs = ["folder:my fit", "scenes:4"]
    about = {"sources": np.array([0, 0, 1]), "views": np.array([0, 1, 0])}
    targets = about | {"spec": np.array(" ".join(specs)), "specs": np.array(specs)}
    assert specs_of(targets).tolist() == ["folder:my fit", "folder:my fit", "scenes:4"]
    assert alike(targets, "scenes:9").tolist() == [False, False, True]
    older = about | {"spec": np.array("folder scenes:4")}
    assert specs_of(older).tolist() == ["folder", "folder", "scenes:4"]


def test_images_that_the_network_was_trained_on_count_for_no_promise(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(toy_run, tmp_path / "run")  # it was trained on scenes:4
    assert (
        command("derive-targets", run, "--fit", "scenes:5:3", "scenes:4", "--held", "scenes:3:5")
        == 0
    )
    assert command("train-gate", run) == 0
    report = last_json(capsys.readouterr().out)
    assert (report["images"], report["images_trained_on"], report["calibrated_images"]) == (9, 4, 8)
    assert (
        command("derive-targets", run, "--fit", "scenes:4:3", "scenes:4", "--held", "scenes:3:5")
        == 0
    )
    assert command("train-gate", run) == 1
    assert "5 blocks of images that the network was not trained on" in capsys.readouterr().err


def test_out_of_fold_predictions_do_not_see_their_own_fold() -> None:
    inputs, quality = _images(50)
    blocks = np.arange(50) // 5  # ten blocks, two in every fold
    before = out_of_fold(inputs, quality, none(50), blocks, 1.0, 1.0)
    changed = quality.copy()
    changed[5:10] = 0.9
    after = out_of_fold(inputs, changed, none(50), blocks, 1.0, 1.0)
    same = np.isclose(before, after).all(1)
    assert same.tolist() == [block % 5 == 1 for block in blocks]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gate_stays_finite_where_every_image_is_all_right_or_all_wrong(value: float) -> None:
    inputs, quality = np.random.default_rng(0).normal(size=(8, 20)), np.full((8, 3), value)
    inputs[:, 3] = 5  # an input that never varies
    gate = fit(inputs, quality, none(8), *cross_validate(inputs, quality, none(8), np.arange(8)))
    assert all(p.isfinite().all() for p in gate.parameters())
    assert np.abs(predict(gate, inputs) - value).max() < 1e-3


def test_train_gate_refuses_fewer_blocks_than_folds(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(toy_run, tmp_path / "run")
    shutil.copy(run / "targets-held.npz", run / "targets-fit.npz")  # four images
    for words in ((), ("--block", 2)):
        assert command("train-gate", run, *words) == 1
        assert "--fit" in capsys.readouterr().err
