"""An evaluation as tables for people, and as one JSON line for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from model_export.gating.plain_json import plain

Row = dict[str, Any]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is aligned left, the others right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def policies_table(result: Row) -> str:
    rows = [
        [
            row["policy"],
            f"{row['mean_depth']:.2f}",
            f"{row['gflops']:.2f}",
            f"{row['ms']:.1f}",
            f"{row['encoder_ms']:.1f}",
            f"{row['quality']:.4f}",
            span(row["quality_interval"]),
            f"{row['image_quality']:.4f}",
            span(row["image_interval"]),
            *([] if row["ap50"] is None else [f"{row['ap50']:.4f}"]),
            " ".join(map(str, row["plans"].values())),
        ]
        for row in result["policies"]
    ]
    names = " ".join(result["policies"][0]["plans"])
    header = [
        "policy",
        "depth",
        "GFLOPs",
        "ms",
        "encoder ms",
        result["measure"],
        "95 %",
        "per image",
        "95 %",
        *([] if result["policies"][0]["ap50"] is None else ["AP50"]),
        names,
    ]
    head = (
        f"{result['bundle']} on {result['data']}: {result['images']} images, "
        f"{result['threads']} threads, batch 1"
    )
    return f"{head}\n{table(header, rows)}"


def equal_cost_table(result: Row) -> str:
    rows = []
    for row in result["policies"]:
        equal = row["at_equal_cost"]
        known = math.isfinite(equal["share_of_oracle"])
        rows.append(
            [
                row["policy"],
                f"{row['image_quality']:.4f}",
                f"{equal['random']:.4f}",
                f"{equal['best_fixed']:.4f}",
                f"{equal['oracle']:.4f}",
                f"{equal['won']:+z.4f}",
                span(equal["won_interval"], "+"),
                f"{equal['share_of_oracle']:z.0%}" if known else "-",
                "..".join(f"{bound:z.0%}" for bound in equal["share_interval"]) if known else "-",
            ]
        )
    header = [
        "at equal mean GFLOPs",
        "per image",
        "random",
        "best fixed",
        "oracle",
        "won over fixed",
        "95 %",
        "of the oracle's",
        "95 %",
    ]
    return table(header, rows)


def promises_table(promises: Sequence[Row]) -> str:
    groups = list(promises[0]["groups"])
    rows = [
        [
            f"{row['asked']:g}",
            "full only" if row["margin"] is None else f"{row['margin']:+z.4f}",
            f"{row['got']:+z.4f}{'' if row['kept'] else ' !'}",
            span(row["interval"], "+"),
            *(
                f"{part['got']:+z.4f}{'' if part['kept'] else ' !'}"
                for part in row["groups"].values()
            ),
        ]
        for row in promises
    ]
    counts = [f"{name or '(no group)'}: {promises[0]['groups'][name]['images']}" for name in groups]
    return table(["max-loss asked", "margin", "got", "95 %", *counts], rows)


def groups_table(groups: Sequence[Row]) -> str:
    """Mean GFLOPs of the policies that choose, in each group."""
    policies = [name for name in groups[0]["gflops"] if "beta" in name]
    rows = [
        [
            row["group"] or "(no group)",
            str(row["images"]),
            f"{row['full']:.4f}",
            f"{row['cheapest_loses']:+z.4f}",
            *(f"{row['gflops'][name]:.2f}" for name in policies),
        ]
        for row in groups
    ]
    return table(["GFLOPs by group", "images", "full plan", "cheapest loses", *policies], rows)


def mirrored_table(correlation: dict[str, float]) -> str:
    rows = [
        [name, f"{value:+.2f}" if math.isfinite(value) else "-"]
        for name, value in correlation.items()
    ]
    return table(["loss against the full plan", "correlation of images and mirror images"], rows)


def against_table(against: Row) -> str:
    full = against["full"]
    rows = [
        [
            row["policy"],
            f"{row['lost']:+z.4f}",
            span(row["lost_interval"], "+"),
            f"{row['image_lost']:+z.4f}",
            span(row["image_lost_interval"], "+"),
            f"{-row['encoder_gflops_cut']:+z.1%}",
            f"{-row['encoder_ms_cut']:+z.1%}",
            f"{row['throughput']:.2f}x",
        ]
        for row in against["policies"]
    ]
    header = [
        f"against {against['bundle']}",
        "lost",
        "95 %",
        "lost per image",
        "95 %",
        "encoder GFLOPs",
        "encoder ms",
        "throughput",
    ]
    return (
        f"{against['bundle']}, full plan: {full['quality']:.4f} ({full['image_quality']:.4f} per "
        f"image), {full['gflops']:.2f} GFLOPs, {full['ms']:.1f} ms, encoder "
        f"{full['encoder_ms']:.1f} ms\n{table(header, rows)}"
    )


def span(bounds: tuple[float, float], sign: str = "") -> str:
    return f"{bounds[0]:{sign}z.4f}..{bounds[1]:{sign}z.4f}"


def json_line(result: Row) -> str:
    """`plain`, in one line."""
    return json.dumps(plain(result), allow_nan=False)
