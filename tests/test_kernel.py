"""The CUDA kernels without a GPU: their own source, compiled for the host, against torch; and by
CUDA's compilers.

The host build (tests/data/cuda_on_host.h) runs a warp's lanes as fibers, so shuffles are the
kernel's own, too.
"""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

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
from model_export.network.deformable_attention import deformable_attention, ms_deform_attn
from service.engines import cuda
from tests.kernel_inputs import Inputs, baseline_inputs, exact, random_inputs, relative

DATA = Path(__file__).parent / "data"
CHIPS = ("80", "86", "89", "90", "100", "120")
# Mask2Former's pixel decoder at 1024 x 1024
LARGE = Problem(((32, 32), (64, 64), (128, 128)), heads=8, points=4, width=32, dtype="float16")
# Relative to the norm of the exact result. The rounding of the output alone is 2e-4 for float16,
# 1.7e-3 for bfloat16.
LIMITS = {"float32": 1e-6, "float16": 3e-4, "packed": 6e-4, "bfloat16": 2e-3}

needs_gpp = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


def has_nvrtc() -> bool:
    try:
        return bool(metadata.version("nvidia-cuda-nvrtc"))
    except metadata.PackageNotFoundError:
        return False


needs_nvrtc = pytest.mark.skipif(not has_nvrtc(), reason="nvidia-cuda-nvrtc is not installed")


# ----------------------------------------------------------------------------------------------
# compiled for the host


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


ODD = ((3, 5), (7, 6), (11, 13))
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


def limit(problem: Problem, tactic: Tactic | None) -> float:
    return LIMITS["packed" if tactic and tactic.packed else problem.dtype]


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
    halves = (
        np.arange(0, 0x7C01, 3, dtype=np.uint16).view(np.float16).astype(np.float32)
    )  # zero to infinity
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


# --------------------------------------------------------------------------------------------------
# launch


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


# --------------------------------------------------------------------------------------------------
# compilers


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
        assert (
            len(re.findall(r"ld\.global\.nc\.v4", text)) == vectors
        )  # every pixel in 16-byte pieces, nothing else
        assert len(re.findall(r"st\.global\S*\.v4", text)) == tactic.vectors
        assert (
            re.search(r"\b(ld|st)\.(v4|u32|f32)", text) is None
        )  # an address that was not known to be global


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
    with pytest.raises(nvrtc.NvrtcError, match=r"pip install 'fathom\[kernels\]'"):
        nvrtc.version()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_missing_driver_is_said() -> None:
    with pytest.raises(cuda.DriverError, match="no CUDA driver"):
        cuda.Kernel(b"", ENTRY)


# --------------------------------------------------------------------------------------------------
# the operator


SMALL = Problem(((2, 3), (1, 4)), 2, 2, 4, "float32")
SIZES = [2, 3, 1, 4]


def test_operator_passes_torchs_own_checks() -> None:
    problem = replace(SMALL, dense=False, reference_per_image=True)
    inputs = [t.requires_grad_() for t in random_inputs(problem, 2, queries=3)]
    torch.library.opcheck(ms_deform_attn, (*inputs, SIZES))


@pytest.mark.parametrize("per_image", [False, True])
def test_operator_has_the_gradients_of_its_finite_differences(per_image: bool) -> None:
    problem = replace(SMALL, dense=False, reference_per_image=per_image)
    inputs = [t.double().requires_grad_() for t in random_inputs(problem, 2, queries=3, spread=0.7)]
    assert torch.autograd.gradcheck(lambda *tensors: ms_deform_attn(*tensors, SIZES), inputs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_operator_counts_in_float32_whatever_the_storage(dtype: str) -> None:
    problem = replace(SMALL, dtype=dtype)
    inputs = random_inputs(problem, 2)
    value = inputs.value.requires_grad_()
    got = ms_deform_attn(*inputs, SIZES)
    assert got.dtype == value.dtype
    assert relative(got.detach(), exact(problem, inputs).detach()) < LIMITS[dtype]
    got.sum().backward()
    assert value.grad is not None
    assert value.grad.dtype == value.dtype


def test_operator_is_one_node_of_a_compiled_graph_and_trains_there() -> None:
    seen: list[str] = []

    def look(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    def attend(*tensors: Tensor) -> Tensor:
        return ms_deform_attn(*tensors, SIZES) * 2

    inputs = [t.requires_grad_() for t in random_inputs(SMALL, 2)]
    torch._dynamo.reset()
    torch.compile(attend, backend=look, fullgraph=True)(*inputs)
    assert [name for name in seen if "ms_deform_attn" in name] != []
    want = torch.autograd.grad(attend(*inputs).square().sum(), inputs)
    got = torch.autograd.grad(
        torch.compile(attend, backend="aot_eager", fullgraph=True)(*inputs).square().sum(), inputs
    )
    for g, w in zip(got, want, strict=True):
        assert torch.allclose(g, w, atol=1e-5)


# --------------------------------------------------------------------------------------------------
# a GPU


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shapes", [ODD, ((12, 15), (24, 30), (48, 60))], ids=["odd", "tiny"])
def test_every_tactic_on_the_gpu_is_torchs_deformable_attention(
    dtype: str, shapes: tuple[tuple[int, int], ...]
) -> None:
    from model_export.kernels import on_torch

    problem = Problem(shapes, 8, 4, 32, dtype)
    inputs = random_inputs(problem, 2)
    want = exact(problem, inputs)
    device = torch.device("cuda", 0)
    for tactic in tactics(problem):
        kernel = on_torch.compiled(problem, tactic, device)
        got = on_torch.run(kernel, *(t.to(device) for t in inputs)).cpu()
        assert relative(got, want) < limit(problem, tactic), tactic
    assert (
        relative(
            ms_deform_attn(*(t.to(device) for t in inputs), [s for hw in shapes for s in hw]).cpu(),
            want,
        )
        < 2e-3
    )


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_baseline_on_the_gpu_is_torchs_deformable_attention(dtype: str) -> None:
    from model_export.kernels import on_torch

    problem, device = Problem(ODD, 8, 4, 32, dtype), torch.device("cuda", 0)
    arrays, want = baseline_inputs(problem, random_inputs(problem, 2))
    got = on_torch.run_baseline(
        on_torch.compiled_baseline(dtype, device), *(t.to(device) for t in arrays)
    )
    assert relative(got.cpu(), want) < LIMITS[dtype]


@pytest.mark.gpu
@needs_gpu
def test_gradients_on_the_gpu_are_those_on_the_cpu() -> None:
    problem = replace(SMALL, width=16)
    here = [t.requires_grad_() for t in random_inputs(problem, 2)]
    there = [t.detach().cuda().requires_grad_() for t in here]
    ours = torch.autograd.grad(ms_deform_attn(*there, SIZES).square().sum(), there)
    theirs = torch.autograd.grad(ms_deform_attn(*here, SIZES).square().sum(), here)
    for g, w in zip(ours, theirs, strict=True):
        assert torch.allclose(g.cpu(), w, atol=1e-4)


@pytest.mark.gpu
@needs_gpu
def test_kernel_can_be_recorded_in_a_cuda_graph() -> None:
    problem = replace(SMALL, width=16)
    inputs = [t.cuda() for t in random_inputs(problem, 2)]
    want = ms_deform_attn(*inputs, SIZES)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = ms_deform_attn(*inputs, SIZES)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(got, want)
