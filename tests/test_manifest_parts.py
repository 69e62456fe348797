"""What a manifest says of several heads and of several canvases."""

from __future__ import annotations

from pathlib import Path

import pytest

from service import bundle
from service.bundle import Bundle, Canvas, Manifest, Shape
from service.tasks import tasks_of
from tests.bundle_edits import HEAD, Change, change, drop, put, refusal, written


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
