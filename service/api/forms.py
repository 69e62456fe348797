"""The forms of an answer, one row each: which one `Accept` selects, and what `include` adds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias

from service.api import schemas
from service.api.fields import FIELD
from service.core import Span
from service.errors import BadHeader, BadQuery, NotAcceptable
from service.segmenting import Answer

INCLUDES = frozenset({"paused"})
Rendered: TypeAlias = tuple[bytes, Span]


@dataclass(frozen=True, slots=True)
class Form:
    """One form of an answer.

    render: makes the body and times the stage "mask". It runs outside the event loop.
    includes: what `include` may add.
    """

    media_type: str
    render: Callable[[Answer, Set[str]], Rendered]
    includes: Set[str] = frozenset()


def _json(answer: Answer, include: Set[str]) -> Rendered:
    began = time.perf_counter()
    segments = [schemas.segment(segment) for segment in answer.segments]
    paused = schemas.paused(answer.paused) if "paused" in include else None
    span = Span("mask", began, time.perf_counter())
    body = schemas.segmentation(answer, segments, paused, span)
    return body.model_dump_json(exclude=set(INCLUDES - include)).encode(), span


def _png(answer: Answer, include: Set[str]) -> Rendered:
    began = time.perf_counter()
    body = answer.png()
    return body, Span("mask", began, time.perf_counter())


FORMS = (Form("application/json", _json, includes=INCLUDES), Form("image/png", _png))


def negotiate(accept: Sequence[str]) -> Form:
    """The form that the lines of `Accept` prefer; among equals, or without a line, the first one.

    A form's weight is that of the most specific range that matches it (RFC 9110, 12.5.1). Raises
    NotAcceptable, or BadHeader for a weight that is not a number from 0 to 1.
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
                f"The query has the key '{key}', but the only key is 'include'; "
                f"the budget belongs in {FIELD}",
                key=key,
            )
        if value not in INCLUDES:
            raise BadQuery(
                f"include is '{value}', but it can only be {' or '.join(INCLUDES)}", key=key
            )
        if value not in form.includes:
            raise BadQuery(
                f"include={value} adds to JSON, but the answer would be {form.media_type}", key=key
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
