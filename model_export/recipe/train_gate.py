"""Step C: train the gate, everything else frozen.

`--loss quality` regresses the quality of every exit, so that one gate serves every trade-off at request time; it is
what the service uses. `--loss class` is ECO-M2F's target (arXiv 2404.15244): cross-entropy on argmax of q_k - beta k.
Inputs come from step B's targets: seconds on a CPU. Weight decay and the number of epochs are chosen by
cross-validation over contiguous folds of the fitting images, never on the held-out ones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model_export.network.config import Config
from model_export.network.gate import Gate
from model_export.recipe.quality import qualities
from model_export.recipe.runs import RunError, load_model, read_config, read_targets, save_model, write_gate

DECAYS = (0.1, 1.0, 10.0)
FOLDS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, help="a run's folder with targets")
    add("--loss", choices=("quality", "class"), default="quality")
    add("--beta", type=float, default=0.003, help="price of a layer in quality, for --loss class")
    add(
        "--gain-weight", type=float, default=10.0, help="weight of the error in gains of depth against that of the mean"
    )
    add("--epochs", type=int, default=300, help="most epochs; cross-validation finds the best number up to it")
    add("--lr", type=float, default=1e-3)
    add("--seed", type=int, default=0)


def quality_loss(logits: Tensor, quality: Tensor, gain_weight: float) -> Tensor:
    """Squared error of an image's mean quality, and of each exit's gain over that mean.

    The gains are ten times smaller than the differences between images but decide the exit, hence their weight.
    """
    predicted = logits.sigmoid()
    mean, wanted = predicted.mean(1, keepdim=True), quality.mean(1, keepdim=True)
    gain = ((predicted - mean) - (quality - wanted)).square().mean()
    return (mean - wanted).square().mean() + gain_weight * gain


def class_loss(logits: Tensor, quality: Tensor, beta: float) -> Tensor:
    layers = torch.arange(1, quality.shape[1] + 1)
    return F.cross_entropy(logits, (quality - beta * layers).argmax(1))


def fit(
    config: Config, pooled: Tensor, quality: Tensor, args: argparse.Namespace, decay: float, epochs: int,
    watch: tuple[Tensor, Tensor] | None = None,
) -> tuple[Gate, list[float]]:  # fmt: skip
    """Full-batch AdamW. Returns the gate and, with `watch`, its loss there after every epoch."""
    torch.manual_seed(args.seed)
    gate = Gate(config.channels, config.gate_hidden, config.exits)
    if args.loss == "quality":
        with torch.no_grad():
            gate.output.weight.mul_(0.1)
            gate.output.bias.copy_(torch.logit(quality.mean(0), eps=1e-4))  # finite also where all are right or wrong

    def loss_of(x: Tensor, q: Tensor) -> Tensor:
        return (
            quality_loss(gate(x), q, args.gain_weight) if args.loss == "quality" else class_loss(gate(x), q, args.beta)
        )

    optimizer = torch.optim.AdamW(gate.parameters(), lr=args.lr, weight_decay=decay)
    history = []
    for _ in range(epochs):
        for rows in torch.randperm(len(pooled)).split(32):
            optimizer.zero_grad()
            loss_of(pooled[rows], quality[rows]).backward()
            optimizer.step()
        if watch is not None:
            with torch.no_grad():
                history.append(float(loss_of(*watch)))
    return gate, history


def cross_validate(
    config: Config, pooled: Tensor, quality: Tensor, args: argparse.Namespace
) -> tuple[float, int, float]:
    """(weight decay, epochs, loss) of the lowest mean loss over contiguous folds, since neighbours are near twins."""
    folds = np.array_split(np.arange(len(pooled)), FOLDS)
    best = (DECAYS[0], args.epochs, float("inf"))
    for decay in DECAYS:
        curves = []
        for fold in folds:
            rest = np.setdiff1d(np.arange(len(pooled)), fold)
            watch = (pooled[fold], quality[fold])
            curves.append(fit(config, pooled[rest], quality[rest], args, decay, args.epochs, watch)[1])
        curve = np.mean(curves, 0)
        if curve.min() < best[2]:
            best = (decay, int(curve.argmin()) + 1, float(curve.min()))
    return best


def constant_loss(quality: NDArray[np.float64], args: argparse.Namespace) -> float:
    """What a gate without eyes would get: the mean quality of each exit for every image."""
    truth = torch.from_numpy(quality).float()
    blind = torch.logit(truth.mean(0)).expand_as(truth)
    return float(quality_loss(blind, truth, args.gain_weight))


def main(args: argparse.Namespace) -> None:
    config, _, _ = read_config(args.run)
    targets = read_targets(args.run, "fit")
    if len(targets["pooled"]) < FOLDS:
        raise RunError(f"{FOLDS} images are the least that a gate can learn from: give derive-targets more to --fit")
    truth = qualities(targets["confusions"])
    pooled, quality = torch.from_numpy(targets["pooled"]).float(), torch.from_numpy(truth).float()
    decay, epochs, loss = cross_validate(config, pooled, quality, args)
    gate, _ = fit(config, pooled, quality, args, decay, epochs)
    model = load_model(args.run)
    model.gate.load_state_dict(gate.state_dict())
    save_model(args.run, model.state_dict())
    report = {"loss": args.loss, "beta": args.beta, "images": len(pooled), "decay": decay, "epochs": epochs,
              "cross_validated": loss, "parameters": sum(p.numel() for p in gate.parameters())}  # fmt: skip
    if args.loss == "quality":
        report["without_eyes"] = constant_loss(truth, args)
    write_gate(args.run, report)
    print(json.dumps(report))
