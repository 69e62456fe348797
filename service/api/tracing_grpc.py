"""Spans over gRPC. Imported only when asked for: its packages are the extra tracing-grpc."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SpanExporter

from service.api.tracing import checked


def exporter(endpoint: str) -> SpanExporter:
    """The exporter to a collector's base URL; http:// is without TLS. Raises SettingsError."""
    checked(endpoint)
    made: SpanExporter = OTLPSpanExporter(endpoint)
    return made
