"""The forms of an answer, one row each, which one a request's `Accept` asks for, and what `include`
adds to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from service.api import schemas
from service.api.fields import FIELD
from service.bundle import Manifest
from service.core import Outcome, Trace
from service.errors import BadHeader, BadQuery, NotAcceptable
from service.tasks import semantic as masks

INCLUDES = frozenset({"paused"})


@dataclass(frozen=True, slots=True)
class Form:
    """render: the body of an answer. It writes the stage "mask" into the trace, and runs outside of
    the event loop.

    includes: what `include` may add.
    """

    media_type: str
    render: Callable[[Outcome, Trace, Manifest, Set[str]], bytes]
    includes: Set[str] = frozenset()


def _json(outcome: Outcome, trace: Trace, manifest: Manifest, include: Set[str]) -> bytes:
    began = time.perf_counter()
    found = masks.to_segments(outcome, manifest)
    paused = masks.paused_area(outcome, manifest.input) if "paused" in include else None
    trace.stages["mask"] = time.perf_counter() - began
    answer = schemas.segmentation(outcome, found, paused, trace, manifest)
    return answer.model_dump_json(exclude=set(INCLUDES - include)).encode()


def _png(outcome: Outcome, trace: Trace, manifest: Manifest, include: Set[str]) -> bytes:
    began = time.perf_counter()
    body = masks.to_png(outcome, manifest)
    trace.stages["mask"] = time.perf_counter() - began
    return body


FORMS = (Form("application/json", _json, includes=INCLUDES), Form("image/png", _png))


def choose(accept: Sequence[str]) -> Form:
    """The form that the lines of `Accept` prefer; the first row of the table among equals and when
    there is no line.

    A form's weight is that of the most specific range that matches it (RFC 9110, 12.5.1). Raises
    NotAcceptable, or BadHeader for a weight that is no number from 0 to 1.
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


def included(query: Sequence[tuple[str, str]], form: Form) -> Set[str]:
    """What the query adds to an answer of this form. Raises BadQuery that names the key."""
    for key, value in query:
        if key != "include":
            raise BadQuery(
                f"The query has the key '{key}', but the only one is 'include': the budget goes "
                f"into {FIELD}",
                key=key,
            )
        if value not in INCLUDES:
            raise BadQuery(
                f"include is '{value}', but it can only be {' or '.join(INCLUDES)}", key=key
            )
        if value not in form.includes:
            raise BadQuery(
                f"include={value} adds to JSON, but the answer is to be {form.media_type}", key=key
            )
    return {value for _, value in query}


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
                raise BadHeader(
                    f"Accept: the weight q={value} must be from 0 to 1", header="Accept", key="q"
                )
            return media, weight
    return media, 1.0


def _weight(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    weights = dict(ranges)
    for candidate in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        if candidate in weights:
            return weights[candidate]
    return 0.0
