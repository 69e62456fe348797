"""Step C: fit the gate, with everything else frozen, and calibrate what a requested max-loss may
promise.

gate_regression.py has how the gate learns from the targets, calibrate.py what is promised.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.gating.calibrate import Row, contiguous_blocks, margin_table
from model_export.gating.gate_regression import (
    FOLDS,
    Blocks,
    Flags,
    Floats,
    cross_validate,
    fit,
    out_of_fold,
    predict,
)
from model_export.gating.own_plans import levelled, open_plans
from model_export.gating.plain_json import plain
from model_export.gating.policies import BETAS, by_beta, by_margin, compare, resample
from model_export.gating.task_gate import fit_task_gate
from model_export.network.config import Config
from model_export.network.gate import SIDES, Gate
from model_export.network.knobs import Knobs
from model_export.option_types import whole
from model_export.tasks import Task, qualities, task_of
from model_export.training.runs import RunError, read_config, read_plans, read_targets, write_gate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run's folder with targets")
    add_block_argument(parser)


def add_block_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--block",
        type=whole(),
        default=1,
        help="consecutive images that are near duplicates, as in video, where each group is "
        "a recording and images to come are of a new one; 1 = none",
    )


def specs_of(targets: dict[str, Any]) -> NDArray[np.str_]:
    """(N,): each image's data set, as it was named to derive-targets."""
    # Targets of older versions have the names as one text alone.
    named = targets["specs"] if "specs" in targets else np.array(str(targets["spec"]).split())
    specs: NDArray[np.str_] = named[targets["sources"]]
    return specs


def alike(targets: dict[str, Any], held: str) -> Flags:
    """(N,): whether it is a plain image, of a data set of the same kind as the held-out one; data
    sets are named KIND:SPLIT."""
    kinds = np.array([spec.partition(":")[0] for spec in specs_of(targets)])
    flags: Flags = (targets["views"] == 0) & (kinds == held.partition(":")[0])
    return flags


def blocks_of(groups: NDArray[np.str_], views: NDArray[np.int64], block: int) -> Blocks:
    """(N,), for every view: the block of neighbouring images that it belongs to. An image's views
    follow its first."""
    first = views == 0
    first[0] = True
    blocks: Blocks = contiguous_blocks(groups[first], block)[np.cumsum(first) - 1]
    return blocks


def main(args: argparse.Namespace) -> None:
    config, _, _ = read_config(args.run)
    if config.tasks:
        fit_task_gate(args.run)
        return
    targets = {part: read_targets(args.run, part) for part in ("fit", "held")}
    plans, search = read_plans(args.run)
    rows = [*search["search"], *search.get("search_tiles", {}).get("table", ())]
    gflops = {row["plan"]: row["gflops"] for row in rows}
    cost = np.array([gflops[plan.name] for plan in plans])
    gate, report = fit_and_calibrate(config, targets, cost, args.block)
    write_gate(args.run, gate, report)
    print(json.dumps(report))


@dataclass(frozen=True, slots=True)
class Images:
    """All that was measured: inputs (N, D), quality, cost and is_open (N, plans), the rest (N,).

    Quality and cost are `levelled`. seen: whether the network was trained on the image. fits:
    whether the gate learns from it. real: whether the promise is about images like it.
    """

    inputs: Floats
    quality: Floats
    cost: Floats
    is_open: Flags
    groups: NDArray[np.str_]
    blocks: Blocks
    seen: Flags
    fits: Flags
    real: Flags

    def where(self, mask: Flags) -> Images:
        return Images(*(getattr(self, field.name)[mask] for field in fields(self)))


def images_of(task: Task, parts: dict[str, dict[str, Any]], cost: Floats, block: int) -> Images:
    """parts: targets "fit", which come first, and "held". cost: (plans,). block: as on the command
    line."""

    def both(name: str) -> NDArray[Any]:
        return np.concatenate([parts[part][name] for part in ("fit", "held")])

    held, groups = len(parts["held"]["names"]), both("groups")
    tiled = [Knobs.parse(name).tiled for name in parts["held"]["plans"].tolist()]
    is_open = open_plans(both("larger"), tiled)
    inputs, quality = both("inputs").astype(np.float64), qualities(task, both("counts"))
    seen = np.append(parts["fit"]["seen"], np.full(held, False))
    # The promise is about real images like those held out: views of an image and data of another
    # kind do not count.
    real = np.append(alike(parts["fit"], str(parts["held"]["spec"])), np.full(held, True)) & ~seen
    fits = np.arange(len(seen)) < len(seen) - held
    return Images(
        inputs,
        levelled(quality, is_open),
        levelled(np.broadcast_to(cost, quality.shape), is_open),
        is_open,
        groups,
        blocks_of(groups, both("views"), block),
        seen,
        fits,
        real,
    )


@dataclass(frozen=True, slots=True)
class Fitted:
    """scores: (N, plans), out of fold where the gate learned from the image. level, loss: strengths
    of the shrinking. margins: as in calibrate.py."""

    gate: Gate
    level: float
    loss: float
    scores: Floats
    margins: list[Row]


def can_fit(images: Images) -> bool:
    """Whether every gate that leaves out a fold still has images that the network was not trained
    on."""
    unseen = np.unique(images.blocks[~images.seen])
    return len(unseen) >= FOLDS and len(np.unique(unseen % FOLDS)) > 1


def fit_and_score(images: Images) -> tuple[Gate, float, float, Floats]:
    """The gate, its strengths (level, loss), and (N, plans) scores of images that it has not seen,
    as margins need them: out of fold, and of the held-out ones."""
    own = images.where(images.fits)
    level, loss = cross_validate(own.inputs, own.quality, own.seen, own.blocks)
    gate = fit(own.inputs, own.quality, own.seen, level, loss)
    scores = predict(gate, images.inputs)
    scores[images.fits] = out_of_fold(own.inputs, own.quality, own.seen, own.blocks, level, loss)
    return gate, level, loss, levelled(scores, images.is_open)


def fit_gate(images: Images, recordings: bool) -> Fitted:
    """recordings: whether groups are recordings, so that images to come are of a new one.

    Raises RunError where there are too few images that the network was not trained on.
    """
    own = images.where(images.fits)
    if not can_fit(own):
        raise RunError(
            f"a gate needs at least {FOLDS} blocks of images that the network was not trained on: "
            f"give derive-targets more to --fit"
        )
    gate, level, loss, scores = fit_and_score(images)
    real = images.real
    margins = margin_table(
        scores[real],
        images.quality[real],
        images.groups[real],
        blocks=images.blocks[real],
        recordings=recordings,
    )
    return Fitted(gate, level, loss, scores, margins)


def fit_and_calibrate(
    config: Config, parts: dict[str, dict[str, Any]], cost: Floats, block: int
) -> tuple[Gate, dict[str, Any]]:
    """The gate and a report of how it was fitted, with "margins", and, on the same images, what the
    gate "wins", what the image's size alone would, "by_size", and the "limit"; for recordings also
    how the promise is kept on each, "left_out".

    parts: targets "fit" and "held". cost: (plans,) GFLOPs. block: as on the command line. Raises
    RunError where there are too few images that the network was not trained on.
    """
    images, recordings = images_of(task_of(config), parts, cost, block), block > 1
    fitted, real = fit_gate(images, recordings), images.real
    own = images.where(images.fits)
    report = {
        "images": len(own.seen),
        "images_trained_on": int(own.seen.sum()),
        "calibrated_images": int(real.sum()),
        "strength_level": fitted.level,
        "strength_loss": fitted.loss,
        "margins": fitted.margins,
        "wins": winnings(
            fitted.scores[real], images.quality[real], images.cost[real], images.blocks[real]
        ),
        "by_size": by_size(images),
        "limit": limit(own.quality, parts["fit"]["views"], own.real, own.cost, own.blocks),
        "left_out": left_out(images) if recordings else [],
        "calibrated_on": [str(t["spec"]) for t in parts.values()],
        "parameters": fitted.gate.output.weight.numel(),
    }
    return fitted.gate, report


def by_size(images: Images) -> dict[str, Any]:
    """What the image's own size alone would do as a gate: its predicted "quality" of every plan at
    each of "sides" (log2 of pixels, linear between them), and what it "wins". A gate that looks
    must beat it.
    """
    gate, _, _, scores = fit_and_score(replace(images, inputs=images.inputs[:, -len(SIDES) :]))
    real = images.real
    return {
        "sides": list(SIDES),
        "quality": np.round(predict(gate, np.eye(len(SIDES))), 5).tolist(),
        "wins": winnings(
            scores[real], images.quality[real], images.cost[real], images.blocks[real]
        ),
    }


def left_out(images: Images) -> list[dict[str, Any]]:
    """For each recording what was asked and what its images lost, with a gate and margins that had
    not seen any of it.

    Only for recordings without which a gate can still be fitted.
    """
    rows = []
    for name in np.unique(images.groups[images.real]):
        others = images.where(images.groups != name)
        if not can_fit(others.where(others.fits)):
            continue
        fitted = fit_gate(others, recordings=True)
        judged = images.where(images.real & (images.groups == name))
        scores = levelled(predict(fitted.gate, judged.inputs), judged.is_open)
        for row in fitted.margins:
            shares = by_margin(scores, row["margin"])
            lost = (judged.quality[:, -1] - (shares * judged.quality).sum(1)).mean()
            about = {
                "recording": str(name),
                "images": len(scores),
                "asked": row["asked"],
                "lost": lost,
            }
            rows.append(plain(about | {"gflops": (shares * judged.cost).sum(1).mean()}))
    return rows


def limit(
    quality: Floats, views: NDArray[np.int64], counted: Flags, cost: Floats, blocks: Blocks
) -> list[dict[str, Any]]:
    """As `winnings`, of an oracle that is told the mean over each image's other views, and so
    everything but the chance of a single one.

    cost: (plans,) or (N, plans). counted: (N,), the plain images to judge on. Empty where they have
    no other views.
    """
    first = np.flatnonzero(views == 0)
    others = np.diff(np.append(first, len(views))) - 1
    judged = counted[first] & (others > 0)
    if not judged.any():
        return []
    known = (np.add.reduceat(quality, first) - quality[first])[judged] / others[judged, None]
    plain_rows = first[judged]
    prices = np.broadcast_to(cost, quality.shape)[plain_rows]
    return winnings(known, quality[plain_rows], prices, blocks[plain_rows])


def winnings(scores: Floats, quality: Floats, cost: Floats, blocks: Blocks) -> list[dict[str, Any]]:
    """At each beta what is "won" over the best fixed mix of equal cost, and its "share" of what an
    oracle wins, with intervals.

    scores: out of fold. The share is None where an oracle wins nothing.
    """
    weights, rows = resample(blocks), []
    for beta in BETAS:
        gain = compare(by_beta(scores, cost, beta), quality, cost, weights)
        row = {"beta": beta, "won": gain.won, "interval": gain.won_interval, "share": gain.share}
        rows.append(plain(row | {"share_interval": gain.share_interval}))
    return rows
