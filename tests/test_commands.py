"""The command line of model_export: unknown commands, steps in the wrong order, the probe."""

from __future__ import annotations

import argparse
import json
import resource
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_export.__main__ import COMMANDS, parser_of
from model_export.export.write_manifest import provenance_of
from model_export.files import alone
from model_export.gating.task_search import stage_costs
from model_export.network.knobs import Knobs
from model_export.option_types import Help
from model_export.training.bundle_weights import read_weights
from model_export.training.progress import load_checkpoint
from model_export.training.run_files import RunError, new_folder, refuse_full, refuse_no_bundle
from model_export.training.runs import (
    classes_of,
    cut_log,
    load_model,
    read_canvases,
    read_config,
    read_gate,
    read_plans,
    read_targets,
    trained_on,
    write_config,
    write_plans,
)
from tests.toy import CANVASES, Words, command, last_json, toy

pytestmark = pytest.mark.usefixtures("one_thread")


def test_steps_in_the_wrong_order_name_the_missing_one(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    for words, missing in (
        (
            ("derive-targets", tmp_path / "none", "--fit", "scenes:5", "--held", "scenes:5"),
            "train-exits",
        ),
        (("derive-targets", run, "--fit", "scenes:5", "--held", "scenes:5"), "search-plans"),
        (("train-gate", run), "search-plans"),
        (("evaluate", run), "train-gate"),
    ):
        assert command(*words) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"{words[0]}: ")
        assert f"python -m model_export {missing}" in error
    write_plans(run, [Knobs(3)], {})  # of before there were several canvases
    assert command("derive-targets", run, "--fit", "scenes:5", "--held", "scenes:5") == 1
    error = capsys.readouterr().err
    assert "plans without a canvas" in error
    assert f"python -m model_export search-plans {run}" in error
    write_plans(run, [Knobs(3, canvas="c96")], {})
    assert command("train-gate", run) == 1
    assert "python -m model_export derive-targets" in capsys.readouterr().err
    (run / "model.safetensors").unlink()
    assert command("derive-targets", run, "--fit", "scenes:5", "--held", "scenes:5") == 1
    assert f"python -m model_export train-exits --out {run}" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option_and_shows_its_default(name: str) -> None:
    parser = parser_of(name)
    assert [action.dest for action in parser._actions if not action.help] == []
    shown = " ".join(parser.format_help().split())
    for action in parser._actions:
        if type(action.default) in (int, float) and "default" not in str(action.help):
            assert f"[{action.default}]" in shown


def test_help_shows_defaults_once_and_none_where_there_is_none() -> None:
    parser = argparse.ArgumentParser(formatter_class=Help)
    parser.add_argument("--steps", type=int, default=400, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--zoom", nargs=2, default=(0.6, 1.6), help="its range")
    parser.add_argument("--threads", default=2, help="default: all")
    parser.add_argument("--turn", action="store_true", help="also turned")
    parser.add_argument("--data", help="a folder")
    lines = [line.split()[-3:] for line in parser.format_help().splitlines()]
    assert ["how", "many", "[400]"] in lines
    assert ["is", "drawn", "[0]"] in lines
    assert ["range", "[0.6", "1.6]"] in lines
    assert parser.format_help().count("[") == 3 + 7  # the usage has one for every option


def test_unknown_command_shows_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    for words, code in (((), 2), (("train",), 2), (("--help",), 0)):
        assert command(*words) == code
        shown = capsys.readouterr().out
        for name in (
            "train-exits",
            "search-plans",
            "derive-targets",
            "train-gate",
            "evaluate",
            "export",
        ):
            assert name in shown


def test_probe_scores_a_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "probe",
        "--backbone",
        "mobilenet_v2",
        "--train",
        "scenes:3",
        "--dev",
        "scenes:1:1",
        "--canvas",
        "96x128",
    )
    assert command(*words) == 0
    found = last_json(capsys.readouterr().out)
    assert (found["backbone"], found["weights"]) == ("mobilenet_v2", "random")
    assert 0.05 < float(str(found["miou"])) < 1  # sky and road lie where they always lie


NUMBERS = {
    "train-exits": {
        "--lr": ("nan", "inf", "-1", "x"),
        "--backbone-lr": ("nan",),
        "--decay": ("nan", "-1"),
        "--ema": ("nan", "2", "-1"),
        "--distill": ("nan", "-1"),
        "--pixel-weight": ("nan",),
        "--gap-weight": ("inf",),
        "--token-weight": ("-1",),
        "--points": ("0",),
        "--scenes": ("2", "-1", "nan"),
        "--weather": ("7", "nan"),
        "--balance": ("2", "nan"),
        "--check-every": ("0", "-1"),
        "--steps": ("0", "-3", "1.5", "9" * 20, "9" * 5000),
        "--batch": ("0",),
        "--workers": ("-1",),
        "--seed": ("-1", "9" * 20),
        "--cache-mb": ("-1", "nan", "inf"),
        "--stop-after": ("-1", "nan"),
        "--queries": ("0",),
        "--pause-after": ("-1",),
    },
    "train-tasks": {
        "--lr": ("nan",),
        "--chances": ("inf", "-1"),
        "--ema": ("nan",),
        "--steps": ("0",),
        "--check-every": ("0",),
        "--seed": ("-1",),
    },
    "search-plans": {"--most": ("1",), "--least": ("1",), "--rounds": ("0",), "--threads": ("0",)},
    "derive-targets": {"--seed": ("-1",), "--views": ("0",)},
    "train-gate": {"--block": ("0", "-1")},
    "retarget": {"--block": ("0",), "--seed": ("-1",)},
    "evaluate": {"--block": ("0",), "--draws": ("0",), "--threads": ("-1",)},
    "compare-import": {"--most": ("0",), "--rounds": ("0",), "--threads": ("0",)},
    "probe": {"--images": ("0",)},
    "adapt": {
        "--rate": ("nan", "inf", "-1"),
        "--minutes": ("nan", "-1"),
        "--steps": ("9" * 20, "0"),
        "--batch": ("0",),
        "--most": ("1",),
        "--rounds": ("0",),
        "--threads": ("0",),
    },
    "import": {"--threshold": ("nan",)},
    "draw-scenes": {"--count": ("9" * 20, "0"), "--seed": ("-1",), "--bare": ("-0.1", "nan")},
}


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        (name, option, value)
        for name, options in NUMBERS.items()
        for option, values in options.items()
        for value in values
    ],
)
def test_numbers_that_mean_nothing_are_refused_by_their_option(
    name: str, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(name, f"{option}={value}") == 2
    assert f"error: argument {option}: " in capsys.readouterr().err


@pytest.mark.parametrize("zoom", [("0", "0"), ("nan", "1"), ("inf", "inf")])
def test_both_ends_of_a_range_are_checked(
    zoom: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train-exits", "--zoom", *zoom) == 2
    assert "argument --zoom: " in capsys.readouterr().err


def made(run: Path, **arguments: Any) -> Path:
    """A run's folder of the toy size without weights."""
    about = {"train": "scenes:4", "backbone_weights": None} | arguments
    write_config(run, toy(), CANVASES, about, [("scenes:4", None)], ["a"] * 11)
    return run


def filled(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text("mine")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_run_is_never_written_over_anything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imported, averaged, trained = {"imported": "x"}, {"averaged": ["x"]}, dict[str, Any]()
    checkpoint = filled(tmp_path / "checkpoint", "config.json", "model.safetensors")
    bundle = filled(tmp_path / "bundle", "manifest.json", "model.safetensors")
    run = filled(made(tmp_path / "trained"), "checkpoint.pt", "log.csv", "model.safetensors")
    mean = filled(made(tmp_path / "mean", **averaged), "model.safetensors")
    for out, makers, message in (
        (checkpoint, (imported, averaged, trained), "is not empty and holds no run"),
        (bundle, (imported, averaged, trained), "holds a bundle"),
        (run, (imported, averaged), "holds a run that was trained"),
        (mean, (imported, trained), "holds a run of `average`"),
        (run / "log.csv" / "out", (imported, averaged, trained), "log.csv is a file"),
    ):
        before = contents(out) if out.is_dir() else {}
        for maker in makers:
            with pytest.raises(RunError, match=message):
                made(out, **maker)
        if out.is_dir():
            assert contents(out) == before
            assert command("train-exits", "--out", out) == 1 or out == run
            assert contents(out) == before
    made(mean, **averaged)
    made(run)
    for out in (checkpoint, bundle):
        assert command("average", mean, run, "--out", out) == 1
        assert command("train-tasks", "--out", out) == 1
    (run / "checkpoint.pt").unlink()
    capsys.readouterr()
    for name in ("train-exits", "train-tasks"):
        assert command(name, "--out", run) == 1
        assert "has weights and no checkpoint.pt to go on from" in capsys.readouterr().err


def test_a_bundle_is_never_written_over_anything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = filled(made(tmp_path / "run"), "model.safetensors")
    mine = filled(tmp_path / "mine", "model.safetensors", "yolo.onnx")
    for out, message in (
        (run, "holds a run (run.json)"),
        (filled(tmp_path / "stopped", "checkpoint.pt"), "holds a run (checkpoint.pt)"),
        (mine, "is not empty and holds no bundle"),
        (mine / "yolo.onnx" / "out", "yolo.onnx is a file"),
    ):
        before = contents(out) if out.is_dir() else {}
        assert command("export", run, "-o", out) == 1
        assert message in capsys.readouterr().err
        assert not out.is_dir() or contents(out) == before
    refuse_no_bundle(tmp_path / "new")
    refuse_no_bundle(filled(tmp_path / "bundle", "manifest.json", "README.md"))
    # What an export leaves that failed.
    refuse_no_bundle(filled(tmp_path / "failed", "model.safetensors", "front-64x96.onnx"))


def test_a_folder_takes_its_place_only_when_all_of_it_is_there(tmp_path: Path) -> None:
    def fill(out: Path, fault: type[BaseException] | None = None) -> None:
        with new_folder(out) as folder:
            filled(folder, "a")
            if fault:
                raise fault

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "new", KeyboardInterrupt)
    assert not list(tmp_path.iterdir())
    fill(tmp_path / "deep" / "new")
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["new"]
    assert contents(tmp_path / "deep" / "new") == {"a": b"mine"}


def test_a_mounted_folder_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's volume: minutes of work would end in "device or resource busy"."""
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    with pytest.raises(RunError, match=f"choose a folder in it: {tmp_path / 'bundle'}"):
        refuse_full(tmp_path)


def test_one_command_at_a_time_works_on_a_run(
    trained_run: Path, train_words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two trainings would write one checkpoint in turns."""
    run = shutil.copytree(trained_run, tmp_path / "run")
    before = contents(run)
    for words in (
        (*train_words, "--steps", "9", "--out", run),
        ("search-plans", run),
        ("train-gate", run),
    ):
        with alone(run):
            assert command(*words) == 1
        assert f"{words[0]}: {run}: another command is at work in it: wait" in (
            capsys.readouterr().err
        )
    assert contents(run) == before
    with alone(run):  # it was let go of
        pass


@pytest.mark.parametrize("words", ["draw-scenes OUT", "train-tasks --out RUN --cache OUT"])
def test_a_disk_that_is_full_is_told_of_by_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    """As where there is no space, a file's end cannot be written."""
    out, unlimited = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    places = {"OUT": out, "RUN": tmp_path / "run"}
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, unlimited[1]))
    try:
        assert command(*(places.get(word, word) for word in words.split())) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "too large" in line]
    assert said.startswith(f"{words.split(maxsplit=1)[0]}: {out}/")


def test_what_the_system_refuses_is_one_line_with_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = filled(tmp_path, "file") / "file"
    for words, message in (
        (("draw-scenes", file / "out", "--count", 1), f"{file}/out"),
        (("probe", "--backbone", "mobilenet_v2", "--backbone-weights", tmp_path), str(tmp_path)),
        (("train-exits", "--out", file / "out"), f"{file} is a file"),
        (("export", file, "-o", tmp_path / "out"), f"{file} is no run"),
        (("export", made(tmp_path / "run"), "-o", tmp_path / "out", "--provenance", "/none"), "/n"),
    ):
        assert command(*words) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"{words[0]}: ")
        assert message in error
        assert error.count("\n") == 1


READERS: dict[str, tuple[Callable[[Path], object], ...]] = {
    "run.json": (read_config, trained_on, classes_of),
    "plans.json": (read_plans, read_canvases),
    "targets-fit.npz": (lambda run: read_targets(run, "fit"),),
    "gate.json": (read_gate,),
    "gate.safetensors": (read_gate,),
    "model.safetensors": (load_model, lambda run: read_weights(run / "model.safetensors")),
    "checkpoint.pt": (lambda run: load_checkpoint(run, *[None] * 3),),  # type: ignore[arg-type]
    "log.csv": (lambda run: cut_log(run, 1),),
    "costs.json": (lambda run: stage_costs(run, _Network(), CANVASES, []),),  # type: ignore[arg-type]
    "told.json": (lambda run: provenance_of(run / "told.json", {}),),
}


class _Network:
    config = toy()


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named_with_what_to_do(name: str, tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    write_plans(run, [Knobs(3, canvas="c96")], {})
    (run / "gate.json").write_text('{"margins": []}')
    broken: list[bytes] = [b"", b"{", b"\xff\xfe", b"PK\x03\x04 is cut", b"9" * 64]
    if name.endswith(".json"):
        broken += [b"[]", b"3"]
    if name in ("run.json", "plans.json", "gate.json"):
        broken += [b"{}"]
    if name == "run.json":
        document = json.loads((run / name).read_text())
        broken += [json.dumps(document | {key: 5}).encode() for key in document]
    if name == "log.csv":
        broken = [b"a,b\n1,2\n", b"step\nx\n", b"\xff\xfe\n1\n"]
    for content in broken:
        (run / name).write_bytes(content)
        faults = []
        for read in READERS[name]:
            try:
                read(run)
            except RunError as error:
                faults.append(str(error))
        assert faults, content
        for fault in faults:
            assert str(run / name) in fault, content
            assert ";" in fault or "add" in fault, content


def test_a_command_that_is_stopped_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("model_export.data.draw_scenes.main", stop)
    monkeypatch.setattr(sys, "argv", ["model_export", "draw-scenes", "out"])
    monkeypatch.delitem(sys.modules, "model_export.__main__")  # runpy warns of one that is there
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("model_export", run_name="__main__")
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "draw-scenes: stopped\n"
