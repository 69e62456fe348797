"""The app without a network: messages go straight to it, and a stub decides what becomes of an
image."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from fastapi import FastAPI

from service.api.app import create_app
from service.bundle import Manifest
from service.core import Ask, Outcome
from service.inference.engine import State
from service.metrics import Metrics
from service.segmenting import Answer as Served
from service.segmenting import Segmenter
from service.settings import Settings
from service.trace import Trace
from tests.serving import metrics_of, segmenter_of

Headers = dict[str, str]
Answer = tuple[int, Headers, bytes]
GONE = {"type": "http.disconnect"}
PNG = {"content-type": "image/png"}


def body(data: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


def scope(
    method: str = "GET", path: str = "/", headers: Headers | None = None, query: str = ""
) -> dict[str, Any]:
    fields = [
        (name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()
    ]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(b"host", b"test"), *fields],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }


async def call(
    app: Any,
    given: dict[str, Any],
    *messages: dict[str, Any],
    then: Awaitable[object] | None = None,
) -> Any:
    """Send messages and collect the answer; None when the app gave none. then: what to await before
    disconnecting."""
    pending, sent = list(messages) or [body(b"")], []

    async def receive() -> dict[str, Any]:
        if pending:
            return pending.pop(0)
        await (then or asyncio.Event().wait())
        return GONE

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(given, receive, send)
    if not sent:
        return None
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])


class Stub(Segmenter):
    """A segmenter without an engine: `become` decides what happens to an image."""

    become: Callable[[Trace], Awaitable[Outcome]]

    @property
    def state(self) -> State:
        return self.model.engine.state

    @state.setter
    def state(self, state: State) -> None:
        self.model.engine.state = state

    def start(self) -> None:
        self.state = "ready"

    async def drain(self, timeout_s: float) -> None:
        self.state = "draining"

    def place(self, ask: Ask, *_: Any, **__: Any) -> Any:
        self.model.engine.check_ready()
        self.model.policies.check(ask)
        self.model.policies.of(ask.preference).affordable(ask.budget, self.model.node_budget)
        return nullcontext()

    def received(self, ticket: Any) -> None:
        """There is no place that could be given away."""

    async def run(self, ticket: Any, trace: Trace) -> Served:
        outcome = await self.become(trace)
        return Served.of(outcome, self.model.manifest, self.model.tasks, trace.stages)


def stubbed(
    manifest: Manifest,
    become: Callable[[Trace], Awaitable[Outcome]] | None = None,
    settings: Settings | None = None,
) -> tuple[FastAPI, Stub, Metrics]:
    """The app, its segmenter and its metrics. become: what an image becomes, given its trace."""
    settings = settings or Settings()
    metrics = metrics_of(manifest, settings)
    model = segmenter_of(manifest, settings, metrics=metrics).model
    model.submit = lambda *_: None  # type: ignore[method-assign]  # there is no place
    segmenter = Stub(model, settings)
    if become is not None:
        segmenter.become = become
    return create_app(settings, segmenter, metrics), segmenter, metrics


@asynccontextmanager
async def started(app: FastAPI) -> AsyncIterator[FastAPI]:
    async with app.router.lifespan_context(app):
        yield app


def ask(app: FastAPI, given: dict[str, Any], *messages: dict[str, Any]) -> Answer:
    async def run() -> Any:
        async with started(app):
            return await call(app, given, *messages)

    answer: Answer = asyncio.run(run())
    return answer


def post(**headers: str) -> dict[str, Any]:
    return scope(
        "POST",
        "/segment",
        {"content-type": "image/png"} | {k.replace("_", "-"): v for k, v in headers.items()},
    )


def counted(metrics: Metrics, outcome: str) -> float | None:
    return metrics.registry.get_sample_value("fathom_requests_total", {"outcome": outcome})


def get(app: FastAPI, path: str) -> Answer:
    return ask(app, scope(path=path))
