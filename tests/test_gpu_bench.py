"""The GPU benchmark as a command, without a GPU: arguments, what it says is missing, what it keeps,
its tables."""

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
import torch

from model_export.kernels import nvrtc
from model_export.network.pausing import choose_active
from service.engines.cuda import DriverError
from tests.bench import gpu, gpu_clock, gpu_layers, gpu_machine, gpu_report
from tests.bench.gpu_layers import KEEP, NO_TIME, gathered, label, layers, traffic, variants
from tests.gpu_stand_in import LAYERS, HostClock
from tests.toy import last_json

ROOT = Path(__file__).resolve().parents[1]
MACHINE = {"gpu": "a chip", "torch": "9.9", "bundle": "camvid-tiny@0"}
Json = dict[str, Any]


# --------------------------------------------------------------------------------------------------
# the command


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
        "nothing was measured: NVRTC was not found: pip install 'fathom[kernels]'; there is no GPU"
    )
    assert gpu.main(["--only", "service"]) == 1  # which compiles nothing
    assert capsys.readouterr().err == "nothing was measured: there is no GPU to use (none)\n"


def test_a_kernel_that_does_not_compile_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise nvrtc.NvrtcError("x.cu for compute_80 does not compile: line 3")

    monkeypatch.setattr(nvrtc, "version", lambda: "13.0")
    monkeypatch.setattr(nvrtc, "compile_source", refuse)
    assert gpu.uncompiled(["kernel"]) == ["x.cu for compute_80 does not compile: line 3"]


# --------------------------------------------------------------------------------------------------
# the machine


class Chip:
    """A driver's device of some compute capability."""

    capability = (9, 0)


def test_a_machine_that_has_everything_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_machine, "Device", Chip)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu_machine.lacking() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (said,) = gpu_machine.lacking()
    assert said.endswith("sees no GPU, though the driver does")
    monkeypatch.setattr(torch.version, "cuda", None)
    (said,) = gpu_machine.lacking()
    assert said == f"PyTorch {torch.__version__} was built without CUDA"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (said,) = gpu_machine.lacking()
    assert said == "PyTorch is not installed: pip install 'fathom[export]'"


def test_an_old_chip_and_a_missing_driver_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gpu_machine, "Device", type("Old", (), {"capability": (7, 5)}))
    assert gpu_machine.lacking() == ["the GPU's compute capability is 7.5, the kernels need 8.0"]

    def none() -> Chip:
        raise DriverError("no CUDA driver: libcuda.so.1")

    monkeypatch.setattr(gpu_machine, "Device", none)
    assert gpu_machine.lacking() == ["there is no GPU to use (no CUDA driver: libcuda.so.1)"]


def test_the_machine_is_described_with_its_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    chip = SimpleNamespace(
        name="a chip",
        major=9,
        minor=0,
        total_memory=80 * 2**30,
        multi_processor_count=132,
        L2_cache_size=50 * 2**20,
    )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: chip)
    found = gpu_machine.describe()
    assert found["gpu"] == "a chip"
    assert (found["capability"], found["memory"], found["l2"]) == ("9.0", "80 GiB", "50 MiB")
    assert found["torch"] == torch.__version__
    assert all(isinstance(value, str) and value for value in found.values())
    assert gpu_machine.version_of("no-such-package") == "not installed"
    assert gpu_machine.words_of("no-such-command") == "unknown"
    assert gpu_machine.words_of("false") == "unknown"
    assert gpu_machine.words_of("echo", "a", "b") == "a b"


# --------------------------------------------------------------------------------------------------
# what is timed


def test_bytes_of_the_large_layer_are_those_counted_by_hand() -> None:
    large = layers()[0]
    tokens = 32 * 32 + 64 * 64 + 128 * 128
    assert large.queries == tokens == 21504
    samples = tokens * 8 * 12  # heads, 3 levels x 4 points
    assert traffic(large) == {
        "value": tokens * 256 * 2,
        "offsets": samples * 2 * 2,
        "logits": samples * 2,
        "reference": tokens * 8,  # two floats
        "out": tokens * 256 * 2,
    }
    assert sum(traffic(large).values()) == 34_578_432
    assert gathered(large) == samples * 4 * 32 * 2 == 528_482_304


def test_the_paused_layer_has_the_queries_that_the_network_keeps() -> None:
    *_, full, some = layers()
    levels = list(some.problem.shapes)
    logits = torch.zeros(1, 11, *levels[-1])
    assert choose_active(logits, KEEP, None, levels).rows.shape[1] == some.queries == 1620
    moved, whole = traffic(some), traffic(full)
    assert moved["value"] == whole["value"]  # paused tokens are still sampled
    assert moved["out"] * full.queries == whole["out"] * some.queries


def test_every_variant_has_a_name_of_its_own_and_every_type_its_tactics() -> None:
    found = list(variants())
    assert len({variant.name for variant in found}) == len(found)
    for dtype in ("float32", "float16", "bfloat16"):
        ours = [variant for variant in found if variant.problem.dtype == dtype]
        assert {variant.problem.dense for variant in ours} == {True, False}
        assert any(variant.ptx for variant in ours)
    labels = {label(variant.tactic) for variant in found}
    assert {"16x8 r2", "16x8 v2 r3 packed", "8x8 h2 r2"} <= labels


# --------------------------------------------------------------------------------------------------
# what it keeps


class Pretence:
    """Steps that count how often they ran; the command on a machine that has everything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self.answers: dict[str, Json | Exception] = {}
        monkeypatch.setattr(gpu, "steps_of", self.steps_of)
        monkeypatch.setattr(gpu, "uncompiled", lambda parts: [])
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
    assert json.loads(out.read_text()).keys() == {
        "machine",
        "models",
    }  # those of the other machine are gone


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


# --------------------------------------------------------------------------------------------------
# its tables


def us(median: float) -> Json:
    return {"median": median, "q1": median - 1, "q3": median + 1, "samples": 15}


def made_up() -> Json:
    """A run in which the compiled grid_sample form could not be timed, a tactic was wrong, and
    TensorRT is missing."""
    rows = {
        "16x8 r2": {"error": 2e-4, "cold_us": us(40), "hot_us": us(30)},
        "8x8 r5": {"wrong": "error 1.0e+00"},
        "thread per channel": {"error": 3e-4, "cold_us": us(90), "hot_us": us(85)},
        "grid_sample, eager": {"error": 2e-2, "cold_us": us(800)},
        "grid_sample, compiled": {"not_measured": "no compiler"},
    }
    layer = {
        "bytes": {"total": 34_000_000},
        "sets": 7,
        "caches": 4.5,
        "default": "16x8 r2",
        "best": "16x8 r2",
        "rows": rows,
        "bandwidth": 3.4e12,
        "roofline_us": 10.0,
    }
    encoder = {
        "error": 1e-3,
        "us": [us(200.0 * depth) for depth in range(1, 7)],
        "line": {"fixed_us": 1.0, "layer_us": 200.0, "worst": 0.02},
    }
    plans = {"d1": {"parity": 1e-4, "ms": us(2.5)}, "d6": {"not_measured": NO_TIME}}
    return {
        "machine": MACHINE,
        "kernel": {
            "parity": {
                "checked": 79,
                "worst": {"float16": 2e-4},
                "wrong": {"8x8 r5": "error 1.0e+00"},
            },
            LAYERS[0].name: layer,
            LAYERS[1].name: {"failed": "RuntimeError: out of memory"},
        },
        "models": {
            "encoder, torch eager": encoder,
            "torch eager, fp32": {"precision": "fp32", "plans": plans},
            "TensorRT": {"not_measured": "TensorRT is not installed"},
        },
        "service": {
            "onnxruntime": {
                "plans": {
                    "d1": {"requests": 9, "images_per_s": 77.0, "p50_ms": 12.0, "p95_ms": 20.0}
                }
            },
            "tensorrt": {"not_measured": "BackendError: none"},
        },
    }


@pytest.fixture
def toy_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_report, "layers", lambda: LAYERS)


def test_tables_show_what_was_measured_and_why_not(toy_layers: None) -> None:
    text = "\n".join(gpu_report.lines(made_up()))
    for part in (
        "79 variants, 1 wrong; worst error float16 2.0e-04",
        "34.00 MB at 3.40 TB/s, a copy's, is 10.00 us; cold: 7 sets of inputs in turn, 4.5 x the "
        "cache",
        "8x8 r5: wrong: error 1.0e+00",
        "grid_sample, compiled: not measured: no compiler",
        f"{LAYERS[1].name}: failed: RuntimeError: out of memory",
        f"{LAYERS[2].name}: not measured",
        "encoder, torch.compile: not measured",
        "TensorRT: not measured: TensorRT is not installed",
        f"torch eager, fp32, d6: not measured: {NO_TIME}",
        "service, tensorrt: not measured: BackendError: none",
    ):
        assert part in text, text
    row = next(line for line in text.splitlines() if line.startswith("thread per channel"))
    assert row.split()[3:] == ["3.0e-04", "90.0", "89.0-91.0", "85.0", "378", "9.0", "2.25", "x"]
    assert next(line for line in text.splitlines() if line.startswith("onnxruntime, d1")).split()[
        2:
    ] == [
        "77",
        "12.0",
        "20.0",
    ]


def test_without_a_bandwidth_there_is_no_roofline(toy_layers: None) -> None:
    results = made_up()
    for name in ("bandwidth", "roofline_us"):
        del results["kernel"][LAYERS[0].name][name]
    text = "\n".join(gpu_report.lines(results))
    assert f"{LAYERS[0].name}: no bandwidth was measured" in text
    row = next(line for line in text.splitlines() if line.startswith("thread per channel"))
    assert row.split()[-3:] == ["-", "2.25", "x"]


def test_bars_are_reported_not_asserted(toy_layers: None) -> None:
    found = {bar["bar"]: (bar["shown"], bar["verdict"]) for bar in gpu_report.bars(made_up())}
    assert found == {
        "kernel, 1024 x 1024, cold": ("40 us", "ok"),
        "faster than grid_sample, eager and compiled": ("not measured", "not measured"),
        "faster than thread per channel": ("2.25 x", "missed"),
        "error of every variant, float64": ("0.0002", "missed"),  # one of them was wrong
        "encoder, torch eager: depth 6": ("1.2 ms", "missed"),
        "encoder, torch eager: distance from a line, of a layer": ("0.02", "ok"),
        "encoder, torch.compile: depth 6": ("not measured", "not measured"),
        "encoder, torch.compile: distance from a line, of a layer": (
            "not measured",
            "not measured",
        ),
    }


def test_the_faster_grid_sample_form_is_the_one_to_beat(toy_layers: None) -> None:
    results = made_up()
    results["kernel"][LAYERS[0].name]["rows"]["grid_sample, compiled"] = {"cold_us": us(240)}
    bar = next(bar for bar in gpu_report.bars(results) if "grid_sample" in bar["bar"])
    assert (bar["value"], bar["verdict"]) == (6.0, "ok")


def test_troubles_are_what_is_wrong_or_failed(toy_layers: None) -> None:
    assert list(gpu_report.troubles(made_up())) == [
        "kernel: parity, 8x8 r5: wrong: error 1.0e+00",
        f"kernel: {LAYERS[0].name}, 8x8 r5: wrong: error 1.0e+00",
        f"kernel: {LAYERS[1].name}: failed: RuntimeError: out of memory",
    ]


def test_nothing_measured_is_a_table_all_the_same() -> None:
    text = "\n".join(gpu_report.lines({"machine": MACHINE}))
    assert text.count("not measured") >= len(layers()) + 3
    assert len(json.loads(json.dumps(gpu_report.bars({})))) == 8
    assert gpu_layers.DATASHEET.keys() == {"H100 SXM", "H200"}
