"""`adapt`: plans, gate and promise from photos without labels, judged by the full plan's answer."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from model_export.__main__ import main
from model_export.data.augment import on_canvases
from model_export.data.sample import DataError
from model_export.data.unlabelled import photos_in, without_labels
from model_export.importing import adapt
from model_export.importing.adapt import LEAST_PHOTOS, LEAST_TO_TRAIN
from model_export.importing.distill import DistillOptions, teach
from model_export.network.knobs import Knobs
from model_export.network.segmenter import head_of
from model_export.tasks import task_of
from model_export.tasks.segments import VOID_SEGMENT, class_counts
from model_export.training.quality import counts_by_knobs
from model_export.training.runs import (
    TEACHING,
    RunError,
    classes_of,
    load_model,
    read_config,
    read_gate,
    read_plans,
    read_targets,
)
from tests.checkpoints import random_model, saved


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(LEAST_PHOTOS):
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        image = Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, traced_once: None) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    checkpoint = saved(random_model("resnet"), folder / "checkpoint")
    ask = ["import", str(checkpoint), "--out", str(folder / "run"), "--task", "semantic"]
    assert main([*ask, "--canvases", "32x64", "64x96"]) == 0
    return folder / "run"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_plans_gate_and_promise_come_from_photos_alone(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["adapt", str(run), "--images", str(photos), "--rounds", "1", "--threads", "1"]
    assert main(ask) == 0
    plans, report = read_plans(run)
    assert plans[-1] == Knobs(3, canvas="c96")
    assert "agreement" in report["judged_by"]
    held, fit = read_targets(run, "held"), read_targets(run, "fit")
    assert len(held["names"]) + len(fit["names"]) == LEAST_PHOTOS
    assert not {*held["names"]} & {*fit["names"]}
    matrix = held["counts"][:, -1]
    assert (matrix.sum((1, 2)) == 48 * 64).all()
    assert all((np.diag(np.diag(m)) == m).all() for m in matrix)  # it agrees with itself
    gate, fitted = read_gate(run)
    assert gate.output.out_features == len(plans)
    assert [row["asked"] for row in fitted["margins"]] == [0.0025, 0.005, 0.01, 0.02, 0.05]


def test_an_image_without_labels_is_judged_by_the_full_plan(run: Path, photos: Path) -> None:
    config, canvases, _ = read_config(run)
    data, model = photos_in(photos, config, classes_of(run)), load_model(run)
    plans = [Knobs(1, canvas="c64"), Knobs(3, canvas="c96")]
    counts, _ = counts_by_knobs(model, data[0], canvases, plans)
    frame = on_canvases(data[0], canvases)["c96"]
    with torch.no_grad():
        (answer,) = model(torch.from_numpy(frame.pixels)[None], plans[1])
    labels = task_of(config).predicted(head_of(config, answer), frame.geometry)
    shown = np.bincount(labels.ravel(), minlength=config.classes)
    for matrix in counts:  # the rows are the truth
        assert (matrix.sum(1) == shown).all()
    assert counts[1].trace() == shown.sum()
    assert len(without_labels(data, config, classes_of(run))) == LEAST_PHOTOS


def test_photos_in_subfolders_count_and_hidden_ones_do_not(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    """As cameras and downloads make them, with a number twice."""
    for place in ("b/DCIM/100/1.png", "b/DCIM/101/1.png", "2.png", ".trash/3.png", "b/._1.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / "00.png", tmp_path / place)
    config, _, _ = read_config(run)
    data = photos_in(tmp_path, config, classes_of(run))
    assert data.names == ["2", "b/DCIM/100/1", "b/DCIM/101/1"]
    assert np.array_equal(data[1].image, data[0].image)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    with pytest.raises(DataError, match=r"has labels, too, in masks/: name its photos alone"):
        photos_in(tmp_path, config, classes_of(run))


def test_too_few_photos_are_refused(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adapt", str(run), "--images", str(tmp_path)]) == 1
    assert "lacks any image" in capsys.readouterr().err
    for file in sorted(photos.iterdir())[:3]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert main(["adapt", str(run), "--images", str(tmp_path)]) == 1
    assert "has 3 images" in capsys.readouterr().err
    assert main(["adapt", str(run), "--images", str(photos), "--train"]) == 1
    assert f"has {LEAST_PHOTOS} images; a gate and its promise need at least 30" in (
        capsys.readouterr().err
    )
    for wrong in ((), ("--images", str(photos), "--on", "folder")):
        assert main(["adapt", str(run), *wrong]) == 1
        assert "either --images FOLDER or, with labels, --on DATA" in capsys.readouterr().err


def test_photos_that_cannot_be_read_are_named_before_anything_is_measured(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(photos, tmp_path / "photos")
    for name in ("07.png", "18.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:200])
    assert main(["adapt", str(run), "--images", str(folder)]) == 1
    said = capsys.readouterr().err
    assert f"--images {folder} has 2 faults:" in said
    assert "07.png is no readable image" in said
    assert "18.png is no readable image" in said
    assert "quality" not in said  # the bar of the measurement


@pytest.mark.usefixtures("one_thread")
def test_a_full_plan_that_finds_nothing_is_told_of(
    run: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every plan that finds nothing would agree with it, and the promise be worth nothing."""

    def stop(*_: object) -> None:
        raise RunError("far enough")

    monkeypatch.setattr(adapt, "choose", stop)
    for threshold, told in (("1", True), ("0", False)):
        ask = ["import", str(run.parent / "checkpoint"), "--out", str(tmp_path / threshold)]
        ask += ["--task", "instance", "--canvases", "32x64", "--threshold", threshold]
        assert main(ask) == 0
        assert main(["adapt", str(tmp_path / threshold), "--images", str(photos)]) == 1
        said = capsys.readouterr().err
        assert "far enough" in said
        assert ("the full plan finds nothing on any of these photos" in said) == told


def test_labels_judge_where_there_are_any(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = classes_of(run)
    (tmp_path / "masks").mkdir()
    shutil.copytree(photos, tmp_path / "images")
    (tmp_path / "meta.json").write_text(json.dumps({"classes": list(names)}))
    for image in photos.iterdir():
        Image.fromarray(np.full((48, 64), 255, np.uint8)).save(tmp_path / "masks" / image.name)
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(tmp_path / "masks/00.png")
    ask = ["adapt", str(run), "--on", "folder", "--data", str(tmp_path)]
    assert main([*ask, "--rounds", "1", "--threads", "1"]) == 1
    assert "some images are all void" in capsys.readouterr().err


def labels(*rows: str) -> np.ndarray:
    """a1: class 0, segment 1; ..: none; ##: void."""
    meaning = {"..": 0, "##": VOID_SEGMENT}
    return np.array(
        [
            [
                meaning.get(cell, (ord(cell[0]) - ord("a")) << 16 | int(cell[1:] or 0, 16))
                if cell not in meaning
                else meaning[cell]
                for cell in row.split()
            ]
            for row in rows
        ],
        np.uint32,
    )


def test_segments_match_within_their_class() -> None:
    truth = labels("a1 a1 a1 a1 b2 b2", "a1 a1 .. .. b2 b2")
    ours = labels("a1 a1 a1 .. b3 b3", "a1 a1 .. .. a2 a2")
    counts = class_counts(ours, truth, 2)
    assert counts[0] == pytest.approx([5 / 6, 1, 1, 0])  # a2 is wrong
    assert counts[1] == pytest.approx([0, 0, 1, 1])  # 2 of 4 pixels is not more than half


def test_void_pixels_count_nowhere() -> None:
    truth = labels("a1 a1 ## ##", "## ## ## ##")
    ours = labels("a1 a1 a1 a2", "a2 a2 a2 a2")
    counts = class_counts(ours, truth, 1)
    assert counts[0] == pytest.approx([1, 1, 0, 0])


@pytest.mark.usefixtures("one_thread")
def test_exits_are_taught_and_the_full_plan_stays_bit_equal(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(LEAST_TO_TRAIN):
        source = photos / f"{number % LEAST_PHOTOS:02}.png"
        (folder / f"{number:02}.png").write_bytes(source.read_bytes())
    config, canvases, _ = read_config(run)
    before, data = load_model(run), photos_in(folder, config, classes_of(run))
    options = DistillOptions(steps=16, batch=1, rate=3e-3, seed=0, save_every=8)
    assert not teach(copy, before, data, canvases, replace(options, minutes=0))
    assert "taught" not in read_config(copy)[2]
    assert (copy / TEACHING).exists()
    again = shutil.copytree(copy, tmp_path / "again")
    checkpoint = str(run.parent / "checkpoint")
    assert main(["import", checkpoint, "--out", str(again), "--task", "semantic"]) == 0
    assert not (again / TEACHING).exists()  # what it taught was another network
    with pytest.raises(RunError, match="begun with"):
        teach(copy, before, data, canvases, replace(options, batch=2))
    begun = (copy / TEACHING).read_bytes()
    (copy / TEACHING).write_bytes(begun[: len(begun) // 2])
    with pytest.raises(RunError, match=rf"{TEACHING} is damaged: .*; delete it"):
        teach(copy, before, data, canvases, options)
    (copy / TEACHING).write_bytes(begun)
    assert teach(copy, before, data, canvases, options)
    assert not (copy / TEACHING).exists()
    assert main(["adapt", str(copy), "--images", str(folder), "--train", "--steps", "99"]) == 1
    assert "was taught with {'steps': 16, 'batch': 1," in capsys.readouterr().err
    after = load_model(copy)
    assert after.config.exit_adapters
    assert after.front_head is not None
    image = torch.from_numpy(on_canvases(data[0], canvases)["c96"].pixels)[None]
    with torch.no_grad():
        (ours,), (theirs,) = (model(image, Knobs(3)) for model in (after, before))
        assert torch.equal(ours.masks, theirs.masks)
        assert torch.equal(ours.classes, theirs.classes)
        maps = before.features(image)[1]
        full = before.encoder(maps, 3)
        for exit in (1, 2):
            far, near = (
                sum(F.mse_loss(a, b) for a, b in zip(model.encoder(maps, exit), full, strict=True))
                for model in (before, after)
            )
            assert near < far


@pytest.mark.usefixtures("one_thread")
def test_teaching_that_diverges_stops_and_leaves_the_run_as_it_was(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    files = {file.name: file.read_bytes() for file in copy.iterdir()}
    config, canvases, _ = read_config(run)
    data = photos_in(photos, config, classes_of(run))
    options = DistillOptions(steps=8, batch=1, rate=1e30, seed=0)
    with pytest.raises(RunError, match=r"step \d: .* \(there is none\): lower --rate"):
        teach(copy, load_model(run), data, canvases, options)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == files
