"""How the kernels are launched: defines, grid, block and the order of the arguments. Pure data, no
torch.

    shapes = ((32, 32), (64, 64), (128, 128))
    problem = Problem(shapes, heads=8, points=4, width=32, dtype="float16")
    launch = describe(problem)  # or describe(problem, tactic), with one of tactics(problem)
    launch.defines, launch.block, launch.grid(batch=2, queries=21504), launch.arguments

`Launch` and `Problem` are the service's types: with the compiled kernel they travel in a bundle's
manifest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from service.bundle.kernel import ARGUMENTS, ENTRY, MAX_SIDE, SOURCE, Launch, LaunchError, Problem

__all__ = [
    "ARGUMENTS",
    "ENTRY",
    "SOURCE",
    "Launch",
    "LaunchError",
    "Problem",
    "Tactic",
    "describe",
    "tactics",
]

BASELINE = "ms_deform_attn_baseline"
# Bytes of an element; the kernel always computes in float32.
DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}
ACCESS, LINE = 16, 128  # bytes of one load, and of a line of the first cache
WARP, MAX_BLOCK, MAX_LEVELS = 32, 1024, 4
THREADS = 256  # of a block, by default


@dataclass(frozen=True, slots=True)
class Tactic:
    """How it is computed. The result is the same except for rounding.

    tile: (wide, high) queries of a block. heads: of a block. vectors: 16-byte pieces per lane.
    resident: blocks that should fit on a multiprocessor (bounds the registers). packed: mix the
    four pixels of a sample in packed float16, then continue in float32; half of the arithmetic
    instructions, for float16 storage only.
    """

    tile: tuple[int, int]
    heads: int = 1
    vectors: int = 1
    resident: int = 1
    packed: bool = False


def describe(problem: Problem, tactic: Tactic | None = None) -> Launch:
    """The launch of a problem by one of its tactics, by default the first. Raises LaunchError."""
    tactic = tactic or tactics(problem)[0]
    lanes = _lanes(problem, tactic.vectors)
    per_block = prod(tactic.tile)
    block = per_block * tactic.heads * lanes
    if problem.heads % tactic.heads:
        raise LaunchError(f"{problem.heads} heads do not divide into groups of {tactic.heads}")
    if block % WARP or block > MAX_BLOCK:
        raise LaunchError(
            f"a block of {block} threads is not whole warps, or has more than {MAX_BLOCK} threads"
        )
    if tactic.packed and problem.dtype != "float16":
        raise LaunchError(f"packed mixing is for float16, not {problem.dtype}")
    values: dict[str, object] = {
        "LEVELS": len(problem.shapes),
        "HEIGHT_BITS": _bits([h for h, _ in problem.shapes]),
        "WIDTH_BITS": _bits([w for _, w in problem.shapes]),
        "HEADS": problem.heads,
        "POINTS": problem.points,
        "WIDTH": problem.width,
        "VECTORS": tactic.vectors,
        "TILE_W": tactic.tile[0],
        "TILE_H": tactic.tile[1],
        "HEADS_PER_BLOCK": tactic.heads,
        "BLOCK": block,
        "RESIDENT": tactic.resident,
    }
    flags = {
        problem.dtype.upper(): problem.dtype != "float32",
        "DENSE": problem.dense,
        "REFERENCE_PER_IMAGE": problem.reference_per_image,
        "PACKED_BLEND": tactic.packed,
    }
    wide, high = tactic.tile
    return Launch(
        defines=(*(f"{k}={v}" for k, v in values.items()), *(k for k, on in flags.items() if on)),
        block=block,
        per_block=per_block,
        tiles=sum(-(-h // high) * -(-w // wide) for h, w in problem.shapes)
        if problem.dense
        else None,
        tokens=problem.tokens,
        head_groups=problem.heads // tactic.heads,
    )


def tactics(problem: Problem) -> list[Tactic]:
    """The ways worth measuring, the default first. LaunchError if there is none.

    The default has as many neighbouring heads in a block as share the 128-byte lines of the cache,
    in blocks of 256 threads with 64 registers each. On an H200 that is within 2 % of the fastest of
    45 for a layer of `base()` at 1024 x 1024 and the fastest for `tiny` (docs/results.md).
    """
    lanes = _lanes(problem, 1)
    heads = _dividing(problem.heads, LINE // (problem.width * DTYPES[problem.dtype]))
    choices = [
        Tactic(_tile(THREADS // (heads * lanes)), heads, resident=4),
        Tactic(_tile(2 * THREADS // (heads * lanes)), heads, resident=2),
        Tactic(_tile(THREADS // lanes), resident=4),
    ]
    other = 2 * heads if problem.heads % (2 * heads) == 0 else max(1, heads // 2)
    choices.append(Tactic(_tile(THREADS // (other * lanes)), other, resident=4))
    if lanes > 1:
        choices.append(Tactic(_tile(2 * THREADS // lanes), vectors=2, resident=3))
    choices = list(dict.fromkeys(choices))
    if problem.dtype == "float16":
        choices += [replace(tactic, packed=True) for tactic in choices]
    return choices


def _dividing(count: int, most: int) -> int:
    """The largest power of two that divides `count` and is at most `most`, or 1."""
    power = 1
    while count % (2 * power) == 0 and 2 * power <= most:
        power *= 2
    return power


def _tile(queries: int) -> tuple[int, int]:
    """So many queries, a power of two, as (wide, high): a square, or twice as wide as high."""
    high = 1 << (queries.bit_length() - 1) // 2
    return queries // high, high


def _lanes(problem: Problem, vectors: int) -> int:
    """Threads that share one (query, head)."""
    if problem.dtype not in DTYPES:
        raise LaunchError(f"storage {problem.dtype} is none of {', '.join(DTYPES)}")
    if not 1 <= len(problem.shapes) <= MAX_LEVELS:
        raise LaunchError(f"{len(problem.shapes)} levels: 1 to {MAX_LEVELS} can be compiled")
    if not all(1 <= side <= MAX_SIDE for shape in problem.shapes for side in shape):
        raise LaunchError(f"the levels {problem.shapes} have a side that is not in 1..{MAX_SIDE}")
    if problem.tokens >= 2**31:
        raise LaunchError(f"{problem.tokens} tokens: a token's number has 31 bits")
    carried = vectors * ACCESS // DTYPES[problem.dtype]
    lanes, rest = divmod(problem.width, carried)
    if rest or lanes not in (1, 2, 4, 8, 16, 32):
        raise LaunchError(
            f"{problem.width} channels a head are not {carried} times a power of two up to 32"
        )
    return lanes


def _bits(sides: list[int]) -> str:
    return f"{sum(side << 16 * i for i, side in enumerate(sides)):#x}ull"
