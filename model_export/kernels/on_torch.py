"""The fused kernel on torch's CUDA tensors: compiled for the present chip, queued on torch's
stream."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from model_export.kernels import launch, nvrtc
from service.engines.cuda import Kernel


@cache
def compiled(
    problem: launch.Problem, tactic: launch.Tactic, device: torch.device
) -> tuple[launch.Problem, launch.Launch, Kernel]:
    """For this problem on this chip. The first call compiles for a third of a second: do not make
    it while a CUDA graph is recorded."""
    plan = launch.describe(problem, tactic)
    return problem, plan, load(nvrtc.compile_kernel(plan, architecture(device)), plan.entry, device)


def architecture(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def load(image: bytes, entry: str, device: torch.device) -> Kernel:
    with torch.cuda.device(device):
        torch.cuda.synchronize()  # there is a context from here on
        return Kernel(image, entry)


def run(
    kernel: tuple[launch.Problem, launch.Launch, Kernel],
    value: Tensor,
    offsets: Tensor,
    logits: Tensor,
    reference: Tensor,
) -> Tensor:
    """Shapes as in network.deformable_attention, all on one CUDA device, reference in float32.
    ValueError if not.

    Allocates only the output, so that it can be recorded in a CUDA graph.
    """
    problem, plan, function = kernel
    batch, queries = logits.shape[:2]
    sampled = (batch, queries, problem.heads, len(problem.shapes), problem.points)
    # The kernel sees bare pointers: without these checks it could touch memory of others.
    expected = {
        "value": (value, (batch, problem.tokens, problem.heads, problem.width), problem.dtype),
        "offsets": (offsets, (*sampled, 2), problem.dtype),
        "logits": (logits, sampled, problem.dtype),
        "reference": (
            reference,
            (*((batch,) if problem.reference_per_image else ()), queries, 2),
            "float32",
        ),
    }
    for name, (tensor, shape, dtype) in expected.items():
        if (
            tuple(tensor.shape) != shape
            or tensor.dtype != getattr(torch, dtype)
            or tensor.device != value.device
        ):
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}, "
                f"the kernel needs {shape} {dtype} on {value.device}"
            )
    inputs = [aligned(tensor) for tensor, _, _ in expected.values()]
    out = value.new_empty(batch, queries, problem.heads * problem.width)
    with torch.cuda.device(value.device):
        function.launch(
            plan.grid(batch, queries),
            plan.block,
            torch.cuda.current_stream().cuda_stream,
            *(ctypes.c_void_p(t.data_ptr()) for t in inputs),
            ctypes.c_int(queries),
            ctypes.c_void_p(out.data_ptr()),
        )
    return out


@cache
def compiled_baseline(dtype: str, device: torch.device) -> Kernel:
    options = () if dtype == "float32" else (f"-D{dtype.upper()}",)
    image = nvrtc.compile_source(f"{launch.BASELINE}.cu", options, architecture(device))
    return load(image, launch.BASELINE, device)


def run_baseline(
    kernel: Kernel, value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """value (B, S, M, D), sizes (L, 2) int32, locations (B, Q, M, L, P, 2), weights (B, Q, M, L,
    P), all contiguous.

    For measuring only: the shapes are not checked.
    """
    batch, tokens, heads, width = value.shape
    queries, _, levels, points = weights.shape[1:]
    out = value.new_empty(batch, queries, heads * width)
    counts = (batch, tokens, queries, heads, width, levels, points)
    tensors = (ctypes.c_void_p(t.data_ptr()) for t in (value, sizes, locations, weights))
    with torch.cuda.device(value.device):
        kernel.launch(
            (-(-out.numel() // launch.MAX_BLOCK), 1, 1),
            launch.MAX_BLOCK,
            torch.cuda.current_stream().cuda_stream,
            *tensors,
            *(ctypes.c_int(n) for n in counts),
            ctypes.c_void_p(out.data_ptr()),
        )
    return out


def aligned(tensor: Tensor) -> Tensor:
    """Row-major and at an address for 16-byte loads, as torch's own allocations are."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % launch.ACCESS == 0 else tensor.clone()
