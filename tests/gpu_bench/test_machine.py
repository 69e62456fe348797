"""What the GPU benchmark says of its machine, and what it counts of the layers that it times."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch

from model_export.network.pausing import choose_active
from service.engines.cuda import DriverError
from tests.bench import gpu_machine
from tests.bench.gpu_layers import KEEP, gathered, label, layers, traffic, variants


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
    assert said == "PyTorch is not installed: pip install '.[export]'"


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
    assert {"8x4 h2 r4", "16x8 v2 r3 packed", "4x4 h4 r4"} <= labels
