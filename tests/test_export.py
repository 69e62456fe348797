"""From a run to a bundle: what the service takes, and every refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from model_export.data import for_network
from model_export.data.datasets import PALETTE, Sample, Scenes
from model_export.export import parity, weights
from model_export.export import write_bundle as exporter
from model_export.network.gate import Gate, gate_input, gate_inputs
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter, semantic_probabilities
from model_export.tasks import TASKS, qualities, task_of
from model_export.training.bundle_weights import WEIGHTS, read_weights
from model_export.training.runs import (
    RunError,
    read_config,
    read_gate,
    read_targets,
    save_model,
    write_config,
    write_gate,
    write_plans,
    write_targets,
)
from service import bundle
from service.bundle import SIZE, Canvas, Graphs, Shape
from service.errors import BundleError
from service.segmenting import open_bundle
from tests.exported import CPU, graphs_for, scene_frames
from tests.toy import CANVASES, PLANS, STAGES, Stripes, command, toy

# The first test waits for the export.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.timeout(900),
]


def test_exported_bundle_is_one_that_the_service_loads(toy_run: Path, toy_bundle: Path) -> None:
    manifest = bundle.load(toy_bundle).manifest
    assert set(manifest.stages) == set(STAGES)
    assert manifest.head.task == "semantic"
    assert (manifest.input.canvases, manifest.input.pad) == (CANVASES, (127, 127, 127))
    assert tuple(entry.name for entry in manifest.head.classes) == Scenes(1).classes
    assert tuple(entry.color for entry in manifest.head.classes) == PALETTE
    assert not any(entry.thing for entry in manifest.head.classes)
    found = [
        (plan.name, Knobs(plan.depth, plan.keep, plan.width, plan.canvas))
        for plan in manifest.plans
    ]
    assert found == [(name, Knobs.parse(name)) for name in PLANS]
    encoders = {name: f"encoder-64x96-{name.removeprefix('c96-')}" for name in PLANS[1:]}
    assert manifest.graphs == {
        "32x64": Graphs(
            "front-32x64", {PLANS[0]: "encoder-32x64-d1-w50"}, {"semantic": "decoder-32x64"}
        ),
        "64x96": Graphs("front-64x96", encoders, {"semantic": "decoder-64x96"}),
    }
    assert manifest.stages["decoder-32x64"].outputs[0].dims == ("batch", 11, 8, 16)
    assert manifest.stages["decoder-64x96"].outputs[0].dims == ("batch", 11, 16, 24)
    assert manifest.provenance["backbone"] == "random.npz"
    assert manifest.provenance["data"] == "scenes:4"
    config, _, _ = read_config(toy_run)
    held = qualities(TASKS[config.task], read_targets(toy_run, "held")["counts"])
    for k, plan in enumerate(manifest.plans):
        assert plan.quality == pytest.approx(held[:, k].mean(), abs=1e-5)
        assert plan.quality_quantiles[2] == pytest.approx(np.median(held[:, k]), abs=1e-5)
    assert manifest.calibration["images"] == 4
    assert all(0 < stage.parity < 1e-3 for stage in manifest.stages.values())


def test_the_gate_is_in_the_front_of_the_smallest_canvas_alone(toy_bundle: Path) -> None:
    stages = bundle.load(toy_bundle).manifest.stages
    glance, front = stages["front-32x64"], stages["front-64x96"]
    names = ["f4", "f8", "f16", "f32"]
    assert [spec.name for spec in front.inputs] == ["image"]
    assert [spec.name for spec in front.outputs] == names
    assert [spec.name for spec in glance.inputs] == ["image", "size"]
    assert glance.inputs[1] == SIZE
    assert [spec.name for spec in glance.outputs] == [*names, "quality", "gate_input"]
    assert glance.outputs[4].dims == ("batch", len(PLANS))


def test_the_calibrated_margins_go_into_the_bundle(toy_run: Path, toy_bundle: Path) -> None:
    margins = [(row.asked, row.margin) for row in bundle.load(toy_bundle).manifest.margins]
    assert margins == [(row["asked"], row["margin"]) for row in read_gate(toy_run)[1]["margins"]]
    assert len(margins) >= 4


def test_a_search_s_table_goes_into_the_bundle(toy_run: Path) -> None:
    table = [{"plan": "c96-d3", "gflops": 1.0, "ms": 2.0, "quality": 0.5}]
    search = {"plans": ["c96-d3"], "search": table, "data": "scenes:3", "machine": {"threads": 1}}
    config, _, _ = read_config(toy_run)
    held, fitted = read_targets(toy_run, "held"), read_gate(toy_run)[1]
    found = exporter.calibration(config, held, search, fitted)
    assert found["search"] == table
    assert found["searched_on"] == {"data": "scenes:3", "machine": {"threads": 1}}
    assert found["data"] == "scenes:4:5"
    assert "margins" not in found["gate"]
    json.dumps(found, allow_nan=False)


def test_held_out_images_with_nothing_on_them_can_be_bundled(toy_run: Path) -> None:
    """As where an imported checkpoint finds nothing on photos: quality of the set is none then."""
    config, _, _ = read_config(toy_run)
    config = replace(config, task="instance", head="queries", things=(True,) * config.classes)
    held = {"counts": np.zeros((2, 3, config.classes, 4)), "spec": np.array("photos")}
    found = exporter.calibration(config, held, {}, {})
    assert found[f"dataset_{task_of(config).measure}"] == [None] * 3
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("name", PLANS)
def test_onnx_runtime_computes_what_torch_does_for_a_batch_of_three(
    toy_bundle: Path, name: str
) -> None:
    knobs, frames = Knobs.parse(name), list(scene_frames(3).values())
    small, large = (np.stack([frame.pixels for frame in shown]) for shown in frames)
    pixels = small if knobs.canvas == CANVASES[0].name else large
    sizes = np.float32([(frame.geometry.height, frame.geometry.width) for frame in frames[0]])
    assert len(np.unique(sizes)) == 6, "the gate is told three sizes"
    model, gate, _ = read_weights(toy_bundle / "model.safetensors")
    with torch.inference_mode():
        batch = torch.from_numpy(pixels)
        wanted = semantic_probabilities(model(batch, knobs)[-1]).numpy()
        *_, encoded = model.encoder.run(
            model.features(batch)[1], knobs.depth, knobs.keep, knobs.width
        )
        _, maps = model.features(torch.from_numpy(small))
        seen = gate_input(maps, model.front_head(maps), torch.from_numpy(sizes))
        quality = gate(seen).numpy()
    tensors, stages = {}, bundle.load(toy_bundle).manifest.stages

    def run(part: str) -> None:
        session = onnxruntime.InferenceSession(toy_bundle / f"{part}.onnx", providers=CPU)
        stage = stages[part]
        found = session.run(None, {spec.name: tensors[spec.name] for spec in stage.inputs})
        tensors.update(zip((spec.name for spec in stage.outputs), found, strict=True))
        for spec in stage.outputs:
            assert tensors[spec.name].shape == (3, *spec.dims[1:])
            assert tensors[spec.name].dtype == spec.dtype

    own = graphs_for(name)
    for front, images in {"front-32x64": small, own.front: pixels}.items():
        tensors |= {"image": images, "size": sizes}
        run(front)
    for part in (own.encoders[name], *own.heads.values()):
        run(part)
    assert np.abs(tensors["probabilities"] - wanted).max() < 1e-3
    assert (tensors["probabilities"].argmax(1) == wanted.argmax(1)).mean() >= 0.999
    assert np.abs(tensors["quality"] - quality).max() < 1e-4
    assert np.abs(tensors["gate_input"] - seen.numpy()).max() < 1e-3
    assert wanted.std() > 1e-3  # not a comparison of constants
    assert ("paused" in tensors) is (knobs.keep < 1)
    if knobs.keep < 1:
        assert tensors["paused"].mean((1, 2)) == pytest.approx(1 - knobs.keep)
        assert np.array_equal(tensors["paused"], encoded.active.paused((8, 12)).numpy())


def test_changed_file_is_refused_by_name(toy_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(toy_bundle, tmp_path / "changed")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(
        BundleError, match=r"model\.safetensors: its sha256.*python -m model_export export RUN"
    ):
        bundle.load(folder)


class _Blobs(Stripes):
    """Somebody's instance data set of one class."""

    task, classes, palette, channels = "instance", ("blob",), ((255, 0, 0),), 3

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        image = np.random.default_rng(index).integers(0, 256, (40, 60, 3), np.uint8)
        return Sample(f"blob-{index}", image, np.zeros((40, 60), np.uint8))


@pytest.fixture(scope="module")
def blobs(one_thread: None, traced_once: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of objects, on one canvas for landscapes and portraits."""
    folder = tmp_path_factory.mktemp("instance")
    run, config = folder / "run", replace(toy(3), task="instance")
    arguments = dict.fromkeys(
        ("train", "scenes", "steps", "batch", "lr", "crop", "sampling", "distill", "seed"), 0
    )
    write_config(
        run,
        config,
        [Canvas.of([Shape(32, 64), Shape(64, 32)])],
        arguments | {"backbone_weights": None},
        [("instances:small", folder)],
        ["blob"],
    )
    save_model(run, Segmenter(config).state_dict())
    write_plans(run, [Knobs(1, canvas="c64")], {})
    # Two found at a mean IoU of 0.7, one too many.
    counts = np.tile(np.array([1.4, 2.0, 1.0, 0.0]), (5, 1, 1))
    names, plans = np.array(list("abcde")), np.array(["c64-d1"])
    arrays = {"names": names, "counts": counts, "plans": plans, "spec": np.array("blobs")}
    write_targets(run, "fit", arrays)
    write_targets(run, "held", arrays)
    write_gate(run, Gate(gate_inputs(32, 3), 1), {"margins": [{"asked": 0.01, "margin": None}]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(for_network, "open_dataset", lambda spec, root, **_: _Blobs())
        assert command("export", run, "--out", folder / "blobs") == 0
    return folder / "blobs"


def test_an_instance_bundle_has_things_and_background_core_and_border_of_each(blobs: Path) -> None:
    manifest = bundle.load(blobs).manifest
    assert manifest.head.task == "instance"
    assert [(entry.name, entry.thing) for entry in manifest.head.classes] == [("blob", True)]
    assert manifest.stages["decoder-32x64"].outputs[0].dims == ("batch", 3, 8, 16)
    assert manifest.plans[0].quality == pytest.approx(1.4 / 2.5)
    assert manifest.margins[0].margin is None
    assert manifest.calibration["trained_on"] == [], "any folder of that name would count"
    assert manifest.calibration["dataset_PQ"] == [pytest.approx(1.4 / 2.5)]


def test_a_canvas_of_two_shapes_is_exported_for_both_and_serves_landscapes_and_portraits(
    blobs: Path,
) -> None:
    manifest = bundle.load(blobs).manifest
    assert [shape.name for shape in manifest.glance.shapes] == ["32x64", "64x32"]
    assert list(manifest.graphs) == ["32x64", "64x32"]
    for shape in manifest.graphs:
        assert SIZE in manifest.stages[f"front-{shape}"].inputs
    assert manifest.stages["decoder-64x32"].outputs[0].dims == ("batch", 3, 16, 8)
    assert all(0 < stage.parity < 1e-3 for stage in manifest.stages.values())
    noise = np.random.default_rng(0).integers(0, 256, (150, 90, 3), np.uint8)
    with open_bundle(blobs, backend="onnxruntime", threads=1) as segmenter:
        for image, canvas in ((noise, (64, 32)), (noise.transpose(1, 0, 2), (32, 64))):
            answer = segmenter.segment(image)
            assert answer.geometry.canvas == canvas
            assert answer.labels.shape == image.shape[:2]
            assert answer.decision.plan.name == "c64-d1"


def test_canvases_without_a_plan_are_left_out_but_for_the_glance() -> None:
    small, middle, large = (Canvas.of([Shape(side, side)]) for side in (64, 96, 128))
    canvases = (small, middle, large)
    assert exporter.used(canvases, [Knobs(1, canvas="c128")]) == (small, large)
    assert exporter.used(canvases, [Knobs(1, canvas="c64")]) == (small,)
    plans = [Knobs(1, canvas=canvas.name) for canvas in canvases]
    assert exporter.used(canvases, plans) == canvases


@pytest.mark.parametrize(
    ("damage", "words", "message"),
    [
        (lambda run: (run / "run.json").unlink(), (), "python -m model_export train-exits"),
        (
            lambda run: (run / "model.safetensors").unlink(),
            (),
            "python -m model_export train-exits --out ",
        ),
        (lambda run: (run / "plans.json").unlink(), (), "python -m model_export search-plans "),
        (
            lambda run: (run / "targets-held.npz").unlink(),
            (),
            "python -m model_export derive-targets ",
        ),
        (lambda run: (run / "gate.json").unlink(), (), "python -m model_export train-gate "),
        (lambda run: None, ("--parity", "scenes:2"), "3 are needed"),
        (lambda run: None, ("--parity", "camvid:val"), "needs --data FOLDER"),
        (lambda run: None, ("--data", "mine"), "--data mine would not be read"),
    ],
    ids=["run", "weights", "plans", "targets", "gate", "images", "data", "parity"],
)
def test_export_refuses_an_unfinished_run_and_writes_nothing(
    toy_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    words: tuple[str, ...],
    message: str,
) -> None:
    run = shutil.copytree(toy_run, tmp_path / "run")
    damage(run)
    assert command("export", run, "--out", tmp_path / "bundle", *words) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(("name", "value"), [("channels", 5), ("task", "instance")])
def test_export_refuses_a_data_set_that_is_not_the_network_s(
    toy_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: object,
) -> None:
    other = Scenes(3)
    setattr(other, name, value)
    monkeypatch.setattr(for_network, "open_dataset", lambda spec, root, **_: other)
    assert command("export", toy_run, "--out", tmp_path / "bundle") == 1
    assert f"{value}" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_failed_parity_leaves_no_manifest_even_of_an_older_bundle(
    toy_run: Path,
    toy_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = shutil.copytree(toy_bundle, tmp_path / "bundle")
    for slow in ("trace", "cut_out"):
        monkeypatch.setattr(weights, slow, lambda *args: None)
    monkeypatch.setattr(
        weights,
        "write_graph",
        lambda model, path, entries: shutil.copy(toy_bundle / path.name, path),
    )
    monkeypatch.setattr(parity, "MAX_ERROR", 0.0)
    assert command("export", toy_run, "--out", folder) == 1
    assert "differs from torch" in capsys.readouterr().err
    assert not (folder / "manifest.json").exists()
    monkeypatch.undo()
    with pytest.raises(BundleError):
        bundle.load(folder)


def test_weights_may_lie_beyond_two_gigabytes(tmp_path: Path) -> None:
    """The format of ONNX ends there; what it refers to does not. The file has a hole."""
    hole, values = 3 << 30, np.arange(8, dtype=np.float32).reshape(2, 4)
    header = {
        "hole": {"dtype": "U8", "shape": [hole], "data_offsets": [0, hole]},
        "w": {"dtype": "F32", "shape": [2, 4], "data_offsets": [hole, hole + 32]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (tmp_path / WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(hole, 1)
        file.write(values.tobytes())
    entries = weights.read_entries(tmp_path / WEIGHTS)
    assert entries["w"].offset > 1 << 31
    node = helper.make_node("Add", ["x", "model.w"], ["y"])
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 2, 4]) for n in "xy"]
    graph = helper.make_graph(
        [node], "far", sides[:1], sides[1:], [numpy_helper.from_array(values, "model.w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    weights.write_graph(model, tmp_path / "far.onnx", entries)
    assert (tmp_path / "far.onnx").stat().st_size < 1000
    session = onnxruntime.InferenceSession(tmp_path / "far.onnx")
    (found,) = session.run(None, {"x": np.ones((3, 2, 4), np.float32)})
    assert (found == values + 1).all()


def test_graphs_of_a_bundle_of_the_same_network_are_taken_over(
    toy_run: Path, toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the glance's, which hold the gate; they are compared with torch all the same."""
    traced, weights_trace = list[str](), weights.trace

    def spy(module: Any, example: Any, name: str) -> Any:
        traced.append(name)
        return weights_trace(module, example, name)

    monkeypatch.setattr("model_export.export.weights.trace", spy)
    out = tmp_path / "again"
    assert command("export", toy_run, "--out", out, "--graphs-of", toy_bundle) == 0
    glance = bundle.load(toy_bundle).manifest.glance.shapes[0].name
    assert traced == [f"front-{glance}"]
    graphs = sorted(path.name for path in toy_bundle.glob("*.onnx"))
    assert sorted(path.name for path in out.glob("*.onnx")) == graphs
    for name in graphs:
        if name != f"front-{glance}.onnx":
            assert (out / name).read_bytes() == (toy_bundle / name).read_bytes()
    assert command("export", toy_run, "--out", toy_bundle, "--graphs-of", toy_bundle) == 1
    assert (toy_bundle / "manifest.json").exists()


def test_a_graph_of_another_network_is_not_taken_over(toy_bundle: Path, tmp_path: Path) -> None:
    entries = weights.read_entries(toy_bundle / WEIGHTS)
    shutil.copy(toy_bundle / WEIGHTS, tmp_path)
    source = next(iter(toy_bundle.glob("encoder-*.onnx")))
    weights.take_graph(source, tmp_path / "same.onnx", entries)
    assert (tmp_path / "same.onnx").read_bytes() == source.read_bytes()
    wider = {n: replace(entry, shape=(*entry.shape, 2)) for n, entry in entries.items()}
    with pytest.raises(RunError, match=r"is of another network, by its .*: leave out --graphs-of"):
        weights.take_graph(source, tmp_path / "other.onnx", wider)
