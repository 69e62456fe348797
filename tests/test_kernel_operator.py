"""The kernel as torch operator: gradients, storage, graphs; on a GPU where there is one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model_export.kernels.launch import (
    Problem,
    tactics,
)
from model_export.network.deformable_attention import ms_deform_attn
from tests.kernel_inputs import (
    LIMITS,
    ODD,
    baseline_inputs,
    exact,
    limit,
    random_inputs,
    relative,
)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


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
