"""How kernels are launched, and that every compiler takes them."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch

from model_export.kernels import nvrtc
from model_export.kernels.launch import (
    ARGUMENTS,
    ENTRY,
    LaunchError,
    Problem,
    Tactic,
    describe,
    tactics,
)
from service.engines import cuda
from tests.kernel_inputs import (
    ODD,
)

DATA = Path(__file__).parent / "data"


CHIPS = ("80", "86", "89", "90", "100", "120")


# Mask2Former's pixel decoder at 1024 x 1024
LARGE = Problem(((32, 32), (64, 64), (128, 128)), heads=8, points=4, width=32, dtype="float16")


needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


def has_nvrtc() -> bool:
    try:
        return bool(metadata.version("nvidia-cuda-nvrtc"))
    except metadata.PackageNotFoundError:
        return False


needs_nvrtc = pytest.mark.skipif(not has_nvrtc(), reason="nvidia-cuda-nvrtc is not installed")


def test_launch_covers_every_query_of_every_head_and_image_once() -> None:
    plan = describe(replace(LARGE, shapes=ODD), Tactic((4, 4)))
    tiles = 1 * 2 + 2 * 2 + 3 * 4  # of 4 x 4 on 3 x 5, 7 x 6, 11 x 13
    assert plan.grid(3, plan.tokens) == (tiles, 8, 3)
    some = describe(replace(LARGE, shapes=ODD, dense=False), Tactic((4, 4)))
    assert some.grid(2, 33) == (3, 8, 2)
    assert some.grid(1, 1) == (1, 8, 1)
    assert plan.block == 4 * 4 * 4


def test_launch_refuses_a_number_of_queries_that_it_was_not_compiled_for() -> None:
    with pytest.raises(LaunchError, match="all 21504 tokens, not for 21503"):
        describe(LARGE).grid(1, 21503)
    with pytest.raises(LaunchError, match="batch 0"):
        describe(LARGE).grid(0, 21504)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dtype": "float64"}, "float64"),
        ({"width": 20}, "20 channels"),
        ({"width": 48}, "48 channels"),
        ({"shapes": ()}, "0 levels"),
        ({"shapes": ((1, 1),) * 5}, "5 levels"),
        ({"shapes": ((0, 4),)}, "side"),
        ({"shapes": ((4, 70000),)}, "side"),
    ],
)
def test_launch_refuses_what_the_kernel_cannot_do(change: dict[str, object], says: str) -> None:
    with pytest.raises(LaunchError, match=says):
        describe(replace(LARGE, **change))


@pytest.mark.parametrize(
    ("problem", "tactic", "says"),
    [
        (LARGE, Tactic((3, 3)), "whole warps"),
        (LARGE, Tactic((32, 16)), "2048 threads"),
        (LARGE, Tactic((4, 4), heads=3), "8 heads"),
        (replace(LARGE, dtype="bfloat16"), Tactic((16, 8), packed=True), "bfloat16"),
    ],
)
def test_launch_refuses_a_tactic_that_does_not_fit(
    problem: Problem, tactic: Tactic, says: str
) -> None:
    with pytest.raises(LaunchError, match=says):
        describe(problem, tactic)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("width", [8, 16, 32, 64, 128])
def test_every_offered_tactic_can_be_described(dtype: str, width: int) -> None:
    problem = replace(LARGE, dtype=dtype, width=width)
    offered = tactics(problem)
    assert len(offered) >= 4
    assert len({describe(problem, tactic) for tactic in offered}) == len(offered)


def test_launch_travels_as_json_and_needs_no_torch() -> None:
    plan = describe(LARGE)
    assert json.loads(json.dumps(plan.as_dict()))["arguments"] == list(ARGUMENTS)
    imports = "from model_export.kernels import launch, nvrtc; import service.engines.cuda"
    code = f"import sys; {imports}; print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=DATA.parent.parent, capture_output=True, check=True
    )
    assert run.stdout.strip() == b"False"


@needs_nvcc
def test_nvcc_compiles_for_every_chip_and_the_large_shape_spills_no_register(
    tmp_path: Path,
) -> None:
    targets = [f"-gencode=arch=compute_{chip},code=sm_{chip}" for chip in CHIPS]
    for tactic in (tactics(LARGE)[0], Tactic((16, 8), resident=2, packed=True)):
        plan = describe(LARGE, tactic)
        flags = [
            *targets,
            *(f"-D{d}" for d in plan.defines),
            "-Werror=all-warnings",
            "-Xptxas=-v",
            "-fatbin",
        ]
        output = ["-o", str(tmp_path / "out")]
        run = subprocess.run(
            ["nvcc", *flags, str(nvrtc.FOLDER / plan.source), *output],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert set(re.findall(r"for 'sm_(\d+)'", run.stderr)) == set(CHIPS)
        assert re.findall(r"(\d+) bytes spill stores", run.stderr) == ["0"] * len(CHIPS), run.stderr


@needs_nvcc
@pytest.mark.parametrize("dtype", ["FLOAT32", "FLOAT16", "BFLOAT16"])
def test_nvcc_compiles_the_baseline(dtype: str, tmp_path: Path) -> None:
    source, out = str(nvrtc.FOLDER / "ms_deform_attn_baseline.cu"), str(tmp_path / "out")
    flags = ["-arch=sm_80", f"-D{dtype}", "-Werror=all-warnings", "-cubin"]
    run = subprocess.run(
        ["nvcc", *flags, source, "-o", out], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


@needs_nvrtc
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_nvrtc_alone_compiles_every_tactic_to_ptx(dtype: str) -> None:
    problem = replace(LARGE, dtype=dtype)
    for tactic in tactics(problem):
        text = nvrtc.compile_kernel(describe(problem, tactic), "compute_80").decode()
        signature = re.search(rf"\.entry {ENTRY}\((.*?)\)", text, re.S)
        assert signature is not None
        assert signature[1].count(".param") == len(ARGUMENTS)
        assert f".maxntid {describe(problem, tactic).block}" in text
        assert ".local" not in text  # an array that was not unrolled into registers
        vectors = len(problem.shapes) * problem.points * 4 * tactic.vectors
        # Every pixel in 16-byte pieces, nothing else.
        assert len(re.findall(r"ld\.global\.nc\.v4", text)) == vectors
        assert len(re.findall(r"st\.global\S*\.v4", text)) == tactic.vectors
        # An address that was not known to be global.
        assert re.search(r"\b(ld|st)\.(v4|u32|f32)", text) is None


@needs_nvrtc
@pytest.mark.parametrize("chip", CHIPS)
def test_nvrtc_compiles_a_cubin_for_every_chip(chip: str) -> None:
    assert nvrtc.compile_kernel(describe(LARGE), f"sm_{chip}")[:4] == b"\x7fELF"


@needs_nvrtc
def test_nvrtc_says_what_it_refused() -> None:
    with pytest.raises(nvrtc.NvrtcError, match="gpu-architecture"):
        nvrtc.compile_kernel(describe(LARGE), "sm_1")
    with pytest.raises(nvrtc.NvrtcError, match="LEVELS"):
        nvrtc.compile_source("ms_deform_attn.cu", (), "compute_80")


def test_missing_nvrtc_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> ctypes.CDLL:
        raise OSError(name)

    monkeypatch.setattr(nvrtc.metadata, "files", lambda _: None)
    monkeypatch.setattr(nvrtc.ctypes, "CDLL", nothing)
    nvrtc._library.cache_clear()
    with pytest.raises(nvrtc.NvrtcError, match=r"pip install '\.\[kernels\]'"):
        nvrtc.version()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_missing_driver_is_said() -> None:
    with pytest.raises(cuda.DriverError, match="no CUDA driver"):
        cuda.Kernel(b"", ENTRY)
