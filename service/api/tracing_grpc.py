"""Spans over gRPC. Imported only when asked for: its packages are the extra tracing-grpc."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SpanExporter

from service.api.tracing import checked


def exporter(endpoint: str, setting: str) -> SpanExporter:
    """The exporter to a collector's base URL; http:// is without TLS. setting: what names it.
    Raises SettingsError."""
    checked(endpoint, setting)
    made: SpanExporter = OTLPSpanExporter(endpoint)
    return made
