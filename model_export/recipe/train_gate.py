"""Step C: fit the gate, everything else frozen, and calibrate what a requested max-loss may count on.

The gate regresses the quality of every plan, so that one gate serves every trade-off at request time; ECO-M2F's
(arXiv 2404.15244) classifies the best exit for one trade-off. It is a ridge regression of the full plan's quality and,
apart from it, of what each plan loses against the full one: losses decide the plan, and are ten times smaller than the
differences between images. How much to shrink either is chosen by cross-validation over folds that keep near twins
together; where nothing can be predicted, the gate ends up as the mean of each plan.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.network.config import Config
from model_export.network.gate import Gate
from model_export.recipe.calibrate import contiguous_blocks, margin_table
from model_export.recipe.quality import measure_of, qualities
from model_export.recipe.runs import RunError, read_config, read_targets, write_gate

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1e4)  # of the shrinking; the last one leaves the mean alone
FOLDS = 5

Floats = NDArray[np.float64]
Blocks = NDArray[np.int64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run's folder with targets")
    add_block_argument(parser)


def add_block_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--block", type=int, default=1, help="images that follow each other and are near twins, as in video; 1 = none"
    )


def ridge(inputs: Floats, targets: Floats, strength: float) -> tuple[Floats, Floats]:
    """inputs (N, D), standardised; targets (N, T) -> weights (D, T) and bias (T,) of the shrunk least squares."""
    centre, bias = inputs.mean(0), targets.mean(0)
    x = inputs - centre
    # The dual form: there are fewer images than inputs.
    weights = x.T @ np.linalg.solve(x @ x.T + strength * len(x) * x.shape[1] / 100 * np.eye(len(x)), targets - bias)
    return weights, bias - centre @ weights


def standardise(inputs: Floats) -> tuple[Floats, Floats]:
    """Mean and scale of each input; one that never varies is left at scale 1."""
    scale = inputs.std(0)
    return inputs.mean(0), np.where(scale > 1e-6, scale, 1.0)


def fit(inputs: Floats, quality: Floats, level: float, loss: float) -> Gate:
    """inputs (N, D), quality (N, plans); level, loss: strengths for the full plan's quality and the others' loss."""
    mean, scale = standardise(inputs)
    x = (inputs - mean) / scale
    full, bias = ridge(x, quality[:, -1:], level)
    less, less_bias = ridge(x, quality[:, -1:] - quality[:, :-1], loss)
    gate = Gate(inputs.shape[1], quality.shape[1])
    with torch.no_grad():
        gate.mean.copy_(torch.from_numpy(mean))
        gate.scale.copy_(torch.from_numpy(scale))
        gate.output.weight.copy_(torch.from_numpy(np.concatenate((full - less, full), 1).T))
        gate.output.bias.copy_(torch.from_numpy(np.concatenate((bias - less_bias, bias))))
    return gate.eval()


@torch.inference_mode()
def predict(gate: Gate, inputs: Floats) -> Floats:
    scores: Floats = gate(torch.from_numpy(inputs).float()).double().numpy()
    return scores


def out_of_fold(inputs: Floats, quality: Floats, blocks: Blocks, level: float, loss: float) -> Floats:
    """(N, plans): each image's prediction by a gate that was fitted without its block and others of its fold."""
    scores, folds = np.empty_like(quality), blocks % FOLDS
    for fold in range(FOLDS):
        rest = folds != fold
        scores[~rest] = predict(fit(inputs[rest], quality[rest], level, loss), inputs[~rest])
    return scores


def cross_validate(inputs: Floats, quality: Floats, blocks: Blocks) -> tuple[float, float]:
    """The strengths (level, loss) of the lowest squared error out of fold."""
    errors = []
    for strength in STRENGTHS:
        scores = out_of_fold(inputs, quality, blocks, strength, strength)
        less = (scores[:, -1:] - scores[:, :-1]) - (quality[:, -1:] - quality[:, :-1])
        errors.append((np.square(scores[:, -1] - quality[:, -1]).mean(), np.square(less).mean()))
    level, loss = np.argmin(np.array(errors), 0)
    return STRENGTHS[level], STRENGTHS[loss]


def alike(targets: dict[str, Any], held: str) -> NDArray[np.bool_]:
    """(N,): plain images of a data set of the same kind as the held-out one; data sets are named KIND:SPLIT."""
    kinds = np.array([spec.partition(":")[0] for spec in str(targets["spec"]).split()])
    found: NDArray[np.bool_] = (targets["views"] == 0) & (kinds[targets["sources"]] == held.partition(":")[0])
    return found


def main(args: argparse.Namespace) -> None:
    config, _, _ = read_config(args.run)
    gate, report = fit_and_calibrate(
        config, {part: read_targets(args.run, part) for part in ("fit", "held")}, args.block
    )
    write_gate(args.run, gate, report)
    print(json.dumps(report))


def fit_and_calibrate(config: Config, parts: dict[str, dict[str, Any]], block: int) -> tuple[Gate, dict[str, Any]]:
    """The gate and how it was fitted, with "margins". parts: targets "fit" and "held"; block: as on the command line.

    Raises RunError where there are too few images.
    """
    truth = {part: qualities(measure_of(config), t["counts"]) for part, t in parts.items()}
    inputs, quality = parts["fit"]["inputs"].astype(np.float64), truth["fit"]
    groups = np.concatenate([parts[part]["groups"] for part in ("fit", "held")])
    blocks = contiguous_blocks(groups, block)
    fitted = blocks[: len(quality)]
    if len(np.unique(fitted)) < FOLDS:
        raise RunError(f"a gate needs at least {FOLDS} blocks of images: give derive-targets more to --fit")
    level, loss = cross_validate(inputs, quality, fitted)
    gate = fit(inputs, quality, level, loss)
    # Margins count on images that the gate has not seen: out of fold, and the held-out ones. What is promised is
    # promised for real images like those held out, so views of an image and data of another kind do not count.
    scores = np.concatenate((out_of_fold(inputs, quality, fitted, level, loss), predict(gate, parts["held"]["inputs"])))
    real = np.concatenate((alike(parts["fit"], str(parts["held"]["spec"])), np.full(len(truth["held"]), True)))
    margins = margin_table(
        scores[real], np.concatenate((quality, truth["held"]))[real], groups[real], blocks=blocks[real]
    )
    report = {
        "images": len(quality), "calibrated_images": int(real.sum()),
        "strength_level": level, "strength_loss": loss, "margins": margins,
        "calibrated_on": [str(t["spec"]) for t in parts.values()], "parameters": gate.output.weight.numel(),
    }  # fmt: skip
    return gate, report
