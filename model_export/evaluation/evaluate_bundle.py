"""What a bundle is worth on any labelled folder: tables, figures and a JSON line.

Measured through the service's own code (`measure_bundle`), judged in `bundle_results`.
"""

from __future__ import annotations

from pathlib import Path

from model_export.evaluation.bundle_results import Evaluation, Row
from model_export.evaluation.figures import draw
from model_export.evaluation.measure_bundle import measure
from model_export.evaluation.report import (
    against_table,
    equal_cost_table,
    groups_table,
    json_line,
    mirrored_table,
    policies_table,
    promises_table,
)
from model_export.gating.calibrate import contiguous_blocks
from model_export.gating.policies import resample


def evaluate(
    folder: Path,
    data: Path,
    *,
    below: str,
    threads: int,
    cache: Path | None,
    block: int,
    draws: int,
    against: Path | None,
    figures: Path | None,
    mirrored: bool,
) -> None:
    """Prints the tables and one JSON line. Raises DataError that names the file."""
    found = measure(
        [folder, *([against] if against else [])], data, below, threads, cache, mirrored=mirrored
    )
    weights = resample(contiguous_blocks(found[0].groups, block), draws)
    evaluations = [Evaluation(each, weights) for each in found]
    first, manifest = evaluations[0], found[0].bundle.manifest
    rows = [first.row(name) for name in first.policies]
    promises = first.max_loss()
    result: Row = {
        "bundle": manifest.name,
        "digest": found[0].bundle.digest,
        "task": manifest.task,
        "measure": found[0].task.measure,
        "data": str(data / "images" / below),
        "images": len(found[0].names),
        "left_out": found[0].left_out,
        "threads": threads,
        "block": block,
        "draws": draws,
        "plans": first.plans(),
        "policies": rows,
        "max_loss": promises,
        "groups": first.groups(),
        "mirrored_correlation": first.repeated(),
    }
    tables = [policies_table(result), equal_cost_table(result), promises_table(promises)]
    if len(result["groups"]) > 1:
        tables.append(groups_table(result["groups"]))
    if mirrored:
        tables.append(mirrored_table(result["mirrored_correlation"]))
    print("\n\n".join(tables))
    if against:
        other = evaluations[1]
        name, full = found[1].bundle.manifest.name, other.row("full")
        result["against"] = {"bundle": name, "full": full, "policies": first.against(other)}
        print(f"\n{against_table(result['against'])}")
    if figures:
        result["figures"] = [str(path) for path in draw(evaluations, figures)]
    print(json_line(result))
