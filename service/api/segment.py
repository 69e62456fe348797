"""POST /segment: from the request's fields and body to the answer of a Segmenter."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.api import selection
from service.api.body import Intake
from service.api.fields import (
    FIELD,
    PREFERENCE,
    PRIORITY,
    VALUE_RANGE,
    names_the_header,
    parse_budget,
    parse_preference,
    parse_urgency,
    parse_value_range,
)
from service.core import Ask
from service.errors import FathomError
from service.metrics import Metrics
from service.segmenting import Segmenter
from service.trace import Trace

_T = TypeVar("_T")


class SegmentRoute:
    """The handler; openapi.py describes the route."""

    def __init__(self, segmenter: Segmenter, intake: Intake, metrics: Metrics) -> None:
        self._segmenter, self._intake, self._metrics = segmenter, intake, metrics
        self._model = segmenter.model

    async def segment(self, request: Request) -> Response:
        request.state.vary = f"Accept, {FIELD}, {PREFERENCE}, {VALUE_RANGE}"
        outcome = FathomError.problem
        try:
            response = await self._segment(request, request.state.trace)
            outcome = "ok"
            return response
        except FathomError as error:
            outcome = error.problem
            if error.shed:
                self._metrics.shed(error.shed)
            raise
        except (ClientDisconnect, asyncio.CancelledError):
            outcome = "cancelled"
            raise
        finally:
            observe(self._metrics, request, outcome)

    async def _segment(self, request: Request, trace: Trace) -> Response:
        # Whatever can be refused is refused before the body is read.
        form = selection.negotiate(request.headers.getlist("accept"))
        query = selection.parse_query(request.query_params.multi_items(), form)
        ask = Ask(
            parse_budget(request.headers.getlist(FIELD)),
            parse_value_range(request.headers.getlist(VALUE_RANGE)),
            parse_urgency(request.headers.getlist(PRIORITY)),
            parse_preference(request.headers.getlist(PREFERENCE)),
        )
        place, model = self._segmenter.place(ask, trace, request.state.arrived), self._model
        with names_the_header():
            model.policies.check(ask)
        names = selection.answered(
            form, query.head, model.policies.shares(ask.preference), model.tasks
        )
        with names_the_header(), place as ticket:
            async with self._intake.receive(request) as upload:
                self._segmenter.received(ticket)
                decoding = self._segmenter.decode(upload.data, upload.content_type, trace, ask)
                del upload  # its bytes are free once they are decoded
                frames = await while_connected(request, decoding)
            running = self._segmenter.run(ticket, frames, trace)
            del frames
            answer = await while_connected(request, running)
            rendering = self._segmenter.in_thread(lambda: form.render(answer, names, query.include))
            made = await while_connected(request, rendering)
        trace.add(made.span.stage, made.span.began, made.span.ended)
        media_type = made.media_type or form.media_type
        return Response(made.body, media_type=media_type, headers=dict(made.fields))


def observe(metrics: Metrics, request: Request, outcome: str) -> None:
    """Count a finished request, and log its line."""
    trace: Trace = request.state.trace
    trace.trace_id, trace.sampled = getattr(request.state, "traced", ("", False))
    metrics.observe(trace, outcome, time.perf_counter() - request.state.arrived)


async def while_connected(request: Request, work: Coroutine[object, object, _T]) -> _T:
    """The result of `work`. If the client leaves, cancel it and raise ClientDisconnect.

    The request's body must have been read.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
