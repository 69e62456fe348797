"""Tiled plans in the recipe: what may be tried, what is kept, and that torch, the bundle and its
evaluation agree on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model_export.data.datasets import Scenes, open_dataset
from model_export.evaluation.measure_bundle import EngineOptions, Meter, Truth
from model_export.gating.choose_plans import Candidate, choose_tiled
from model_export.gating.own_plans import levelled, open_plans, owned
from model_export.gating.policies import by_margin, compare, oracle_value, resample
from model_export.gating.search_tiles import open_tiles, parse_tiles
from model_export.network.config import tiny
from model_export.network.knobs import Knobs
from model_export.training.bundle_weights import WEIGHTS, read_weights
from model_export.training.quality import counts_by_knobs
from model_export.training.runs import (
    RunError,
    read_canvases,
    read_plans,
    read_targets,
    write_plans,
)
from service.bundle import Canvas, Shape, Tiles, load
from service.pixels.decode import Limits, from_memory
from tests.toy import CANVASES, PLANS, command, last_json

TILES = "2x2:64x96:32"
TILED = Canvas.tiled(CANVASES[-1], 2, 2, 32)
EVERY = (*PLANS, "t160-d1-w50", "t160-d3-k50")  # in order of cost
LARGER = (144, 120)  # width and height of scenes that are larger than 64x96, and not much
LIMITS = Limits(max_pixels=1_000_000, max_side=2000, min_side=1)


# --------------------------------------------------------------------------------------------------
# what may be tried


def test_tiles_are_named_by_grid_shape_and_overlap() -> None:
    assert parse_tiles(TILES, CANVASES) == TILED
    assert (TILED.name, TILED.shapes) == ("t160", (Shape(96, 160),))
    overlap = parse_tiles("1x3:64x96", CANVASES).tiles
    assert overlap == Tiles("c96", 1, 3, 64)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2:64x96", "must be GRID:SHAPE or GRID:SHAPE:OVERLAP"),
        ("2x2:64x96:-32", "must be GRID:SHAPE or GRID:SHAPE:OVERLAP"),
        ("2x2", "must be GRID:SHAPE or GRID:SHAPE:OVERLAP"),
        ("2x2:60x96", "60x96 is no canvas' first shape: 32x64, 64x96"),
        ("2x2:96x96:32", "96x96 is no canvas' first shape: 32x64, 64x96"),
        ("2x2:64x96", "t128: tiles.overlap: 64 must be a multiple of 32 from 0 to 32"),
        ("2x2:64x96:48", "t144: tiles.overlap: 48 must be a multiple of 32"),
        ("1x1:64x96:32", "a shape occurs twice"),
        ("1x2:32x64:0", "must go from small to large"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the words say which
        open_tiles([text], tiny(11), CANVASES, Scenes(4), "scenes:4")
    assert words in str(error.value)


def test_a_set_with_few_larger_images_says_nothing_about_tiles() -> None:
    with pytest.raises(RunError, match=r"has 3 images that are larger than c96 .64x96.*at least 4"):
        open_tiles([TILES], tiny(11), CANVASES, Scenes(3), "scenes:3")
    assert len(open_tiles([TILES], tiny(11), CANVASES, Scenes(4), "scenes:4")) == 4


def candidate(name: str, gflops: float, quality: float) -> Candidate:
    return Candidate(Knobs.parse(name), gflops, gflops, quality)


def test_a_tiled_plan_is_kept_where_nothing_as_cheap_is_as_good() -> None:
    plain = [candidate("c96-d1", 3.0, 0.6), candidate("c96-d3", 9.0, 0.7)]
    tiled = [
        candidate("t160-d1", 8.0, 0.65),  # better than c96-d1, and cheaper than c96-d3
        candidate("t160-d2", 12.0, 0.7),  # c96-d3 is as good
        candidate("t160-d3", 15.0, 0.72),
        candidate("t224-d1", 20.0, 0.7205),  # within the noise of t160-d3
    ]
    kept = [each.knobs.name for each in choose_tiled(plain, tiled, 3)]
    assert kept == ["t160-d1", "t160-d3"]
    assert choose_tiled(plain, tiled[1:2], 3) == []


def test_of_many_tiled_plans_those_stay_that_gain_most() -> None:
    gains = (0.6, 0.61, 0.65, 0.66, 0.7)
    tiled = [candidate(f"t160-d{k}", 10.0 + k, quality) for k, quality in enumerate(gains, 1)]
    kept = choose_tiled([candidate("c96-d1", 3.0, 0.5)], tiled, 3)
    assert [each.knobs.depth for each in kept] == [1, 3, 5]


# --------------------------------------------------------------------------------------------------
# each image's own plans


def test_plans_that_are_not_open_count_as_the_full_plan_of_the_image() -> None:
    is_open = open_plans(np.array([False, True]), [False, True, False, True, False])
    assert is_open.tolist() == [
        [True, False, True, False, True],
        [True, True, True, True, False],
    ]
    values = np.arange(10.0).reshape(2, 5)
    assert levelled(values, is_open).tolist() == [[0, 4, 2, 4, 4], [5, 6, 7, 8, 8]]
    deep = np.stack((values, values), -1)
    assert np.array_equal(levelled(deep, is_open)[..., 1], levelled(values, is_open))
    shares = np.array([[0.2, 0.3, 0, 0.5, 0], [0, 0, 0.5, 0, 0.5]])
    assert owned(shares, is_open).tolist() == [[0.2, 0, 0, 0, 0.8], [0, 0, 0.5, 0.5, 0]]


def test_policies_spend_what_the_images_own_plans_cost() -> None:
    """Small images have two plans, larger ones two more. Their figures are those of a table in
    which each image has its own plans alone."""
    larger = np.array([False] * 6 + [True] * 2)
    is_open = open_plans(larger, [False, True, False, True])
    quality = np.tile([0.5, 0.7, 0.6, 0.9], (8, 1)) + np.random.default_rng(0).normal(
        0, 0.02, (8, 4)
    )
    cost = levelled(np.tile([1.0, 3.0, 4.0, 10.0], (8, 1)), is_open)
    quality = levelled(quality, is_open)
    full = by_margin(quality, None)
    assert owned(full, is_open).sum(0).tolist() == [0, 0, 6, 2]
    gain = compare(full, quality, cost, resample(np.arange(8), 50))
    assert gain.quality == pytest.approx(quality[:, -1].mean())
    assert gain.oracle >= gain.quality - 1e-9
    weights = np.ones((1, 8))
    most = oracle_value(quality, cost, np.array([cost[:, -1].mean()]), weights)[0]
    assert most == pytest.approx(quality.max(1).mean())
    least = oracle_value(quality, cost, np.array([1.0]), weights)[0]
    assert least == pytest.approx(quality[:, 0].mean())


# --------------------------------------------------------------------------------------------------
# the whole recipe


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled folder: scenes of which four are larger than 64x96, and four are not."""
    root = tmp_path_factory.mktemp("mixed")
    scenes = open_dataset("scenes:8:3", None)
    for index in range(8):
        sample, size = scenes[index], LARGER if index < 4 else (72, 60)
        for folder, plane in (("images", sample.image), ("masks", sample.mask)):
            (root / folder).mkdir(exist_ok=True)
            kind = Image.Resampling.BOX if folder == "images" else Image.Resampling.NEAREST
            picture = Image.fromarray(plane).resize(size, kind)
            picture.save(root / folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def tiled_run(trained_run: Path, mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After every step, with two tiled plans."""
    run = tmp_path_factory.mktemp("tiled") / "run"
    shutil.copytree(trained_run, run)
    costs = [{"plan": name, "gflops": 1.0 + i} for i, name in enumerate(EVERY)]
    tiles = [{"of": "c96", "rows": 2, "columns": 2, "overlap": 32}]
    write_plans(run, [Knobs.parse(name) for name in EVERY], {"search": costs, "tiles": tiles})
    data = ("--data", mixed, "--fit", "folder", "--held", "scenes:3:5")
    assert command("derive-targets", run, *data) == 0
    assert command("train-gate", run) == 0
    return run


@pytest.fixture(scope="module")
def tiled_bundle(tiled_run: Path) -> Path:
    folder = tiled_run.with_name("tiles")
    assert command("export", tiled_run, "--out", folder) == 0
    return folder


@pytest.mark.timeout(900)  # on a machine that is busy, an export takes minutes
def test_a_search_adds_tiled_plans_to_those_that_are_there(
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    costs = [{"plan": name, "gflops": 1e-4 * (1 + i), "ms": 1.0} for i, name in enumerate(PLANS)]
    write_plans(run, [Knobs.parse(name) for name in PLANS], {"search": costs, "data": "scenes:4:9"})

    def better(*_: Any) -> np.ndarray:
        return np.tile(np.linspace(0.1, 0.9, 4 + 4), (4, 1))  # the tiled ones come last

    monkeypatch.setattr("model_export.gating.search_tiles.qualities", better)
    words = (
        "--on",
        "scenes:4:9",
        "--keeps",
        "1",
        "--widths",
        "0.5",
        "--tiles",
        TILES,
        "--only-tiles",
    )
    assert command("search-plans", run, *words, "--rounds", 1, "--threads", 1) == 0
    found = last_json(capsys.readouterr().out)
    plans, report = read_plans(run)
    assert [plan.name for plan in plans if not plan.tiled] == list(PLANS)
    assert 1 <= len(found["tiled"]) <= 3  # type: ignore[arg-type]
    assert found["tiled"] == [plan.name for plan in plans if plan.tiled]
    assert report["tiles"] == [{"of": "c96", "rows": 2, "columns": 2, "overlap": 32}]
    assert read_canvases(run) == (*CANVASES, TILED)
    rows = {row["plan"]: row for row in report["search_tiles"]["table"]}
    assert set(PLANS) <= rows.keys()


@pytest.mark.timeout(900)  # on a machine that is busy, an export takes minutes
def test_small_images_have_the_full_plain_plan_s_quality_in_tiled_columns(tiled_run: Path) -> None:
    targets = read_targets(tiled_run, "fit")
    assert targets["larger"].tolist() == [True] * 4 + [False] * 4
    counts, names = targets["counts"], targets["plans"].tolist()
    full, tiled = names.index("c96-d3"), [names.index(n) for n in names if n.startswith("t")]
    for column in tiled:
        assert np.array_equal(counts[4:, column], counts[4:, full])
        assert not np.array_equal(counts[:4, column], counts[:4, full])
    report = json.loads((tiled_run / "gate.json").read_text())
    assert report["calibrated_images"] == 3


@pytest.mark.timeout(900)  # on a machine that is busy, an export takes minutes
def test_the_bundle_has_tiles_and_no_graphs_of_its_own_for_them(tiled_bundle: Path) -> None:
    manifest = load(tiled_bundle).manifest
    assert manifest.input.canvases == (*CANVASES, TILED)
    assert list(manifest.graphs) == ["32x64", "64x96"]
    encoders = manifest.graphs["64x96"].encoders
    assert encoders["t160-d3-k50"] == encoders["c96-d3-k50"] == "encoder-64x96-d3-k50"
    assert encoders["t160-d1-w50"] == "encoder-64x96-d1-w50"
    parts = manifest.calibration["gflops"]
    tile = sum(parts[name] for name in ("front-64x96", "encoder-64x96-d1-w50", "decoder-64x96"))
    plan = next(plan for plan in manifest.plans if plan.name == "t160-d1-w50")
    rounding = (1 + 4 * 3 + 1) * 5e-5  # each part is written with four decimals
    assert plan.gflops == pytest.approx(parts["front-32x64"] + 4 * tile, abs=rounding)
    assert [canvas.name for canvas in read_weights(tiled_bundle / WEIGHTS)[2]] == ["c64", "c96"]


@pytest.mark.parametrize("size", [LARGER, (72, 60)])
def test_torch_counts_what_the_bundle_s_stages_count(
    tiled_bundle: Path, size: tuple[int, int]
) -> None:
    sample = Scenes(1, 7)[0]
    image, mask = (
        np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.NEAREST))
        for plane in (sample.image, sample.mask)
    )
    meter = Meter(tiled_bundle, EngineOptions(), None)
    frames = from_memory(image, LIMITS, meter.manifest.input)
    found = meter.run(frames, Truth(mask, np.zeros(mask.shape, np.bool_)), 0)
    model, gate, _ = read_weights(tiled_bundle / WEIGHTS)
    plans = [Knobs.parse(plan.name) for plan in meter.manifest.plans]
    sample = type(sample)("x", image, mask)
    wanted, inputs = counts_by_knobs(model, sample, meter.manifest.input.canvases, plans)
    for plan, ours, theirs in zip(plans, found["counts"], wanted, strict=True):
        assert np.abs(ours - theirs).sum() <= 0.002 * mask.size, plan.name
    with torch.no_grad():
        scores = gate(torch.from_numpy(inputs)[None])[0].numpy()
    assert np.abs(found["scores"] - scores)[found["is_open"]].max() < 1e-4
    assert found["is_open"].sum() == (6 if size == LARGER else 4)


def test_an_evaluation_gives_each_image_its_own_plans(
    tiled_bundle: Path, mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--data", mixed, "--threads", 1, "--draws", 20)
    assert command("evaluate", tiled_bundle, *words) == 0
    found: Any = last_json(capsys.readouterr().out)
    assert {row["name"]: row["images"] for row in found["plans"]} == {
        **dict.fromkeys(PLANS, 8),
        **dict.fromkeys(("t160-d1-w50", "t160-d3-k50"), 4),
    }
    rows = {row["policy"]: row for row in found["policies"]}
    gflops = {row["name"]: row["gflops"] for row in found["plans"]}
    full = rows["full"]
    assert {name: n for name, n in full["plans"].items() if n} == {"c96-d3": 4, "t160-d3-k50": 4}
    assert full["gflops"] == pytest.approx((gflops["c96-d3"] + gflops["t160-d3-k50"]) / 2)
    cheap = rows["fixed t160-d1-w50"]
    assert {name: n for name, n in cheap["plans"].items() if n} == {"c96-d3": 4, "t160-d1-w50": 4}


def test_a_bundle_with_tiles_gets_a_new_gate(
    tiled_bundle: Path, mixed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "retargeted"
    data = ("--data", mixed, "--fit", "folder", "--held", "scenes:3:8")
    assert command("retarget", tiled_bundle, "-o", out, *data) == 0
    assert load(out).manifest.input.canvases == (*CANVASES, TILED)
