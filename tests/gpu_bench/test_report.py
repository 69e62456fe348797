"""The tables of the GPU benchmark, and its bars."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.bench import gpu_layers, gpu_report
from tests.bench.gpu_layers import NO_TIME, layers
from tests.gpu_bench.stand_in import LAYERS

MACHINE = {"gpu": "a chip", "torch": "9.9", "bundle": "camvid-tiny@0"}
Json = dict[str, Any]


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
