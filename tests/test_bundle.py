"""Bundle: what is saved is loaded again, and what cannot be served is refused with its name and the
way to mend it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onnx import GraphProto, SparseTensorProto, TensorProto, helper

from service import bundle
from service.bundle import Bundle, Canvas, Manifest, Shape
from service.errors import BundleError
from service.tasks import tasks_of

Change = Callable[[dict[str, Any]], object]
HEAD, WORTH = ("heads", 0), ("encoder_plans", 0, "heads", "semantic")
PAUSED = ("stages", "encoder-d4-k25-w50", "outputs", 3)


def change(folder: Path, edit: Change) -> None:
    path = folder / bundle.FILE
    value = json.loads(path.read_text("utf-8"))
    edit(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def written(folder: Path, manifest: Manifest) -> Bundle:
    """A folder with a few bytes in the place of each graph."""
    for entry in (*manifest.stages.values(), *manifest.files):
        (folder / entry.file).write_bytes(entry.file.encode())
    return bundle.save(folder, manifest)


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        tasks_of(bundle.load(folder))
    assert f"python -m model_export export RUN -o {folder}" in caught.value.detail
    return caught.value.detail


def test_what_is_saved_is_loaded_again(fake_bundle: Bundle, fake_manifest: Manifest) -> None:
    loaded = bundle.load(fake_bundle.root)
    assert loaded == fake_bundle
    assert (
        loaded.digest
        == hashlib.sha256((fake_bundle.root / "manifest.json").read_bytes()).hexdigest()
    )
    assert loaded.manifest.encoder_plans == fake_manifest.encoder_plans
    assert loaded.manifest.graphs["48x64"].encoders["d3"] == "encoder-d3"
    assert loaded.manifest.layers == 4


def test_save_fills_in_the_sha256_of_every_file(fake_bundle: Bundle) -> None:
    entries = [*fake_bundle.manifest.stages.values(), *fake_bundle.manifest.files]
    assert len(entries) == 7
    for entry in entries:
        assert (
            entry.sha256 == hashlib.sha256((fake_bundle.root / entry.file).read_bytes()).hexdigest()
        )


def test_save_writes_nothing_that_load_would_refuse(fake_bundle: Bundle) -> None:
    before = (fake_bundle.root / "manifest.json").read_bytes()
    for wrong in (
        dataclasses.replace(
            fake_bundle.manifest, encoder_plans=fake_bundle.manifest.encoder_plans[::-1]
        ),
        dataclasses.replace(fake_bundle.manifest, graphs={}),
        dataclasses.replace(fake_bundle.manifest, files=(bundle.BundleFile("nothing.bin", ""),)),
    ):
        with pytest.raises(BundleError):
            bundle.save(fake_bundle.root, wrong)
    with pytest.raises(ValueError, match="Out of range float"):
        bundle.save(
            fake_bundle.root,
            dataclasses.replace(fake_bundle.manifest, calibration={"rho": float("nan")}),
        )
    assert (fake_bundle.root / "manifest.json").read_bytes() == before
    assert not list(fake_bundle.root.glob("*.partial"))


@pytest.mark.parametrize(
    "name", ["front.onnx", "encoder-d2.onnx", "decoder.onnx", "model.safetensors"]
)
def test_a_changed_or_missing_file_is_refused_by_name(fake_bundle: Bundle, name: str) -> None:
    path = fake_bundle.root / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert f"{name}: its sha256" in refusal(fake_bundle.root)
    path.unlink()
    assert f"{name}: there is no such file" in refusal(fake_bundle.root)


def test_a_missing_folder_or_manifest_is_refused_by_name(tmp_path: Path) -> None:
    assert "manifest.json" in refusal(tmp_path / "nothing")
    assert "manifest.json" in refusal(tmp_path)
    assert "name it with --bundle" in refusal(tmp_path / "nothing")
    assert str(Path.cwd()) in refusal(tmp_path / "nothing")


@pytest.mark.parametrize("content", ["[]", "3", "null"])
def test_a_manifest_that_is_no_object_is_told_what_it_must_be(
    fake_bundle: Bundle, content: str
) -> None:
    (fake_bundle.root / "manifest.json").write_text(content, encoding="utf-8")
    assert "manifest.json: it must be a JSON object" in refusal(fake_bundle.root)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"3", b'{"schema": NaN}']
)
def test_a_manifest_that_is_no_manifest_is_refused(fake_bundle: Bundle, content: bytes) -> None:
    (fake_bundle.root / "manifest.json").write_bytes(content)
    refusal(fake_bundle.root)


@pytest.mark.parametrize(
    "name", ["../front.onnx", "/etc/hostname", "", ".", "sub/../../front.onnx"]
)
def test_a_name_that_leaves_the_folder_is_refused(fake_bundle: Bundle, name: str) -> None:
    (fake_bundle.root.parent / "front.onnx").write_bytes(b"front.onnx")
    change(fake_bundle.root, lambda value: value["stages"]["front"].update(file=name))
    assert repr(name) in refusal(fake_bundle.root) or "no such file" in refusal(fake_bundle.root)


def test_a_link_that_leaves_the_folder_is_refused(fake_bundle: Bundle) -> None:
    path = fake_bundle.root / "front.onnx"
    path.rename(fake_bundle.root.parent / "front.onnx")
    path.symlink_to(fake_bundle.root.parent / "front.onnx")
    assert "leaves the folder" in refusal(fake_bundle.root)


@pytest.mark.parametrize("where", ["initializer", "attribute", "sparse", "branch"])
def test_a_graph_may_take_tensors_from_listed_files_alone(fake_bundle: Bundle, where: str) -> None:
    def weights(location: str) -> TensorProto:
        tensor = TensorProto(name="w", dims=[1], data_location=TensorProto.EXTERNAL)
        # The order of a hand-made file: the value before the key is as good.
        tensor.external_data.add(value="0", key="offset")
        tensor.external_data.add(key="location", value=location)
        return tensor

    def graph_of(location: str) -> GraphProto:
        # "location" is a name like any other elsewhere.
        node = helper.make_node("Identity", ["location"], ["x"])
        info = helper.make_tensor_value_info("location", TensorProto.FLOAT, [1])
        graph = helper.make_graph([node], "g", [info], [], value_info=[info])
        if where == "initializer":
            graph.initializer.append(weights(location))
        elif where == "sparse":
            graph.sparse_initializer.append(SparseTensorProto(values=weights(location)))
        else:
            graph.node.append(helper.make_node("Constant", [], ["w"], value=weights(location)))
        if where == "branch":
            graph = helper.make_graph(
                [helper.make_node("If", ["w"], ["x"], then_branch=graph)], "g", [], []
            )
        return graph

    def put_graph(location: str) -> None:
        content = helper.make_model(graph_of(location)).SerializeToString()
        (fake_bundle.root / "decoder.onnx").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        change(fake_bundle.root, put(digest, "stages", "decoder", "sha256"))

    for good in ("model.safetensors", "./model.safetensors"):
        put_graph(good)
        assert bundle.load(fake_bundle.root).manifest
    (fake_bundle.root / "other.bin").write_bytes(b"0000")
    for bad in ("other.bin", "front.onnx", "../model.safetensors", "", "a\0b"):
        put_graph(bad)
        told = refusal(fake_bundle.root)
        assert f"decoder.onnx: it takes tensors from {bad!r}, which is not among files" in told


def drop(*keys: str | int) -> Change:
    def edit(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        del value[keys[-1]]

    return edit


def put(new: object, *keys: str | int) -> Change:
    def edit(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = new

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (put(1, "schema"), "schema: 1, but this service reads 2 to 4"),
        (put(5, "schema"), "schema: 5, but this service reads 2 to 4"),
        (drop("schema"), "schema: None"),
        (put("3", "schema"), "schema: '3'"),
        (drop("name"), "name: is missing"),
        (put(1, "colour"), "colour: is unknown"),
        (put(1, "input", "colour"), "input.colour: is unknown"),
        (drop("stages", "front", "parity"), "stages.front.parity: is missing"),
        (drop("encoder_plans", 1, "keep"), "encoder_plans[1].keep: is missing"),
        (drop("encoder_plans", 1, "canvas"), "encoder_plans: d2: '' is not among input.canvases"),
        (drop("provenance"), "provenance: is missing"),
        (put(3, "name"), "name: 3 has the wrong type"),
        (put(None, "provenance", "data"), "provenance.data: None has the wrong type"),
        (put([], "stages"), "stages: [] has the wrong type"),
        (put("d1", "encoder_plans"), "encoder_plans: 'd1' has the wrong type"),
        (put(True, "encoder_plans", 0, "depth"), "encoder_plans[0].depth: True has the wrong type"),
        (put(1.0, "encoder_plans", 0, "depth"), "encoder_plans[0].depth: 1.0 has the wrong type"),
        (put("1", "encoder_plans", 0, "gflops"), "encoder_plans[0].gflops: '1' has the wrong type"),
        (put(7, "graphs", "48x64", "encoders", "d1"), "48x64.encoders.d1: 7 has the wrong type"),
        (put([1, 2], *HEAD, "classes", 0, "color"), "classes[0].color: [1, 2] has the wrong type"),
        (put([1, 2, 3.5], "input", "pad"), "input.pad[2]: 3.5 has the wrong type"),
        (
            put(["batch", 2.5], "stages", "front", "inputs", 0, "dims"),
            "stages.front.inputs[0].dims[1]: 2.5",
        ),
        (put("saliency", *HEAD, "task"), "heads[0].task: 'saliency'"),
        (put([], *HEAD, "classes"), "classes: there must be at least 1"),
        (put([0, 0, 256], *HEAD, "classes", 0, "color"), "heads[0].classes: a color is outside"),
        (put([-1, 0, 0], "input", "pad"), "input.pad: a value is outside"),
        (put("float32", "input", "dtype"), "input: it must be uint8"),
        (put([], "encoder_plans"), "encoder_plans: there are none"),
        (put("d1", "encoder_plans", 1, "name"), "encoder_plans: a name occurs twice"),
        (put(9.5, "encoder_plans", 0, "gflops"), "encoder_plans: they must be in order of gflops"),
        (put(0, "encoder_plans", 0, "depth"), "encoder_plans: d1: depth and gflops"),
        (put(257, "encoder_plans", 3, "depth"), "encoder_plans: d4: depth must be at most 256"),
        (put(10**30, "encoder_plans", 3, "depth"), "encoder_plans[3].depth: it must be at most"),
        (put("", "encoder_plans", 0, "name"), "encoder_plans: a name is empty"),
        (put("", "name"), "name: it is empty"),
        (put("", *HEAD, "classes", 0, "name"), "heads[0].classes: a name is empty"),
        (put(1.5, "encoder_plans", 0, "keep"), "encoder_plans: d1: keep and width"),
        (put(-0.1, *WORTH, "quality"), "encoder_plans: d1: heads.semantic: quality is outside"),
        (put([0.1], *WORTH, "quality_quantiles"), "heads.semantic: quality_quantiles must have 5"),
        (drop("margins"), "margins: is missing"),
        (put({}, "margins"), "margins: {} has the wrong type"),
        (drop("margins", 1, "margin"), "margins[1].margin: is missing"),
        (put("none", "margins", 1, "margin"), "margins[1].margin: 'none' has the wrong type"),
        (put(True, "margins", 1, "margin"), "margins[1].margin: True has the wrong type"),
        (put(None, "margins", 1, "asked"), "margins[1].asked: None has the wrong type"),
        (put(0, "margins", 0, "asked"), "margins: asked must be in (0, 1]"),
        (put(1.01, "margins", 6, "asked"), "margins: asked must be in (0, 1]"),
        (put(0.005, "margins", 0, "asked"), "margins: asked must ascend"),
        (put(0.5, "margins", 1, "asked"), "margins: asked must ascend"),
        (put(-1.01, "margins", 0, "margin"), "margins: a margin is outside -1..1"),
        (drop("stages", "front"), "stages.front: is missing"),
        (drop("stages", "decoder"), "stages.decoder: is missing"),
        (drop("stages", "encoder-d4"), "stages.encoder-d4: is missing"),
        (put(32, "stages", "front", "inputs", 0, "dims", 1), "stages.front.inputs: it must be"),
        (put(9, "stages", "front", "outputs", 4, "dims", 1), "stages.front.outputs: it must hold"),
        (
            put("g8", "stages", "encoder-d2", "inputs", 0, "name"),
            "stages.encoder-d2.inputs: no stage before it gives",
        ),
        (
            put("e9", "stages", "decoder", "inputs", 1, "name"),
            "stages.decoder.inputs: no stage before it gives",
        ),
        (
            put(3, "stages", "decoder", "outputs", 0, "dims", 1),
            "stages.decoder.outputs: it must be one",
        ),
        (put([], "stages", "decoder", "outputs"), "stages.decoder.outputs: it must be one"),
        (
            put("h", "stages", "decoder", "outputs", 0, "dims", 2),
            "stages.decoder.outputs: it must be one",
        ),
        (put("instance", *HEAD, "task"), "classes: those of the instance task must be things"),
    ],
)
def test_a_manifest_that_breaks_the_contract_is_refused_by_its_key(
    fake_bundle: Bundle, edit: Change, words: str
) -> None:
    change(fake_bundle.root, edit)
    assert words in refusal(fake_bundle.root)


@pytest.mark.parametrize("text", ["\ud800", "a\nb", "a\r\nb", "\x00", "\x7f", "\x85", "\u2028"])
def test_a_text_that_is_not_one_line_of_utf_8_is_refused_by_its_key(
    fake_bundle: Bundle, text: str
) -> None:
    path = fake_bundle.root / bundle.FILE
    good = path.read_text("utf-8")
    for keys, words in (
        ((*HEAD, "classes", 0, "name"), "heads[0].classes[0].name: "),
        (("name",), "name: "),
        (("encoder_plans", 1, "name"), "encoder_plans[1].name: "),
        (("stages", "front", "file"), "stages.front.file: "),
        (("calibration", "by"), "calibration.by: "),
        (("provenance", text), "provenance: the key "),
        ((text,), "manifest.json: the key "),
    ):
        change(fake_bundle.root, put(text, *keys))
        told = refusal(fake_bundle.root)
        assert f"{words}{text!r} must be one line of UTF-8" in told
        assert told.isprintable()
        path.write_text(good, encoding="utf-8")


def test_texts_of_any_language_are_good(fake_bundle: Bundle) -> None:
    name = "\u0645\u06cc\u200c\u062e \u9053\u3000\u8def \U0001f6e3"
    change(fake_bundle.root, put(name, *HEAD, "classes", 0, "name"))
    assert bundle.load(fake_bundle.root).manifest.head.classes[0].name == name


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("1" + "0" * 400, "encoder_plans[0].gflops: it must be at most 9007199254740992"),
        ("1e999", "encoder_plans[0].gflops: it is larger than a number can be"),
        ("1e12", "encoder_plans: gflops with all heads must be below 10^12"),
    ],
)
def test_a_number_that_is_too_large_is_refused_by_its_key(
    fake_bundle: Bundle, number: str, words: str
) -> None:
    change(fake_bundle.root, put(12345678, "encoder_plans", 0, "gflops"))
    path = fake_bundle.root / bundle.FILE
    path.write_text(path.read_text("utf-8").replace("12345678", number), encoding="utf-8")
    assert words in refusal(fake_bundle.root)


@pytest.fixture
def instance_bundle(fake_bundle: Bundle, instance_manifest: Manifest) -> Bundle:
    for stage in instance_manifest.stages.values():
        (fake_bundle.root / stage.file).write_bytes(stage.file.encode())
    return bundle.save(fake_bundle.root, instance_manifest)


def test_an_instance_bundle_has_a_core_and_a_border_per_class_and_may_pause(
    instance_bundle: Bundle,
) -> None:
    manifest = bundle.load(instance_bundle.root).manifest
    assert manifest.head.task == "instance"
    paused = {name: stage.paused and stage.paused.dims for name, stage in manifest.stages.items()}
    assert paused.pop("encoder-d4-k25-w50") == ("batch", 6, 8)
    assert set(paused.values()) == {None}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            put(1, "stages", "decoder", "outputs", 0, "dims", 1),
            "it must be one, (batch, 1 + 2 * classes, h, w)",
        ),
        (
            put(False, *HEAD, "classes", 0, "thing"),
            "classes: those of the instance task must be things",
        ),
        (put("float32", *PAUSED, "dtype"), "paused must be uint8"),
        (put(["batch", 48], *PAUSED, "dims"), "paused must be uint8, (batch, rows, columns)"),
        (put(["batch", 6, "columns"], *PAUSED, "dims"), "paused must be uint8"),
        (put(["batch", 0, 8], *PAUSED, "dims"), "paused must be uint8"),
        (put(1, "encoder_plans", 2, "keep"), "paused is listed, but d4-k25-w50 has keep 1"),
    ],
)
def test_an_instance_manifest_that_breaks_the_contract_is_refused_by_its_key(
    instance_bundle: Bundle, edit: Change, words: str
) -> None:
    change(instance_bundle.root, edit)
    assert words in refusal(instance_bundle.root)


def test_a_plan_that_pauses_need_not_show_where(instance_bundle: Bundle) -> None:
    change(instance_bundle.root, drop(*PAUSED))
    assert bundle.load(instance_bundle.root).manifest.stages[PAUSED[1]].paused is None


@pytest.fixture
def several_bundle(tmp_path: Path, several_heads: Manifest) -> Bundle:
    return written(tmp_path, several_heads)


def test_a_bundle_may_have_several_heads_at_several_widths(several_bundle: Bundle) -> None:
    loaded = bundle.load(several_bundle.root)
    assert loaded == several_bundle
    manifest = loaded.manifest
    assert [head.name for head in manifest.heads] == ["semantic", "boxes", "depth"]
    assert manifest.head_keys == ["semantic-w50", "semantic", "boxes", "depth-w25", "depth"]
    assert manifest.heads[1].thresholds == bundle.Thresholds(0.5)
    assert (manifest.heads[2].unit, manifest.heads[2].range) == ("m", (1.0, 50.0))
    assert manifest.head.name == "semantic"  # the first of equals
    assert {name: task.name for name, task in tasks_of(loaded).items()} == {
        "semantic": "semantic",
        "boxes": "detection",
        "depth": "depth",
    }
    text = (several_bundle.root / bundle.FILE).read_text("utf-8")
    assert text.count('"thresholds"') == text.count('"unit"') == text.count('"range"') == 1


def test_a_head_may_have_cells_of_its_own_size(several_bundle: Bundle) -> None:
    change(several_bundle.root, put(9, "stages", "depth-w25-48x64", "outputs", 0, "dims", 1))
    tasks_of(bundle.load(several_bundle.root))


DEPTH = ("encoder_plans", 2, "heads", "depth")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (put([], "heads"), "heads: there are none"),
        (put("Semantic", *HEAD, "name"), "heads[0].name: 'Semantic' must be of a to z"),
        (put("", *HEAD, "name"), "heads[0].name: '' must be of"),
        (put("2d", *HEAD, "name"), "heads[0].name: '2d' must be of"),
        (put("a+b", *HEAD, "name"), "heads[0].name: 'a+b' must be of"),
        (put("depth", *HEAD, "name"), "heads: a name occurs twice"),
        (put("depth-w25", "heads", 1, "name"), "heads: a name occurs twice"),
        (put([], *HEAD, "widths"), "heads[0].widths: they must be over 0 and ascend"),
        (put([0.5], *HEAD, "widths"), "heads[0].widths: they must be"),
        (put([1, 0.5], *HEAD, "widths"), "heads[0].widths: they must be"),
        (put([0, 1], *HEAD, "widths"), "heads[0].widths: they must be"),
        (put([0.5, 1, 2], *HEAD, "widths"), "heads[0].widths: they must be"),
        (put({"mask": 0.5}, "heads", 1, "thresholds"), "heads[1].thresholds.score: is missing"),
        (put({"score": 1.5}, "heads", 1, "thresholds"), "heads[1].thresholds: a value is outside"),
        (drop("heads", 1, "thresholds"), "thresholds: a head of detection needs its score"),
        (put({"score": 0.5}, *HEAD, "thresholds"), "heads[0].task: 'semantic' is not one of"),
        (drop("heads", 2, "unit"), "unit, range: a head of depth needs both"),
        (put([5, 1], "heads", 2, "range"), "heads[2].range: must be of two numbers"),
        (put([0, 1e-7], "heads", 2, "range"), "heads[2].range: its end must be from 1e-06"),
        (put([0, 600_000], "heads", 2, "range"), "to 500000: choose another unit"),
        (put("\u00b5m", "heads", 2, "unit"), "heads[2].unit: '\u00b5m' must be of ASCII"),
        (put([-1, 1], "heads", 2, "range"), "from 0 on and ascending"),
        (put([1], "heads", 2, "range"), "heads[2].range: [1] has the wrong type"),
        (put({"sky": 1}, "default_preference"), "default_preference.sky: no head has this name"),
        (put(-1, "default_preference", "depth"), "default_preference.depth: must be a number"),
        (put({"depth": 0}, "default_preference"), "default_preference: at least one weight"),
        (
            put({"depth": 1.7e308, "boxes": 1.7e308}, "default_preference"),
            "default_preference: the sum of the weights is too large",
        ),
        (put({}, "default_preference"), "default_preference: at least one weight"),
        (put("c+d", "encoder_plans", 0, "name"), "encoder_plans: c+d: a name has no +"),
        (drop(*DEPTH), "encoder_plans: c64-d4: heads.depth: is missing"),
        (drop(*DEPTH, "gflops"), "encoder_plans[2].heads.depth.gflops: is missing"),
        (
            lambda value: value["encoder_plans"][2]["heads"].update(
                {"sky": value["encoder_plans"][2]["heads"]["depth"]}
            ),
            "encoder_plans: c64-d4: heads.sky: no head at one of its widths has this name",
        ),
        (put(-1, *DEPTH, "gflops"), "c64-d4: heads.depth: gflops must be 0 or more"),
        (put(9, "encoder_plans", 0, "gflops"), "in order of gflops with all heads"),
        (
            put("depth-24x32", "graphs", "24x32", "heads", "depth-w10"),
            "graphs.24x32.heads.depth-w10: no head at one of its widths has this name",
        ),
        (drop("graphs", "24x32", "heads", "boxes"), "graphs.24x32.heads.boxes: is missing"),
        (put("x", "graphs", "24x32", "heads", "boxes"), "stages.x: is missing"),
        (
            put("d", "stages", "depth-w25-48x64", "outputs", 0, "name"),
            "stages.depth-w25-48x64.outputs: it must be depth (batch, h, w)",
        ),
        (
            put("e9", "stages", "boxes-64x48", "inputs", 1, "name"),
            "stages.boxes-64x48.inputs: no stage before it gives",
        ),
        (
            put(14, "stages", "front-24x32", "outputs", 3, "dims", 1),
            "stages.front-24x32.outputs: it must hold TensorSpec(name='quality', "
            "dtype='float32', dims=('batch', 15))",
        ),
    ],
)
def test_heads_that_break_the_contract_are_refused_by_their_key(
    several_bundle: Bundle, edit: Change, words: str
) -> None:
    change(several_bundle.root, edit)
    assert words in refusal(several_bundle.root)


def test_a_bundle_may_promise_nothing_or_not_everything(fake_bundle: Bundle) -> None:
    change(fake_bundle.root, put(None, "margins", 0, "margin"))
    change(fake_bundle.root, put(0, "margins", 1, "margin"))
    change(fake_bundle.root, put(-0.01, "margins", 2, "margin"))
    margins = bundle.load(fake_bundle.root).manifest.margins
    assert [row.margin for row in margins[:3]] == [None, 0.0, -0.01]
    assert type(margins[1].margin) is float
    change(fake_bundle.root, put([], "margins"))
    assert bundle.load(fake_bundle.root).manifest.margins == ()


@pytest.fixture
def canvases_bundle(tmp_path: Path, canvases_manifest: Manifest) -> Bundle:
    return written(tmp_path, canvases_manifest)


def test_a_bundle_may_have_several_canvases_and_those_several_shapes(
    canvases_bundle: Bundle,
) -> None:
    loaded = bundle.load(canvases_bundle.root)
    assert loaded == canvases_bundle
    manifest = loaded.manifest
    assert manifest.glance == Canvas("c32", (Shape(24, 32),))
    assert manifest.input.canvases[1] == Canvas("c64", (Shape(48, 64), Shape(64, 48)))
    assert [plan.canvas for plan in manifest.plans] == ["c32", "c64", "c64"]
    assert manifest.graphs["64x48"].encoders["c64-d4"] == "encoder-64x48-d4"


C32, C64 = ("input", "canvases", 0), ("input", "canvases", 1)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (put({}, "input", "canvases"), "input.canvases: {} has the wrong type"),
        (drop(*C32, "shapes"), "input.canvases[0].shapes: is missing"),
        (put(4.5, *C64, "shapes", 1, "width"), "input.canvases[1].shapes[1].width: 4.5"),
        (put([], "input", "canvases"), "input.canvases: there are none"),
        (put(0, *C64, "shapes", 1, "height"), "input.canvases: height and width must be positive"),
        (put(-1, *C32, "shapes", 0, "width"), "input.canvases: height and width must be positive"),
        (put("c32", *C64, "name"), "input.canvases: a name occurs twice"),
        (put("large one", *C64, "name"), "input.canvases: 'large one' must be named like c640"),
        (
            put({"height": 24, "width": 32}, *C64, "shapes", 1),
            "input.canvases: a shape occurs twice",
        ),
        (put([], *C64, "shapes"), "input.canvases: c64 has no shape"),
        (
            put([{"height": 96, "width": 32}], *C32, "shapes"),  # as large as c64
            "input.canvases: they must go from small to large",
        ),
        (
            put("c48", "encoder_plans", 2, "canvas"),
            "encoder_plans: c64-d4: 'c48' is not among input.canvases",
        ),
        (put([], "graphs"), "graphs: [] has the wrong type"),
        (drop("graphs", "64x48"), "graphs.64x48: is missing"),
        (drop("graphs", "64x48", "heads", "semantic"), "graphs.64x48.heads.semantic: is missing"),
        (put(1, "graphs", "64x48", "colour"), "graphs.64x48.colour: is unknown"),
        (
            put({"front": "f", "encoders": {}, "heads": {}}, "graphs", "9x9"),
            "graphs.9x9: no canvas has this shape",
        ),
        (
            put("encoder-48x64-d1", "graphs", "48x64", "encoders", "c32-d1"),
            "graphs.48x64.encoders.c32-d1: no plan of this canvas has this name",
        ),
        (
            drop("graphs", "64x48", "encoders", "c64-d1"),
            "graphs.64x48.encoders.c64-d1: is missing",
        ),
        (put("fr", "graphs", "64x48", "front"), "stages.fr: is missing"),
        (put("de", "graphs", "64x48", "heads", "semantic"), "stages.de: is missing"),
        (put("en", "graphs", "64x48", "encoders", "c64-d4"), "stages.en: is missing"),
        # The other shape's.
        (
            put("front-48x64", "graphs", "64x48", "front"),
            "stages.front-48x64.inputs: it must be TensorSpec(name='image', dtype='uint8', "
            "dims=('batch', 64, 48, 3))",
        ),
        (
            put("encoder-48x64-d4", "graphs", "64x48", "encoders", "c64-d4"),
            "stages.encoder-48x64-d4.inputs: no stage before it gives",
        ),
        (
            put("decoder-48x64", "graphs", "64x48", "heads", "semantic"),
            "stages.decoder-48x64.inputs: no stage before it gives",
        ),
        # The size is for the gate, and the gate is part of the glance.
        (
            put("length", "stages", "front-24x32", "inputs", 1, "name"),
            "and may have TensorSpec(name='size', dtype='float32', dims=('batch', 2))",
        ),
        (
            lambda value: value["stages"]["front-48x64"]["inputs"].append(
                value["stages"]["front-24x32"]["inputs"][1]
            ),
            "stages.front-48x64.inputs: it must be",
        ),
        (
            drop("stages", "front-24x32", "outputs", 3),
            "stages.front-24x32.outputs: it must hold TensorSpec(name='quality', "
            "dtype='float32', dims=('batch', 3))",
        ),
        (
            put(5, "stages", "decoder-64x48", "outputs", 0, "dims", 1),
            "stages.decoder-64x48.outputs: it must be one, (batch, classes, h, w)",
        ),
    ],
)
def test_canvases_that_break_the_contract_are_refused_by_their_key(
    canvases_bundle: Bundle, edit: Change, words: str
) -> None:
    change(canvases_bundle.root, edit)
    assert words in refusal(canvases_bundle.root)


def test_the_gate_need_not_know_the_size_of_an_image(canvases_bundle: Bundle) -> None:
    change(canvases_bundle.root, drop("stages", "front-24x32", "inputs", 1))
    manifest = bundle.load(canvases_bundle.root).manifest
    assert [spec.name for spec in manifest.stages["front-24x32"].inputs] == ["image"]


def to_schema_3(value: dict[str, Any]) -> None:
    """schema 4 -> schema 3, which has one head, whose GFLOPs are in its plans."""
    (head,) = value.pop("heads")
    assert value.pop("default_preference") == {head["name"]: 1.0}
    value |= {key: head[key] for key in ("task", "classes", "thresholds") if key in head}
    value["plans"] = value.pop("encoder_plans")
    for plan in value["plans"]:
        (worth,) = plan.pop("heads").values()
        assert worth.pop("gflops") == 0
        plan.update(worth)
    for graphs in value["graphs"].values():
        (graphs["decoder"],) = graphs.pop("heads").values()
    value["schema"] = 3


def to_schema_2(value: dict[str, Any]) -> None:
    """schema 3 -> schema 2, which has one canvas of one shape, an encoder with each plan, and fixed
    names for the other stages."""
    to_schema_3(value)
    ((shape,),) = (canvas["shapes"] for canvas in value["input"].pop("canvases"))
    value["input"] |= shape
    (graphs,) = value.pop("graphs").values()
    assert (graphs["front"], graphs["decoder"]) == ("front", "decoder")
    for plan in value["plans"]:
        del plan["canvas"]
        plan["encoder"] = graphs["encoders"][plan["name"]]
    value["schema"] = 2


def test_a_bundle_of_schema_2_is_one_with_one_canvas(fake_bundle: Bundle) -> None:
    change(fake_bundle.root, to_schema_2)
    text = (fake_bundle.root / bundle.FILE).read_text("utf-8")
    assert '"height"' in text
    assert "canvas" not in text
    loaded = bundle.load(fake_bundle.root)
    assert loaded.manifest == fake_bundle.manifest
    assert loaded.digest == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("manifest", ["fake_manifest", "canvases_manifest", "instance_manifest"])
def test_a_bundle_of_schema_3_is_one_with_one_head(
    manifest: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    saved = written(tmp_path, request.getfixturevalue(manifest))
    change(tmp_path, to_schema_3)
    text = (tmp_path / bundle.FILE).read_text("utf-8")
    assert '"head' not in text
    assert bundle.load(tmp_path).manifest == saved.manifest


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (drop("task"), "heads[0].task: is missing"),
        (put(5, "task"), "heads[0].task: 5 has the wrong type"),
        (drop("classes"), "heads[0].classes: is missing"),
        (put({"score": 2}, "thresholds"), "heads[0].thresholds: a value is outside"),
        (drop("plans"), "encoder_plans: is missing"),
        (put({}, "plans"), "encoder_plans: {} has the wrong type"),
        (put(7, "plans", 1), "encoder_plans[1]: 7 has the wrong type"),
        (drop("plans", 1, "quality"), "encoder_plans[1].heads.semantic.quality: is missing"),
        (drop("graphs"), "graphs: is missing"),
        (put([], "graphs"), "graphs: [] has the wrong type"),
        (put(1, "graphs", "48x64"), "graphs.48x64: 1 has the wrong type"),
        (drop("graphs", "48x64", "decoder"), "graphs.48x64.heads: is missing"),
        (put([], "heads"), "heads: is unknown in schema 3"),
    ],
)
def test_a_manifest_of_schema_3_that_breaks_the_contract_is_refused_by_its_key(
    fake_bundle: Bundle, edit: Change, words: str
) -> None:
    change(fake_bundle.root, to_schema_3)
    change(fake_bundle.root, edit)
    assert words in refusal(fake_bundle.root)


def test_a_bundle_of_schema_2_is_saved_as_schema_4(fake_bundle: Bundle) -> None:
    change(fake_bundle.root, to_schema_2)
    assert bundle.save(fake_bundle.root, bundle.load(fake_bundle.root).manifest) == fake_bundle


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (drop("input"), "input, plans: one is missing"),
        (put([], "input"), "input, plans: one is missing or has the wrong type"),
        (drop("plans"), "input, plans: one is missing"),
        (put({}, "plans"), "input, plans: one is missing or has the wrong type"),
        (drop("input", "height"), "input: height and width must be whole numbers"),
        (put(64.0, "input", "width"), "input: height and width must be whole numbers"),
        (put(True, "input", "width"), "input: height and width must be whole numbers"),
        (put(0, "input", "height"), "input.canvases: height and width must be positive"),
        (put(32, "input", "height"), "stages.front.inputs: it must be"),
        (put("d1", "plans", 0), "plans[0].encoder: is missing"),
        (drop("plans", 1, "encoder"), "plans[1].encoder: is missing"),
        (put(7, "plans", 0, "encoder"), "graphs.48x64.encoders.d1: 7 has the wrong type"),
        (put("encoder", "plans", 3, "encoder"), "stages.encoder: is missing"),
        (drop("plans", 1, "name"), "encoder_plans[1].name: is missing"),
        (put(1, "input", "colour"), "input.colour: is unknown"),
        (put(1, "colour"), "colour: is unknown"),
        (drop("stages", "decoder"), "stages.decoder: is missing"),
    ],
)
def test_a_manifest_of_schema_2_that_breaks_the_contract_is_refused_by_its_key(
    fake_bundle: Bundle, edit: Change, words: str
) -> None:
    change(fake_bundle.root, to_schema_2)
    change(fake_bundle.root, edit)
    assert words in refusal(fake_bundle.root)


def test_whole_numbers_are_good_where_floats_are_meant(fake_bundle: Bundle) -> None:
    change(fake_bundle.root, put(1, "encoder_plans", 0, "keep"))
    keep = bundle.load(fake_bundle.root).manifest.encoder_plans[0].keep
    assert (keep, type(keep)) == (1.0, float)
