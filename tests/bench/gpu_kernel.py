"""The kernel part of the GPU benchmark: parity of every variant, then the time of a layer against
three others.

Cold: so many copies of the inputs that together they are several times the largest cache take
turns, so that each launch reads from memory. Hot: one copy. Bandwidth is that of a copy on the
device in the same race, bytes read plus bytes written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from model_export.kernels import launch, nvrtc, on_torch
from model_export.kernels.launch import Problem, Tactic, describe, tactics
from model_export.network.deformable_attention import by_grid_sample
from tests.bench.gpu_clock import (
    ERRORS,
    Clock,
    Contender,
    Figures,
    Pace,
    Setting,
    Work,
    race,
    reason,
)
from tests.bench.gpu_layers import (
    BASELINE,
    ERROR,
    GRID_COMPILED,
    GRID_EAGER,
    PTX,
    Layer,
    gathered,
    label,
    layers,
    traffic,
    variants,
)
from tests.kernel_inputs import Inputs, baseline_inputs, exact, random_inputs, relative

SPREAD = 2.5  # standard deviation of the offsets, in pixels
# The cold inputs are so many times the largest cache, but no more sets than that.
CACHES, SETS = (
    4,
    400,
)
GRID_SETS = 20  # enough for what writes far more than it reads
Json = dict[str, Any]


def steps(setting: Setting) -> dict[str, Callable[[], Json]]:
    clock, pace = setting.clock, setting.pace
    return {"parity": partial(parity, clock)} | {
        each.name: partial(time_layer, clock, each, pace) for each in layers()
    }


# --------------------------------------------------------------------------------------------------
# what is run


def fused(
    problem: Problem, tactic: Tactic, device: torch.device, *, ptx: bool = False
) -> Callable[[Inputs], Tensor]:
    """The fused kernel. Raises NvrtcError, DriverError."""
    if ptx:
        plan = describe(problem, tactic)
        kernel = problem, plan, on_torch.load(nvrtc.compile_kernel(plan, PTX), plan.entry, device)
    else:
        kernel = on_torch.compiled(problem, tactic, device)
    return lambda inputs: on_torch.run(kernel, *inputs)


def baseline(dtype: str, device: torch.device) -> Callable[..., Tensor]:
    """Takes value, sizes, locations, weights: what writes the last two is not part of its time."""
    return partial(on_torch.run_baseline, on_torch.compiled_baseline(dtype, device))


def grid_sample_form(problem: Problem, inputs: Inputs) -> nn.Module:
    """`by_grid_sample` as the operators that it calls, its one constant on the device of the
    inputs.

    As it stands it copies that constant from the host at each call, which no CUDA graph can record.
    Takes everything in the type of the storage, places too (`halved`): that is its fastest form,
    though not exact in 16 bits.
    """
    examples = [torch.empty_like(t, device="cpu") for t in halved(inputs)]
    form = make_fx(
        lambda *tensors: by_grid_sample(*tensors, list(problem.shapes)), tracing_mode="fake"
    )(*examples)
    return form.to(inputs.value.device)


def compiled(module: nn.Module) -> Callable[..., Any]:
    return torch.compile(module, fullgraph=True, dynamic=False)


def halved(inputs: Inputs) -> Inputs:
    return replace(inputs, reference=inputs.reference.to(inputs.value.dtype))


def on_device(inputs: Inputs, device: torch.device) -> Inputs:
    return Inputs(*(t.to(device) for t in inputs))


def copy_of(inputs: Inputs) -> Inputs:
    return Inputs(*(t.clone() for t in inputs))


# --------------------------------------------------------------------------------------------------
# parity


def parity(clock: Clock) -> Json:
    """Every variant and the baseline on two images. worst: error of each type; wrong: who misses
    ERROR."""
    worst: dict[str, float] = {}
    wrong: dict[str, str] = {}

    def check(name: str, dtype: str, run: Callable[[], tuple[Tensor, Tensor]]) -> None:
        try:
            error = relative(*run())
        except ERRORS as raised:
            wrong[name] = reason(raised)
            return
        if error <= ERROR:  # nan is not
            worst[dtype] = max(worst.get(dtype, 0.0), short(error))
        else:
            wrong[name] = f"error {error:.1e}"

    known: tuple[Any, ...] = (None, None, None)
    checked = list(variants())
    for variant in checked:
        problem, queries = variant.problem, variant.queries
        if known[0] != (problem, queries):
            given = on_device(random_inputs(problem, 2, queries), clock.device)
            known = (problem, queries), given, exact(problem, given)
        _, given, want = known

        def ours(variant=variant, given=given, want=want) -> tuple[Tensor, Tensor]:
            run = fused(variant.problem, variant.tactic, clock.device, ptx=variant.ptx)
            # The allocator hands out this memory next: what a kernel does not write stays nan.
            torch.full_like(want, float("nan"), dtype=given.value.dtype)
            return run(given), want

        check(variant.name, problem.dtype, ours)
    for dtype in launch.DTYPES:
        problem = replace(layers()[-2].problem, dtype=dtype)
        arrays, want = baseline_inputs(problem, on_device(random_inputs(problem, 2), clock.device))
        check(
            f"{dtype} {BASELINE}",
            dtype,
            lambda d=dtype, a=arrays, w=want: (baseline(d, clock.device)(*a), w),
        )
    return {"checked": len(checked) + len(launch.DTYPES), "worst": worst, "wrong": wrong}


# --------------------------------------------------------------------------------------------------
# the race


def time_layer(clock: Clock, layer: Layer, pace: Pace) -> Json:
    """One image. Every tactic and the baseline, cold and hot; the grid_sample form, cold; and a
    copy."""
    problem, moved = layer.problem, sum(traffic(layer).values())
    given = random_inputs(problem, 1, layer.queries)
    spread = SPREAD * torch.randn(given.offsets.shape, generator=torch.Generator().manual_seed(1))
    given = on_device(replace(given, offsets=spread.to(given.offsets.dtype)), clock.device)
    sets = [
        given,
        *(copy_of(given) for _ in range(min(SETS, max(2, -(-CACHES * clock.cache // moved))) - 1)),
    ]
    rows, runners = admitted(entries(clock, problem, sets))
    source = torch.rand(clock.copied // 4, device=clock.device)
    target = torch.empty_like(source)
    cold = race(clock, runners | {"copy": Contender([lambda: target.copy_(source)])}, pace)
    kernels = {name: each for name, each in runners.items() if each.kernel}
    hot = race(
        clock, {name: replace(each, works=each.works[:1]) for name, each in kernels.items()}, pace
    )
    for name in runners:
        rows[name] |= timed("cold_us", cold[name])
        if name in hot:
            rows[name] |= timed("hot_us", hot[name])
    ours = [label(tactic) for tactic in tactics(problem) if "cold_us" in rows[label(tactic)]]
    found: Json = {
        "bytes": traffic(layer) | {"total": moved, "gathered": gathered(layer)},
        "sets": len(sets),
        "caches": short(len(sets) * moved / clock.cache),
        "default": label(tactics(problem)[0]),
        "best": min(ours, key=lambda name: rows[name]["cold_us"]["median"], default=None),
        "rows": rows,
    }
    if isinstance(copied := cold["copy"], Figures):
        found["bandwidth"] = 2 * source.nbytes / copied.median  # bytes/s
        found["roofline_us"] = short(1e6 * moved / found["bandwidth"])
    return found


@dataclass(frozen=True)
class Entry:
    """What wants to race. want: the exact result of its first work. bound: on its error."""

    works: list[Work]
    want: Tensor
    kernel: bool = True
    bound: float = ERROR


def entries(clock: Clock, problem: Problem, sets: list[Inputs]) -> dict[str, Callable[[], Entry]]:
    """Each is made when it is called: that compiles, which may fail."""
    want = exact(problem, sets[0])
    traced = cache(partial(grid_sample_form, problem, sets[0]))

    def by_tactic(tactic: Tactic) -> Entry:
        run = fused(problem, tactic, clock.device)
        return Entry([partial(run, one) for one in sets], want)

    def by_baseline() -> Entry:
        run, (arrays, right) = (
            baseline(problem.dtype, clock.device),
            baseline_inputs(problem, sets[0]),
        )
        copies = [arrays, *([t.clone() for t in arrays] for _ in sets[1:])]
        return Entry([partial(run, *one) for one in copies], right)

    def by_grid(wrap: Callable[[nn.Module], Callable[..., Any]]) -> Entry:
        run = wrap(traced())
        return Entry(
            [partial(run, *halved(one)) for one in sets[:GRID_SETS]], want, kernel=False, bound=1.0
        )

    found: dict[str, Callable[[], Entry]] = {
        label(each): partial(by_tactic, each) for each in tactics(problem)
    }
    eager = partial(by_grid, lambda form: form)
    return found | {
        BASELINE: by_baseline,
        GRID_EAGER: eager,
        GRID_COMPILED: partial(by_grid, compiled),
    }


def admitted(
    entered: Mapping[str, Callable[[], Entry]],
) -> tuple[dict[str, Json], dict[str, Contender]]:
    """A row for each, with its error; and those that may race: what is wrong does not."""
    rows: dict[str, Json] = {}
    runners: dict[str, Contender] = {}
    for name, make in entered.items():
        try:
            entry = make()
            error = relative(entry.works[0](), entry.want)
        except ERRORS as raised:
            rows[name] = {"not_measured": reason(raised)}
            continue
        if error <= entry.bound:  # nan is not
            rows[name] = {"error": short(error)}
            runners[name] = Contender(entry.works, entry.kernel)
        else:
            rows[name] = {"wrong": f"error {error:.1e}"}
    return rows, runners


def timed(key: str, figures: Figures | str) -> Json:
    return {"not_measured": figures} if isinstance(figures, str) else {key: figures.as_us()}


def short(value: float) -> float:
    return float(f"{value:.4g}")
