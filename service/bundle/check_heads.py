"""The checks of a manifest's heads. Tasks check their own part (service/tasks)."""

from __future__ import annotations

import math
import re
from itertools import pairwise

from service.bundle.heads import EncoderPlan, Head
from service.bundle.manifest import Manifest
from service.errors import BundleError

KEY = re.compile("[a-z][a-z0-9_-]*")  # a key of RFC 9651: callers name heads in header fields

# Value-Scale has 12 digits before the point and 3 behind it.
LEAST_END, LARGEST_END = 1e-6, 500_000


def check_heads(manifest: Manifest) -> None:
    """Raises BundleError that names the key."""
    names = [head.name for head in manifest.heads]
    require(bool(names), "heads: there are none")
    for i, head in enumerate(manifest.heads):
        _check_head(head, f"heads[{i}]")
    keys = manifest.head_keys
    require(len(set(keys)) == len(keys), "heads: a name occurs twice, also as a name with a width")
    for name, weight in manifest.default_preference.items():
        at = f"default_preference.{name}"
        require(name in names, f"{at}: no head has this name")
        require(math.isfinite(weight) and weight >= 0, f"{at}: must be a number, 0 or more")
    weights = manifest.default_preference.values()
    require(
        any(weight > 0 for weight in weights),
        "default_preference: at least one weight must be over 0",
    )
    require(math.isfinite(sum(weights)), "default_preference: the sum of the weights is too large")


def check_worth(manifest: Manifest, plan: EncoderPlan) -> None:
    """What a plan says of each head. Raises BundleError that names the key."""
    keys = manifest.head_keys
    for key in sorted(plan.heads.keys() ^ set(keys)):
        said = "is missing" if key in keys else "no head at one of its widths has this name"
        raise BundleError(f"encoder_plans: {plan.name}: heads.{key}: {said}")
    for key, worth in plan.heads.items():
        at = f"encoder_plans: {plan.name}: heads.{key}"
        require(worth.gflops >= 0, f"{at}: gflops must be 0 or more")
        values = (worth.quality, *worth.quality_quantiles)
        require(all(0 <= v <= 1 for v in values), f"{at}: quality is outside 0..1")
        require(len(worth.quality_quantiles) == 5, f"{at}: quality_quantiles must have 5 values")


def _check_head(head: Head, at: str) -> None:
    require(
        KEY.fullmatch(head.name) is not None,
        f"{at}.name: {head.name!r} must be of a to z, 0 to 9, _ and -, and begin with a letter",
    )
    ascend = all(a < b for a, b in pairwise(head.widths))
    require(
        bool(head.widths) and ascend and head.widths[0] > 0 and head.widths[-1] == 1,
        f"{at}.widths: they must be over 0 and ascend, and the last must be 1",
    )
    # 255 is void in masks.
    require(len(head.classes) <= 255, f"{at}.classes: there must be 255 at most")
    require(all(entry.name for entry in head.classes), f"{at}.classes: a name is empty")
    colors = [v for entry in head.classes for v in entry.color]
    require(all(0 <= v <= 255 for v in colors), f"{at}.classes: a color is outside 0..255")
    if head.thresholds is not None:
        values = (getattr(head.thresholds, key) for key in ("score", "mask", "overlap"))
        require(all(0 <= v <= 1 for v in values), f"{at}.thresholds: a value is outside 0..1")
    if head.range is not None:
        least, most = head.range
        require(
            0 <= least < most < math.inf,
            f"{at}.range: must be of two numbers, from 0 on and ascending",
        )
        require(
            LEAST_END <= most <= LARGEST_END,
            f"{at}.range: its end must be from {LEAST_END} to {LARGEST_END}: choose another unit",
        )
    require(head.unit is None or head.unit.isascii(), f"{at}.unit: {head.unit!r} must be of ASCII")


def require(holds: bool, detail: str) -> None:
    """Raises BundleError unless it holds."""
    if not holds:
        raise BundleError(detail)
