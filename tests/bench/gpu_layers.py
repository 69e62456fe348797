"""What the GPU benchmark times and checks: layers of our networks, variants of the kernel, the
bytes that must move.

No torch: this part is counted, and compiled by NVRTC, on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from model_export.kernels import launch, nvrtc
from model_export.kernels.launch import Problem, Tactic, describe, tactics
from model_export.network import config
from model_export.network.config import Config

PTX = "compute_80"  # what a bundle carries; the driver of any newer chip compiles it
OLDEST = (8, 0)  # compute capability, because of that
DATASHEET = {"H100 SXM": 3.35e12, "H200": 4.8e12}  # bytes/s, for orientation only
LARGE_SIDE, TINY_CANVAS, KEEP = 1024, (384, 480), 0.25
ERROR = 2e-3  # of a kernel, relative to float64, by norm
# What the kernel is compared with, and how the encoder is run: names in the results.
BASELINE, GRID_EAGER, GRID_COMPILED = (
    "thread per channel",
    "grid_sample, eager",
    "grid_sample, compiled",
)
ENCODER_EAGER, ENCODER_COMPILED = "encoder, torch eager", "encoder, torch.compile"
NO_TIME = "no time was left"


@dataclass(frozen=True)
class Layer:
    """One encoder layer's deformable attention, for one image. queries: all tokens, or those that
    are not paused."""

    name: str
    problem: Problem
    queries: int


def levels_of(height: int, width: int, scales: int = 3) -> tuple[tuple[int, int], ...]:
    """Strides 32, 16, 8 of a canvas, or the first of them."""
    return tuple((height // stride, width // stride) for stride in (32, 16, 8)[:scales])


def problem_for(network: Config, levels: tuple[tuple[int, int], ...]) -> Problem:
    return Problem(
        levels, network.heads, network.points, network.channels // network.heads, "float16"
    )


def layers() -> tuple[Layer, ...]:
    """Mask2Former's layer at 1024 x 1024, then every kind of layer that `tiny` has on its
    canvas."""
    large = problem_for(config.base(), levels_of(LARGE_SIDE, LARGE_SIDE))
    found = [Layer("base, 1024 x 1024", large, large.tokens)]
    for scales in (1, 2, 3):
        problem = problem_for(config.tiny(), levels_of(*TINY_CANVAS, scales))
        name = f"tiny, {scales} scale" + ("s" if scales > 1 else "")
        found.append(Layer(name, problem, problem.tokens))
    height, width = problem.shapes[-1]
    kept = problem.tokens - height * width + round(KEEP * height * width)
    some = replace(problem, dense=False, reference_per_image=True)
    return (*found, Layer(f"{name}, {KEEP:.0%} of the finest", some, kept))


def traffic(layer: Layer) -> dict[str, int]:
    """Bytes that a fused kernel cannot avoid: each input read once, the output written once."""
    p, size = layer.problem, launch.DTYPES[layer.problem.dtype]
    samples = layer.queries * p.heads * len(p.shapes) * p.points
    return {
        "value": p.tokens * p.heads * p.width * size,
        "offsets": 2 * samples * size,
        "logits": samples * size,
        "reference": layer.queries * 2 * 4,
        "out": layer.queries * p.heads * p.width * size,
    }


def gathered(layer: Layer) -> int:
    """Bytes that its gathers ask of the caches: four pixels for every sample."""
    p = layer.problem
    return layer.queries * p.heads * len(p.shapes) * p.points * 4 * p.width * launch.DTYPES[p.dtype]


@dataclass(frozen=True)
class Variant:
    """One way to build and launch the kernel. ptx: compiled by the driver, as in an engine, not by
    NVRTC alone."""

    problem: Problem
    queries: int
    tactic: Tactic
    ptx: bool = False

    @property
    def name(self) -> str:
        p = self.problem
        levels = " ".join(f"{h}x{w}" for h, w in p.shapes)
        some = (
            ""
            if p.dense
            else f", {self.queries} queries" + (" an image" if p.reference_per_image else "")
        )
        tactic = f"{label(self.tactic)}{', PTX' if self.ptx else ''}"
        return f"{p.dtype} {p.heads}x{p.width} on {levels}{some}, {tactic}"


def label(tactic: Tactic) -> str:
    """As "16x8 r2": tile, then what is not its default: heads and vectors, blocks resident, packed
    arithmetic."""
    wide, high = tactic.tile
    parts = [
        f"{wide}x{high}",
        f"h{tactic.heads}" * (tactic.heads > 1),
        f"v{tactic.vectors}" * (tactic.vectors > 1),
    ]
    return " ".join(filter(None, (*parts, f"r{tactic.resident}", "packed" * tactic.packed)))


def variants() -> Iterator[Variant]:
    """All that are timed; every type, tactic and kind of queries on `tiny`'s levels; and the PTX of
    a bundle."""
    timed = layers()
    yield from (
        Variant(layer.problem, layer.queries, t) for layer in timed for t in tactics(layer.problem)
    )
    for layer in timed[-2:]:  # all tokens, and some of them
        for dtype in ("bfloat16", "float32"):
            problem = replace(layer.problem, dtype=dtype)
            yield from (Variant(problem, layer.queries, tactic) for tactic in tactics(problem))
    for dtype in launch.DTYPES:
        large = replace(timed[0].problem, dtype=dtype)
        yield Variant(large, timed[0].queries, tactics(large)[0], ptx=True)
        shared = replace(timed[-1].problem, dtype=dtype, reference_per_image=False)
        yield Variant(shared, timed[-1].queries, tactics(shared)[0])


def compile_all() -> int:
    """Every variant and the baseline to PTX, which needs no GPU. Returns how many. Raises
    NvrtcError."""
    found = list(variants())
    for variant in found:
        nvrtc.compile_kernel(describe(variant.problem, variant.tactic), PTX)
    for dtype in launch.DTYPES:
        nvrtc.compile_source(f"{launch.BASELINE}.cu", defines(dtype), PTX)
    return len(found) + len(launch.DTYPES)


def defines(dtype: str) -> tuple[str, ...]:
    """Of the baseline kernel."""
    return () if dtype == "float32" else (f"-D{dtype.upper()}",)
