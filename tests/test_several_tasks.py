"""Several heads on one encoder: their recipe at toy size, by the commands that people type."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from model_export.data.augment import on_canvases
from model_export.data.datasets import DataError, Scenes
from model_export.data.several_tasks import TaskBatches
from model_export.evaluation.compare_tasks import Measured, limit
from model_export.export.graphs import heads_of
from model_export.gating.preferences import preference_grid, weighted
from model_export.gating.task_gate import fit_heads, smallest
from model_export.network.config import streets
from model_export.network.knobs import Knobs
from model_export.training.bundle_weights import WEIGHTS, read_weights
from model_export.training.runs import (
    load_model,
    read_config,
    read_plans,
    read_targets,
    trained_on,
)
from service import bundle
from service.bundle import (
    Canvas,
    EncoderPlan,
    Head,
    HeadWorth,
    Shape,
    Thresholds,
    complete_plans,
)
from tests.toy import command, last_json

pytestmark = pytest.mark.timeout(900)  # a test of the toy run waits for its training
HEADS = ("detection", "depth")


@pytest.fixture(scope="session")
def tasks_run(tmp_path_factory: pytest.TempPathFactory, traced_once: None) -> Path:
    """Trained, searched, with gate: two heads on one small canvas."""
    run = tmp_path_factory.mktemp("several") / "run"
    train = ("train-tasks", "--out", run, "--train", "scenes:8:1", "--dev", "scenes:2:2")
    few = ("--heads", *HEADS, "--canvases", "64x96", "--batch", "4", "--check-every", "2")
    assert command(*train, *few, "--steps", "2") == 0
    assert command(*train, *few, "--steps", "3") == 0, "it goes on where it was"
    assert command("search-plans", run, "--on", "scenes:4:3", "--widths", "1", "--most", "3") == 0
    assert command("derive-targets", run, "--fit", "scenes:12:4", "--held", "scenes:4:5") == 0
    assert command("train-gate", run) == 0
    return run


@pytest.fixture(scope="session")
def tasks_bundle(tasks_run: Path) -> Path:
    folder = tasks_run.parent / "small-streets"
    assert command("export", tasks_run, "-o", folder, "--parity", "scenes:3:6") == 0
    return folder


def test_prepared_scenes_are_kept_apart_by_all_that_they_depend_on(tmp_path: Path) -> None:
    canvases = (Canvas.of([Shape(64, 96)]),)

    def images(bare: float, cache: Path | None) -> list[np.ndarray]:
        batches = TaskBatches(Scenes(3, 9, bare=bare), canvases, 1, (1,), 0, cache)
        return [batches._prepared(index)["c96"].image for index in range(3)]

    for bare in (0.0, 0.9, 0.0):
        for ours, wanted in zip(images(bare, tmp_path), images(bare, None), strict=True):
            assert np.array_equal(ours, wanted)
    assert not np.array_equal(images(0.0, None)[0], images(0.9, None)[0])
    damaged = min(tmp_path.iterdir())
    for content in (b"", b"PK\3\4", damaged.read_bytes()[:-99]):
        damaged.write_bytes(content)
        with pytest.raises(DataError, match=rf"{damaged.name} is damaged .* delete it"):
            [images(bare, tmp_path) for bare in (0.0, 0.9)]


def test_the_log_tells_of_every_head(tasks_run: Path) -> None:
    header, *rows = (tasks_run / "log.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["2", "3"]
    for name in ("detection", "depth", "features", "dev_c96-d4+depth-w25"):
        assert name in header.split(",")


def test_a_head_is_trained_alone_and_nothing_else_changes(tasks_run: Path, tmp_path: Path) -> None:
    """It can be stopped and go on like any training."""
    out = tmp_path / "alone"
    train = ("train-tasks", "--out", out, "--train", "scenes:4:13", "--dev", "scenes:2:2")
    only = ("--start-from", tasks_run, "--only", "detection", "--batch", "4", "--check-every", "2")
    assert command(*train, *only, "--steps", "2") == 0
    assert command(*train, *only, "--steps", "3") == 0
    before, after = (load_model(run) for run in (tasks_run, out))
    assert after.config == before.config
    for name, value in before.state_dict().items():
        same = torch.equal(value, after.state_dict()[name])
        assert same != name.startswith("heads.detection.") or not value.numel(), name
    assert trained_on(out) == [("scenes:8:1", None), ("scenes:4:13", None)]
    assert read_config(out)[1] == read_config(tasks_run)[1]


def test_targets_have_a_quality_for_every_head_at_every_width(tasks_run: Path) -> None:
    plans, report = read_plans(tasks_run)
    targets = read_targets(tasks_run, "fit")
    assert targets["quality"].shape == (12, len(plans), 6)
    assert ((targets["quality"] >= 0) & (targets["quality"] <= 1)).all()
    assert len(plans) == 3
    assert plans[-1] == Knobs(4, canvas="c96")
    assert len(report["search"]) == 4


def test_the_bundle_has_heads_with_widths_that_share_all_weights(tasks_bundle: Path) -> None:
    manifest = bundle.load(tasks_bundle).manifest
    assert [head.name for head in manifest.heads] == [*HEADS]
    detection, depth = manifest.heads
    assert (depth.unit, depth.range, depth.classes) == ("m", (1.0, 120.0), ())
    assert [entry.name for entry in detection.classes] == ["Car", "Pedestrian", "Bicyclist"]
    assert all(entry.thing for entry in detection.classes)
    assert manifest.default_preference == {"detection": 0.5, "depth": 0.5}
    for plan in manifest.encoder_plans:
        for name in HEADS:
            costs = [plan.heads[f"{name}{end}"].gflops for end in ("-w25", "-w50", "")]
            assert costs == sorted(costs)
            # A single layer of boxes has no layers to leave out.
            assert costs[2] > (2 if name == "detection" else 3) * costs[1] > 0
    files = {path.name: path.stat().st_size for path in tasks_bundle.iterdir()}
    graphs = sum(size for name, size in files.items() if name.endswith(".onnx"))
    assert graphs < files[WEIGHTS] / 4, "a graph has weights of its own"


def test_a_graph_answers_as_the_network_does_at_that_width(tasks_bundle: Path) -> None:
    manifest = bundle.load(tasks_bundle).manifest
    model, gate, canvases = read_weights(tasks_bundle / WEIGHTS)
    frame = on_canvases(Scenes(1, 6)[0], canvases)["c96"]
    graphs = manifest.graphs["64x96"]

    def run(stage: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = onnxruntime.InferenceSession(
            tasks_bundle / manifest.stages[stage].file, providers=["CPUExecutionProvider"]
        )
        wanted = {each.name: inputs[each.name] for each in session.get_inputs()}
        names = [each.name for each in session.get_outputs()]
        return dict(zip(names, session.run(names, wanted), strict=True))

    size = np.array([[360, 480]], np.float32)
    seen = run(graphs.front, {"image": frame.pixels[None], "size": size})
    assert seen["quality"].shape == (1, 3 * 6)
    full = manifest.encoder_plans[-1].name
    encoded = run(graphs.encoders[full], seen) | {"f4": seen["f4"]}
    with torch.inference_mode():
        lateral, maps = model.features(torch.from_numpy(frame.pixels)[None])
        scores = gate(model.glance(maps, torch.from_numpy(size)))
        again = model.encoder(maps, 4)
        np.testing.assert_allclose(seen["quality"], scores.numpy(), atol=1e-4)
        for width, end in ((0.25, "-w25"), (0.5, "-w50"), (1.0, "")):
            depth = run(graphs.heads[f"depth{end}"], encoded)["depth"]
            ours = model.heads["depth"](lateral, again, width).exp().numpy()
            np.testing.assert_allclose(depth, ours, rtol=1e-3)
            boxes = run(graphs.heads[f"detection{end}"], encoded)["boxes"]
            theirs = model.heads["detection"](lateral, again, width)[-1].boxes.numpy()
            np.testing.assert_allclose(boxes, theirs, atol=1e-3)
            assert boxes.shape == (1, round(48 * width), 4)


def test_a_margin_is_the_smallest_of_all_preferences(tasks_run: Path) -> None:
    report = json.loads((tasks_run / "gate.json").read_text())
    tables = report["by_preference"]
    assert [row["preference"] for row in tables] == preference_grid(HEADS)
    for place, row in enumerate(report["margins"]):
        own = [table["margins"][place]["margin"] for table in tables]
        assert row["margin"] == (None if None in own else min(own))


def test_nothing_but_the_full_plan_for_one_preference_is_so_for_all() -> None:
    tables = [
        [{"asked": 0.1, "margin": m}, {"asked": 0.2, "margin": n}]
        for m, n in ((0.3, 0.4), (None, 0.2))
    ]
    assert smallest(tables) == [{"asked": 0.1, "margin": None}, {"asked": 0.2, "margin": 0.2}]


def test_each_head_has_a_regression_of_its_own() -> None:
    """Detection follows the first input, depth the second, whatever the other head does."""
    config, rng = streets(11, HEADS), np.random.default_rng(0)
    inputs = rng.normal(size=(200, 5))
    quality = np.empty((200, 2, 6))
    for row, gain in enumerate((0.8, 1.0)):
        for column in range(6):
            follows = inputs[:, 0 if column < 3 else 1]
            quality[:, row, column] = 0.5 + 0.05 * gain * (1 + column % 3) * follows
    fitted = fit_heads(config, inputs, quality, 160)
    assert fitted.scores.shape == quality.shape
    assert np.abs(fitted.scores - quality).mean() < 0.01
    slopes = (fitted.gate.output.weight / fitted.gate.scale).detach().numpy().reshape(2, 6, 5)
    assert np.abs(slopes[:, :3, 1]).max() < 0.1 * np.abs(slopes[:, :3, 0]).min()
    assert np.abs(slopes[:, 3:, 0]).max() < 0.1 * np.abs(slopes[:, 3:, 1]).min()


def test_quality_is_weighted_by_the_preference(tasks_bundle: Path) -> None:
    manifest = bundle.load(tasks_bundle).manifest
    preference = {"detection": 3.0, "depth": 1.0}
    plans = complete_plans(manifest.encoder_plans, manifest.heads, preference)
    names, keys = [plan.name for plan in manifest.encoder_plans], manifest.head_keys
    assert keys == list(heads_of(streets(11, HEADS)))
    table = np.array(
        [[[plan.heads[key].quality for key in keys] for plan in manifest.encoder_plans]]
    )
    ours = weighted(table, plans, preference, names, keys)[0]
    np.testing.assert_allclose(ours, [plan.quality for plan in plans], atol=1e-9)


def test_what_is_for_one_task_says_so(
    tasks_run: Path, tasks_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = ("--out", tmp_path / "out"), ("--fit", "scenes:4:7", "--held", "scenes:4:8")
    for words, message in (
        (("train-exits", *out, "--start-from", tasks_run), "has several heads: train it further"),
        (("retarget", tasks_bundle, *out, *data), "has several heads: repeat derive-targets"),
        (("evaluate", tasks_run), "has several heads: export it, or use compare-tasks"),
        (("evaluate", tasks_bundle, "--data", tmp_path), "give it --on scenes:COUNT"),
        (("derive-targets", tasks_run, "--fit", "scenes:4:1", "--held", "scenes:4:8"), "shares"),
    ):
        assert command(*words) == 1
        assert message in capsys.readouterr().err


def test_a_bundle_is_judged_head_by_head(
    tasks_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("evaluate", tasks_bundle, "--on", "scenes:3:9", "--threads", "1") == 0
    result = last_json(capsys.readouterr().out)
    rows = result["plans"]
    assert len(rows) == 3 * 6
    assert all(row["ms"] > 0 and 0 <= row["quality"] <= 1 for row in rows)
    assert result["measures"] == {"detection": "AP", "depth": "within 1.25"}
    manifest = bundle.load(tasks_bundle).manifest
    assert len(result["promises"]) == len(preference_grid(HEADS)) * len(manifest.margins)


def test_networks_are_compared_on_the_same_images(
    tasks_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With itself: as good, and of the same hypervolume."""
    words = ("--on", "scenes:4:10", "--fixed", tasks_run, "--figures", tmp_path)
    assert command("compare-tasks", tasks_run, *words) == 0
    result = last_json(capsys.readouterr().out)
    assert result["hypervolume"]["ratio"] == 1
    assert result["hypervolume"]["interval"] == [1, 1]
    half = {(row["preferred"], row["over"]) for row in result["by_preference"]}
    assert half == {("detection", "depth"), ("depth", "detection")}
    assert all(0 <= row["limit"] <= 1 for row in result["by_preference"])
    assert (tmp_path / "tasks.png").stat().st_size > 5000


def test_what_a_preference_can_gain_is_the_best_for_one_less_the_best_for_the_other() -> None:
    keys = ["detection-w50", "detection", "depth-w50", "depth"]
    heads = [
        Head(name, name, (), (0.5, 1.0), Thresholds(0.5) if name == "detection" else None)
        for name in HEADS
    ]
    worth = {key: HeadWorth(2.0 if key in HEADS else 1.0, 0.5, (0.5,) * 5) for key in keys}
    plans = [EncoderPlan(f"c96-d{d}", d, 1.0, 1.0, float(d), worth, "c96") for d in (1, 2)]
    quality = np.array([[[0.2, 0.5, 0.3, 0.35], [0.25, 0.6, 0.4, 0.45]]])
    network = Measured("n", plans, plans, heads, keys, quality)
    # Within 4: c96-d1 with one of the heads in full, or c96-d2 with both at half.
    assert limit(network, "detection", "depth", 4.0) == pytest.approx(0.5 - 0.25)
    assert limit(network, "depth", "detection", 4.0) == pytest.approx(0.4 - 0.3)
    assert limit(network, "depth", "detection", 2.0) == 0
