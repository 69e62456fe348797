"""Names of classes go with a run and a bundle, and data of other classes are refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from model_export.data.class_names import difference, refuse_other_classes
from model_export.data.datasets import DataError
from model_export.data.scenes import CLASSES
from model_export.training.runs import classes_of
from tests.labelled_folders import save_image
from tests.toy import Words, command

pytestmark = pytest.mark.usefixtures("toy_config")


def _folder(root: Path, classes: tuple[str, ...]) -> Path:
    """Four images of these classes, each class in each image."""
    rng = np.random.default_rng(0)
    for index in range(4):
        save_image(root / f"images/{index}.png", rng.integers(0, 256, (64, 96, 3), np.uint8))
        mask = np.arange(96, dtype=np.uint8)[None].repeat(64, 0) % len(classes)
        save_image(root / f"masks/{index}.png", mask)
    (root / "meta.json").write_text(json.dumps({"classes": classes}))
    return root


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("ab", "2 (a, b) instead of 3 (a, b, c)"),
        ("abd", "class 2 is 'd' instead of 'c'"),
        ("bac", "another order, class 0 is 'b' instead of 'a'"),
    ],
)
def test_the_message_says_what_is_different(classes: str, message: str) -> None:
    assert message in difference([*classes], [*"abc"])
    with pytest.raises(DataError, match=r"folder has other classes than the run: .*; rename"):
        refuse_other_classes("folder", [*classes], [*"abc"], "the run", "rename")
    refuse_other_classes("folder", [*"abc"], [*"abc"], "the run", "rename")


def test_objects_without_a_name_are_of_any_one_class() -> None:
    refuse_other_classes("instances", ("object",), ("nucleus",), "the run", "")
    with pytest.raises(DataError, match="'cell' instead of 'nucleus'"):
        refuse_other_classes("instances", ("cell",), ("nucleus",), "the run", "")


def test_a_run_keeps_the_names_of_its_classes(trained_run: Path, tmp_path: Path) -> None:
    assert classes_of(trained_run) == CLASSES
    run = shutil.copytree(trained_run, tmp_path / "run")
    document = json.loads((run / "run.json").read_text())
    del document["classes"]
    (run / "run.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"run\.json does not name the classes .*add \"classes\""):
        classes_of(run)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--dev scenes:32:1 has other classes than --train folder: 11 (Sky"),
        (("--dev", "scenes:1:1"), "instead of 2 (left, right); name a --dev of the same classes"),
    ],
)
def test_a_dev_set_of_other_classes_is_refused_before_the_first_step(
    train_words: Words,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: Words,
    message: str,
) -> None:
    at = train_words.index("--dev")
    plain = (*train_words[:at], *train_words[at + 2 :])
    data = _folder(tmp_path / "data", ("left", "right"))
    out = tmp_path / "run"
    folder = (*plain, "--train", "folder", "--data", data, "--out", out)
    assert command(*folder, *words) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_run_goes_on_with_the_names_that_it_began_with(
    train_words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = _folder(tmp_path / "data", ("left", "right")), tmp_path / "run"
    for part in ("images", "masks"):
        shutil.copytree(data / part, data / part / "val")
    sets = ("--train", "folder", "--dev", "folder:val", "--data", data)
    words = (*train_words, *sets, "--out", run)
    assert command(*words, "--stop-after", "0") == 0
    assert classes_of(run) == ("left", "right")
    _folder(data, ("left", "middle"))
    assert command(*words) == 1
    assert "class 1 is 'middle' instead of 'right'; choose another --out" in capsys.readouterr().err


OTHER = (*CLASSES[:-1], "Scooter")


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "--on", "folder"),
        ("export", "--parity", "folder", "-o", "exported"),
        ("search-plans", "--on", "folder"),
        ("derive-targets", "--fit", "scenes:3:3", "--held", "folder"),
        ("derive-targets", "--fit", "folder", "--held", "scenes:3:9"),
    ],
    ids=" ".join,
)
def test_every_step_refuses_data_of_other_classes(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    data = _folder(tmp_path / "data", OTHER)
    place = [str(tmp_path / word) if word == "exported" else word for word in words[1:]]
    assert command(words[0], toy_run, *place, "--data", data) == 1
    assert "class 10 is 'Scooter' instead of 'Bicyclist'" in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


def test_data_for_a_bundle_must_be_of_its_classes(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _folder(tmp_path / "data", OTHER)
    message = "class 10 is 'Scooter' instead of 'Bicyclist'"
    assert command("evaluate", toy_bundle, "--data", data, "--threads", "1") == 1
    assert message in capsys.readouterr().err
    words = ("--fit", "scenes:3:3", "--held", "folder", "--data", data)
    assert command("retarget", toy_bundle, "-o", tmp_path / "other", *words) == 1
    assert message in capsys.readouterr().err


def test_runs_of_other_classes_cannot_be_averaged(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    document = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(document | {"classes": OTHER}))
    assert command("average", trained_run, run, "--out", tmp_path / "mean") == 1
    assert "class 10 is 'Scooter' instead of 'Bicyclist'" in capsys.readouterr().err
