"""POST /segment: from the request's fields and body to the answer of a Segmenter."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from starlette.datastructures import Headers
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
from service.api.forms import Rendered
from service.api.response_cache import (
    BYPASS,
    COLLAPSED,
    HIT,
    Made,
    ResponseCache,
    bypasses,
    key_of,
)
from service.core import Ask, Budget
from service.inference.ticket import Ticket
from service.metrics import Metrics
from service.model import Model
from service.outcomes import counted
from service.segmenting import Answer, Segmenter
from service.trace import Trace


class SegmentRoute:
    """The handler; openapi.py describes the route. cache: None: every image is computed."""

    def __init__(
        self,
        segmenter: Segmenter,
        intake: Intake,
        metrics: Metrics,
        cache: ResponseCache | None = None,
    ) -> None:
        self._segmenter, self._intake, self._metrics = segmenter, intake, metrics
        self._model, self._cache = segmenter.model, cache

    async def segment(self, request: Request) -> Response:
        request.state.vary = f"Accept, {FIELD}, {PREFERENCE}, {VALUE_RANGE}"

        def afterwards(outcome: str) -> None:
            """Its caller need not wait for that."""
            request.state.afterwards = partial(observe, self._metrics, request, outcome)

        with counted(self._metrics, ClientDisconnect, afterwards):
            return await self._segment(request, request.state.trace)

    async def _segment(self, request: Request, trace: Trace) -> Response:
        # Whatever can be refused is refused before the body is read.
        form = selection.negotiate(request.headers.getlist("accept"))
        query = selection.parse_query(request.query_params.multi_items(), form)
        model = self._model
        ask = ask_of_fields(request.headers, model)
        shares = model.policies.shares(ask.preference)
        names = selection.answered(form, query.head, shares, model.tasks)
        cache = None if bypasses(request.headers.getlist("cache-control")) else self._cache
        with names_the_header(), ExitStack() as connected, ExitStack() as held:
            place = self._segmenter.place(ask, trace, request.state.arrived)
            ticket, key, found = held.enter_context(place), b"", None
            ceilings = model.node_budget
            async with self._intake.receive(request) as upload:
                connected.enter_context(while_connected(request))
                self._segmenter.received(ticket)
                if cache is not None:
                    wanted = (form.media_type, list(names), sorted(query.include))
                    asked = (trace.caller, upload.content_type, ask, ceilings)
                    key = key_of(upload.data, *asked, *wanted)
                    found = cache.find(key)
                if found is None:
                    sent = (upload.data, upload.content_type)
                    waits = ticket if cache is None else None  # else it may need no turn, below
                    decoding = self._segmenter.decode(*sent, trace, ask, waits)
                    del upload, sent  # its bytes are free once they are decoded
                    frames = await decoding
                else:
                    del upload  # what waits for another's answer counts no more
            # While it was decoded, another request for the same answer may have come further.
            if cache is not None and (found := found or cache.find(key)) is not None:
                held.close()  # it needs no turn of its own
                made = await cache.join(found)
                made.tell(trace)
                if isinstance(found, Made):
                    return _response(made, HIT)
                found.adopt(trace)
                return _response(made, COLLAPSED)
            if cache is not None:
                model.submit(ticket, frames)
            del frames  # the ticket has them, until they have run
            work = self._make(
                *(ticket, trace, ceilings),
                lambda answer: form.render(answer, names, query.include),
                form.media_type,
            )
            if cache is None:
                made = await work
                return _response(made, BYPASS if self._cache is not None else "")
            flight = cache.begin(key, work, trace, held.pop_all().close)
            made = await cache.lead(flight)
            return _response(made, cache.status(made))

    async def _make(
        self,
        ticket: Ticket,
        trace: Trace,
        ceilings: Budget,
        render: Callable[[Answer], Rendered],
        media_type: str,
    ) -> Made:
        """Wait for an image that was submitted, and make its answer.

        ceilings: the node's, when it was asked for. media_type: if the answer has none of its own.
        """
        answer = await self._segmenter.run(ticket, trace)
        rendered = await self._segmenter.in_thread(lambda: render(answer))
        trace.add(rendered.span.stage, rendered.span.began, rendered.span.ended)
        return Made(
            rendered.body,
            rendered.media_type or media_type,
            answer.decision,
            trace.batch_size,
            trace.size,
            dict(rendered.fields),
            outdated=self._model.node_budget != ceilings,
        )


def ask_of_fields(headers: Headers, model: Model) -> Ask:
    """What a request's header fields ask for. Raises BadHeader."""
    lines = headers.getlist
    ask = Ask(
        parse_budget(lines(FIELD)),
        parse_value_range(lines(VALUE_RANGE)),
        parse_urgency(lines(PRIORITY)),
        parse_preference(lines(PREFERENCE)),
    )
    with names_the_header():
        model.policies.check(ask)
    return ask


def _response(made: Made, status: str) -> Response:
    """status: `Cache-Status`, if there is a cache."""
    fields = {"Cache-Status": status} if status else {}
    return Response(made.body, headers={**made.fields, **fields}, media_type=made.media_type)


def observe(metrics: Metrics, request: Request, outcome: str) -> None:
    """Count a finished request, and log its line."""
    trace: Trace = request.state.trace
    metrics.observe(trace, outcome, time.perf_counter() - request.state.arrived)


@contextmanager
def while_connected(request: Request) -> Iterator[None]:
    """If the client leaves, the block is cancelled and ends in ClientDisconnect.

    The request's body must have been read.
    """
    task = asyncio.current_task()
    assert task is not None
    gone, cancelling = asyncio.ensure_future(request.receive()), task.cancelling()
    left = over = False

    def leave(_: object) -> None:
        nonlocal left
        if not over:  # where both end at once, this may be on its way when the block has ended
            left = True
            task.cancel()

    gone.add_done_callback(leave)
    try:
        yield
    except asyncio.CancelledError as error:
        if left and task.uncancel() <= cancelling:
            raise ClientDisconnect from error
        raise
    finally:
        over = True
        gone.cancel()
