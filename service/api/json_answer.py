"""The answer of /segment as application/json: what each head says, and what that cost."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Set
from typing import Any

from service.answer import Answer
from service.api.image_info import image_info
from service.api.schemas import (
    Detected,
    HeadSegments,
    HeadValues,
    Measured,
    MeasuredMap,
    Paused,
    Rle,
    Segment,
    Segmentation,
    Usage,
    UsageOfHeads,
)
from service.pixels.rle import RunLengths, run_lengths
from service.pixels.runs import Runs
from service.tasks import Boxes, Values
from service.trace import Span


def segmentation(answer: Answer, names: Iterable[str], include: Set[str]) -> tuple[bytes, Span]:
    """The body, and the stage that made it. names: of the heads that are answered."""
    began = time.perf_counter()
    heads = {name: _head(answer.heads[name], include) for name in names}
    paused = _paused(answer.paused_runs) if "paused" in include else None
    span = Span("mask", began, time.perf_counter())
    stages = {**answer.stages, span.stage: span.ended - span.began}
    several = len(answer.manifest.heads) > 1
    alone = next(iter(heads.values())) if len(heads) == 1 else None
    whole = Segmentation(
        image=image_info(answer.geometry),
        task=None if alone is None else alone.task,
        segments=alone.segments if isinstance(alone, HeadSegments) else None,
        values=alone.values if isinstance(alone, HeadValues) else None,
        heads=heads if several else None,
        usage=usage(answer),
        timing_ms={stage: round(seconds * 1000, 3) for stage, seconds in stages.items()},
        paused=paused,
    )
    left_out = {
        key for key in ("task", "segments", "values", "heads") if getattr(whole, key) is None
    }
    if "paused" not in include:
        left_out.add("paused")
    return whole.model_dump_json(exclude=left_out).encode(), span


def usage(answer: Answer) -> Usage:
    """What every form in JSON says of the cost."""
    used = answer.outcome.usage(answer.manifest.layers)
    return (UsageOfHeads if "heads" in used else Usage).model_validate(used)


def _head(answer: Answer, include: Set[str]) -> HeadSegments | HeadValues:
    told: dict[str, Any] = {
        "task": answer.task.name,
        "weight": round(answer.outcome.shares[answer.name], 4),
        "width": answer.width,
    }
    shown = answer.shown
    if isinstance(shown, Values):
        return HeadValues(**told, values=_measured(shown, with_png="values" in include))
    if isinstance(shown, Boxes):
        found = [Detected.model_validate(each.as_json()) for each in answer.detections]
        return HeadSegments(**told, segments=found)
    segments = [Segment.model_validate(each.as_json()) for each in answer.segments]
    return HeadSegments(**told, segments=segments)


def _measured(values: Values, *, with_png: bool) -> Measured:
    told = {**values.as_json(), "scale": values.scale}
    if with_png:
        png = base64.b64encode(values.png()).decode("ascii")
        return MeasuredMap.model_validate({**told, "png": png})
    return Measured.model_validate(told)


def _paused(runs: Runs | None) -> Paused | None:
    """The JSON form of a map (height, width), 1 = paused."""
    if runs is None:
        return None
    (mask,) = run_lengths(runs, [1])
    height, width = runs.shape
    return Paused(share=round(mask.area / (height * width), 4), rle=_rle(mask))


def _rle(mask: RunLengths) -> Rle:
    return Rle(size=mask.size, counts=mask.counts)
