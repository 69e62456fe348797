"""The service's part of the GPU benchmark, and the whole command on a stand-in for a GPU."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from model_export.network import deformable_attention as attention
from service import bundle
from service.bundle import Bundle
from tests.bench import (
    gpu,
    gpu_clock,
    gpu_encoder,
    gpu_machine,
    gpu_service,
)
from tests.bench.gpu_clock import (
    Setting,
)
from tests.bench.gpu_layers import (
    BASELINE,
    ENCODER_EAGER,
    NO_TIME,
)
from tests.gpu_bench.stand_in import (
    LAYERS,
    SHIPPED,
    SHORT,
    SMALL,
    HostClock,
    operator,
)
from tests.toy import last_json


def test_throughput_of_a_real_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_service, "WARM", 1)
    left = iter([9.0, 9.0, -1.0])
    found = gpu_service.throughput(
        SHIPPED, "fake", Path("engines"), lambda: next(left), requests=12
    )
    names = [plan.name for plan in bundle.load(SHIPPED).manifest.plans]
    assert list(found["plans"]) == [names[0], names[-1], "gate"]
    for name in (names[0], names[-1]):
        row = found["plans"][name]
        assert row["requests"] == 12
        assert row["images_per_s"] > 0
        assert 0 < row["p50_ms"] <= row["p95_ms"]
    assert found["plans"]["gate"] == {"not_measured": NO_TIME}


def test_a_service_that_does_not_start_is_not_measured(tmp_path: Path) -> None:
    setting = Setting(
        HostClock(), SHORT, SimpleNamespace(root=SHIPPED), tmp_path / "none", lambda: 9.0
    )
    found = gpu_service.steps(setting)["tensorrt"]()
    assert found.keys() == {"not_measured"}
    assert "BackendError: " in found["not_measured"]
    found = gpu_service.throughput(SHIPPED, "none", tmp_path, lambda: 9.0)
    assert found["not_measured"].startswith("SettingsError: --backend is 'none'")
    assert gpu_service.last_words(RuntimeError()) == "RuntimeError"


def test_a_closed_loop_ends_by_the_clock() -> None:
    found = gpu_service.closed_loop(None, [b""], "", requests=5, seconds=-1.0)
    assert found == {"requests": 0, "images_per_s": 0.0}


def test_images_have_threads_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, threads in ((None, 2), (2, 2), (16, 14), (200, 64)):
        monkeypatch.setattr(gpu_service.os, "cpu_count", lambda cores=cores: cores)
        assert gpu_service.image_threads() == threads


@pytest.mark.slow
def test_the_whole_command_on_the_stand_in(
    clock: HostClock,
    served: Bundle,
    quick: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the parts give is what the tables read: one step of each kind, through to the last
    line."""
    wanted, steps_of = (
        {"parity", LAYERS[0].name, ENCODER_EAGER, "torch eager, bf16", "fake"},
        gpu.steps_of,
    )
    monkeypatch.setattr(
        gpu,
        "steps_of",
        lambda *what: {name: step for name, step in steps_of(*what).items() if name in wanted},
    )
    plans = served.manifest.encoder_plans[:1]
    cheap = replace(served, manifest=replace(served.manifest, encoder_plans=plans))
    monkeypatch.setattr(gpu, "load", lambda folder: cheap)
    monkeypatch.setattr(gpu, "uncompiled", lambda parts, every: [])
    monkeypatch.setattr(gpu_machine, "lacking", list)
    monkeypatch.setattr(gpu_machine, "describe", lambda: {"gpu": "a stand-in"})
    monkeypatch.setattr(gpu_clock, "CudaClock", lambda: clock)
    monkeypatch.setattr(gpu_clock, "Pace", lambda: SHORT)
    monkeypatch.setattr(attention, "deformable_attention", operator)
    monkeypatch.setattr(gpu_encoder, "LARGE_SIDE", 64)
    monkeypatch.setattr(gpu_encoder.config, "base", lambda: SMALL)
    monkeypatch.setattr(gpu_service, "BACKENDS", ("fake",))
    monkeypatch.setattr(gpu_service, "SECONDS", 0.2)
    out = tmp_path / "x.json"
    status = gpu.main(["--minutes", "30", "--out", str(out)])
    said = capsys.readouterr()
    assert (status, said.err) == (0, "")
    found = last_json(said.out)
    assert set().union(*(found[part] for part in gpu.PARTS)) == wanted
    assert json.loads(out.read_text()) == {
        key: value for key, value in found.items() if key != "bars"
    }
    assert f"\n{LAYERS[0].name}: 0.00 MB at" in said.out
    assert f"\n{LAYERS[1].name}: not measured\n" in said.out
    assert f"\n{BASELINE} " in said.out
    assert re.search(r"\ntorch eager, bf16 +\d+\.\d\d\n", said.out)
    assert re.search(r"\nfake, gate +\d+( +\d+\.\d){2}\n", said.out)
    of_kernel = [bar["verdict"] for bar in found["bars"]][:4]
    assert "not measured" not in of_kernel
