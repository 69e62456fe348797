"""A manifest that breaks the contract is refused by its key; what that leaves open is good."""

from __future__ import annotations

import pytest

from service import bundle
from service.bundle import Bundle, Manifest
from tests.bundle_edits import HEAD, PAUSED, WORTH, Change, change, drop, put, refusal


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


def test_a_bundle_may_promise_nothing_or_not_everything(fake_bundle: Bundle) -> None:
    change(fake_bundle.root, put(None, "margins", 0, "margin"))
    change(fake_bundle.root, put(0, "margins", 1, "margin"))
    change(fake_bundle.root, put(-0.01, "margins", 2, "margin"))
    margins = bundle.load(fake_bundle.root).manifest.margins
    assert [row.margin for row in margins[:3]] == [None, 0.0, -0.01]
    assert type(margins[1].margin) is float
    change(fake_bundle.root, put([], "margins"))
    assert bundle.load(fake_bundle.root).manifest.margins == ()


def test_whole_numbers_are_good_where_floats_are_meant(fake_bundle: Bundle) -> None:
    change(fake_bundle.root, put(1, "encoder_plans", 0, "keep"))
    keep = bundle.load(fake_bundle.root).manifest.encoder_plans[0].keep
    assert (keep, type(keep)) == (1.0, float)
