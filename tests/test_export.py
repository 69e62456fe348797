"""From a run to a bundle: what torch computes and what ONNX Runtime does, weights once, cost, and
every refusal."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from safetensors.torch import load_file, save_file

from model_export.data.augment import on_canvas
from model_export.data.datasets import PALETTE, Sample, Scenes
from model_export.export import parity, weights
from model_export.export import write_bundle as exporter
from model_export.export.attention import Form, body, forms_of
from model_export.export.graphs import Encode, stages_of
from model_export.export.kernel_files import write_kernels
from model_export.export.parity import check_parity, enforce
from model_export.kernels import launch, nvrtc
from model_export.network.deformable_attention import by_grid_sample
from model_export.network.gate import Gate, gate_input, gate_inputs
from model_export.network.knobs import Knobs
from model_export.network.pausing import Active
from model_export.network.segmenter import Segmenter, semantic_probabilities
from model_export.tasks import TASKS, qualities
from model_export.training.bundle_weights import read_weights
from model_export.training.runs import (
    RunError,
    load_model,
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
from service.errors import BundleError
from tests.toy import CANVAS, PLANS, STAGES, Stripes, command, toy

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.timeout(900),
]  # the first test waits for the export
CPU = ["CPUExecutionProvider"]


def _images(count: int, seed: int = 9) -> np.ndarray:
    scenes = Scenes(count, seed)
    return np.stack([on_canvas(scenes[i], CANVAS)[0] for i in range(count)])


# ---- a bundle that the service takes


def test_exported_bundle_is_one_that_the_service_loads(toy_run: Path, toy_bundle: Path) -> None:
    manifest = bundle.load(toy_bundle).manifest
    assert set(manifest.stages) == set(STAGES)
    assert manifest.task == "semantic"
    assert (manifest.input.height, manifest.input.width, manifest.input.pad) == (
        *CANVAS,
        (127, 127, 127),
    )
    assert tuple(entry.name for entry in manifest.classes) == Scenes(1).classes
    assert tuple(entry.color for entry in manifest.classes) == PALETTE
    assert not any(entry.thing for entry in manifest.classes)
    found = [(plan.name, Knobs(plan.depth, plan.keep, plan.width)) for plan in manifest.plans]
    assert found == [(name, Knobs.parse(name)) for name in PLANS]
    assert dict(manifest.encoder_of) == {name: f"encoder-{name}" for name in PLANS}
    assert manifest.mask_shape == (11, 16, 24)
    assert manifest.provenance["backbone"] == "random.npz"
    assert manifest.provenance["data"] == "scenes:4"
    config, _, _ = read_config(toy_run)
    held = qualities(TASKS[config.task], read_targets(toy_run, "held")["counts"])
    for k, plan in enumerate(manifest.plans):
        assert plan.quality == pytest.approx(held[:, k].mean(), abs=1e-5)
        assert plan.quality_quantiles[2] == pytest.approx(np.median(held[:, k]), abs=1e-5)
    assert manifest.calibration["images"] == 4
    assert all(0 < stage.parity < 1e-3 for stage in manifest.stages.values())


def test_the_calibrated_margins_go_into_the_bundle(toy_run: Path, toy_bundle: Path) -> None:
    margins = [(row.asked, row.margin) for row in bundle.load(toy_bundle).manifest.margins]
    assert margins == [(row["asked"], row["margin"]) for row in read_gate(toy_run)[1]["margins"]]
    assert len(margins) >= 4


def test_a_search_s_table_goes_into_the_bundle(toy_run: Path) -> None:
    table = [{"plan": "d3", "gflops": 1.0, "ms": 2.0, "quality": 0.5}]
    search = {"plans": ["d3"], "search": table, "data": "scenes:3", "machine": {"threads": 1}}
    config, _, _ = read_config(toy_run)
    held, fitted = read_targets(toy_run, "held"), read_gate(toy_run)[1]
    found = exporter.calibration(config, held, search, fitted, {"front": 0.123456}, {"front": 1e-6})
    assert found["search"] == table
    assert found["searched_on"] == {"data": "scenes:3", "machine": {"threads": 1}}
    assert found["data"] == "scenes:4:5"
    assert "margins" not in found["gate"]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("name", PLANS)
def test_onnx_runtime_computes_what_torch_does_for_a_batch_of_three(
    toy_bundle: Path, name: str
) -> None:
    pixels, knobs = _images(3), Knobs.parse(name)
    model, gate, _ = read_weights(toy_bundle / "model.safetensors")
    with torch.inference_mode():
        batch = torch.from_numpy(pixels)
        wanted = semantic_probabilities(model(batch, knobs)[-1]).numpy()
        _, maps = model.features(batch)
        seen = gate_input(maps, model.front_head(maps))
        quality = gate(seen).numpy()
        *_, encoded = model.encoder.run(maps, knobs.depth, knobs.keep, knobs.width)
    tensors = {"image": pixels}
    for part in ("front", f"encoder-{name}", "decoder"):
        session = onnxruntime.InferenceSession(toy_bundle / f"{part}.onnx", providers=CPU)
        stage = bundle.load(toy_bundle).manifest.stages[part]
        found = session.run(None, {spec.name: tensors[spec.name] for spec in stage.inputs})
        tensors |= dict(zip((spec.name for spec in stage.outputs), found, strict=True))
        for spec in stage.outputs:
            assert tensors[spec.name].shape == (3, *spec.dims[1:])
            assert tensors[spec.name].dtype == spec.dtype
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


# ---- the files


def test_weights_are_stored_once(toy_run: Path, toy_bundle: Path) -> None:
    """Every graph points into the one file: a layer that several encoders run has one place there
    at any width."""
    stored = toy_bundle / "model.safetensors"
    places: dict[str, set[tuple[str, str]]] = {}
    for path in toy_bundle.glob("*.onnx"):
        assert path.stat().st_size < 200_000  # nodes, and constants of a few bytes
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if tensor.data_location != TensorProto.EXTERNAL:
                assert tensor.ByteSize() <= 4096
                continue
            assert entries["location"] == stored.name
            assert int(entries["offset"]) + int(entries["length"]) <= stored.stat().st_size
            half = len(tensor.dims) > 1 and not tensor.name.startswith("gate.")
            assert (tensor.data_type == TensorProto.FLOAT16) == half
            places.setdefault(tensor.name.removesuffix(".half"), set()).add(
                (entries["offset"], entries["length"])
            )
    assert all(len(place) == 1 for place in places.values())
    assert len(set().union(*places.values())) == len(places)
    trained = [
        name
        for name in load_file(toy_run / "model.safetensors")
        if not name.endswith("num_batches_tracked")
    ]
    gate = [f"gate.{name}" for name in load_file(toy_run / "gate.safetensors")]
    assert {name.removeprefix("model.") for name in places} == {*trained, *gate}
    assert sorted(path.name for path in toy_bundle.iterdir()) == sorted(
        [
            *(f"{name}.onnx" for name in STAGES),
            "manifest.json",
            "model.safetensors",
            *_kernel_names(toy_bundle),
        ]
    )
    assert stored.stat().st_mode & 0o044 == 0o044  # a container's user is not the one who exported


def test_a_bundle_s_weights_say_which_network_they_are_of(
    toy_run: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    """So that a bundle can be calibrated anew without the run that it came from."""
    model, gate, canvas = read_weights(toy_bundle / "model.safetensors")
    assert model.config == read_config(toy_run)[0]
    assert canvas == CANVAS
    assert not model.training
    trained = load_model(toy_run).state_dict()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, trained[name], rtol=1e-3, atol=1e-6), name
    for name, value in read_gate(toy_run)[0].state_dict().items():
        assert torch.equal(value, gate.state_dict()[name]), name
    save_file(load_file(toy_bundle / "model.safetensors"), tmp_path / "bare.safetensors")
    with pytest.raises(RunError, match=r"bare\.safetensors does not say which network"):
        read_weights(tmp_path / "bare.safetensors")


def test_graphs_tell_nothing_of_the_machine_that_wrote_them(toy_bundle: Path) -> None:
    root = Path(__file__).parents[1]
    for path in toy_bundle.glob("*.onnx"):
        content = path.read_bytes()
        for text in (
            str(root),
            str(Path.home()),
            str(toy_bundle.parent),
            "site-packages",
            ".py",
            "Traceback",
            "File ",
        ):
            assert text.encode() not in content, text
        model = onnx.load(path, load_external_data=False)
        graph = model.graph
        inner = [
            *model.functions,
            *(node for function in model.functions for node in function.node),
        ]
        for item in (
            model,
            graph,
            *graph.node,
            *graph.value_info,
            *graph.input,
            *graph.output,
            *inner,
        ):
            assert not item.metadata_props
            assert not item.doc_string
        assert not any(tensor.metadata_props or tensor.doc_string for tensor in graph.initializer)


@pytest.mark.parametrize("name", PLANS)
def test_each_layer_has_one_attention_node_with_a_body(toy_bundle: Path, name: str) -> None:
    """For TensorRT's plugin; ONNX Runtime runs the body. The scales grow with the layers: 6, 24 and
    96 tokens."""
    model = onnx.load(toy_bundle / f"encoder-{name}.onnx", load_external_data=False)
    kinds = [node.op_type for node in model.graph.node]
    nodes = [node for node in model.graph.node if node.op_type == "MsDeformAttn"]
    depth, paused = Knobs.parse(name).depth, Knobs.parse(name).keep < 1
    assert len(nodes) == depth
    assert {node.domain for node in nodes} == {"fathom"}
    assert "GridSample" not in kinds
    assert "Softmax" not in kinds
    sizes = [2, 3, 4, 6, 8, 12]
    for layer, (node, form) in enumerate(forms_of(model), 1):
        found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert (found["sizes"], found["heads"], found["points"]) == (sizes[: 2 * layer], 4, 4)
        assert form.width == 8
        assert (form.queries, form.per_image) == (
            (6 + 24 + 48, True) if paused and layer == 3 else (form.tokens, False)
        )
    assert {node.overload for node in nodes} == {function.overload for function in model.functions}
    for function in model.functions:
        inner = [node.op_type for node in function.node]
        assert inner.count("GridSample") == function.overload.count("x")
        assert "Shape" not in inner  # nothing that is known is computed when it runs


def test_the_body_is_the_same_attention_for_any_batch(tmp_path: Path) -> None:
    form = Form((3, 5, 4, 2), heads=2, points=3, width=8, queries=7, per_image=True)
    assert form.name == "3x5.4x2-7"
    split = (7, 2, 2, 3)
    dims = {"value": (23, 2, 8), "offsets": (*split, 2), "logits": split, "reference": (7, 2)}
    node = onnx.helper.make_node(
        "MsDeformAttn", list(dims), ["out"], domain="fathom", overload=form.name
    )
    node.attribute.extend(
        onnx.helper.make_attribute(name, value) for name, value in asdict(form).items()
    )
    values = [
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in {**dims, "out": (7, 16)}.items()
    ]
    graph = onnx.helper.make_graph([node], "one", values[:4], values[4:])
    versions = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("fathom", 1)]
    onnx.save(
        onnx.helper.make_model(
            graph, opset_imports=versions, functions=[body(form)], ir_version=10
        ),
        tmp_path / "one.onnx",
    )
    session = onnxruntime.InferenceSession(tmp_path / "one.onnx", providers=CPU)
    for batch in (1, 3):
        generator = torch.Generator().manual_seed(batch)
        given = [torch.randn(batch, *shape, generator=generator) for shape in dims.values()]
        found = session.run(None, dict(zip(dims, (t.numpy() for t in given), strict=True)))[0]
        wanted = by_grid_sample(*given, form.shapes)
        assert np.abs(found - wanted.numpy()).max() < 1e-5


def _kernel_names(folder: Path) -> list[str]:
    return [kernel.file for kernel in bundle.load(folder).manifest.kernels]


def test_a_bundle_has_a_kernel_for_every_problem_and_type(toy_bundle: Path, tmp_path: Path) -> None:
    kernels = bundle.load(toy_bundle).manifest.kernels
    levels = ("2x3", "2x3.4x6", "2x3.4x6.8x12", "2x3.4x6.8x12-some-per-image")
    wanted = [
        f"ms_deform_attn-{problem}-{dtype}.ptx.gz" for problem in levels for dtype in launch.DTYPES
    ]
    assert sorted(_kernel_names(toy_bundle)) == sorted(wanted)
    for kernel in kernels:
        text = gzip.decompress((toy_bundle / kernel.file).read_bytes())
        assert b".target sm_80" in text
        assert f".entry {kernel.launch.entry}(".encode() in text
        assert kernel.launch == launch.describe(kernel.problem)
    narrow = next(
        k for k in kernels if k.problem.reference_per_image and k.problem.dtype == "float16"
    )
    assert (narrow.problem.shapes, narrow.problem.dense) == (((2, 3), (4, 6), (8, 12)), False)
    changed = shutil.copytree(toy_bundle, tmp_path / "changed")
    (changed / narrow.file).write_bytes(b"")
    with pytest.raises(BundleError, match=r"some-per-image-float16\.ptx\.gz: its sha256"):
        bundle.load(changed)


def test_without_a_compiler_a_bundle_has_no_kernels_and_says_so(
    toy_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> str:
        raise nvrtc.NvrtcError("NVRTC was not found: pip install 'fathom[kernels]'")

    monkeypatch.setattr(nvrtc, "version", missing)
    assert write_kernels(tmp_path, [toy_bundle / "encoder-d3.onnx"]) == ()
    said = capsys.readouterr().out
    assert "has no CUDA kernels, so that build-trt cannot use it" in said
    assert "pip install 'fathom[kernels]'" in said
    assert list(tmp_path.iterdir()) == []
    manifest = replace(bundle.load(toy_bundle).manifest, kernels=())
    folder = shutil.copytree(toy_bundle, tmp_path / "plain")
    bundle.save(folder, manifest)
    assert "kernels" not in json.loads(
        (folder / "manifest.json").read_text()
    )  # as older services know it
    assert bundle.load(folder).manifest.kernels == ()


def _optimised(path: Path, folder: Path) -> onnx.GraphProto:
    """What ONNX Runtime makes of a graph when it loads it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / f"optimised-{path.name}")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=CPU)
    return onnx.load(options.optimized_model_filepath, load_external_data=False).graph


def test_a_narrow_plan_s_weights_are_cut_when_it_is_loaded_not_when_it_runs(
    toy_bundle: Path, tmp_path: Path
) -> None:
    graph = _optimised(toy_bundle / "encoder-d1-w50.onnx", tmp_path)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    products = [shapes.get(node.input[1]) for node in graph.node if "MatMul" in node.op_type]
    # Of 32 channels into half of the 32 hidden ones and back; the attention's 16 logits have the
    # first shape, too.
    assert (products.count((32, 16)), products.count((16, 32))) == (2, 1)
    inner = {name for node in graph.node for name in node.input} & set(shapes)
    cut = [
        node
        for node in graph.node
        if node.op_type in ("Slice", "Cast", "Transpose") and node.input[0] in inner
    ]
    assert cut == []


def test_every_activation_of_the_backbone_is_fused_with_its_convolution(
    toy_bundle: Path, tmp_path: Path
) -> None:
    """Else ONNX Runtime changes the layout before and after each of them, which takes a third more
    time."""
    nodes = _optimised(toy_bundle / "front.onnx", tmp_path).node
    assert "Clip" not in [node.op_type for node in nodes]
    assert (
        len([node for node in nodes if any(a.name == "activation" for a in node.attribute)]) >= 20
    )


def test_no_sum_is_fused_with_the_norm_behind_it(toy_bundle: Path, tmp_path: Path) -> None:
    """ONNX Runtime's SkipLayerNormalization takes five times as long on a CPU as the two nodes that
    it replaces."""
    for name in ("encoder-d3", "encoder-d3-k50", "decoder"):
        kinds = [node.op_type for node in _optimised(toy_bundle / f"{name}.onnx", tmp_path).node]
        assert "SkipLayerNormalization" not in kinds
        assert kinds.count("LayerNormalization") >= 6


class _FixedBatch(Encode):
    def forward(
        self, f8: torch.Tensor, f16: torch.Tensor, f32: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        return tuple(m + len(f8) for m in (f8, f16, f32))


def test_a_graph_for_one_batch_size_only_is_refused() -> None:
    model = Segmenter(toy())
    features = tuple(torch.randn(2, 32, 8 // s, 12 // s) for s in (1, 2, 4))
    with pytest.raises(RunError, match=r"encoder: the batch of f8 is not free"):
        weights.trace(_FixedBatch(model, Knobs(1)), features, "encoder")


def test_a_large_constant_is_refused(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.zeros(2000, np.float32), "position")
    with pytest.raises(
        RunError, match=r"position .* is no weight of the network; it would be stored twice"
    ):
        weights.refer(tensor, {})


# ---- parity


def _stages(
    folder: Path, change: Callable[[Segmenter, Gate], object] | None = None
) -> dict[str, torch.nn.Module]:
    model, gate, _ = read_weights(folder / "model.safetensors")
    if change is not None:
        with torch.no_grad():
            change(model, gate)
    return stages_of(model, gate, [Knobs.parse(name) for name in PLANS])


def test_parity_is_measured_on_all_stages_and_enforced(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = check_parity(toy_bundle, _stages(toy_bundle), _images(3))
    assert set(errors) == set(STAGES)
    assert max(errors.values()) < 1e-3
    for limit, message in (
        ("MAX_CHAIN", "encoder-d1-w50 from pixels to masks at batch 1"),
        ("MAX_ERROR", "front, "),
    ):
        monkeypatch.setattr(parity, limit, 0.0)
        with pytest.raises(
            RunError, match=rf"{message}.*differs from torch by .*nothing was bundled"
        ):
            check_parity(toy_bundle, _stages(toy_bundle), _images(3))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("gate.output.bias", "front, quality"),
        ("encoder.layers.2.linear2.bias", "encoder-d3"),
        ("encoder.top_down.1.bias", "encoder-d1-w50, e8"),
        ("decoder.norm.bias", "decoder, probabilities"),
    ],
)
def test_parity_notices_a_wrong_weight_in_any_stage(
    toy_bundle: Path, part: str, message: str
) -> None:
    def change(model: Segmenter, gate: Gate) -> None:
        value = (
            torch.nn.ModuleDict({"gate": gate}).get_parameter(part)
            if "gate" in part
            else model.get_parameter(part)
        )
        value += torch.linspace(-3, 3, len(value))

    with pytest.raises(RunError, match=message):
        check_parity(toy_bundle, _stages(toy_bundle, change), _images(3))


def _swap(pairs: int) -> Callable[[Active, tuple[int, int]], torch.Tensor]:
    """A map of paused tokens of which, in the first image, so many active ones have changed places
    with paused ones."""
    right = Active.paused

    def paused(self: Active, shape: tuple[int, int]) -> torch.Tensor:
        found = right(self, shape).flatten(1)
        for value in (0, 1):
            found[0, (right(self, shape).flatten(1)[0] == value).nonzero().flatten()[:pairs]] = (
                1 - value
            )
        return found.unflatten(1, shape)

    return paused


def test_other_paused_tokens_are_refused_but_for_near_ties(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = _stages(toy_bundle)
    monkeypatch.setattr(Active, "paused", _swap(1))
    with pytest.raises(
        RunError, match=r"encoder-d3-k50: ONNX Runtime pauses other tokens than torch, 2\.0833%"
    ):
        check_parity(toy_bundle, stages, _images(3))
    monkeypatch.setattr(parity, "MIN_EQUAL", 0.97)  # 2 of 96 tokens are more than 0.1 %
    assert (
        check_parity(toy_bundle, stages, _images(3))["encoder-d3-k50"] < 1e-3
    )  # by the other images of the batches
    monkeypatch.setattr(
        parity, "BATCHES", (1,)
    )  # each image is the first one of its batch: none is left to compare
    with pytest.raises(
        RunError, match="encoder-d3-k50: no image of --parity pauses the same tokens"
    ):
        check_parity(toy_bundle, stages, _images(3))


def test_parity_limits() -> None:
    zeros = np.zeros(4, np.float32)
    enforce("x", zeros, zeros + 0.0009, 1e-3, 0.9995)
    for theirs, equal in (
        (zeros + 0.0011, 1.0),
        (zeros, 0.998),
        (zeros + np.nan, 1.0),
        (zeros, np.nan),
    ):
        with pytest.raises(RunError, match="x: ONNX Runtime differs"):
            enforce("x", zeros, theirs, 1e-3, equal)


# ---- the instance task


class _Blobs(Stripes):
    """Somebody's instance data set of one class."""

    task, classes, palette, channels = "instance", ("blob",), ((255, 0, 0),), 3

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        image = np.random.default_rng(index).integers(0, 256, (40, 60, 3), np.uint8)
        return Sample(f"blob-{index}", image, np.zeros((40, 60), np.uint8))


def test_an_instance_bundle_has_things_and_background_core_and_border_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = tmp_path / "run", replace(toy(3), task="instance")
    arguments = dict.fromkeys(
        ("train", "scenes", "steps", "batch", "lr", "crop", "sampling", "distill", "seed"), 0
    )
    write_config(
        run, config, CANVAS, arguments | {"backbone_weights": None}, [("instances:small", tmp_path)]
    )
    save_model(run, Segmenter(config).state_dict())
    write_plans(run, [Knobs(1)], {})
    counts = np.tile(
        np.array([1.4, 2.0, 1.0, 0.0]), (5, 1, 1)
    )  # two found at a mean IoU of 0.7, one too many
    arrays = {"counts": counts, "plans": np.array(["d1"]), "spec": np.array("blobs")}
    write_targets(run, "fit", arrays)
    write_targets(run, "held", arrays)
    write_gate(run, Gate(gate_inputs(32, 3), 1), {"margins": [{"asked": 0.01, "margin": None}]})
    monkeypatch.setattr(exporter, "open_dataset", lambda spec, root: _Blobs())
    assert command("export", run, "--out", tmp_path / "blobs") == 0
    manifest = bundle.load(tmp_path / "blobs").manifest
    assert manifest.task == "instance"
    assert [(entry.name, entry.thing) for entry in manifest.classes] == [("blob", True)]
    assert manifest.mask_shape == (3, 16, 24)
    assert manifest.plans[0].quality == pytest.approx(1.4 / 2.5)
    assert manifest.margins[0].margin is None
    assert manifest.calibration["trained_on"] == [], "any folder of that name would count"
    assert manifest.calibration["dataset_PQ"] == [pytest.approx(1.4 / 2.5)]


# ---- refusals


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
    ],
    ids=["run", "weights", "plans", "targets", "gate", "images", "data"],
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
    monkeypatch.setattr(exporter, "open_dataset", lambda spec, root: other)
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
