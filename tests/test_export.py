"""From a run to a bundle: what torch computes and what ONNX Runtime does, weights once, cost, and every refusal."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from safetensors.torch import load_file

from model_export.export import onnx as exporter
from model_export.export.graphs import Decode, Encode, Front
from model_export.export.onnx import check_parity, enforce
from model_export.network.segmenter import Segmenter, semantic_probabilities
from model_export.recipe.augment import on_canvas
from model_export.recipe.datasets import PALETTE, Scenes
from model_export.recipe.quality import qualities
from model_export.recipe.runs import RunError, read_config, read_targets
from service import bundle
from service.errors import BundleError
from tests.toy import CANVAS, STAGES, command

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(600)]  # the first test waits for the export
CPU = ["CPUExecutionProvider"]


def _images(count: int, seed: int = 9) -> np.ndarray:
    scenes = Scenes(count, seed)
    return np.stack([on_canvas(scenes[i], CANVAS)[0] for i in range(count)])


def _exported_model(run: Path, folder: Path) -> Segmenter:
    """The network with the bundle's own weights: the file is a checkpoint, too."""
    model = Segmenter(read_config(run)[0])
    stored = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    missing, unexpected = model.load_state_dict(stored, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)  # counts, of no use after training
    return model.eval()


# ---- a bundle that the service takes


def test_exported_bundle_is_one_that_the_service_loads(toy_run: Path, toy_bundle: Path) -> None:
    manifest = bundle.load(toy_bundle).manifest
    assert set(manifest.stages) == set(STAGES)
    assert (manifest.input.height, manifest.input.width, manifest.input.pad) == (*CANVAS, (127, 127, 127))
    assert tuple(entry.name for entry in manifest.classes) == Scenes(1).classes
    assert tuple(entry.color for entry in manifest.classes) == PALETTE
    assert [(plan.name, plan.depth) for plan in manifest.plans] == [("d1", 1), ("d2", 2), ("d3", 3)]
    assert dict(manifest.encoder_of) == {f"d{k}": f"encoder-d{k}" for k in (1, 2, 3)}
    assert manifest.mask_shape == (11, 16, 24)
    assert manifest.provenance["backbone"] == "random.npz"
    assert manifest.provenance["data"] == "scenes:4"
    held = qualities(read_targets(toy_run, "held")["confusions"])
    for k, plan in enumerate(manifest.plans):
        assert plan.quality == pytest.approx(held[:, k].mean(), abs=1e-5)
        assert plan.quality_quantiles[2] == pytest.approx(np.median(held[:, k]), abs=1e-5)
    assert manifest.calibration["images"] == 4
    assert all(0 < stage.parity < 1e-3 for stage in manifest.stages.values())


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_onnx_runtime_computes_what_torch_does_for_a_batch_of_three(
    toy_run: Path, toy_bundle: Path, depth: int
) -> None:
    pixels = _images(3)
    model = _exported_model(toy_run, toy_bundle)
    with torch.inference_mode():
        wanted = semantic_probabilities(model(torch.from_numpy(pixels), depth)[-1]).numpy()
        quality = model.gate(model.gate.pool(model.features(torch.from_numpy(pixels))[1][0])).sigmoid().numpy()
    tensors = {"image": pixels}
    for name in ("front", f"encoder-d{depth}", "decoder"):
        session = onnxruntime.InferenceSession(toy_bundle / f"{name}.onnx", providers=CPU)
        stage = bundle.load(toy_bundle).manifest.stages[name]
        found = session.run(None, {spec.name: tensors[spec.name] for spec in stage.inputs})
        tensors |= dict(zip((spec.name for spec in stage.outputs), found, strict=True))
        for spec in stage.outputs:
            assert tensors[spec.name].shape == (3, *spec.dims[1:])
            assert tensors[spec.name].dtype == spec.dtype
    assert np.abs(tensors["probabilities"] - wanted).max() < 1e-3
    assert (tensors["probabilities"].argmax(1) == wanted.argmax(1)).mean() >= 0.999
    assert np.abs(tensors["quality"] - quality).max() < 1e-4
    assert wanted.std() > 1e-3  # not a comparison of constants


def test_changed_file_is_refused_by_name(toy_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(toy_bundle, tmp_path / "changed")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.safetensors: its sha256.*python -m model_export export RUN"):
        bundle.load(folder)


# ---- the files


def test_weights_are_stored_once(toy_run: Path, toy_bundle: Path) -> None:
    """Every graph points into the one file: a layer that several encoders run has one place there."""
    weights = toy_bundle / "model.safetensors"
    places: dict[str, set[tuple[str, str]]] = {}
    for path in toy_bundle.glob("*.onnx"):
        assert path.stat().st_size < 200_000  # nodes, and constants of a few bytes
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if tensor.data_location != TensorProto.EXTERNAL:
                assert tensor.ByteSize() <= 4096
                continue
            assert entries["location"] == weights.name
            assert int(entries["offset"]) + int(entries["length"]) <= weights.stat().st_size
            assert (tensor.data_type == TensorProto.FLOAT16) == (len(tensor.dims) > 1)
            places.setdefault(tensor.name.removesuffix(".half"), set()).add((entries["offset"], entries["length"]))
    assert all(len(place) == 1 for place in places.values())
    assert len(set().union(*places.values())) == len(places)
    trained = [name for name in load_file(toy_run / "model.safetensors") if not name.endswith("num_batches_tracked")]
    assert {name.removeprefix("model.") for name in places} == set(trained)
    assert sorted(path.name for path in toy_bundle.iterdir()) == sorted(
        [*(f"{name}.onnx" for name in STAGES), "manifest.json", "model.safetensors"]
    )
    assert weights.stat().st_mode & 0o044 == 0o044  # a container's user is not the one who exported


def test_graphs_tell_nothing_of_the_machine_that_wrote_them(toy_bundle: Path) -> None:
    root = Path(__file__).parents[1]
    for path in toy_bundle.glob("*.onnx"):
        content = path.read_bytes()
        for text in (str(root), str(Path.home()), str(toy_bundle.parent), "site-packages", ".py", "Traceback", "File "):
            assert text.encode() not in content, text
        model = onnx.load(path, load_external_data=False)
        graph = model.graph
        for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
            assert not item.metadata_props
            assert not item.doc_string
        assert not model.functions


# ---- parity


def _modules(model: Segmenter) -> dict[str, torch.nn.Module]:
    return {"front": Front(model), "decoder": Decode(model)} | {f"encoder-d{k}": Encode(model, k) for k in (1, 2, 3)}


def test_parity_is_measured_on_all_stages_and_enforced(
    toy_run: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = _modules(_exported_model(toy_run, toy_bundle))
    errors = check_parity(toy_bundle, modules, _images(3))
    assert set(errors) == set(STAGES)
    assert max(errors.values()) < 1e-3
    monkeypatch.setattr(exporter, "MAX_ERROR", 0.0)
    with pytest.raises(RunError, match=r"differs from torch by .*nothing was bundled"):
        check_parity(toy_bundle, modules, _images(3))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("gate.output.bias", "the gate"),
        ("encoder.layers.2.linear2.bias", "encoder-d3"),
        ("decoder.norm.bias", "encoder-d1"),
    ],
)
def test_parity_notices_a_wrong_weight_in_any_stage(toy_run: Path, toy_bundle: Path, part: str, message: str) -> None:
    model = _exported_model(toy_run, toy_bundle)
    with torch.no_grad():
        value = model.get_parameter(part)
        value += torch.linspace(-3, 3, len(value))
    with pytest.raises(RunError, match=message):
        check_parity(toy_bundle, _modules(model), _images(3))


def test_parity_limits() -> None:
    zeros = np.zeros(4, np.float32)
    enforce("x", zeros, zeros + 0.0009, 0.9995)
    for theirs, equal in ((zeros + 0.0011, 1.0), (zeros, 0.998), (zeros + np.nan, 1.0), (zeros, np.nan)):
        with pytest.raises(RunError, match="x: ONNX Runtime differs"):
            enforce("x", zeros, theirs, equal)


# ---- refusals


def _class_gate(run: Path) -> None:
    (run / "gate.json").write_text('{"loss": "class"}')


@pytest.mark.parametrize(
    ("damage", "words", "message"),
    [
        (lambda run: (run / "run.json").unlink(), (), "python -m model_export train-exits"),
        (lambda run: (run / "model.safetensors").unlink(), (), "python -m model_export train-exits --out "),
        (lambda run: (run / "targets-held.npz").unlink(), (), "python -m model_export derive-targets "),
        (lambda run: (run / "gate.json").unlink(), (), "python -m model_export train-gate "),
        (_class_gate, (), "train-gate --loss quality"),
        (lambda run: None, ("--parity", "scenes:2"), "three are needed"),
        (lambda run: None, ("--parity", "camvid:val"), "needs --data FOLDER"),
    ],
    ids=["run", "weights", "targets", "gate", "class gate", "images", "data"],
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


def test_export_refuses_class_names_of_another_data_set(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Scenes(3)
    other.classes = other.classes[:5]
    monkeypatch.setattr(exporter, "open_dataset", lambda spec, root: other)
    assert command("export", toy_run, "--out", tmp_path / "bundle") == 1
    assert "5 classes and the run 11" in capsys.readouterr().err


def test_failed_parity_leaves_no_manifest_even_of_an_older_bundle(
    toy_run: Path,
    toy_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = shutil.copytree(toy_bundle, tmp_path / "bundle")
    monkeypatch.setattr(exporter, "write_graph", lambda module, example, path, offsets: shutil.copy(
        toy_bundle / path.name, path))  # fmt: skip
    monkeypatch.setattr(exporter, "MAX_ERROR", 0.0)
    assert command("export", toy_run, "--out", folder) == 1
    assert "differs from torch" in capsys.readouterr().err
    assert not (folder / "manifest.json").exists()
    monkeypatch.undo()
    with pytest.raises(BundleError):
        bundle.load(folder)
