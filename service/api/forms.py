"""The forms of an answer, one row each: which one `Accept` selects, and what `include` adds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias

from service.answer import Answer
from service.api import interchange, schemas
from service.api.fields import FIELD
from service.api.image_info import Wire
from service.api.interchange import Told
from service.errors import BadHeader, BadQuery, NotAcceptable
from service.trace import Span

INCLUDES = frozenset({"paused"})
Rendered: TypeAlias = tuple[bytes, Span]
Ranges: TypeAlias = dict[tuple[str, str], float]  # (type, profile or "") of Accept -> weight


@dataclass(frozen=True, slots=True)
class Form:
    """One form of an answer.

    media_type: if it has a profile, only a range with that profile, or without one, asks for it.
    holds: what it is, for people.
    render: makes the body and times the stage "mask". It runs outside the event loop.
    includes: what `include` may add.
    model: of a form in JSON.
    """

    media_type: str
    holds: str
    render: Callable[[Answer, Set[str]], Rendered]
    includes: Set[str] = frozenset()
    model: type[Wire] | None = None

    @property
    def matches(self) -> tuple[tuple[str, str], ...]:
        """The ranges of `Accept` that it fits, the most specific first."""
        media, _, profile = self.media_type.partition(";profile=")
        wider = ((media, ""), (media.partition("/")[0] + "/*", ""), ("*/*", ""))
        return ((media, profile), *wider) if profile else wider


def _json(answer: Answer, include: Set[str]) -> Rendered:
    began = time.perf_counter()
    segments = [schemas.segment(segment) for segment in answer.segments]
    paused = schemas.paused(answer.paused_runs) if "paused" in include else None
    span = Span("mask", began, time.perf_counter())
    body = schemas.segmentation(answer, segments, paused, span)
    return body.model_dump_json(exclude=set(INCLUDES - include)).encode(), span


def _timed(body: Callable[[Answer], bytes]) -> Callable[[Answer, Set[str]], Rendered]:
    """A form that is made in one step."""

    def render(answer: Answer, include: Set[str]) -> Rendered:
        began = time.perf_counter()
        return body(answer), Span("mask", began, time.perf_counter())

    return render


def _interchange(make: Callable[[Answer, Told], Wire]) -> Callable[[Answer, Set[str]], Rendered]:
    """A form in JSON that says of the image what the first one does."""

    def body(answer: Answer) -> bytes:
        now = time.perf_counter()
        whole = schemas.segmentation(answer, [], None, Span("mask", now, now))
        told = Told(image=whole.image, task=whole.task, usage=whole.usage)
        return make(answer, told).model_dump_json().encode()

    return _timed(body)


FORMS = (
    Form(
        "application/json",
        "segments with COCO run lengths",
        _json,
        includes=INCLUDES,
        model=schemas.Segmentation,
    ),
    Form("image/png", "label map", _timed(Answer.png)),
    Form(
        "image/png;profile=overlay",
        "the segments' colours, half transparent, to lay over the image",
        _timed(Answer.overlay_png),
    ),
    Form(
        "application/vnd.coco.panoptic+json",
        "COCO panoptic: segments_info, categories and the PNG in base64",
        _interchange(interchange.panoptic),
        model=interchange.Panoptic,
    ),
    Form(
        "application/geo+json",
        "GeoJSON polygons with holes, in pixels, y down",
        _interchange(interchange.feature_collection),
        model=interchange.FeatureCollection,
    ),
    Form(
        "application/x-npz",
        "probabilities per channel on the decoder's cells, numpy's archive",
        _timed(Answer.npz),
    ),
)


def negotiate(accept: Sequence[str]) -> Form:
    """The form that the lines of `Accept` prefer; among equals, or without a line, the first one.

    A form's weight is that of the most specific range that matches it (RFC 9110, 12.5.1). Raises
    NotAcceptable, or BadHeader for a weight that is not a number from 0 to 1.
    """
    ranges = dict(_range(entry) for line in accept for entry in line.split(",") if entry.strip())
    if not ranges:
        return FORMS[0]
    weights = [_weight(form, ranges) for form in FORMS]
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


def _range(entry: str) -> tuple[tuple[str, str], float]:
    """One media range, its profile or "", and its weight; other parameters do not matter here."""
    media, *parameters = (part.strip().lower() for part in entry.split(";"))
    profile = ""
    for name, _, value in (parameter.partition("=") for parameter in parameters):
        if name.strip() == "profile":
            profile = value.strip().strip('"')
        if name.strip() == "q":
            try:
                weight = float(value)
            except ValueError:
                weight = -1.0
            if not 0 <= weight <= 1:
                raise BadHeader(
                    f"Accept: the weight q={value} must be from 0 to 1", header="Accept", key="q"
                )
            return (media, profile), weight
    return (media, profile), 1.0


def _weight(form: Form, ranges: Ranges) -> float:
    return next((ranges[match] for match in form.matches if match in ranges), 0.0)
