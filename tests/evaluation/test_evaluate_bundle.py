"""A bundle on a labelled folder: quality and cost of every policy, promises, groups."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_export.evaluation.bundle_results import scores_by_size
from model_export.evaluation.measure_bundle import EngineOptions, measure_bundles
from service.bundle import Canvas, Manifest, Shape
from service.core import Margin
from tests.evaluation.seer import (
    BLIND,
    COLUMNS,
    by_name,
    cells,
    refused,
    run,
)
from tests.small_bundle import write_bundle, write_image


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
        for part in ("glance", "encoder", "decoder")
    ]
    assert min(parts) > 0
    assert [plans[name]["canvas"] for name in ("d1", "d2")] == ["c48", "c48"]
    # On the only canvas the glance is the front.
    assert [plans[name]["front_ms"] for name in ("d1", "d2")] == [[0, 0, 0]] * 2
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
    # No oracle can win at the lowest cost.
    assert rows["fixed d1"]["at_equal_cost"]["share_of_oracle"] is None
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
    # Below the table: the full plan.
    assert (promises[0.005]["got"], promises[0.005]["kept"]) == (
        0,
        True,
    )
    assert promises[0.01]["got"] == 0
    # By its predicted loss of 3 / 12 and more, no image of blue columns is within 0.2.
    wide = promises[0.05]
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


def test_the_image_s_size_alone_is_a_policy_of_bundles_with_several_canvases(
    semantic: Path, folder: Path
) -> None:
    """What a gate that looks must beat: the quality that train-gate found at some sides, as log2 of
    pixels, and between them."""
    (measured,) = measure_bundles([semantic], folder, "", EngineOptions(), None)
    assert measured.sides == pytest.approx([(32 * 48) ** 0.5] * 4)
    manifest = measured.bundle.manifest
    known = {"by_size": {"sides": [4, 6], "quality": [[0.5, 0.7], [0.9, 0.8]]}}
    canvases = (Canvas.of([Shape(16, 24)]), *manifest.input.canvases)
    several = replace(manifest, input=replace(manifest.input, canvases=canvases))

    def scores(manifest: Manifest, gate: dict[str, object]) -> object:
        told = replace(manifest, calibration={"gate": gate})
        sides = 2.0 ** np.array([3, 4, 5, 9])
        return scores_by_size(
            replace(measured, bundle=replace(measured.bundle, manifest=told), sides=sides)
        )

    wanted = np.array([[0.5, 0.7], [0.5, 0.7], [0.7, 0.75], [0.9, 0.8]])
    assert scores(several, known) == pytest.approx(wanted)
    assert scores(several, {}) is None, "a bundle of before it was told"
    assert scores(manifest, known) is None, "with one canvas there is no such choice"


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--data"),
        (("--data", ".", "--on", "camvid:val"), "not --on"),
        (("--data", ".", "--figures", f"{__file__}/figures"), "is a file"),
        (("--data", ".", "--cache", __file__), "is a file"),
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
    tmp_path: Path, semantic: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--data", folder, "--cache", tmp_path / "cache")
    _, by_default = run(capsys, semantic, *options)
    _, by_name = run(capsys, semantic, *options, "--backend", "fake")
    assert (by_default["backend"], by_name["backend"]) == ("onnxruntime", "fake")
    assert len(list((tmp_path / "cache").iterdir())) == 2  # results of two engines never mix
    assert "TensorRT" in refused(capsys, semantic, *options, "--backend", "tensorrt")
