"""What a run or a bundle is worth: quality of every plan, and the gate against fixed plans, random
choice and the oracle.

A bundle (a folder with manifest.json) is measured on a labelled folder through the service's own
code, with GFLOPs, ms, intervals and figures: see `evaluate_bundle`. A run is judged by its held-out
targets, or on another data set, in torch; there a plan's cost is its depth.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from model_export.data.checks import check
from model_export.data.datasets import is_coco, open_dataset, refuse_unread
from model_export.data.for_network import refuse_misfit
from model_export.evaluation.evaluate_bundle import BundleOptions, evaluate_bundle
from model_export.evaluation.evaluate_tasks import evaluate_tasks
from model_export.evaluation.training_curves import plot_run
from model_export.gating.derive_targets import measure_plans
from model_export.gating.gate_regression import predict
from model_export.gating.own_plans import levelled, open_plans
from model_export.gating.policies import BETAS, Shares, by_beta, by_margin, dealt_at_random, fixed
from model_export.network.knobs import Knobs
from model_export.option_types import whole
from model_export.tasks import Task, qualities, task_of
from model_export.training.runs import (
    RunError,
    classes_of,
    load_model,
    read_canvases,
    read_config,
    read_gate,
    read_targets,
)
from service import bundle
from service.engines.choice import BACKENDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "folder",
        type=Path,
        metavar="RUN_OR_BUNDLE",
        help="a run's folder with a trained gate, or a bundle",
    )
    add(
        "--data",
        type=Path,
        help="folder of the data set; for a bundle: images/ with masks/ or instances/",
    )
    add(
        "--on",
        help="data set for a run, e.g. camvid:val (default: the held-out targets of step B); for a "
        "bundle: coco:PATH.json in place of a folder",
    )
    own = parser.add_argument_group("for a bundle").add_argument
    own("--below", help="a folder inside images/ and masks/ or instances/, e.g. val")
    own(
        "--against",
        type=Path,
        help="a bundle to compare with, measured on the same images in turns",
    )
    mirrored = "also measure mirror images: how much of what the oracle wins is more than chance"
    own("--mirrored", action="store_const", const=True, help=mirrored)
    own(
        "--cache",
        type=Path,
        help="folder for each image's result: an evaluation that was stopped continues from there",
    )
    own("--figures", type=Path, help="folder for the figures")
    own("--backend", choices=BACKENDS, help="what runs the graphs; default onnxruntime")
    own("--engine-cache", type=Path, help="folder of TensorRT engines; default engines")
    own("--threads", type=whole(0), help="threads of the engine; default: all cores")
    own(
        "--block",
        type=whole(),
        help="consecutive images that are resampled together (video); default 1",
    )
    own("--draws", type=whole(), help="bootstrap samples; default 2000")


def main(args: argparse.Namespace) -> None:
    names = [field.name for field in fields(BundleOptions)]
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    on = given.pop("on", None)
    if not (args.folder / "manifest.json").exists():
        if given:
            flags = [name.replace("_", "-") for name in given]
            raise RunError(
                f"{args.folder} is no bundle: --{', --'.join(flags)} cannot be used with a run"
            )
        refuse_unread(args.data, "--on", on)
        evaluate_run(args.folder, args.data, on)
        return
    if len(bundle.load(args.folder).manifest.heads) > 1:
        if on is None or given.keys() - {"threads"}:
            raise RunError(
                f"{args.folder} has several heads: give it --on scenes:COUNT[:SEED], and of the "
                f"others only --threads"
            )
        evaluate_tasks(args.folder, on, given.get("threads") or os.cpu_count() or 1)
        return
    if not is_coco(on or "") and (args.data is None or on is not None):
        raise RunError(
            f"{args.folder} is a bundle: give it --data FOLDER (and --below), and not --on, or "
            f"--on coco:PATH.json"
        )
    if on and "below" in given:
        raise RunError(f"--below is for a folder, not for {on}: leave it out")
    options = BundleOptions(
        on=on or "", **given | {"threads": given.get("threads") or os.cpu_count() or 1}
    )
    evaluate_bundle(args.folder, args.data, options)


def rank_correlation(predicted: NDArray[Any], true: NDArray[np.float64]) -> float | None:
    """Spearman's rho; None where one side is the same for every image, for then there are no
    ranks."""
    if np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return None
    return round(float(spearmanr(predicted, true)[0]), 3)


def correlations(scores: NDArray[Any], truth: NDArray[np.float64]) -> dict[str, Any]:
    """Spearman's rho of predicted and true quality, per plan and for the gain of the full one over
    the cheapest."""
    return {
        "per_plan": [rank_correlation(scores[:, k], truth[:, k]) for k in range(truth.shape[1])],
        "gain": rank_correlation(scores[:, -1] - scores[:, 0], truth[:, -1] - truth[:, 0]),
    }


def policy_rows(
    counts: NDArray[Any],
    scores: NDArray[Any],
    plans: list[Knobs],
    margins: list[dict[str, Any]],
    task: Task,
) -> list[dict[str, Any]]:
    """A row per policy: mean depth, quality of the set, mean over images, and of the set when the
    same plans are dealt at random; images per plan. counts: (N, plans, ...), scores: (N, plans)."""
    truth = qualities(task, counts)
    depth = np.array([plan.depth for plan in plans], float)
    chosen: dict[str, Shares] = {
        f"fixed {plan.name}": fixed(*truth.shape, k) for k, plan in enumerate(plans)
    }
    chosen |= {
        f"gate max-loss {row['asked']:g}": by_margin(scores, row["margin"]) for row in margins
    }
    chosen |= {f"gate beta {beta:g}": by_beta(scores, depth, beta) for beta in BETAS}
    chosen |= {f"oracle beta {beta:g}": by_beta(truth, depth, beta) for beta in BETAS}

    def of_set(shares: Shares) -> float:
        return round(task.of_set(np.einsum("np,np...->...", shares, counts)), 4)

    return [
        {
            "policy": name,
            "mean_depth": round(float(shares.mean(0) @ depth), 3),
            "quality": of_set(shares),
            "image_quality": round(float((shares * truth).sum(1).mean()), 4),
            "random_quality": of_set(dealt_at_random(shares)),
            "plans": shares.sum(0).astype(int).tolist(),
        }
        for name, shares in chosen.items()
    ]


def evaluate_run(run: Path, data: Path | None, on: str | None) -> None:
    """Prints a table and one JSON line, and draws the run's curves. Raises RunError, DataError."""
    config = read_config(run)[0]
    if config.tasks:
        raise RunError(f"{run} has several heads: export it, or use compare-tasks")
    gate, report = read_gate(run)
    targets, classes = targets_of(run, data, on)
    scores = predict(gate, targets["inputs"])
    result = judged(task_of(config), targets, scores, report["margins"], classes)
    print_table(result)
    if (run / "log.csv").exists():  # the mean of other runs was not trained itself
        plot_run(run)
    print(json.dumps(result))


@torch.inference_mode()
def targets_of(
    run: Path, data: Path | None, on: str | None
) -> tuple[dict[str, Any], tuple[str, ...] | None]:
    """The run's held-out targets; or those of another data set, and the names of its classes."""
    targets = read_targets(run, "held")
    if on is None:
        return targets, None
    config, canvases, model = read_config(run)[0], read_canvases(run), load_model(run)
    plans = [Knobs.parse(name) for name in targets["plans"].tolist()]
    dataset = open_dataset(on, data, segments=config.head == "queries")
    refuse_misfit(f"--on {on}", dataset, config, classes_of(run))
    check(dataset, f"--on {on}", complete=False)
    measured = measure_plans(model, plans, [dataset], on, canvases, 1, 0)
    return measured | {"spec": np.array(on)}, dataset.classes


def judged(
    task: Task,
    targets: dict[str, Any],
    scores: NDArray[Any],
    margins: list[dict[str, Any]],
    classes: tuple[str, ...] | None,
) -> dict[str, Any]:
    """What is printed as JSON. scores: (N, plans) of the gate. classes: the names of those to judge
    one by one, None: none."""
    plans = [Knobs.parse(name) for name in targets["plans"].tolist()]
    is_open = open_plans(targets["larger"], [plan.tiled for plan in plans])
    counts, scores = levelled(targets["counts"], is_open), levelled(scores, is_open)
    truth = qualities(task, counts)
    result = {
        "data": str(targets["spec"]),
        "images": len(truth),
        "measure": task.measure,
        "quality": {
            plan.name: round(task.of_set(counts[:, k].sum(0)), 4) for k, plan in enumerate(plans)
        },
        "policies": policy_rows(counts, scores, plans, margins, task),
        "gain_sd": round(float((truth[:, -1] - truth[:, 0]).std()), 4),
        "spearman": correlations(scores, truth),
    }
    full = task.by_class(counts[:, -1].sum(0))
    if classes is not None and full is not None:
        result["class_iou"] = {  # None: neither there nor predicted; JSON has no nan
            name: None if np.isnan(v) else round(float(v), 4)
            for name, v in zip(classes, full, strict=True)
        }
    return result


def print_table(result: dict[str, Any]) -> None:
    measure, spearman = result["measure"], result["spearman"]
    print(f"{result['data']}: {result['images']} images, {measure} per plan {result['quality']}")
    print(f"{'policy':<22}{'depth':>7}{measure:>8}{'per image':>11}{'random':>8}  images per plan")
    for row in result["policies"]:
        print(
            f"{row['policy']:<22}{row['mean_depth']:>7.2f}{row['quality']:>8.4f}"
            f"{row['image_quality']:>11.4f}{row['random_quality']:>8.4f}  {row['plans']}"
        )
    print(
        f"Spearman's rho of predicted quality per plan {spearman['per_plan']}, "
        f"of the gain of the full plan {spearman['gain']}"
    )
