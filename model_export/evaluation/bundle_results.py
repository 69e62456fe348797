"""The results of one measured bundle: quality, GFLOPs and ms of every policy, and whether max-loss
is kept.

ms are medians per plan of the engine's stages, batch 1. All intervals are 95 %, by paired bootstrap
over images, or over blocks of neighbours where images are near duplicates.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.evaluation.measure_bundle import Measured
from model_export.gating.own_plans import levelled, owned
from model_export.gating.policies import (
    BETAS,
    Shares,
    by_beta,
    by_margin,
    compare,
    dealt_at_random,
    fixed,
    interval,
)
from service.inference.policy import margin_for

LOSSES = (0.0025, 0.005, 0.01, 0.02, 0.05)

Floats = NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Costs:
    """Per image and plan, (N, P): GFLOPs and ms of all stages together and of the encoder alone.
    A plan that is not open to an image costs what its full plan does.

    encoder_gflops: nan where the bundle does not say.
    """

    gflops: Floats
    encoder_gflops: Floats
    ms: Floats
    encoder_ms: Floats

    def of(self, shares: Shares) -> dict[str, float]:
        """Mean over the images."""
        costs = asdict(self).items()
        return {name: float((shares * value).sum(1).mean()) for name, value in costs}


def costs_of(measured: Measured) -> Costs:
    manifest = measured.bundle.manifest
    parts = manifest.calibration.get("gflops", {})
    names = {
        plan: stage
        for graphs in reversed(manifest.graphs.values())  # of several shapes the first counts
        for plan, stage in graphs.encoders.items()
    }
    tiled = manifest.input.tiled
    counts = [tiled[plan.canvas].count if plan.canvas in tiled else 1 for plan in manifest.plans]
    encoder = [
        count * float(parts.get(names[plan.name], math.nan))
        for plan, count in zip(manifest.plans, counts, strict=True)
    ]
    front, encoder_ms, decoder = (
        np.array([np.median(own) if len(own) else math.nan for own in measured.ms(times)])
        for times in (measured.front, measured.encoder, measured.decoder)
    )
    ms = np.median(measured.glance) + front + decoder + encoder_ms
    gflops = [plan.gflops for plan in manifest.plans]
    shape = measured.is_open.shape
    return Costs(
        *(
            levelled(np.broadcast_to(of_plans, shape), measured.is_open)
            for of_plans in (gflops, encoder, ms, encoder_ms)
        )
    )


def policies_of(measured: Measured, cost: Floats) -> dict[str, Shares]:
    """Name -> shares, in the order of the table."""
    manifest, (images, plans) = measured.bundle.manifest, measured.scores.shape
    policies = {"full": fixed(images, plans, -1)}
    policies |= {
        f"fixed {plan.name}": fixed(images, plans, i) for i, plan in enumerate(manifest.plans)
    }
    margins = {asked: margin_for(asked, manifest.margins) for asked in LOSSES}
    policies |= {
        f"gate max-loss {asked:g}": by_margin(measured.scores, margin)
        for asked, margin in margins.items()
    }
    policies |= {f"gate beta {beta:g}": by_beta(measured.scores, cost, beta) for beta in BETAS}
    by_size = scores_by_size(measured)
    if by_size is not None:
        policies |= {f"size beta {beta:g}": by_beta(by_size, cost, beta) for beta in BETAS}
    policies |= {f"oracle beta {beta:g}": by_beta(measured.quality, cost, beta) for beta in BETAS}
    if measured.mirrored is not None:
        policies |= {
            f"mirror beta {beta:g}": by_beta(measured.mirrored, cost, beta) for beta in BETAS
        }
    return policies


def scores_by_size(measured: Measured) -> Floats | None:
    """(N, P): the quality that the image's own size alone predicts, as train-gate found it on the
    gate's images. None where the bundle does not say, or has one canvas."""
    manifest = measured.bundle.manifest
    known = manifest.calibration.get("gate", {}).get("by_size")
    if known is None or len(manifest.input.canvases) == 1:
        return None
    side, at = np.log2(measured.sides), np.array(known["sides"])
    columns = [np.interp(side, at, column) for column in np.array(known["quality"]).T]
    return levelled(np.stack(columns, 1), measured.is_open)


def quartiles(times: Floats) -> list[float]:
    """nan where no image may take the plan."""
    return np.percentile(times if len(times) else [math.nan], (25, 50, 75)).tolist()


class BundleResults:
    """weights: (draws, N), how often each image counts in a bootstrap sample."""

    def __init__(self, measured: Measured, weights: Floats) -> None:
        self.measured, self.weights, self.costs = measured, weights, costs_of(measured)
        self.policies = policies_of(measured, self.costs.gflops)

    def of_set(self, shares: Shares) -> tuple[float, Floats]:
        """Quality of the set and of each bootstrap sample; from expected counts where a policy is
        random."""
        counts = np.einsum("np,np...->n...", shares, self.measured.counts)
        flat = self.weights @ counts.reshape(len(counts), -1)
        drawn = [self.measured.task.of_set(row.reshape(counts.shape[1:])) for row in flat]
        return self.measured.task.of_set(counts.sum(0)), np.array(drawn)

    def of_images(self, shares: Shares) -> tuple[float, Floats]:
        """Mean quality of the images, and that of each bootstrap sample."""
        quality = (shares * self.measured.quality).sum(1)
        return float(quality.mean()), self.weights @ quality / self.weights.sum(1)

    def row(self, name: str) -> Row:
        shares, manifest = self.policies[name], self.measured.bundle.manifest
        (of_set, drawn_set), (of_images, drawn_images) = self.of_set(shares), self.of_images(shares)
        gain = compare(shares, self.measured.quality, self.costs.gflops, self.weights)
        taken = owned(shares, self.measured.is_open)
        depths = np.array([plan.depth for plan in manifest.plans])
        return {
            "policy": name,
            **self.costs.of(shares),
            "mean_depth": float(taken.mean(0) @ depths),
            "quality": of_set,
            "quality_interval": interval(drawn_set),
            "image_quality": of_images,
            "image_interval": interval(drawn_images),
            "ap50": self.measured.ap50(shares.argmax(1)),
            "random_quality": self.of_set(dealt_at_random(shares))[0],
            "at_equal_cost": {
                "random": gain.random,
                "best_fixed": gain.mix,
                "oracle": gain.oracle,
                "won": gain.won,
                "won_interval": gain.won_interval,
                "share_of_oracle": gain.share,
                "share_interval": gain.share_interval,
            },
            "plans": {
                plan.name: int(n) for plan, n in zip(manifest.plans, taken.sum(0), strict=True)
            },
        }

    def plans(self) -> list[Row]:
        """What each plan costs, and how many images may take it. The quartiles of the times tell
        how quiet the machine was."""
        measured = self.measured
        times = {
            part: measured.ms(getattr(measured, part)) for part in ("front", "encoder", "decoder")
        }
        return [
            {
                "name": plan.name,
                "canvas": plan.canvas,
                "gflops": plan.gflops,
                "images": int(measured.is_open[:, i].sum()),
                "encoder_gflops": self._encoder_gflops(i),
                "glance_ms": quartiles(measured.glance),
                **{f"{part}_ms": quartiles(of_plans[i]) for part, of_plans in times.items()},
            }
            for i, plan in enumerate(measured.bundle.manifest.plans)
        ]

    def _encoder_gflops(self, plan: int) -> float:
        own = self.costs.encoder_gflops[self.measured.is_open[:, plan], plan]
        return float(own[0]) if len(own) else math.nan

    def max_loss(self) -> list[Row]:
        """The loss asked for against the loss got, over all images and in each group."""
        rows = []
        quality, groups = self.measured.quality, self.measured.groups
        for asked in LOSSES:
            shares = self.policies[f"gate max-loss {asked:g}"]
            lost = quality[:, -1] - (shares * quality).sum(1)
            drawn = self.weights @ lost / self.weights.sum(1)
            parts = {str(name): lost[groups == name] for name in np.unique(groups)}
            rows.append(
                {
                    "asked": asked,
                    "margin": margin_for(asked, self.measured.bundle.manifest.margins),
                    "got": float(lost.mean()),
                    "interval": interval(drawn),
                    "kept": bool(lost.mean() <= asked),
                    "groups": {
                        name: {
                            "images": len(part),
                            "got": float(part.mean()),
                            "kept": bool(part.mean() <= asked),
                        }
                        for name, part in parts.items()
                    },
                }
            )
        return rows

    def groups(self) -> list[Row]:
        """For each group of images what depth is worth there, and how much compute each policy that
        chooses spends there."""
        quality, groups = self.measured.quality, self.measured.groups
        choosing = {
            name: shares
            for name, shares in self.policies.items()
            if not name.startswith(("full", "fixed"))
        }
        return [
            {
                "group": str(name),
                "images": int(part.sum()),
                "full": float(quality[part, -1].mean()),
                "cheapest_loses": float((quality[part, -1] - quality[part, 0]).mean()),
                "gflops": {
                    policy: float((shares * self.costs.gflops)[part].sum(1).mean())
                    for policy, shares in choosing.items()
                },
            }
            for name in np.unique(groups)
            if (part := groups == name).any()
        ]

    def mirrored_correlation(self) -> dict[str, float] | None:
        """For each plan how its loss on the images correlates (Pearson) with that on their mirror
        images: 1 if the loss is a property of the image and could be predicted, 0 if it is chance
        and no gate can follow it. None where it was not measured.
        """
        once, again = self.measured.quality, self.measured.mirrored
        if again is None:
            return None
        lost = [quality[:, -1:] - quality[:, :-1] for quality in (once, again)]
        correlations = {}
        for index, plan in enumerate(self.measured.bundle.manifest.plans[:-1]):
            pair = [losses[:, index] for losses in lost]
            varies = min(float(np.ptp(losses)) for losses in pair) > 0
            correlations[plan.name] = float(np.corrcoef(*pair)[0, 1]) if varies else math.nan
        return correlations

    def against(self, other: BundleResults) -> list[Row]:
        """Policies here against the other's full plan: quality lost, shares of the encoder saved,
        factor of throughput."""
        reference = other.costs.of(other.policies["full"])
        there, drawn_there = other.of_set(other.policies["full"])
        full, drawn_full = other.of_images(other.policies["full"])
        rows = []
        for name, shares in self.policies.items():
            cost, (here, drawn_here) = self.costs.of(shares), self.of_set(shares)
            of_images, drawn_images = self.of_images(shares)
            cuts = {
                f"{part}_cut": 1 - cost[part] / reference[part]
                for part in ("gflops", "encoder_gflops", "encoder_ms")
            }
            rows.append(
                {
                    "policy": name,
                    "lost": there - here,
                    "lost_interval": interval(drawn_there - drawn_here),
                    "image_lost": full - of_images,
                    "image_lost_interval": interval(drawn_full - drawn_images),
                    **cuts,
                    "throughput": reference["ms"] / cost["ms"],
                }
            )
        return rows
