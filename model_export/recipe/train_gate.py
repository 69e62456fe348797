"""Step C: fit the gate, everything else frozen, and calibrate what a requested max-loss may count on.

The gate regresses the quality of every plan, so that one gate serves every trade-off at request time; ECO-M2F's
(arXiv 2404.15244) classifies the best exit for one trade-off. It is a ridge regression of the full plan's quality and,
apart from it, of what each plan loses against the full one: losses decide the plan, and are ten times smaller than the
differences between images. How much to shrink either is chosen by cross-validation over folds that keep near twins
together; where nothing can be predicted, the gate ends up as the mean of each plan.

Images that the network was trained on may be among the targets, too. What it makes of them is better than what it makes
of others, but which of them lose more is learned from them as well: they teach the gate's slopes, and neither its
intercepts nor what it promises.
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
from model_export.recipe.policies import BETAS, by_beta, compare, resample
from model_export.recipe.quality import measure_of, qualities
from model_export.recipe.report import plain
from model_export.recipe.runs import RunError, read_config, read_plans, read_targets, write_gate

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1e4)  # of the shrinking; the last one leaves the mean alone
FOLDS = 5

Floats = NDArray[np.float64]
Blocks = NDArray[np.int64]
Flags = NDArray[np.bool_]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run's folder with targets")
    add_block_argument(parser)


def add_block_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--block", type=int, default=1, help="images that follow each other and are near twins, as in video; 1 = none"
    )


def ridge(inputs: Floats, targets: Floats, seen: Flags, strength: float) -> tuple[Floats, Floats]:
    """inputs (N, D), standardised; targets (N, T) -> weights (D, T) and bias (T,) of the shrunk least squares.

    seen: (N,), images that the network was trained on; each part is centred on its own mean, the bias is the others'.
    """
    x, y = centred(inputs, seen), centred(targets, seen)
    # The dual form: there are fewer images than inputs, or about as many.
    weights = x.T @ np.linalg.solve(x @ x.T + strength * len(x) * x.shape[1] / 100 * np.eye(len(x)), y)
    return weights, targets[~seen].mean(0) - inputs[~seen].mean(0) @ weights


def centred(values: Floats, seen: Flags) -> Floats:
    """(N, D), each part without its mean."""
    found = values.copy()
    for part in (seen, ~seen):
        if part.any():
            found[part] -= values[part].mean(0)
    return found


def standardise(inputs: Floats) -> tuple[Floats, Floats]:
    """Mean and scale of each input; one that never varies is left at scale 1."""
    scale = inputs.std(0)
    return inputs.mean(0), np.where(scale > 1e-6, scale, 1.0)


def fit(inputs: Floats, quality: Floats, seen: Flags, level: float, loss: float) -> Gate:
    """inputs (N, D), quality (N, plans); level, loss: strengths for the full plan's quality and the others' loss."""
    mean, scale = standardise(inputs)
    x = (inputs - mean) / scale
    full, bias = ridge(x, quality[:, -1:], seen, level)
    less, less_bias = ridge(x, quality[:, -1:] - quality[:, :-1], seen, loss)
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


def out_of_fold(inputs: Floats, quality: Floats, seen: Flags, blocks: Blocks, level: float, loss: float) -> Floats:
    """(N, plans): each image's prediction by a gate that was fitted without its block and others of its fold."""
    scores, folds = np.empty_like(quality), blocks % FOLDS
    for fold in range(FOLDS):
        rest = folds != fold
        scores[~rest] = predict(fit(inputs[rest], quality[rest], seen[rest], level, loss), inputs[~rest])
    return scores


def cross_validate(inputs: Floats, quality: Floats, seen: Flags, blocks: Blocks) -> tuple[float, float]:
    """The strengths (level, loss), by the squared error out of fold, where the intercept counts for nothing.

    loss: of the lowest error; losses decide the plan. level: the strongest whose error is within a standard error of
    the lowest (Breiman et al. 1984), for large weights pass on what half precision rounds away.
    """
    levels, losses = [], []
    for strength in STRENGTHS:
        wrong = out_of_fold(inputs, quality, seen, blocks, strength, strength) - quality
        levels.append(np.square(centred(wrong[:, -1:], seen))[:, 0])
        losses.append(np.square(centred(wrong[:, -1:] - wrong[:, :-1], seen)).mean())
    errors = np.mean(levels, 1)
    best = int(errors.argmin())
    near = np.flatnonzero(errors <= errors[best] + np.std(levels[best]) / len(inputs) ** 0.5)
    return STRENGTHS[int(near.max())], STRENGTHS[int(np.argmin(losses))]


def specs_of(targets: dict[str, Any]) -> NDArray[np.str_]:
    """(N,): of each image the data set, as it was named to derive-targets."""
    specs: NDArray[np.str_] = np.array(str(targets["spec"]).split())[targets["sources"]]
    return specs


def alike(targets: dict[str, Any], held: str) -> Flags:
    """(N,): plain images of a data set of the same kind as the held-out one; data sets are named KIND:SPLIT."""
    kinds = np.array([spec.partition(":")[0] for spec in specs_of(targets)])
    found: Flags = (targets["views"] == 0) & (kinds == held.partition(":")[0])
    return found


def blocks_of(groups: NDArray[np.str_], views: NDArray[np.int64], block: int) -> Blocks:
    """(N,) of every view: the block of neighbouring images that it belongs to. An image's views follow its first."""
    first = views == 0
    first[0] = True
    found: Blocks = contiguous_blocks(groups[first], block)[np.cumsum(first) - 1]
    return found


def main(args: argparse.Namespace) -> None:
    config, _, _ = read_config(args.run)
    targets = {part: read_targets(args.run, part) for part in ("fit", "held")}
    plans, search = read_plans(args.run)
    gflops = {row["plan"]: row["gflops"] for row in search["search"]}
    cost = np.array([gflops[plan.name] for plan in plans])
    gate, report = fit_and_calibrate(config, targets, cost, args.block)
    write_gate(args.run, gate, report)
    print(json.dumps(report))


def fit_and_calibrate(
    config: Config, parts: dict[str, dict[str, Any]], cost: Floats, block: int
) -> tuple[Gate, dict[str, Any]]:
    """The gate and how it was fitted, with "margins", and, on the same images, what it "wins" and the "limit".

    parts: targets "fit" and "held". cost: (plans,) GFLOPs. block: as on the command line. Raises RunError
    where there are too few images that the network was not trained on.
    """
    truth = {part: qualities(measure_of(config), t["counts"]) for part, t in parts.items()}
    inputs, quality = parts["fit"]["inputs"].astype(np.float64), truth["fit"]
    groups, views = (np.concatenate([parts[part][name] for part in ("fit", "held")]) for name in ("groups", "views"))
    blocks = blocks_of(groups, views, block)
    fitted = blocks[: len(quality)]
    seen = parts["fit"]["seen"]
    if len(np.unique(fitted[~seen] % FOLDS)) < FOLDS:
        needs = f"a gate needs at least {FOLDS} blocks of images that the network was not trained on"
        raise RunError(f"{needs}: give derive-targets more to --fit")
    level, loss = cross_validate(inputs, quality, seen, fitted)
    gate = fit(inputs, quality, seen, level, loss)
    # Margins count on images that the gate has not seen: out of fold, and the held-out ones. What is promised is
    # promised for real images like those held out, so views of an image and data of another kind do not count.
    unseen = out_of_fold(inputs, quality, seen, fitted, level, loss)
    scores = np.concatenate((unseen, predict(gate, parts["held"]["inputs"])))
    counted = alike(parts["fit"], str(parts["held"]["spec"])) & ~seen
    real = np.concatenate((counted, np.full(len(truth["held"]), True)))
    known = np.concatenate((quality, truth["held"]))[real]
    margins = margin_table(scores[real], known, groups[real], blocks=blocks[real])
    report = {
        "images": len(quality), "images_trained_on": int(seen.sum()), "calibrated_images": int(real.sum()),
        "strength_level": level, "strength_loss": loss, "margins": margins,
        "wins": winnings(scores[real], known, cost, blocks[real]),
        "limit": limit(quality, parts["fit"]["views"], counted, cost, fitted),
        "calibrated_on": [str(t["spec"]) for t in parts.values()], "parameters": gate.output.weight.numel(),
    }  # fmt: skip
    return gate, report


def limit(
    quality: Floats, views: NDArray[np.int64], counted: Flags, cost: Floats, blocks: Blocks
) -> list[dict[str, Any]]:
    """As `winnings`, of who is told the mean of each image's other views, and so all but the luck of a single one.

    counted: (N,), the plain images to judge on. Empty where they have no other views.
    """
    first = np.flatnonzero(views == 0)
    others = np.diff(np.append(first, len(views))) - 1
    judged = counted[first] & (others > 0)
    if not judged.any():
        return []
    known = (np.add.reduceat(quality, first) - quality[first])[judged] / others[judged, None]
    plain_rows = first[judged]
    return winnings(known, quality[plain_rows], cost, blocks[plain_rows])


def winnings(scores: Floats, quality: Floats, cost: Floats, blocks: Blocks) -> list[dict[str, Any]]:
    """At each beta, "won" over the best fixed mix of equal cost and its "share" of what an oracle wins, with intervals.

    scores: out of fold. A share is None where an oracle wins nothing.
    """
    weights, rows = resample(blocks), []
    for beta in BETAS:
        gain = compare(by_beta(scores, cost, beta), quality, cost, weights)
        row = {"beta": beta, "won": gain.won, "interval": gain.won_interval, "share": gain.share}
        rows.append(plain(row | {"share_interval": gain.share_interval}))
    return rows
