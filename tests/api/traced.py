"""The app with tracing, and where its spans go."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from service.api.app import create_app
from service.api.tracing import Tracing
from service.bundle import Manifest
from service.engines.fake import FakeBackend
from service.labels import STAGES
from service.settings import Settings
from tests.api.asgi import body, call, started
from tests.pictures import flat
from tests.serving import metrics_of, segmenter_of

WAIT_S = 30.0
# The stages of an image whose plan has the canvas of the glance: its front ran as the glance.
ON_THE_GLANCE = tuple(stage for stage in STAGES if stage != "glance")


class World:
    """The app with a real engine thread and a slow fake engine, and where its spans go."""

    def __init__(
        self, manifest: Manifest, to: SpanExporter | None = None, sample: float = 1.0
    ) -> None:
        self.kept = InMemorySpanExporter()
        depths = {plan.name: plan.depth for plan in manifest.encoder_plans}
        delay_s: dict[str, float] = {}
        for graphs in manifest.graphs.values():
            delay_s |= {graphs.front: 0.004} | dict.fromkeys(graphs.heads.values(), 0.002)
            delay_s |= {stage: 0.003 * depths[plan] for plan, stage in graphs.encoders.items()}
        self.backend = FakeBackend(manifest, delay_s=delay_s)
        settings = replace(Settings(), batch_wait_ms=50.0, drain_timeout_s=5.0)
        self.metrics = metrics_of(manifest, settings)
        self.segmenter = segmenter_of(
            manifest, settings, backend=self.backend, metrics=self.metrics
        )
        tracing = Tracing(to or self.kept, sample=sample, version="1")
        self.app: FastAPI = create_app(settings, self.segmenter, self.metrics, tracing=tracing)

    def ask(self, *requests: dict[str, Any]) -> list[Any]:
        """Send these together to the started app, and end it, which sends the spans."""

        async def run() -> list[Any]:
            async with self.ready():
                return list(
                    await asyncio.gather(*(call(self.app, each, body(flat())) for each in requests))
                )

        return asyncio.run(run())

    @asynccontextmanager
    async def ready(self) -> AsyncIterator[None]:
        async with asyncio.timeout(WAIT_S), started(self.app):
            while self.segmenter.model.state != "ready":
                await asyncio.sleep(0.002)
            yield

    @property
    def servers(self) -> list[ReadableSpan]:
        return [span for span in self.kept.get_finished_spans() if span.kind is SpanKind.SERVER]

    def below(self, span: ReadableSpan) -> list[ReadableSpan]:
        return [each for each in self.kept.get_finished_spans() if each.parent == span.context]


def parent_of(answer: Any) -> tuple[str, str, bool]:
    """The answer's trace id, span id, and whether it is sampled. Beside that bit, 2 says that the
    id is random."""
    match = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-0([0-3])", answer[1]["traceparent"])
    assert match is not None, answer[1]
    return match[1], match[2], bool(int(match[3]) & 1)
