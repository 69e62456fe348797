"""An answer as multipart/mixed (RFC 2046): the JSON first, then a part per head."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence

from service.answer import Answer
from service.api.fields import VALUE_SCALE, format_scale
from service.api.json_answer import segmentation
from service.tasks import Boxes, Values
from service.trace import Span

MEDIA_TYPE = "multipart/mixed"
JSON, PNG = "application/json", "image/png"


def mixed(answer: Answer, names: Sequence[str]) -> tuple[bytes, Span, str]:
    """The body, the stage that made it, and its media type with the boundary.

    Each part is an attachment whose file name is that of its head: the PNG of masks or of values,
    the JSON of boxes. The first part is answer.json, with all of the heads.
    """
    whole, span = segmentation(answer, names, frozenset())
    parts = [_part("answer.json", JSON, whole)]
    parts += [_of_head(answer.heads[name]) for name in names]
    span = Span(span.stage, span.began, time.perf_counter())
    boundary = secrets.token_hex(16)  # in no part, by all odds
    media_type = f"{MEDIA_TYPE}; boundary={boundary}"
    return _joined(parts, boundary.encode()), span, media_type


def _of_head(answer: Answer) -> bytes:
    shown = answer.shown
    if isinstance(shown, Boxes):
        body, _ = segmentation(answer, [answer.name], frozenset())
        return _part(f"{answer.name}.json", JSON, body)
    more = []
    if isinstance(shown, Values):
        more = [f"{VALUE_SCALE}: {format_scale(shown.scale, shown.unit)}"]
    return _part(f"{answer.name}.png", PNG, answer.png(), more)


def _part(name: str, media_type: str, body: bytes, more: Iterable[str] = ()) -> bytes:
    fields = [
        f"Content-Type: {media_type}",
        f'Content-Disposition: attachment; filename="{name}"',
        f"Content-Length: {len(body)}",
        *more,
    ]
    return "\r\n".join([*fields, "", ""]).encode("ascii") + body


def _joined(parts: Iterable[bytes], boundary: bytes) -> bytes:
    opened = b"".join(b"--%b\r\n%b\r\n" % (boundary, part) for part in parts)
    return b"%b--%b--\r\n" % (opened, boundary)
