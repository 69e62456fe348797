"""Bundles of older schemas are read as what they are now, and saved so."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from service import bundle
from service.bundle import Bundle
from tests.bundle_edits import Change, change, drop, put, refusal, written


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
