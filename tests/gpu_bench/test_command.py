"""The GPU benchmark as a command, without a GPU: arguments, what is missing, what it keeps."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model_export.kernels import nvrtc
from tests.bench import gpu, gpu_clock, gpu_machine
from tests.bench.gpu_layers import NO_TIME, variants
from tests.gpu_bench.stand_in import HostClock
from tests.processes import ROOT
from tests.toy import last_json

Json = dict[str, Any]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--only", "kernels"], "invalid choice: 'kernels'"),
        (["--only"], "expected at least one argument"),
        (["--minutes", "0"], "0 is not from 0.1 to 120"),
        (["--minutes", "nan"], "nan is not from"),
        (["--minutes", "soon"], "invalid minutes value: 'soon'"),
        (["--colour"], "unrecognized arguments"),
        (["--bundle", "/no/such/folder"], "--bundle: /no/such/folder"),
        (["--out", "/no/such/folder/x.json"], "--out: /no/such/folder/x.json cannot be written"),
        (["--out", "."], "--out: . cannot be written"),
    ],
)
def test_wrong_arguments_end_with_status_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = gpu.main(words)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("text", "says"), [("{", "cannot be read"), ("[]", "no results"), ('{"a": 1}', "no results")]
)
def test_a_file_of_something_else_is_not_overwritten(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.json"
    out.write_text(text)
    assert gpu.main(["--out", str(out)]) == 2
    assert says in capsys.readouterr().err
    assert out.read_text() == text


def has_nvrtc() -> bool:
    try:
        return bool(metadata.version(nvrtc.PACKAGE))
    except metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(not has_nvrtc(), reason="nvidia-cuda-nvrtc is not installed")
def test_without_a_gpu_it_does_what_needs_none_and_says_what_is_missing() -> None:
    done = subprocess.run(
        [sys.executable, "tests/bench/gpu.py"],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "34.58" in done.stdout
    kernels = len(list(variants())) + 3  # the baseline in each type
    assert re.search(rf"NVRTC \d+\.\d+: {kernels} kernels compiled to PTX", done.stdout)
    (said,) = done.stderr.splitlines()
    assert said.startswith("nothing was measured: there is no GPU to use (")


def test_without_nvrtc_it_says_so_in_the_same_breath(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(name: str) -> ctypes.CDLL:
        raise OSError(name)

    monkeypatch.setattr(gpu_machine, "lacking", lambda: ["there is no GPU to use (none)"])
    monkeypatch.setattr(nvrtc.metadata, "files", lambda _: None)
    monkeypatch.setattr(nvrtc.ctypes, "CDLL", nothing)
    nvrtc._library.cache_clear()
    assert gpu.main(["--only", "models"]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(
        "nothing was measured: NVRTC was not found: pip install '.[kernels]'; there is no GPU"
    )
    assert gpu.main(["--only", "service"]) == 1  # which compiles nothing
    assert capsys.readouterr().err == "nothing was measured: there is no GPU to use (none)\n"


def test_a_kernel_that_does_not_compile_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise nvrtc.NvrtcError("x.cu for compute_80 does not compile: line 3")

    monkeypatch.setattr(nvrtc, "version", lambda: "13.0")
    monkeypatch.setattr(nvrtc, "compile_source", refuse)
    assert gpu.uncompiled(["kernel"], every=True) == [
        "x.cu for compute_80 does not compile: line 3"
    ]


class Pretence:
    """Steps that count how often they ran; the command on a machine that has everything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self.answers: dict[str, Json | Exception] = {}
        monkeypatch.setattr(gpu, "steps_of", self.steps_of)
        monkeypatch.setattr(gpu, "uncompiled", lambda parts, every: [])
        monkeypatch.setattr(gpu_machine, "lacking", list)
        monkeypatch.setattr(gpu_machine, "describe", lambda: {"gpu": "a chip"})
        monkeypatch.setattr(gpu_clock, "CudaClock", HostClock)

    def steps_of(self, part: str, setting: gpu_clock.Setting) -> dict[str, Callable[[], Json]]:
        def step(name: str) -> Json:
            self.ran.append(f"{part} {name}")
            answer = self.answers.get(name, {"plans": {}})
            if isinstance(answer, Exception):
                raise answer
            return answer

        return {name: lambda name=name: step(name) for name in ("a", "b")}


@pytest.fixture
def pretence(monkeypatch: pytest.MonkeyPatch) -> Pretence:
    return Pretence(monkeypatch)


def test_it_ends_in_one_json_line_and_keeps_what_it_has(
    pretence: Pretence, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.json"
    assert gpu.main(["--only", "service", "--out", str(out)]) == 0
    found = last_json(capsys.readouterr().out)
    assert found["service"] == {"a": {"plans": {}}, "b": {"plans": {}}}
    assert found["machine"]["gpu"] == "a chip"
    assert found["machine"]["bundle"].startswith("camvid-tiny@")
    assert {bar["verdict"] for bar in found["bars"]} == {"not measured"}
    assert gpu.main(["--only", "models", "service", "--out", str(out)]) == 0
    assert pretence.ran == ["service a", "service b", "models a", "models b"]
    assert gpu.main(["--only", "models", "--out", str(out), "--again"]) == 0
    assert pretence.ran[4:] == ["models a", "models b"]
    kept = json.loads(out.read_text())
    assert kept.keys() == {"machine", "models", "service"}
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"not_measured": "no package"}, 0),
        ({"plans": {"d1": {"not_measured": NO_TIME}}}, 0),
        ({"plans": {"d1": {"wrong": "no parity"}}}, 1),
        (RuntimeError("out of memory\n\nand pages of it"), 1),
    ],
)
def test_what_is_missing_is_tried_again_and_only_what_is_wrong_changes_the_status(
    answer: Json | Exception,
    status: int,
    pretence: Pretence,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--only", "service", "--out", str(tmp_path / "x.json")]
    pretence.answers["a"] = answer
    assert gpu.main(words) == status
    assert ("service: a" in capsys.readouterr().err) == (status == 1)
    pretence.answers.clear()
    gpu.main(words)
    again = [] if "wrong" in str(answer) else ["service a"]  # which is a result
    assert pretence.ran == ["service a", "service b", *again]


def test_a_failed_step_says_why_in_one_line(
    pretence: Pretence, capsys: pytest.CaptureFixture[str]
) -> None:
    pretence.answers["b"] = RuntimeError("out of memory\n\nand pages of it")
    assert gpu.main(["--only", "service"]) == 1
    assert capsys.readouterr().err == "service: b: failed: RuntimeError: out of memory\n"


def test_no_step_begins_when_the_time_is_over(
    pretence: Pretence, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(
        gpu, "time", SimpleNamespace(monotonic=lambda: now.__setitem__(0, now[0] + 4) or now[0])
    )
    results: Json = {}
    args = SimpleNamespace(minutes=1.0, engine_cache=Path(), out=None)
    gpu.run(HostClock(), None, args, ["kernel", "service"], results)
    assert results["kernel"]["a"] == {"plans": {}}
    assert results["service"]["b"] == {"plans": {}}  # the last part has all of the time
    args.minutes = 0.1
    gpu.run(HostClock(), None, args, ["kernel"], results := {})
    assert results["kernel"]["b"] == {"not_measured": NO_TIME}


def test_results_of_another_machine_are_not_mixed(
    pretence: Pretence,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "x.json"
    gpu.main(["--only", "service", "--out", str(out)])
    monkeypatch.setattr(gpu_machine, "describe", lambda: {"gpu": "another chip"})
    assert gpu.main(["--only", "models", "--out", str(out)]) == 2
    assert "--out holds other results (gpu was a chip, is another chip)" in capsys.readouterr().err
    assert gpu.main(["--only", "models", "--out", str(out), "--again"]) == 0
    # Those of the other machine are gone.
    assert json.loads(out.read_text()).keys() == {
        "machine",
        "models",
    }


def test_a_module_that_cannot_be_imported_takes_none_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = importlib.import_module

    def without_models(name: str) -> Any:
        if name.endswith("gpu_models"):
            raise ImportError("No module named 'onnx'", name="onnx")
        return real(name)

    monkeypatch.setattr(gpu.importlib, "import_module", without_models)
    setting = gpu_clock.Setting(HostClock(), gpu_clock.Pace(), None, Path(), lambda: 1.0)
    steps = gpu.steps_of("models", setting)
    assert steps["gpu_models"]() == {"not_measured": "ImportError: No module named 'onnx'"}
    assert "encoder, torch eager" in steps
    monkeypatch.undo()
    for part in gpu.PARTS:
        setting = replace(setting, served=SimpleNamespace(root=ROOT))
        assert len(gpu.steps_of(part, setting)) >= 3
