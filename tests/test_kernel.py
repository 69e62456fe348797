"""The kernel, compiled for the host, computes what torch does."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model_export.kernels import nvrtc
from model_export.kernels.launch import (
    Problem,
    Tactic,
    describe,
)
from model_export.network.deformable_attention import deformable_attention
from tests.kernel_inputs import (
    LIMITS,
    ODD,
    Inputs,
    baseline_inputs,
    exact,
    limit,
    random_inputs,
    relative,
)

DATA = Path(__file__).parent / "data"


needs_gpp = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ctypes.CDLL]:
    @cache
    def build(source: str, defines: tuple[str, ...]) -> ctypes.CDLL:
        path = tmp_path_factory.mktemp("host") / "kernel.so"
        flags = [
            "-std=c++17",
            "-O1",
            "-shared",
            "-fPIC",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-unknown-pragmas",
        ]
        flags += [
            "-Wno-unused-function",
            "-Wno-unused-parameter",
            "-fno-strict-aliasing",
            "-ffp-contract=off",
        ]
        flags += [f"-I{nvrtc.FOLDER}", f"-I{DATA}", *(f"-D{define}" for define in defines)]
        run = subprocess.run(
            ["g++", *flags, str(DATA / source), "-o", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        return ctypes.CDLL(str(path))

    return build


def guarded(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A copy amid NaN: reading beyond it spoils the result even with weight 0. Also the whole
    buffer."""
    margin = 4096
    buffer = torch.full((tensor.numel() + 2 * margin,), float("nan"), dtype=tensor.dtype)
    inside = buffer[margin:-margin]
    inside.copy_(tensor.flatten())
    assert inside.data_ptr() % 16 == 0
    return inside, buffer


def on_host(
    build: Callable[..., ctypes.CDLL], problem: Problem, inputs: Inputs, tactic: Tactic | None
) -> Tensor:
    plan = describe(problem, tactic)
    batch, queries = inputs.logits.shape[:2]
    copies = [guarded(t) for t in inputs]
    out, whole = guarded(
        torch.full((batch, queries, problem.heads * problem.width), float("nan")).to(inputs.value)
    )
    build("host_kernel.cpp", plan.defines).run(
        *plan.grid(batch, queries),
        plan.block,
        *(ctypes.c_void_p(t.data_ptr()) for t, _ in copies),
        queries,
        ctypes.c_void_p(out.data_ptr()),
    )
    assert whole[:4096].isnan().all(), "wrote before the output"
    assert whole[-4096:].isnan().all(), "wrote behind the output"
    return out.reshape(batch, queries, -1)


CASES = {
    "float32": (Problem(ODD, 2, 4, 32, "float32"), None),
    "float32, 16 channels, 3 points, 1 level": (Problem(((5, 9),), 3, 3, 16, "float32"), None),
    "float32, fewer samples than lanes": (Problem(((4, 4),), 1, 2, 64, "float32"), None),
    "float32, 2 levels, sides of one pixel": (Problem(((1, 6), (5, 1)), 2, 4, 16, "float32"), None),
    "float32, levels of one pixel and 4 of them": (
        Problem(((1, 1), (2, 2), (1, 3), (4, 2)), 2, 2, 16, "float32"),
        None,
    ),
    "float32, two pieces a lane": (Problem(ODD, 1, 3, 32, "float32"), Tactic((8, 4), vectors=2)),
    "float16": (Problem(ODD, 4, 4, 32, "float16"), None),
    "float16, 16 channels": (Problem(ODD, 2, 4, 16, "float16"), None),
    "float16, one lane": (Problem(((3, 4), (5, 6)), 2, 3, 8, "float16"), None),
    "float16, 2 heads a block": (Problem(ODD, 4, 4, 32, "float16"), Tactic((4, 4), heads=2)),
    "float16, packed": (Problem(ODD, 2, 4, 32, "float16"), Tactic((16, 8), packed=True)),
    "float16, packed, two pieces": (
        Problem(ODD, 2, 4, 32, "float16"),
        Tactic((8, 8), vectors=2, packed=True),
    ),
    "bfloat16": (Problem(ODD, 2, 4, 32, "bfloat16"), None),
}


@needs_gpp
@pytest.mark.parametrize("case", CASES)
def test_kernel_compiled_for_the_host_is_torchs_deformable_attention(
    case: str, host: Callable[..., ctypes.CDLL]
) -> None:
    problem, tactic = CASES[case]
    inputs = random_inputs(problem, batch=2)
    got, want = on_host(host, problem, inputs, tactic), exact(problem, inputs)
    if problem.dtype == "float32":
        assert (got - want).abs().max() < 1e-5
    assert relative(got, want) < limit(problem, tactic)


@needs_gpp
@pytest.mark.parametrize("per_image", [False, True], ids=["same queries", "queries of each image"])
def test_kernel_takes_any_subset_of_the_queries(
    per_image: bool, host: Callable[..., ctypes.CDLL]
) -> None:
    problem = Problem(ODD, 2, 4, 32, "float32", dense=False, reference_per_image=per_image)
    all_of = random_inputs(replace(problem, dense=True), batch=2)
    want = exact(problem, all_of)
    kept = torch.stack(
        [
            torch.randperm(problem.tokens, generator=torch.Generator().manual_seed(i))[:77]
            for i in (1, 2)
        ]
    )
    kept = kept if per_image else kept[:1].expand(2, -1)
    image = torch.arange(2)[:, None]
    reference = all_of.reference[kept if per_image else kept[0]]
    some = Inputs(all_of.value, all_of.offsets[image, kept], all_of.logits[image, kept], reference)
    assert (on_host(host, problem, some, None) - want[image, kept]).abs().max() < 1e-5
    assert (deformable_attention(*some, list(ODD)) - want[image, kept]).abs().max() < 1e-5


@needs_gpp
@pytest.mark.parametrize("packed", [False, True])
def test_places_on_a_wide_map_are_not_rounded_to_the_storage(
    packed: bool, host: Callable[..., ctypes.CDLL]
) -> None:
    """float16 places would be half a pixel off at the right end, and the error a hundred times the
    limit."""
    problem, tactic = (
        Problem(((2, 1000),), 1, 4, 32, "float16", dense=False),
        Tactic((16, 8), packed=packed),
    )
    inputs = random_inputs(problem, batch=1, queries=128)
    inputs.reference[:, 0] = 0.9 + 0.1 * inputs.reference[:, 0]
    assert relative(on_host(host, problem, inputs, tactic), exact(problem, inputs)) < limit(
        problem, tactic
    )


@needs_gpp
def test_samples_that_are_all_outside_give_zero(host: Callable[..., ctypes.CDLL]) -> None:
    problem = Problem(ODD, 2, 4, 32, "float16")
    inputs = random_inputs(problem, batch=1)
    inputs.offsets.copy_(torch.where(inputs.offsets < 0, -100.0, 60000.0))
    assert not on_host(host, problem, inputs, None).any()


@needs_gpp
def test_logits_are_softmaxed_without_overflow(host: Callable[..., ctypes.CDLL]) -> None:
    problem = Problem(ODD, 2, 4, 32, "float32")
    inputs = random_inputs(problem, batch=1)
    inputs.logits.mul_(1e4)
    assert (on_host(host, problem, inputs, None) - exact(problem, inputs)).abs().max() < 1e-5


@needs_gpp
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_baseline_compiled_for_the_host_is_torchs_deformable_attention(
    dtype: str, host: Callable[..., ctypes.CDLL]
) -> None:
    problem = Problem(((3, 5), (6, 7)), 2, 3, 16, dtype)
    inputs = random_inputs(problem, batch=2)
    build = host("host_baseline.cpp", (dtype.upper(),) if dtype != "float32" else ())
    arrays, want = baseline_inputs(problem, inputs)
    out = torch.full(want.shape, float("nan"), dtype=inputs.value.dtype)
    counts = (
        2,
        problem.tokens,
        problem.tokens,
        problem.heads,
        problem.width,
        len(problem.shapes),
        problem.points,
    )
    build.run(
        *(ctypes.c_void_p(t.data_ptr()) for t in arrays), *counts, ctypes.c_void_p(out.data_ptr())
    )
    assert relative(out, want) < LIMITS[dtype]


@needs_gpp
@pytest.mark.parametrize("width", ["half_to_float", "to_half", "to_bfloat"])
def test_shim_rounds_as_numpy_and_torch_do(width: str, tmp_path: Path) -> None:
    """Every float16, and floats that lie on and beside the middle between two of them."""
    source = tmp_path / "numbers.cpp"
    source.write_text(
        '#include "cuda_on_host.h"\n'
        'extern "C" float widen(unsigned int x) { return half_to_float(x); }\n'
        'extern "C" unsigned int half(float x) { return to_half(x); }\n'
        'extern "C" unsigned int bfloat(float x) { return to_bfloat(x); }\n'
    )
    library = tmp_path / "numbers.so"
    subprocess.run(
        ["g++", "-shared", "-fPIC", f"-I{DATA}", str(source), "-o", str(library)], check=True
    )
    shim = ctypes.CDLL(str(library))
    shim.widen.restype = ctypes.c_float
    shim.half.argtypes = shim.bfloat.argtypes = [ctypes.c_float]
    # Zero to infinity.
    halves = np.arange(0, 0x7C01, 3, dtype=np.uint16).view(np.float16).astype(np.float32)
    if width == "half_to_float":
        bits = range(0, 0x7C01, 3)
        assert [shim.widen(b) for b in bits] == halves.tolist()
        assert [shim.widen(b | 0x8000) for b in bits] == (-halves).tolist()
        return
    between = (
        np.arange(0, 0x7BFF, 3, dtype=np.uint16).view(np.float16).astype(np.float64)
        + np.arange(1, 0x7C00, 3, dtype=np.uint16).view(np.float16).astype(np.float64)
    ) / 2
    middle = between.astype(np.float32)
    floats = np.concatenate(
        [halves, -middle, np.nextafter(middle, np.float32(9e9)), np.nextafter(middle, -middle)]
    )
    if width == "to_half":
        with np.errstate(over="ignore"):
            want = floats.astype(np.float16).view(np.uint16)
        got = [shim.half(x) for x in floats.tolist()]
    else:
        want = torch.from_numpy(floats).bfloat16().view(torch.int16).numpy().view(np.uint16)
        got = [shim.bfloat(x) & 0xFFFF for x in floats.tolist()]
    assert got == want.tolist()
