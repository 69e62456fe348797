"""What a bundle is worth on any labelled folder: tables, figures and a JSON line.

Measured through the service's own code (`measure_bundle`), judged in `bundle_results`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_export.evaluation.bundle_results import BundleResults, Row
from model_export.evaluation.figures import draw
from model_export.evaluation.measure_bundle import EngineOptions, measure_bundles
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
from model_export.training.run_files import refuse_unwritable


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleOptions:
    """below: a folder inside images/ and that of the labels, "" = none. on: coco:PATH.json, in
    place of a folder. cache: folder for each image's results. figures: the folder for them.
    against: a bundle to compare with. threads: of the engine. block: consecutive images that are
    resampled together. draws: bootstrap samples. mirrored: measure the mirror images, too. backend,
    engine_cache: what runs the graphs."""

    below: str = ""
    on: str = ""
    cache: Path | None = None
    figures: Path | None = None
    against: Path | None = None
    threads: int
    block: int = 1
    draws: int = 2000
    mirrored: bool = False
    backend: str = "onnxruntime"
    engine_cache: Path = Path("engines")

    @property
    def engine(self) -> EngineOptions:
        return EngineOptions(self.backend, self.threads, self.engine_cache)


def evaluate_bundle(folder: Path, data: Path | None, options: BundleOptions) -> None:
    """Prints the tables and one JSON line. Raises DataError that names the file, RunError."""
    for place in (options.figures, options.cache):
        if place is not None:
            refuse_unwritable(place)
    folders = [folder, *([options.against] if options.against else [])]
    measured = measure_bundles(
        folders,
        data,
        options.below,
        options.engine,
        options.cache,
        on=options.on,
        mirrored=options.mirrored,
    )
    weights = resample(contiguous_blocks(measured[0].groups, options.block), options.draws)
    all_results = [BundleResults(of_bundle, weights) for of_bundle in measured]
    first, manifest = all_results[0], measured[0].bundle.manifest
    result: Row = {
        "bundle": manifest.name,
        "digest": measured[0].bundle.digest,
        "task": manifest.head.task,
        "measure": measured[0].task.measure,
        "data": options.on or str(data and data / "images" / options.below),
        "images": len(measured[0].names),
        "left_out": measured[0].left_out,
        "backend": options.backend,
        "threads": options.threads,
        "block": options.block,
        "draws": options.draws,
        "plans": first.plans(),
        "policies": [first.row(name) for name in first.policies],
        "max_loss": first.max_loss(),
        "groups": first.groups(),
        "mirrored_correlation": first.mirrored_correlation(),
    }
    tables = [policies_table(result), equal_cost_table(result), promises_table(result["max_loss"])]
    if len(result["groups"]) > 1:
        tables.append(groups_table(result["groups"]))
    if options.mirrored:
        tables.append(mirrored_table(result["mirrored_correlation"]))
    print("\n\n".join(tables))
    if options.against:
        other = all_results[1]
        name, full = measured[1].bundle.manifest.name, other.row("full")
        result["against"] = {"bundle": name, "full": full, "policies": first.against(other)}
        print(f"\n{against_table(result['against'])}")
    if options.figures:
        result["figures"] = [str(path) for path in draw(all_results, options.figures)]
    print(json_line(result))
