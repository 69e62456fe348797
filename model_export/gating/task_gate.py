"""Targets, gate and margins of a network with several heads.

The gate predicts the quality of every head at every width behind every encoder plan: for each head
a regression of its own (gate_regression.py), side by side in one linear layer. A promise is about
the quality weighted by a preference, so margins are calibrated for each preference of a grid, and
the smallest of each level is kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.data.datasets import refuse_shared
from model_export.export.graphs import heads_of
from model_export.export.write_manifest import several_heads
from model_export.gating.calibrate import Row, margin_table
from model_export.gating.gate_regression import FOLDS, cross_validate, fit, out_of_fold, predict
from model_export.gating.partial_results import discard_partial, partial_files
from model_export.gating.plain_json import plain
from model_export.gating.policies import by_beta, compare, resample
from model_export.gating.preferences import preference_grid, weighted
from model_export.gating.task_search import encoder_plans, load_tasks, measured
from model_export.network.config import Config
from model_export.network.gate import Gate
from model_export.training.runs import (
    RunError,
    read_config,
    read_plans,
    read_targets,
    trained_on,
    write_gate,
    write_targets,
)
from model_export.training.train_tasks import open_scenes
from service import bundle
from service.bundle import complete_plans

Floats = NDArray[np.float64]
BETAS = (0.003, 0.01, 0.03)


def derive_tasks(run: Path, fit_on: Sequence[str], held: str) -> None:
    """Step B: targets of both parts, with "quality" (N, plans, heads at widths)."""
    _, canvases, _ = read_config(run)
    for spec, root in trained_on(run):
        refuse_shared("--held", held, None, spec, root, "the network")
        for own in fit_on:
            refuse_shared("--fit", own, None, spec, root, "the network")
    for own in fit_on:
        refuse_shared("--held", held, None, own, None, "the gate")
    model, (plans, _) = load_tasks(run), read_plans(run)
    place = run / "targets"
    for part, specs in (("held", [held]), ("fit", list(fit_on))):
        file = partial_files(place)[part]
        columns = measured(run, model, plans, specs, canvases, file.name)
        names = np.array([plan.name for plan in plans])
        write_targets(run, part, columns | {"plans": names, "spec": np.array(" ".join(specs))})
    discard_partial(place)


@dataclass(frozen=True, slots=True)
class Fitted:
    """scores: (N, plans, heads at widths), of the images to fit, out of fold, then of those held.
    strengths: of each head (level, loss)."""

    gate: Gate
    scores: Floats
    strengths: dict[str, tuple[float, float]]


def fit_heads(config: Config, inputs: Floats, quality: Floats, fits: int) -> Fitted:
    """inputs: (N, D), quality: (N, plans, heads at widths); the first `fits` images are to fit."""
    count, plans, columns = quality.shape
    owners = [head.name for head in config.tasks for _ in head.widths]
    own, unseen, blocks = inputs[:fits], np.zeros(fits, bool), np.arange(fits)
    scores, strengths = np.empty((count, plans * columns)), {}
    gate = Gate(inputs.shape[1], plans * columns)
    for head in config.tasks:
        mine = np.tile([owner == head.name for owner in owners], plans)
        truth = quality.reshape(count, -1)[:fits, mine]
        level, loss = cross_validate(own, truth, unseen, blocks)
        part = fit(own, truth, unseen, level, loss)
        with torch.no_grad():
            rows = torch.from_numpy(mine)
            gate.output.weight[rows] = part.output.weight
            gate.output.bias[rows] = part.output.bias
            gate.mean.copy_(part.mean)
            gate.scale.copy_(part.scale)
        scores[:, mine] = predict(part, inputs)
        scores[:fits, mine] = out_of_fold(own, truth, unseen, blocks, level, loss)
        strengths[head.name] = level, loss
    return Fitted(gate.eval(), scores.reshape(quality.shape), strengths)


def smallest(tables: Sequence[list[Row]]) -> list[Row]:
    """Of each level the smallest margin; None, where nothing but the full plan is safe, comes
    first."""
    rows = []
    for level in zip(*tables, strict=True):
        margins = [row["margin"] for row in level]
        known = [margin for margin in margins if margin is not None]
        least = min(known) if len(known) == len(margins) else None
        rows.append({"asked": level[0]["asked"], "margin": least})
    return rows


def fit_task_gate(run: Path) -> None:
    """Step C: writes the gate and its margins, prints a JSON line. Raises RunError."""
    config, canvases, _ = read_config(run)
    parts = {part: read_targets(run, part) for part in ("fit", "held")}
    plans, search = read_plans(run)
    fits = len(parts["fit"]["names"])
    if fits < 2 * FOLDS:
        raise RunError(
            f"a gate needs {2 * FOLDS} images or more: give derive-targets more to --fit"
        )
    inputs, quality = (
        np.concatenate([parts[part][name] for part in ("fit", "held")]).astype(np.float64)
        for name in ("inputs", "quality")
    )
    fitted = fit_heads(config, inputs, quality, fits)
    every = encoder_plans(config, canvases, plans, search["gflops"], parts["held"]["quality"])
    heads = list(several_heads(config, open_scenes("--held", str(parts["held"]["spec"]))))
    tables, wins = calibrated(config, every, heads, fitted.scores, quality)
    report: dict[str, Any] = {
        "images": fits,
        "calibrated_images": len(quality),
        "strengths": fitted.strengths,
        "margins": smallest([rows for _, rows in tables]),
        "by_preference": [{"preference": p, "margins": rows} for p, rows in tables],
        "wins": wins,
        "calibrated_on": [str(part["spec"]) for part in parts.values()],
        "parameters": fitted.gate.output.weight.numel(),
    }
    write_gate(run, fitted.gate, report)
    print(json.dumps(report))


def calibrated(
    config: Config,
    every: Sequence[bundle.EncoderPlan],
    heads: Sequence[bundle.Head],
    scores: Floats,
    quality: Floats,
) -> tuple[list[tuple[dict[str, float], list[Row]]], list[dict[str, Any]]]:
    """Of each preference of the grid its margins, and what the gate wins over the best fixed mix of
    equal cost, on images that it has not seen."""
    keys, names = list(heads_of(config)), [plan.name for plan in every]
    groups, tables, wins = np.full(len(quality), ""), [], []
    resampled = resample(np.arange(len(quality)))
    for preference in preference_grid([head.name for head in heads]):
        plans = complete_plans(every, heads, preference)
        ours, theirs = (
            weighted(table, plans, preference, names, keys) for table in (scores, quality)
        )
        tables.append((preference, margin_table(ours, theirs, groups)))
        cost = np.array([plan.gflops for plan in plans])
        for beta in BETAS:
            gain = compare(by_beta(ours, cost, beta), theirs, cost, resampled)
            row = {"preference": preference, "beta": beta, "won": gain.won}
            wins.append(plain(row | {"interval": gain.won_interval, "share": gain.share}))
    return tables, wins
