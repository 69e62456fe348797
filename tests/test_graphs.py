"""The files of a bundle: weights once, one attention node per layer, kernels, and what ONNX Runtime
fuses."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from safetensors.torch import load_file, save_file

from model_export.export import weights
from model_export.export.attention import Form, body, forms_of
from model_export.export.graph_edits import needed_for
from model_export.export.graphs import Encode
from model_export.export.kernel_files import write_kernels
from model_export.kernels import launch, nvrtc
from model_export.network.deformable_attention import by_grid_sample
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from model_export.training.bundle_weights import read_weights
from model_export.training.runs import (
    RunError,
    load_model,
    read_config,
    read_gate,
)
from service import bundle
from service.bundle import Canvas, Shape
from service.errors import BundleError
from tests.exported import CPU, graphs_for
from tests.toy import CANVASES, PLANS, STAGES, toy

# The first test waits for the export.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.timeout(900),
]


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
    model, gate, canvases = read_weights(toy_bundle / "model.safetensors")
    assert model.config == read_config(toy_run)[0]
    assert canvases == CANVASES
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


def test_weights_of_before_there_were_several_canvases_have_one(
    toy_bundle: Path, tmp_path: Path
) -> None:
    model, _, _ = read_weights(toy_bundle / "model.safetensors")
    old = {"config": json.dumps(model.config.as_dict()), "canvas": "[64, 96]"}
    save_file(load_file(toy_bundle / "model.safetensors"), tmp_path / "old", metadata=old)
    again, _, canvases = read_weights(tmp_path / "old")
    assert canvases == (Canvas.of([Shape(64, 96)]),)
    assert again.config == model.config


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
    96 tokens, on the smaller canvas a third of them."""
    encoder = graphs_for(name).encoders[name]
    model = onnx.load(toy_bundle / f"{encoder}.onnx", load_external_data=False)
    kinds = [node.op_type for node in model.graph.node]
    nodes = [node for node in model.graph.node if node.op_type == "MsDeformAttn"]
    depth, paused = Knobs.parse(name).depth, Knobs.parse(name).keep < 1
    assert len(nodes) == depth
    assert {node.domain for node in nodes} == {"fathom"}
    assert "GridSample" not in kinds
    assert "Softmax" not in kinds
    sizes = [1, 2, 2, 4, 4, 8] if Knobs.parse(name).canvas == "c64" else [2, 3, 4, 6, 8, 12]
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
    levels = ("1x2", "2x3", "2x3.4x6", "2x3.4x6.8x12", "2x3.4x6.8x12-some-per-image")
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
        raise nvrtc.NvrtcError("NVRTC was not found: pip install '.[kernels]'")

    monkeypatch.setattr(nvrtc, "version", missing)
    assert write_kernels(tmp_path, [toy_bundle / "encoder-64x96-d3.onnx"]) == ()
    said = capsys.readouterr().out
    assert "has no CUDA kernels, so that build-trt cannot use it" in said
    assert "pip install '.[kernels]'" in said
    assert list(tmp_path.iterdir()) == []
    manifest = replace(bundle.load(toy_bundle).manifest, kernels=())
    folder = shutil.copytree(toy_bundle, tmp_path / "plain")
    bundle.save(folder, manifest)
    # As older services know it.
    assert "kernels" not in json.loads((folder / "manifest.json").read_text())
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
    graph = _optimised(toy_bundle / "encoder-32x64-d1-w50.onnx", tmp_path)
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
    for name in ("front-32x64", "front-64x96"):
        graph = _optimised(toy_bundle / f"{name}.onnx", tmp_path)
        nodes = needed_for(("f4", "f8", "f16", "f32"), graph.node)  # without the gate's own
        assert "Clip" not in [node.op_type for node in nodes]
        fused = [node for node in nodes if any(a.name == "activation" for a in node.attribute)]
        assert len(fused) >= 20


def test_no_sum_is_fused_with_the_norm_behind_it(toy_bundle: Path, tmp_path: Path) -> None:
    """ONNX Runtime's SkipLayerNormalization takes five times as long on a CPU as the two nodes that
    it replaces."""
    for name, norms in (("encoder-64x96-d3", 6), ("encoder-64x96-d3-k50", 6), ("decoder-64x96", 5)):
        kinds = [node.op_type for node in _optimised(toy_bundle / f"{name}.onnx", tmp_path).node]
        assert "SkipLayerNormalization" not in kinds
        assert kinds.count("LayerNormalization") == norms


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
