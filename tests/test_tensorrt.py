"""Engines: how they are built, what is refused, and our plugin in them."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import onnx
import pytest

from model_export.export import engine_parity, tensorrt, tensorrt_aot
from model_export.training.runs import RunError
from service import bundle
from service.engines import engine_cache, tensorrt_plugin, tensorrt_runtime
from service.engines.cuda import Device, DriverError
from service.engines.tensorrt import TensorRTBackend
from service.engines.tensorrt_plugin import Compiled
from service.errors import BackendError
from tests.fake_tensorrt import FakeDevice
from tests.toy import STAGES, command, last_json

# The first test waits for the export.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.timeout(900),
]


SHIPPED = Path(__file__).parents[1] / "trained_weights" / "camvid-tiny"


def has_driver() -> bool:
    try:
        Device().close()
    except DriverError:
        return False
    return True


@pytest.fixture(autouse=True, scope="module")
def needs_rtx() -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        if os.environ.get("REQUIRE_TENSORRT"):
            pytest.fail("tensorrt-rtx is not installed: pip install '.[tensorrt-rtx]'")
        pytest.skip("tensorrt-rtx is not installed")


without_gpu = pytest.mark.skipif(has_driver(), reason="there is a driver")


@pytest.fixture(scope="module")
def built(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("engines")
    words = ("--flavour", "tensorrt-rtx", "--no-check", "--batches", "2,1")
    assert command("build-trt", toy_bundle, "--cache", cache, *words) == 0
    return cache


def test_tensorrt_rtx_builds_every_stage_with_our_plugin_in_it(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--flavour", "tensorrt-rtx", "--no-check", "--batches", "1", "--precision", "fp32")
    assert (
        command("build-trt", toy_bundle, "--cache", tmp_path, *words, "--target-capability", "8.9")
        == 0
    )
    *lines, last = capsys.readouterr().out.strip().splitlines()
    told = {line.split()[0]: line for line in lines if " MB, " in line}
    assert set(told) == set(STAGES)
    for stage, line in told.items():
        layers = int(stage.split("-d")[1][0]) if stage.startswith("encoder") else 0
        assert f"MB, {layers} plugins of " in line
    assert last_json(last)["checked"] is False
    folder = Path(str(last_json(last)["engines"]))
    assert folder.name.startswith("tensorrt-rtx-1.")
    assert "-8.9-fp32-" in folder.name
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["engines.json", *(f"{s}.plan" for s in STAGES)]
    )


def test_a_chip_that_rtx_does_not_run_on_is_refused_before_anything_is_built(
    toy_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Hopper(FakeDevice):
        capability = (9, 0)

    monkeypatch.setattr(tensorrt, "Device", Hopper)
    words = ("--cache", tmp_path / "engines", "--flavour", "tensorrt-rtx")
    assert command("build-trt", toy_bundle, *words) == 1
    said = capsys.readouterr()
    assert "compute capability is 9.0" in said.err
    assert "8.9" in said.err
    assert " MB, " not in said.out
    assert not (tmp_path / "engines").exists()


def test_engines_that_nobody_checked_are_kept_but_refused(toy_bundle: Path, built: Path) -> None:
    (about,) = engine_cache._sets(built)
    assert (about.batches, about.checked, about.capability, about.precision) == (
        (1, 2),
        False,
        "any",
        "fp16",
    )
    assert about.content == engine_cache.content_of(bundle.load(toy_bundle).manifest)
    here = [(about.flavour, about.version)]
    with pytest.raises(
        BackendError, match=r"never compared with ONNX Runtime.*python -m model_export build-trt"
    ):
        engine_cache.find(
            built,
            about.content,
            here,
            "8.9",
            build_command=f"python -m model_export build-trt {toy_bundle}",
        )
    for stage in STAGES:
        assert len(engine_cache.read(built, about, stage, build_command="")) > 1000


@without_gpu
def test_without_a_driver_the_runtime_refuses_and_does_not_abort(
    toy_bundle: Path, built: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(BackendError, match="TensorRT needs a GPU: no CUDA driver"):
        TensorRTBackend(bundle.load(toy_bundle), cache=built)
    (about,) = engine_cache._sets(built)
    stage = "encoder-64x96-d3"
    plan = engine_cache.read(built, about, stage, build_command="")
    runtime = next(each for each in tensorrt_runtime.installed() if each.flavour == "tensorrt-rtx")
    assert runtime.version == about.version
    for damaged in (plan, plan[:100], b"no plan"):  # the guard before the call that would abort
        with pytest.raises(BackendError, match=rf"{stage}: tensorrt-rtx .* refuses it here"):
            runtime.open(stage, damaged, {})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_shipped_bundle_s_engines_are_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = bundle.load(SHIPPED)
    words = ("--flavour", "tensorrt-rtx", "--no-check", "--batches", "2")
    assert command("build-trt", SHIPPED, "--cache", tmp_path, *words) == 0
    out = capsys.readouterr().out
    depths = {plan.name: plan.depth for plan in served.manifest.plans}
    for graphs in served.manifest.graphs.values():
        for plan, stage in graphs.encoders.items():
            line = next(line for line in out.splitlines() if f"{stage} " in line)
            assert f", {depths[plan]} plugins of " in line


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--no-check", "--flavour", "tensorrt"), "only tensorrt-rtx builds without a GPU"),
        (("--target-capability", "8.9"), "--target-capability is for --no-check"),
        pytest.param(
            ("--flavour", "tensorrt-rtx"), "there is none (no CUDA driver", marks=without_gpu
        ),
    ],
)
def test_a_build_that_cannot_be_is_refused(
    toy_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    match: str,
) -> None:
    assert command("build-trt", toy_bundle, "--cache", tmp_path / "engines", *words) == 1
    assert match in capsys.readouterr().err
    assert not (tmp_path / "engines").exists()


@pytest.mark.parametrize("text", ["0", "1,65", "", "two"])
def test_batch_sizes_are_checked(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("build-trt", "bundle", "--cache", "x", "--batches", text) == 2
    assert "--batches" in capsys.readouterr().err


def test_a_bundle_without_nodes_or_kernels_is_refused(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--cache", tmp_path / "engines", "--flavour", "tensorrt-rtx", "--no-check")
    folder = shutil.copytree(toy_bundle, tmp_path / "bundle")
    bundle.save(folder, replace(bundle.load(folder).manifest, kernels=()))
    assert command("build-trt", folder, *words) == 1
    said = capsys.readouterr().err
    assert "has no kernel ms_deform_attn-1x2-float16.ptx" in said
    assert "'.[kernels]'" in said
    # Graphs of before there were nodes of our own.
    for name in ("front-32x64", "encoder-64x96-d2"):
        graph = onnx.load(folder / f"{name}.onnx", load_external_data=False)
        for node in graph.graph.node:
            node.op_type = "Relu" if node.op_type == "MsDeformAttn" else node.op_type
        onnx.save(graph, folder / f"{name}.onnx")
    bundle.save(folder, bundle.load(toy_bundle).manifest)
    assert command("build-trt", folder, *words) == 1
    assert (
        "encoder-64x96-d2.onnx: its deformable attention is no node of its own. Export"
        in capsys.readouterr().err
    )
    assert command("build-trt", tmp_path / "nothing", *words) == 1
    assert "manifest.json" in capsys.readouterr().err


def _job(toy_bundle: Path, tmp_path: Path, stage: str, plugins: int) -> dict[str, object]:
    served = bundle.load(toy_bundle)
    graph = tensorrt.prepared(served, stage, "fp16", "tensorrt-rtx", tmp_path)
    return {stage: graph | {"plugins": plugins}}


def test_a_network_without_our_plugin_is_an_error(toy_bundle: Path, tmp_path: Path) -> None:
    graphs = _job(toy_bundle, tmp_path, "encoder-64x96-d2", 3)
    with pytest.raises(
        RunError,
        match=r"failed at encoder-64x96-d2 .*2 layers of the network are our plugin, not 3",
    ):
        tensorrt.run_builder(tmp_path, bundle.load(toy_bundle), "tensorrt-rtx", graphs, (1,), None)


def test_a_builder_that_dies_is_an_error_with_its_last_words(
    toy_bundle: Path, tmp_path: Path
) -> None:
    graphs = _job(toy_bundle, tmp_path, "front-64x96", 0)
    (tmp_path / "front-64x96.onnx").write_bytes(b"no graph")
    with pytest.raises(
        RunError, match=r"(?s)tensorrt-rtx failed at front-64x96 \(exit status 1\): .*BuildError"
    ):
        tensorrt.run_builder(tmp_path, bundle.load(toy_bundle), "tensorrt-rtx", graphs, (1,), None)


def test_checked_engines_are_marked_and_a_failed_check_leaves_them_unchecked(
    toy_bundle: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (about,) = engine_cache._sets(built)
    served = bundle.load(toy_bundle)

    def refuses(*_: object) -> dict[str, float]:
        raise BackendError("the chip is another")

    monkeypatch.setattr(engine_parity, "check", refuses)
    with pytest.raises(RunError, match="the chip is another"):
        tensorrt.checked(served, about, built, "scenes:3:5", None)
    assert not next(engine_cache._sets(built)).checked
    monkeypatch.setattr(engine_parity, "check", lambda *_: {"c96-d2": 1e-5})
    try:
        tensorrt.checked(served, about, built, "scenes:3:5", None)
        found = engine_cache.find(
            built, about.content, [(about.flavour, about.version)], "12.0", build_command=""
        )
        assert (found.checked, found.parity) == (True, {"c96-d2": 1e-5})
    finally:
        engine_cache.describe(built, about)


class _Launched:
    """What cuda.Kernel is asked for."""

    calls: list[tuple[object, ...]] = []  # noqa: RUF012

    def __init__(self, image: bytes, entry: str) -> None:
        self.calls.append((image, entry))

    def launch(self, grid: tuple[int, ...], block: int, stream: int, *arguments: object) -> None:
        self.calls.append(
            (grid, block, stream, [a.value for a in arguments], [type(a) for a in arguments])
        )


def test_the_python_plugin_launches_its_kernel_on_the_stream(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = importlib.import_module("tensorrt_rtx")
    served = bundle.load(toy_bundle)
    about = next(
        k for k in served.manifest.kernels if "some" in k.file and k.problem.dtype == "float16"
    )
    compiled = Compiled.read(toy_bundle, about)
    tensorrt_plugin.register(trt, {about.sha256: compiled})
    creator = tensorrt_plugin._creator(trt)
    name = trt.PluginField("kernel", about.sha256.encode(), trt.PluginFieldType.CHAR)
    plugin = creator.create_plugin(
        "node", trt.PluginFieldCollection([name]), trt.TensorRTPhase.RUNTIME
    )
    plugin = plugin.clone().attach_to_context(None)
    assert plugin.get_capability_interface(None) is plugin
    (field,) = plugin.get_fields_to_serialize()
    assert bytes(field.data).decode() == about.sha256
    monkeypatch.setattr(tensorrt_plugin, "Kernel", _Launched)
    monkeypatch.setattr(_Launched, "calls", [])
    given = [SimpleNamespace(dims=dims) for dims in ((3, 126, 4, 8), (3, 78, 4, 3, 4, 2))]
    for _ in range(2):
        plugin.enqueue(given, None, [11, 12, 13, 14], [15], 0, 99)
    assert _Launched.calls[0] == (compiled.image, "ms_deform_attn")
    pointer = ctypes.c_void_p
    wanted = (
        about.launch.grid(3, 78),
        about.launch.block,
        99,
        [11, 12, 13, 14, 78, 15],
        [pointer] * 4 + [ctypes.c_int, pointer],
    )
    assert _Launched.calls[1:] == [wanted, wanted]

    def offered(place: int, kind: object, layout: object = trt.TensorFormat.LINEAR) -> bool:
        tensors = [SimpleNamespace(desc=SimpleNamespace(type=kind, format=layout))] * 5
        return plugin.supports_format_combination(place, tensors, 4)

    half, single = trt.DataType.HALF, trt.DataType.FLOAT
    assert [offered(place, half) for place in range(5)] == [True, True, True, False, True]
    assert [offered(place, single) for place in range(5)] == [False, False, False, True, False]
    assert not offered(0, half, trt.TensorFormat.CHW16)
    assert plugin.get_output_data_types([half, half, half, single]) == [half]


class _Number:
    """A symbolic integer of tensorrt.plugin, in words."""

    def __init__(self, text: object) -> None:
        self.text = str(text)

    def __mul__(self, other: _Number) -> _Number:
        return _Number(f"{self.text}*{other.text}")


def test_the_plugin_ahead_of_time_has_the_kernel_s_launch_and_arguments(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in for tensorrt.plugin, which no package that can be installed here has: order and
    types only."""
    made: dict[str, object] = {}
    module = ModuleType("tensorrt.plugin")

    class Words:
        def __init__(self, **words: object) -> None:
            self.words = words

    names = {
        "register": lambda name: lambda function: made.update(register=(name, function)),
        "aot_impl": lambda name: lambda function: made.update(aot=(name, function)),
        "from_shape_expr": lambda shape, dtype: ([each.text for each in shape], dtype),
        "cdiv": lambda a, b: f"ceil({a.text}/{b})",
        "KernelLaunchParams": Words,
        "SymInt32": lambda n: n.text,
        "TensorDesc": object,
    }
    for key, value in names.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", module)
    module.SymIntExprs = type(
        "SymIntExprs", (list,), {"__init__": lambda self, n: list.__init__(self, [None] * n)}
    )  # type: ignore[attr-defined]
    module.SymExprs = module.SymIntExprs  # type: ignore[attr-defined]
    served = bundle.load(toy_bundle)
    kernels = {k.sha256: Compiled(k, b"ptx") for k in served.manifest.kernels}
    tensorrt_aot.register(kernels)
    (name, describe), (again, implement) = made["register"], made["aot"]  # type: ignore[misc]
    assert name == again == "fathom::MsDeformAttn"
    shape = {"value": "BSMD", "offsets": "BQMLPc", "logits": "BQMLP", "reference": "Qc"}
    inputs = [
        SimpleNamespace(shape_expr=[_Number(axis) for axis in axes], dtype="half")
        for axes in shape.values()
    ]
    assert describe(*inputs, "sha") == (["B", "Q", "M*D"], "half")
    for kernel in served.manifest.kernels:
        entry, image, params, numbers = implement(*inputs, kernel.sha256, None, None)
        assert (entry, image, list(numbers)) == ("ms_deform_attn", b"ptx", ["Q"])
        launch = kernel.launch
        wide = launch.tiles or f"ceil(Q/{launch.per_block})"
        assert params.words | {"grid_z": "B"} == {
            "grid_x": wide,
            "grid_y": launch.head_groups,
            "grid_z": "B",
            "block_x": launch.block,
        }
        assert params.words["grid_z"].text == "B"
