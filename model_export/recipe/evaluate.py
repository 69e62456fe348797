"""What a run is worth: mIoU per exit, and the gate against fixed exits, a random gate of its mean depth, the oracle.

A gate earns its name only where it beats the fixed exit and the blind choice of the same mean depth; the oracle, which
knows each image's quality, says how much there is to win. mIoU is taken over all pixels of the set, as published
tables do; for the random gate it is that of the expected confusion matrix.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from model_export.recipe.curves import plot_run
from model_export.recipe.datasets import open_dataset
from model_export.recipe.derive_targets import measure
from model_export.recipe.quality import class_iou, mean_iou, qualities
from model_export.recipe.runs import load_model, read_config, read_gate, read_targets

LOSSES = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.05)
BETAS = (0.0, 0.0005, 0.001, 0.003, 0.01)

Exits = NDArray[np.int64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, help="a run's folder with a trained gate")
    add("--data", type=Path, help="folder of the data set (not needed for scenes)")
    add("--on", help="data set, e.g. camvid:val; default: the held-out targets of step B")


def miou_of(confusions: NDArray[np.int64], exits: Exits) -> float:
    """mIoU over the set when image i leaves at exits[i] (0-based)."""
    return mean_iou(confusions[np.arange(len(exits)), exits].sum(0))


def random_miou(confusions: NDArray[np.int64], exits: Exits) -> float:
    """The expected confusion matrix when the same exits are dealt to the images at random."""
    share = np.bincount(exits, minlength=confusions.shape[1]) / len(exits)
    return mean_iou(np.einsum("k,nkij->ij", share, confusions))


def by_max_loss(scores: NDArray[Any], loss: float) -> Exits:
    """The router's rule: the cheapest exit within `loss` of the deepest; 0 asks for the deepest."""
    if loss == 0:
        return np.full(len(scores), scores.shape[1] - 1)
    return (scores >= scores[:, -1:] - loss).argmax(1)


def by_beta(scores: NDArray[Any], beta: float) -> Exits:
    """ECO-M2F's utility: argmax of q_k - beta k."""
    return (scores - beta * np.arange(scores.shape[1])).argmax(1)


def rank_correlation(predicted: NDArray[Any], true: NDArray[np.float64]) -> float | None:
    """Spearman's rho; None where one side is the same for every image, for then there are no ranks."""
    if np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return None
    return round(float(spearmanr(predicted, true)[0]), 3)


def correlations(scores: NDArray[Any], truth: NDArray[np.float64]) -> dict[str, Any]:
    """Spearman's rho of predicted and true quality, per exit and for the gain of the deepest over the first."""
    return {
        "per_exit": [rank_correlation(scores[:, k], truth[:, k]) for k in range(truth.shape[1])],
        "gain": rank_correlation(scores[:, -1] - scores[:, 0], truth[:, -1] - truth[:, 0]),
    }


def policies(confusions: NDArray[np.int64], scores: NDArray[Any], classifies: bool) -> list[dict[str, Any]]:
    truth = qualities(confusions)
    chosen = {f"fixed {k + 1}": np.full(len(truth), k) for k in range(truth.shape[1])}
    if classifies:
        chosen["gate (classes)"] = scores.argmax(1)
    else:
        chosen |= {f"gate max-loss {loss:g}": by_max_loss(scores, loss) for loss in LOSSES[1:]}
        chosen |= {f"gate beta {beta:g}": by_beta(scores, beta) for beta in BETAS}
    chosen |= {f"oracle beta {beta:g}": by_beta(truth, beta) for beta in BETAS}
    rows = []
    for name, exits in chosen.items():
        row: dict[str, Any] = {"policy": name, "mean_depth": round(float(exits.mean()) + 1, 3)}
        row["miou"] = round(miou_of(confusions, exits), 4)
        row["image_quality"] = round(float(truth[np.arange(len(exits)), exits].mean()), 4)
        row["random_miou"] = round(random_miou(confusions, exits), 4)
        row["depths"] = np.bincount(exits, minlength=truth.shape[1]).tolist()
        rows.append(row)
    return rows


@torch.inference_mode()
def main(args: argparse.Namespace) -> None:
    config, canvas, _ = read_config(args.run)
    model, gate = load_model(args.run), read_gate(args.run)
    if args.on is None:
        targets, classes = read_targets(args.run, "held"), None
    else:
        dataset = open_dataset(args.on, args.data)
        targets = measure(model, [dataset], canvas, 1, 0) | {"spec": np.array(args.on)}
        classes = dataset.classes
    logits = model.gate(torch.from_numpy(targets["pooled"]).float())
    classifies = gate["loss"] == "class"
    scores = logits.numpy() if classifies else logits.sigmoid().numpy()
    confusions = targets["confusions"]
    truth = qualities(confusions)
    per_exit = [round(mean_iou(confusions[:, k].sum(0)), 4) for k in range(config.exits)]
    print(f"{targets['spec']}: {len(truth)} images, mIoU per exit {per_exit}")
    print(f"{'policy':<22}{'depth':>7}{'mIoU':>8}{'per image':>11}{'random':>8}  images per exit")
    rows = policies(confusions, scores, classifies)
    for row in rows:
        print(f"{row['policy']:<22}{row['mean_depth']:>7.2f}{row['miou']:>8.4f}{row['image_quality']:>11.4f}"
              f"{row['random_miou']:>8.4f}  {row['depths']}")  # fmt: skip
    result: dict[str, Any] = {"data": str(targets["spec"]), "images": len(truth), "miou": per_exit, "policies": rows}
    result["gain_sd"] = round(float((truth[:, -1] - truth[:, 0]).std()), 4)
    if not classifies:
        result["spearman"] = correlations(scores, truth)
        print(f"Spearman's rho of predicted quality per exit {result['spearman']['per_exit']}, "
              f"of the gain of depth {result['spearman']['gain']}")  # fmt: skip
    if classes is not None:
        deepest = class_iou(confusions[:, -1].sum(0))
        result["class_iou"] = {  # None: neither there nor predicted; JSON has no nan
            name: None if np.isnan(v) else round(float(v), 4) for name, v in zip(classes, deepest, strict=True)
        }
    plot_run(args.run)
    print(json.dumps(result))
