"""How a search measures costs, and how it shows what it has found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_export.gating.choose_plans import Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class CostOptions:
    """The arguments of a search that say how costs are measured and plans are chosen."""

    run: Path
    on: str
    most: int
    least: int
    threads: int
    rounds: int


def print_table(table: Sequence[dict[str, Any]], chosen: Sequence[str], measure: str) -> None:
    print(f"{'plan':<20}{'GFLOPs':>8}{'ms':>9}{measure:>9}")
    for row in table:
        mark = " *" if row["plan"] in chosen else ""
        print(
            f"{row['plan']:<20}{row['gflops']:8.3f}{row['ms']:9.2f}"
            f"{100 * row['quality']:9.2f}{mark}"
        )


def rounded(candidate: Candidate) -> dict[str, float]:
    """As plans.json and the table have it."""
    return {
        "gflops": candidate.gflops,
        "ms": round(candidate.ms, 3),
        "quality": round(candidate.quality, 5),
    }
