"""What is measured of a bundle: both tasks, the cache, and every refusal."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model_export.data.datasets import Scenes
from model_export.evaluation.measure_bundle import EngineOptions, Meter, Truth
from model_export.network.knobs import Knobs
from model_export.training.bundle_weights import WEIGHTS, read_weights
from model_export.training.quality import counts_by_knobs
from service.pixels.decode import Limits, from_memory
from tests.evaluation.seer import (
    BLIND,
    COLUMNS,
    by_name,
    cells,
    refused,
    run,
)
from tests.small_bundle import GRID, write_bundle, write_image
from tests.toy import CANVASES, PLANS, command


def test_folder_below(semantic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, columns in COLUMNS.items():
        write_image(tmp_path / "split", f"val/{name}", cells(*columns), cells(*columns))
    found = run(capsys, semantic, "--data", tmp_path / "split", "--below", "val")[1]
    assert found["images"] == 4
    assert found["data"].endswith("images/val")
    assert "images" in refused(capsys, semantic, "--data", tmp_path / "split")


def test_void_pixels_do_not_count_and_an_image_of_nothing_else_is_left_out(
    semantic: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(folder, "c_0", cells(2, 2), np.full(GRID, 255, np.uint8))
    truth = cells(3, 5)
    truth[truth == 2] = 255
    write_image(folder, "b_0", cells(3, 5), truth)
    found = run(capsys, semantic, "--data", folder)[1]
    assert (found["left_out"], found["images"]) == (["c_0"], 4)
    assert by_name(found)["fixed d1"]["image_quality"] == pytest.approx(
        np.mean([1, 1, 1, BLIND[3]]), abs=1e-5
    )


def objects(border: int) -> tuple[np.ndarray, np.ndarray]:
    """Two objects of 2 x 2 cores in frames of `border` cells: what the image shows, and 16-bit
    truth."""
    shown, truth = np.zeros(GRID, np.uint8), np.zeros(GRID, np.uint16)
    for number, left in ((1, 2), (2, 8)):
        block = (slice(3 - border, 5 + border), slice(left - border, left + 2 + border))
        shown[block], truth[block] = 2, number
        shown[3:5, left : left + 2] = 1
    return shown, truth


def test_instances_are_measured_by_panoptic_quality_and_average_precision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seer = write_bundle(tmp_path / "cells", task="instance")
    for name, border in (("bare", 0), ("bordered", 1)):
        write_image(tmp_path / "data", name, *objects(border), labels="instances")
    shown, found = run(capsys, seer, "--data", tmp_path / "data")
    rows = by_name(found)
    assert (found["measure"], found["task"]) == ("PQ", "instance")
    assert rows["full"]["quality"] > 0.9
    assert rows["full"]["image_quality"] > 0.9
    assert rows["full"]["ap50"] == 1
    blind = rows["fixed d1"]  # without its border an object has a quarter of its pixels: not found
    assert 0.45 < blind["image_quality"] <= 0.5
    assert 0.45 < blind["quality"] <= 0.5  # 2 of 2 + (2 + 2) / 2
    assert blind["ap50"] == pytest.approx(51 / 101, abs=1e-4)
    assert rows["gate max-loss 0.01"]["plans"] == {"d1": 1, "d2": 1}
    assert rows["gate max-loss 0.01"]["ap50"] == 1
    assert "AP50" in shown


def panoptic_labels(root: Path, images: dict[str, np.ndarray]) -> Path:
    """COCO's panoptic annotations: a segment for each of red, green and blue that an image shows.
    images: of each name the cells."""
    rows, segments = [], []
    for number, (name, shown) in enumerate(images.items()):
        write_image(root, name, shown, np.where(shown == 9, 0, shown + 1), labels="panoptic")
        rows.append({"id": number, "file_name": f"{name}.png", "height": 32, "width": 48})
        info = [{"id": k + 1, "category_id": k} for k in (0, 1, 2) if (shown == k).any()]
        segments.append({"image_id": number, "file_name": f"{name}.png", "segments_info": info})
    kinds = [
        {"id": k, "name": name, "isthing": int(name != "green")}
        for k, name in enumerate(("red", "green", "blue"))
    ]
    file = root / "panoptic.json"
    file.write_text(json.dumps({"images": rows, "annotations": segments, "categories": kinds}))
    return file


def test_segments_with_classes_are_measured_on_panoptic_annotations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seer = write_bundle(tmp_path / "seer", task="panoptic")
    images = {name: cells(*columns) for name, columns in COLUMNS.items()}
    file = panoptic_labels(tmp_path / "data", images)
    rows = by_name(run(capsys, seer, "--on", f"coco:{file}")[1])
    assert rows["full"]["quality"] == pytest.approx(1)
    assert rows["full"]["ap50"] == 1
    # Where there is blue, its segment is missed, and red is found where it is most of the two.
    blind = rows["fixed d1"]
    red = [1, 1, 5 / 8, 0]  # b_1: 3 of 9
    assert blind["image_quality"] == pytest.approx(
        np.mean([1, 1, (red[2] + 1) / 3, 1 / 3]), abs=1e-4
    )
    tp = 2 + 5 / 8
    assert blind["quality"] == pytest.approx((tp / (3 + 1 / 2 + 1 / 2) + 1 + 0) / 3, abs=1e-4)
    assert blind["ap50"] == pytest.approx(38 / 101, abs=1e-3)  # 3 of 4 red ones, no blue one
    assert "labels of the panoptic task" in refused(capsys, seer, "--data", tmp_path / "data")
    assert "add @panoptic" in refused(capsys, seer, "--on", f"coco:{file}@instance")


def test_image_without_objects_in_which_none_is_found_is_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seer = write_bundle(tmp_path / "cells", task="instance")
    empty = np.zeros(GRID, np.uint16)
    write_image(tmp_path / "data", "empty", empty.astype(np.uint8), empty, labels="instances")
    write_image(tmp_path / "data", "bordered", *objects(1), labels="instances")
    rows = by_name(run(capsys, seer, "--data", tmp_path / "data")[1])
    assert rows["full"]["image_quality"] > 0.95
    assert rows["fixed d1"]["image_quality"] == 0.5


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Grows with every image that goes through the engine to be measured."""
    seen: list[float] = []
    right = Meter.run

    def counting(self: Meter, frame: Any, truth: Any, turn: int) -> Any:
        found = right(self, frame, truth, turn)
        if self.warm:
            seen.append(float(turn))
        return found

    monkeypatch.setattr(Meter, "run", counting)
    return seen


def test_work_that_was_stopped_goes_on_where_it_was(
    semantic: Path,
    folder: Path,
    tmp_path: Path,
    runs: list[float],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = (semantic, "--data", folder, "--cache", tmp_path / "cache")
    right = Meter.measure

    def interrupted(self: Meter, data: Any, index: int) -> Any:
        if index == 2:
            raise KeyboardInterrupt
        return right(self, data, index)

    with monkeypatch.context() as patch:
        patch.setattr(Meter, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            command("evaluate", *words, "--threads", 1)
    assert runs == [0, 1]
    found = run(capsys, *words)[1]
    assert runs == [0, 1, 2, 3]
    assert run(capsys, *words)[1] == found  # times and all
    assert runs == [0, 1, 2, 3]
    assert (
        by_name(found)["fixed d1"]["image_quality"]
        == by_name(run(capsys, *words[:3])[1])["fixed d1"]["image_quality"]
    )


def test_cache_is_of_one_bundle_and_of_each_image_and_its_mask(
    semantic: Path,
    folder: Path,
    tmp_path: Path,
    runs: list[float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--data", folder, "--cache", tmp_path / "cache")
    run(capsys, semantic, *words)
    write_image(folder, "b_1", cells(6, 3), cells(3, 5))
    before = len(runs)
    changed = run(capsys, semantic, *words)[1]
    assert runs[before:] == [3]
    assert by_name(changed)["full"]["image_quality"] < 1
    before = len(runs)
    other = write_bundle(tmp_path / "other", blind=False)
    run(capsys, other, *words)
    assert runs[before:] == [0, 1, 2, 3]


def test_broken_file_in_the_cache_is_named(
    semantic: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, semantic, "--data", folder, "--cache", tmp_path / "cache")
    kept = sorted((tmp_path / "cache").rglob("*.npz"))
    assert len(kept) == 4
    good = kept[0].read_bytes()
    stored = good.index(b"is_open.npy") + 40  # in the first array's compressed bytes
    for broken in (good[:100], b"", good[:stored] + bytes(40) + good[stored + 40 :]):
        kept[0].write_bytes(broken)
        said = refused(
            capsys, semantic, "--data", folder, "--cache", tmp_path / "cache", "--threads", 1
        )
        assert str(kept[0]) in said
        assert "remove it" in said


def test_a_full_disk_is_told_of_by_the_name_of_the_file(
    semantic: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(path: Path, **arrays: np.ndarray) -> None:
        path.write_bytes(b"some of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    said = refused(capsys, semantic, "--data", folder, "--cache", tmp_path / "cache")
    assert f"evaluate: {tmp_path / 'cache'}" in said
    assert said.endswith(".npz: No space left on device\n")
    assert not [*(tmp_path / "cache").glob("*/*")], "what was begun is removed"


@pytest.mark.timeout(900)  # the first test that needs the toy bundle waits for its export
def test_every_canvas_has_one_front_and_its_plans_give_what_training_measures(
    toy_bundle: Path,
) -> None:
    meter, sample = Meter(toy_bundle, EngineOptions(), None), Scenes(1, 9)[0]
    ran: list[str] = []
    run = meter.backend.run

    def spy(stage: str, tensors: Any) -> Any:
        ran.append(stage)
        return run(stage, tensors)

    meter.backend.run = spy  # type: ignore[method-assign]
    frames = from_memory(sample.image, Limits(10**7, 4096, 1), meter.manifest.input)
    truth = Truth(sample.mask, np.zeros(sample.mask.shape, np.bool_))
    model, gate, _ = read_weights(toy_bundle / WEIGHTS)
    knobs = [Knobs.parse(name) for name in PLANS]
    counts, seen = counts_by_knobs(model, sample, CANVASES, knobs)
    for turn in range(len(PLANS)):
        ran.clear()
        found = meter.run(frames, truth, turn)
        assert ran[0] == "front-32x64"
        assert sorted(name for name in ran if "front" in name) == ["front-32x64", "front-64x96"]
        assert found["front"][0] == 0 < found["front"][1]
        assert (found["front"][1:] == found["front"][1]).all()
        assert min(found["glance"][0], found["encoder"].min(), found["decoder"].min()) > 0
        assert found["sides"] == pytest.approx((360 * 480) ** 0.5)
        # But for pixels of two classes that nearly tie.
        assert np.abs(found["counts"] - counts).sum((1, 2)).max() < 0.01 * sample.mask.size
        with torch.inference_mode():
            scores = gate(torch.from_numpy(seen)[None])[0].numpy()
        assert found["scores"] == pytest.approx(scores, abs=1e-4)
    meter.backend.close()


Spoil = Callable[[Path], object]


def image_of(array: np.ndarray, path: Path) -> None:
    Image.fromarray(array).save(path)


SPOILED: dict[str, tuple[Spoil, str, str]] = {
    "missing mask": (lambda d: (d / "masks/b_0.png").unlink(), "masks/b_0.png", "is missing"),
    "wrong size": (
        lambda d: image_of(np.zeros((30, 48), np.uint8), d / "masks/b_0.png"),
        "masks/b_0.png",
        "(32, 48)",
    ),
    "colour": (
        lambda d: image_of(np.zeros((32, 48, 3), np.uint8), d / "masks/b_0.png"),
        "masks/b_0.png",
        "one",
    ),
    "16 bits": (
        lambda d: image_of(np.zeros((32, 48), np.uint16), d / "masks/b_0.png"),
        "masks/b_0.png",
        "8 bits",
    ),
    "unknown label": (
        lambda d: image_of(np.full((32, 48), 3, np.uint8), d / "masks/b_0.png"),
        "masks/b_0.png",
        "[3]",
    ),
    "broken mask": (
        lambda d: (d / "masks/b_0.png").write_bytes(b"no"),
        "masks/b_0.png",
        "no readable image",
    ),
    "broken image": (
        lambda d: (d / "images/b_0.png").write_bytes(b"no"),
        "images/b_0.png",
        "no readable image",
    ),
    "too small": (
        lambda d: [
            image_of(np.zeros((8, 8), np.uint8), d / f"{side}/b_0.png")
            for side in ("images", "masks")
        ],
        "images/b_0.png",
        "no side may be under 16",
    ),
    "no images": (lambda d: shutil.rmtree(d / "images"), "", "has no folder images/"),
    "empty": (lambda d: [f.unlink() for f in (d / "images").iterdir()], "images", "any image"),
    "other task": (lambda d: (d / "masks").rename(d / "instances"), "instances", "semantic"),
    "broken meta": (lambda d: (d / "meta.json").write_text("{"), "meta.json", "splits"),
    "odd meta": (lambda d: (d / "meta.json").write_text('{"splits": [1]}'), "meta.json", "splits"),
    "all void": (
        lambda d: [image_of(np.full((32, 48), 255, np.uint8), f) for f in (d / "masks").iterdir()],
        "masks",
        "void",
    ),
}


@pytest.mark.parametrize("what", SPOILED)
def test_folder_that_cannot_be_used_is_refused_with_the_file_s_name(
    what: str, semantic: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, file, said = SPOILED[what]
    spoil(folder)
    shown = refused(capsys, semantic, "--data", folder, "--threads", 1)
    assert str(folder / file) in shown
    assert said in shown


def test_instances_of_8_bits_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seer = write_bundle(tmp_path / "cells", task="instance")
    shown, truth = objects(1)
    write_image(tmp_path / "data", "one", shown, truth.astype(np.uint8), labels="instances")
    said = refused(capsys, seer, "--data", tmp_path / "data")
    assert str(tmp_path / "data/instances/one.png") in said
    assert "16 bits" in said


def test_bundle_that_cannot_be_opened_is_refused(
    semantic: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (semantic / "decoder.onnx").write_bytes(b"other bytes")
    assert "decoder.onnx" in refused(capsys, semantic, "--data", folder)
    (semantic / "manifest.json").write_text("{}")
    assert "schema" in refused(capsys, semantic, "--data", folder)
