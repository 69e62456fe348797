"""`evaluate` on a bundle: figures that are known by heart, resuming, and what it says of folders
that do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_export.evaluation.measure_bundle import Meter
from service.core import Margin
from tests.small_bundle import GRID, write_bundle, write_image
from tests.toy import command, last_json

Row = dict[str, Any]
COLUMNS = {
    "a_0": (0, 6),
    "a_1": (0, 4),
    "b_0": (3, 5),
    "b_1": (6, 3),
}  # of blue and red, of 12; the rest is green


def cells(blue: int, red: int) -> np.ndarray:
    row = np.full(GRID[1], 1)
    row[: blue + red], row[:blue] = 0, 2
    return np.tile(row, (GRID[0], 1)).astype(np.uint8)


def blind(blue: int, red: int) -> float:
    """mIoU over the classes that the image shows when blue cells are taken for red."""
    return (red / (red + blue) + 1 + 0) / 3 if blue else 1.0


BLIND = [blind(*columns) for columns in COLUMNS.values()]


@pytest.fixture
def semantic(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "seer")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, columns in COLUMNS.items():
        write_image(tmp_path / "data", name, cells(*columns), cells(*columns))
    return tmp_path / "data"


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[str, Row]:
    """Exit code 0; what was printed, and its last line."""
    code = command("evaluate", *words, "--threads", 1, "--draws", 50)
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return shown.out, last_json(shown.out)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert command("evaluate", *words) == 1
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return shown.err


def by_name(found: Row) -> dict[str, Row]:
    return {row["policy"]: row for row in found["policies"]}


def test_quality_and_cost_of_every_policy_are_those_of_the_plans_it_takes(
    semantic: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, found = run(capsys, semantic, "--data", folder)
    rows = by_name(found)
    assert (found["images"], found["measure"], found["task"]) == (4, "mIoU", "semantic")
    assert rows["full"]["image_quality"] == rows["full"]["quality"] == 1
    assert {**rows["full"], "policy": "fixed d2"} == rows["fixed d2"]
    assert rows["fixed d1"]["image_quality"] == pytest.approx(np.mean(BLIND), abs=1e-5)
    assert rows["fixed d1"]["quality"] == pytest.approx((18 / (18 + 9) + 1 + 0) / 3, abs=1e-5)
    assert [rows[name]["gflops"] for name in ("fixed d1", "full")] == [3, 6]
    assert [rows[name]["encoder_gflops"] for name in ("fixed d1", "full")] == [1, 4]
    gate = rows["gate max-loss 0.01"]
    assert gate["plans"] == {"d1": 2, "d2": 2}
    assert (gate["image_quality"], gate["gflops"], gate["mean_depth"]) == (1, 4.5, 1.5)
    plans = {plan["name"]: plan for plan in found["plans"]}
    parts = [
        plans[name][f"{part}_ms"][1]
        for name in ("d1", "d2")
        for part in ("front", "encoder", "decoder")
    ]
    assert min(parts) > 0
    assert gate["ms"] == pytest.approx(sum(parts) / 2, abs=1e-4)
    assert gate["encoder_ms"] == pytest.approx((parts[1] + parts[4]) / 2, abs=1e-4)
    for name, row in rows.items():
        line = next(line for line in shown.splitlines() if line.startswith(f"{name}  "))
        assert line.split()[len(name.split()) + 1] == f"{row['gflops']:.2f}"


def test_gate_is_compared_at_equal_cost_with_chance_fixed_plans_and_oracle(
    semantic: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = by_name(run(capsys, semantic, "--data", folder)[1])
    equal = rows["gate max-loss 0.01"]["at_equal_cost"]
    half = (
        rows["fixed d1"]["image_quality"] + 1
    ) / 2  # half of the images by each plan, or a mix of the two
    assert equal["random"] == pytest.approx(half, abs=1e-4)
    assert equal["best_fixed"] == pytest.approx(half, abs=1e-4)
    assert (equal["oracle"], equal["share_of_oracle"]) == (1, 1)
    assert equal["won"] == pytest.approx(1 - half, abs=1e-4)
    assert equal["won_interval"][0] <= equal["won"] <= equal["won_interval"][1]
    assert (
        rows["fixed d1"]["at_equal_cost"]["share_of_oracle"] is None
    )  # no oracle can win at the lowest cost
    assert rows["oracle beta 0"]["image_quality"] == 1
    assert rows["gate max-loss 0.01"]["random_quality"] < rows["gate max-loss 0.01"]["quality"]


def test_mirror_images_tell_what_is_more_than_luck(
    tmp_path: Path, semantic: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here nothing is luck: an image and its mirror image lose the same, if pixels and truth are
    exchanged alike."""
    cache = tmp_path / "cache"
    shown, found = run(capsys, semantic, "--data", folder, "--mirrored", "--cache", cache)
    assert found["mirrored_correlation"] == {"d1": 1}
    assert "correlation of images and mirror images" in shown
    rows = by_name(found)
    assert {**rows["mirror beta 0.01"], "policy": "oracle beta 0.01"} == rows["oracle beta 0.01"]
    assert len(list(cache.glob("*/*.npz"))) == 2 * len(COLUMNS)
    again = run(capsys, semantic, "--data", folder, "--mirrored", "--cache", cache)[1]
    assert again == found
    plain = run(capsys, semantic, "--data", folder)[1]
    assert plain["mirrored_correlation"] is None
    assert not any(name.startswith("mirror") for name in by_name(plain))


def test_a_loss_that_does_not_vary_has_no_correlation(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    equal = write_bundle(tmp_path / "equal", blind=False)
    assert run(capsys, equal, "--data", folder, "--mirrored")[1]["mirrored_correlation"] == {
        "d1": None
    }


def test_max_loss_is_asked_and_got_in_all_and_in_each_group(
    semantic: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, found = run(capsys, semantic, "--data", folder)
    promises = {row["asked"]: row for row in found["max_loss"]}
    assert [promises[asked]["margin"] for asked in (0.005, 0.01, 0.02, 0.05)] == [
        None,
        0.005,
        0.005,
        0.2,
    ]
    assert (promises[0.005]["got"], promises[0.005]["kept"]) == (
        0,
        True,
    )  # below the table: the full plan
    assert promises[0.01]["got"] == 0
    wide = promises[
        0.05
    ]  # by its predicted loss of 3 / 12 and more, no image of blue columns is within 0.2
    assert wide["got"] == 0
    assert {name: part["images"] for name, part in wide["groups"].items()} == {"a": 2, "b": 2}
    assert "full only" in shown


def test_broken_promise_is_shown_for_its_group(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reckless = write_bundle(tmp_path / "reckless", margins=(Margin(0.01, 1.0),))
    shown, found = run(capsys, reckless, "--data", folder)
    row = next(row for row in found["max_loss"] if row["asked"] == 0.01)
    losses = [1 - quality for quality in BLIND]
    assert row["got"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert not row["kept"]
    assert row["groups"]["a"] == {"images": 2, "got": 0.0, "kept": True}
    assert row["groups"]["b"]["got"] == pytest.approx(np.mean(losses[2:]), abs=1e-5)
    assert not row["groups"]["b"]["kept"]
    line = next(line for line in shown.splitlines() if line.startswith("0.01 "))
    assert line.count("!") == 2


def test_groups_tell_where_depth_pays_and_where_the_gate_spends(
    semantic: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Depth changes nothing for group a; one image of group b needs it."""
    shown, found = run(capsys, semantic, "--data", folder)
    easy, hard = found["groups"]
    cheap, full = found["plans"][0]["gflops"], found["plans"][-1]["gflops"]
    assert (easy["group"], easy["images"], easy["cheapest_loses"]) == ("a", 2, 0)
    assert hard["cheapest_loses"] == pytest.approx(1 - np.mean(BLIND[2:]), abs=1e-5)
    assert easy["gflops"]["oracle beta 0.003"] == cheap
    assert cheap < hard["gflops"]["oracle beta 0.003"] <= full
    assert hard["gflops"]["gate max-loss 0.01"] > easy["gflops"]["gate max-loss 0.01"]
    assert "GFLOPs by group" in shown


def test_groups_come_from_meta_json_where_the_folder_has_one(
    semantic: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = {
        "train": [{"id": "a_0", "kind": "stained"}, {"id": "elsewhere", "kind": "x"}],
        "val": [{"id": "a_1", "seq": "S"}],
    }
    (folder / "meta.json").write_text(json.dumps({"splits": entries}))
    found = run(capsys, semantic, "--data", folder)[1]
    groups = {name: part["images"] for name, part in found["max_loss"][0]["groups"].items()}
    assert groups == {"stained": 1, "S": 1, "b": 2}


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


def test_bundle_is_compared_with_another_on_the_same_images(
    semantic: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_bundle(tmp_path / "other", blind=False)
    shown, found = run(capsys, semantic, "--data", folder, "--against", other)
    against = found["against"]
    rows = {row["policy"]: row for row in against["policies"]}
    assert against["bundle"] == "other"
    assert against["full"]["image_quality"] == 1
    lost = 1 - by_name(found)["fixed d1"]["image_quality"]
    assert rows["fixed d1"]["image_lost"] == pytest.approx(lost, abs=1e-4)
    assert (
        rows["fixed d1"]["image_lost_interval"][0]
        <= lost
        <= rows["fixed d1"]["image_lost_interval"][1]
    )
    assert (rows["fixed d1"]["encoder_gflops_cut"], rows["fixed d1"]["gflops_cut"]) == (0.75, 0.5)
    assert rows["full"]["lost_interval"] == [0, 0]
    ratio = against["full"]["ms"] / by_name(found)["full"]["ms"]
    assert rows["full"]["throughput"] == pytest.approx(ratio, rel=1e-2)
    assert "-75.0%" in shown
    instance = write_bundle(tmp_path / "cells", task="instance")
    assert "another task" in refused(capsys, semantic, "--data", folder, "--against", instance)


def test_figures_are_drawn(
    semantic: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_bundle(tmp_path / "other", blind=False)
    words = (semantic, "--data", folder, "--against", other, "--figures", tmp_path / "figures")
    files = [Path(name) for name in run(capsys, *words)[1]["figures"]]
    assert [file.name for file in files] == ["quality_gflops.png", "quality_ms.png", "depths.png"]
    for file in files:
        with Image.open(file) as image:
            assert np.asarray(image.convert("RGB")).std() > 5  # not a blank page


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
    kept[0].write_bytes(kept[0].read_bytes()[:100])
    said = refused(
        capsys, semantic, "--data", folder, "--cache", tmp_path / "cache", "--threads", 1
    )
    assert str(kept[0]) in said
    assert "remove it" in said


def test_twins_widen_the_intervals(
    semantic: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, columns in COLUMNS.items():
        for frame in range(8):
            write_image(
                tmp_path / "video", f"{name[0]}_{name[2]}{frame}", cells(*columns), cells(*columns)
            )
    widths = []
    for block in (1, 8):
        found = run(capsys, semantic, "--data", tmp_path / "video", "--block", block)[1]
        low, high = by_name(found)["fixed d1"]["image_interval"]
        widths.append(high - low)
    assert widths[1] > 1.5 * widths[0]


Spoil = Callable[[Path], object]


def image_of(array: np.ndarray, path: Path) -> None:
    Image.fromarray(array).save(path)


SPOILED: dict[str, tuple[Spoil, str, str]] = {
    "missing mask": (lambda d: (d / "masks/b_0.png").unlink(), "masks/b_0.png", "1 of 4"),
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--data"),
        (("--data", ".", "--on", "camvid:val"), "not --on"),
        (("--data", ".", "--block", "0"), "--block"),
        (("--data", ".", "--draws", "0"), "--draws"),
        (("--data", ".", "--threads", "-1"), "--threads"),
    ],
)
def test_arguments_that_do_not_fit_a_bundle_are_refused(
    words: tuple[str, ...], said: str, semantic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, semantic, *words)


def test_arguments_that_do_not_fit_a_run_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, tmp_path, "--below", "val", "--block", 3)
    assert "--below, --block" in said
    assert "run.json is missing" in refused(capsys, tmp_path)


def test_any_backend_of_the_service_can_run_the_graphs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seer = write_bundle(tmp_path / "seer")
    write_image(tmp_path / "data", "a", np.zeros(GRID, np.uint8), np.zeros(GRID, np.uint8))
    options = ("--data", tmp_path / "data", "--cache", tmp_path / "cache")
    _, by_default = run(capsys, seer, *options)
    _, by_name = run(capsys, seer, *options, "--backend", "fake")
    assert (by_default["backend"], by_name["backend"]) == ("onnxruntime", "fake")
    assert len(list((tmp_path / "cache").iterdir())) == 2  # results of two engines never mix
    assert "TensorRT" in refused(capsys, seer, *options, "--backend", "tensorrt")
