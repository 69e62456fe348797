"""The forms of an answer, one row each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TypeAlias

from service.answer import Answer
from service.api import interchange, schemas
from service.api.fields import VALUE_SCALE, format_scale
from service.api.image_info import Wire, image_info
from service.api.interchange import Told
from service.api.json_answer import segmentation, usage
from service.api.mixed import mixed
from service.tasks import Masks, Shown, Values
from service.trace import Span

INCLUDES = frozenset({"paused", "values"})


@dataclass(frozen=True, slots=True)
class Rendered:
    """A body, and the stage that made it. media_type: None: that of its form. fields: of the
    header."""

    body: bytes
    span: Span
    media_type: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)


# Of an answer, the heads with these names, and what `include` adds.
Render: TypeAlias = Callable[[Answer, Sequence[str], Set[str]], Rendered]


@dataclass(frozen=True, slots=True)
class Form:
    """One form of an answer.

    media_type: if it has a profile, only a range with that profile, or without one, asks for it.
    holds: what it is, for people.
    render: makes the body and times the stage "mask". It runs outside the event loop.
    takes: the kind of what one head says that it can hold; None: any, and several heads.
    includes: what `include` may add.
    model: of a form in JSON.
    """

    media_type: str
    holds: str
    render: Render
    takes: tuple[type[Shown], ...] | None = None
    includes: Set[str] = frozenset()
    model: type[Wire] | None = None

    @property
    def matches(self) -> tuple[tuple[str, str], ...]:
        """The ranges of `Accept` that it fits, the most specific first."""
        media, _, profile = self.media_type.partition(";profile=")
        wider = ((media, ""), (media.partition("/")[0] + "/*", ""), ("*/*", ""))
        return ((media, profile), *wider) if profile else wider


def _json(answer: Answer, names: Sequence[str], include: Set[str]) -> Rendered:
    return Rendered(*segmentation(answer, names, include))


def _mixed(answer: Answer, names: Sequence[str], include: Set[str]) -> Rendered:
    return Rendered(*mixed(answer, names))


def _of_one(body: Callable[[Answer], bytes]) -> Render:
    """A form of one head that is made in one step."""

    def render(answer: Answer, names: Sequence[str], include: Set[str]) -> Rendered:
        (name,) = names
        began, own = time.perf_counter(), answer.heads[name]
        made = body(own)
        fields = {}
        if isinstance(own.shown, Values):
            fields[VALUE_SCALE] = format_scale(own.values.scale, own.values.unit)
        return Rendered(made, Span("mask", began, time.perf_counter()), fields=fields)

    return render


def _interchange(make: Callable[[Answer, Told], Wire]) -> Render:
    """A form in JSON that says of the image what the first one does."""

    def body(answer: Answer) -> bytes:
        several = len(answer.manifest.heads) > 1
        told = Told(
            image=image_info(answer.geometry),
            head=answer.name if several else None,
            task=answer.task.name,
            usage=usage(answer),
        )
        left_out = set() if several else {"head"}
        return make(answer, told).model_dump_json(exclude=left_out).encode()

    return _of_one(body)


FORMS = (
    Form(
        "application/json",
        "segments with COCO run lengths, boxes, statistics of values",
        _json,
        includes=INCLUDES,
        model=schemas.Segmentation,
    ),
    Form("image/png", "label map, or values", _of_one(Answer.png), (Masks, Values)),
    Form(
        "image/png;profile=overlay",
        "the segments' colours, half transparent, to lay over the image",
        _of_one(Answer.overlay_png),
        (Masks,),
    ),
    Form(
        "application/vnd.coco.panoptic+json",
        "COCO panoptic: segments_info, categories and the PNG in base64",
        _interchange(interchange.panoptic),
        (Masks,),
        model=interchange.Panoptic,
    ),
    Form(
        "application/geo+json",
        "GeoJSON polygons with holes, in pixels, y down",
        _interchange(interchange.feature_collection),
        (Masks,),
        model=interchange.FeatureCollection,
    ),
    Form(
        "application/x-npz",
        "probabilities per channel on the decoder's cells, numpy's archive",
        _of_one(Answer.npz),
        (Masks,),
    ),
    Form(
        "multipart/mixed",
        "answer.json, then a part per head: the PNG of masks or values, the JSON of boxes",
        _mixed,
    ),
)
