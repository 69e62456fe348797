"""How the gate learns: a ridge regression of every plan's quality, its shrinking chosen by
cross-validation.

The gate regresses the quality of every plan, so that one gate serves every trade-off at request
time; ECO-M2F's (arXiv 2404.15244) classifies the best exit for one trade-off. It is a ridge
regression of the full plan's quality and, separately, of what each plan loses against the full one:
losses decide the plan, and are ten times smaller than the differences between images. How much to
shrink either is chosen by cross-validation over folds that keep near duplicates together. Where
nothing can be predicted, the gate ends up as the mean of each plan.

Images that the network was trained on may be among the targets. Their quality is higher than that
of other images, but they show as well which images lose more: they determine the gate's slopes, and
neither its intercepts nor what it promises.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.network.gate import Gate

# Of the shrinking; the last one leaves nothing but the mean.
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1e4)
FOLDS = 5

Floats = NDArray[np.float64]
Blocks = NDArray[np.int64]
Flags = NDArray[np.bool_]


def ridge(inputs: Floats, targets: Floats, seen: Flags, strength: float) -> tuple[Floats, Floats]:
    """inputs (N, D), standardised; targets (N, T) -> weights (D, T) and bias (T,) of the shrunk
    least squares.

    seen: (N,), images that the network was trained on. They and the others are each centred on
    their own mean; the bias is that of the others.
    """
    x, y = centred(inputs, seen), centred(targets, seen)
    # The dual form: there are fewer images than inputs, or about as many.
    weights = x.T @ np.linalg.solve(
        x @ x.T + strength * len(x) * x.shape[1] / 100 * np.eye(len(x)), y
    )
    return weights, targets[~seen].mean(0) - inputs[~seen].mean(0) @ weights


def centred(values: Floats, seen: Flags) -> Floats:
    """(N, D), seen and unseen images each without their mean."""
    centred_values = values.copy()
    for part in (seen, ~seen):
        if part.any():
            centred_values[part] -= values[part].mean(0)
    return centred_values


def standardise(inputs: Floats) -> tuple[Floats, Floats]:
    """Mean and scale of each input; one that never varies is left at scale 1."""
    scale = inputs.std(0)
    return inputs.mean(0), np.where(scale > 1e-6, scale, 1.0)


def fit(inputs: Floats, quality: Floats, seen: Flags, level: float, loss: float) -> Gate:
    """inputs (N, D), quality (N, plans). level, loss: strengths for the full plan's quality and for
    the others' losses."""
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


def out_of_fold(
    inputs: Floats, quality: Floats, seen: Flags, blocks: Blocks, level: float, loss: float
) -> Floats:
    """(N, plans): each image's prediction by a gate that was fitted without its block and the
    others of its fold."""
    scores, folds = np.empty_like(quality), blocks % FOLDS
    for fold in range(FOLDS):
        rest = folds != fold
        scores[~rest] = predict(
            fit(inputs[rest], quality[rest], seen[rest], level, loss), inputs[~rest]
        )
    return scores


def cross_validate(
    inputs: Floats, quality: Floats, seen: Flags, blocks: Blocks
) -> tuple[float, float]:
    """The strengths (level, loss), by the squared error out of fold, where the intercept counts for
    nothing: of each the strongest whose error is within a standard error of the lowest (Breiman et
    al. 1984).

    Large weights amplify what half precision rounds away; and on some hundred images the lowest
    error itself is luck: over the 217 images of nuclei that the network was not trained on, gates
    of the lowest error won 0.44 points at beta 0.03, those of this rule 0.64.
    """
    levels, losses = [], []
    for strength in STRENGTHS:
        wrong = out_of_fold(inputs, quality, seen, blocks, strength, strength) - quality
        levels.append(np.square(centred(wrong[:, -1:], seen))[:, 0])
        losses.append(np.square(centred(wrong[:, -1:] - wrong[:, :-1], seen)).mean(1))
    return _strongest(levels), _strongest(losses)


def _strongest(errors: list[Floats]) -> float:
    """errors: of each strength, (N,)."""
    means = np.mean(errors, 1)
    best = int(means.argmin())
    near = np.flatnonzero(means <= means[best] + np.std(errors[best]) / len(errors[best]) ** 0.5)
    return STRENGTHS[int(near.max())]
