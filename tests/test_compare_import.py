"""`compare-import`: an imported checkpoint beside transformers, on ten real photos."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model_export.__main__ import main
from model_export.evaluation import compare_import
from tests.checkpoints import random_model, saved
from tests.needs import data_at
from tests.toy import last_json

MOST = 1e-3  # of a logit
EQUAL = 0.999  # of the pixels

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("one_thread")]


def photos() -> Path:
    return data_at("coco128_panoptic") / "images/val"


@pytest.fixture(scope="module", params=["panoptic", "semantic"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, traced_once: None
) -> list[str]:
    """The command's words for a bundle of the checkpoint's own size."""
    folder = tmp_path_factory.mktemp(request.param)
    # transformers saves a checkpoint without this loss, but its forward fails without it.
    model = random_model("swin", use_auxiliary_loss=request.param == "panoptic")
    checkpoint, run = saved(model, folder / "checkpoint"), folder / "run"
    if request.param == "semantic":  # what a checkpoint may ask of transformers beside its weights
        for name, change in (
            ("config.json", {"return_dict": False}),
            ("preprocessor_config.json", {"pad_size": {"height": 256, "width": 256}}),
        ):
            file = checkpoint / name
            file.write_text(json.dumps(json.loads(file.read_text()) | change))
    ask = ["import", str(checkpoint), "--out", str(run), "--task", request.param]
    ask += ["--threshold", "0.2", "--canvases", "64x96"]
    assert main([*ask, *(("--things", "0-2") if request.param == "panoptic" else ())]) == 0
    export = ["export", str(run), "-o", str(folder / "bundle"), "--parity", "photos"]
    assert main([*export, "--data", str(photos())]) == 0
    return [str(folder / "bundle"), "--checkpoint", str(checkpoint), "--images", str(photos())]


def test_ten_photos_give_transformers_logits_in_torch_and_on_the_engine(
    made: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(*_: object) -> None:
        raise RuntimeError("GridSample in double")

    monkeypatch.setattr(compare_import, "exported", unable)
    ask = ["compare-import", *made, "--rounds", "1", "--threads", "1", "--others", "onnx"]
    assert main(ask) == 0
    shown = capsys.readouterr().out
    found = last_json(shown)
    assert found["photos"] == 10
    assert "10 photos at 64x96" in shown
    rows = {row["name"]: row for row in found["rows"]}
    assert [*rows] == ["transformers, eager", "this network, torch", "c96-d3, onnxruntime"]
    for name in [*rows][1:]:
        assert rows[name]["error"] < MOST
        assert rows[name]["equal"] > EQUAL
    (why,) = found["failed"].values()
    assert why == "RuntimeError: GridSample in double"


def test_a_bundle_of_something_else_is_refused(
    made: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    # Threads are those of the process: the tests that come after it have one, too.
    other = ["trained_weights/camvid-tiny", *made[1:], "--threads", "1"]
    assert main(["compare-import", *other]) == 1
    assert "is no bundle of" in capsys.readouterr().err
