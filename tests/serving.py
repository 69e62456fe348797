"""A segmenter, and the service around it, on an engine of the test's own."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI

from service.api.app import create_app
from service.bundle import Bundle, Manifest
from service.core import Ask, Frames
from service.engines.base import Backend
from service.engines.fake import FakeBackend
from service.metrics import Metrics
from service.model import Model, metrics_of
from service.segmenting import Answer, Segmenter
from service.settings import Settings
from service.trace import Trace


def segmenter_of(
    manifest: Manifest,
    settings: Settings | None = None,
    *,
    backend: Backend | None = None,
    metrics: Metrics | None = None,
) -> Segmenter:
    """Not started yet. backend: the fake one if there is none."""
    chosen = settings or Settings()
    engine = backend or FakeBackend(manifest)
    counted = metrics or metrics_of(manifest, chosen)
    model = Model(Bundle(Path(), manifest, "0" * 64), chosen, counted, lambda: engine)
    return Segmenter(model, chosen)


async def answered(
    segmenter: Segmenter, frames: Frames, ask: Ask, trace: Trace, arrived: float
) -> Answer:
    """An image from its place to its answer, as a transport does it."""
    with segmenter.place(ask, trace, arrived) as ticket:
        segmenter.received(ticket)
        segmenter.model.submit(ticket, frames)
        return await segmenter.run(ticket, trace)


def app_of(
    manifest: Manifest,
    settings: Settings | None = None,
    *,
    backend: Backend | None = None,
    metrics: Metrics | None = None,
) -> FastAPI:
    """The service over HTTP; its lifespan starts the engine."""
    chosen = settings or Settings()
    counted = metrics or metrics_of(manifest, chosen)
    segmenter = segmenter_of(manifest, chosen, backend=backend, metrics=counted)
    return create_app(chosen, segmenter, counted)
