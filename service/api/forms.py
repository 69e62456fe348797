"""The forms of an answer, one row each, and which one a request's `Accept` asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.api import masks, schemas
from service.bundle import Manifest
from service.core import Outcome, Trace
from service.errors import BadHeader, NotAcceptable


@dataclass(frozen=True, slots=True)
class Form:
    """render: the body of an answer. It writes the stage "mask" into the trace, and runs outside of the event loop."""

    media_type: str
    render: Callable[[Outcome, Trace, Manifest], bytes]


def _json(outcome: Outcome, trace: Trace, manifest: Manifest) -> bytes:
    began = time.perf_counter()
    labels = masks.label_map(outcome, manifest.input)
    found = masks.segments(labels, outcome, manifest)
    trace.stages["mask"] = time.perf_counter() - began
    return schemas.segmentation(outcome, found, trace, manifest).model_dump_json().encode()


def _png(outcome: Outcome, trace: Trace, manifest: Manifest) -> bytes:
    began = time.perf_counter()
    body = masks.index_png(masks.label_map(outcome, manifest.input), manifest.classes)
    trace.stages["mask"] = time.perf_counter() - began
    return body


FORMS = (Form("application/json", _json), Form("image/png", _png))


def choose(accept: Sequence[str]) -> Form:
    """The form that the lines of `Accept` prefer; the first row of the table among equals and when there is no line.

    A form's weight is that of the most specific range that matches it (RFC 9110, 12.5.1). Raises NotAcceptable, or
    BadHeader for a weight that is no number from 0 to 1.
    """
    ranges = [_range(entry) for line in accept for entry in line.split(",") if entry.strip()]
    if not ranges:
        return FORMS[0]
    weights = [_weight(form.media_type, ranges) for form in FORMS]
    best = max(weights)
    if best <= 0:
        offered = [form.media_type for form in FORMS]
        raise NotAcceptable(f"This resource comes as {' or '.join(offered)}", offered=offered)
    return FORMS[weights.index(best)]


def _range(entry: str) -> tuple[str, float]:
    """One media range and its weight; parameters other than q do not matter here."""
    media, *parameters = (part.strip().lower() for part in entry.split(";"))
    for name, _, value in (parameter.partition("=") for parameter in parameters):
        if name.strip() == "q":
            try:
                weight = float(value)
            except ValueError:
                weight = -1.0
            if not 0 <= weight <= 1:
                raise BadHeader(f"Accept: the weight q={value} must be from 0 to 1", header="Accept", key="q")
            return media, weight
    return media, 1.0


def _weight(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    weights = dict(ranges)
    for candidate in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        if candidate in weights:
            return weights[candidate]
    return 0.0
