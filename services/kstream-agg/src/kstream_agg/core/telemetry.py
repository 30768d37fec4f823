"""Traces: W3C context in the record headers, spans to Zipkin or an OTLP collector.

Spans are exported by a background thread from a bounded queue that drops when full: tracing
never blocks the data. With exporter `none` contexts are still made and passed on, unsampled, so
that every record carries a `traceparent` (https://www.w3.org/TR/trace-context/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

    from kstream_agg.core.settings import TelemetrySettings

__all__ = [
    "TRACEPARENT",
    "Telemetry",
    "context_from_headers",
    "is_sampled",
    "traceparent_header",
]

TRACEPARENT: Final = "traceparent"
_DEFAULT_ENDPOINTS: Final = {
    "zipkin": "http://127.0.0.1:9411/api/v2/spans",
    "otlp": "http://127.0.0.1:4318/v1/traces",
}


class Telemetry:
    """The tracer of one service.

    Args:
        settings: Exporter, endpoint and sampling.
        service: `service.name` of its spans.
        exporter: Overrides the exporter of the settings; for tests.
    """

    def __init__(
        self, settings: TelemetrySettings, service: str, *, exporter: SpanExporter | None = None
    ) -> None:
        exporter = exporter or _make_exporter(settings)
        sampler = TraceIdRatioBased(settings.sample_ratio) if exporter else ALWAYS_OFF
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: service}),
            sampler=ParentBased(sampler),
            shutdown_on_exit=False,
        )
        if exporter is not None:
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer: Tracer = self._provider.get_tracer("kstream_agg")

    def shutdown(self) -> None:
        """Export what is queued and stop; bounded by the exporter's own time-out."""
        self._provider.shutdown()


def traceparent_header(span: Span) -> bytes:
    """The W3C `traceparent` of a span."""
    context = span.get_span_context()
    text = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
    return text.encode("ascii")


def is_sampled(traceparent: bytes) -> bool:
    """Whether the sender of a `traceparent` recorded its span. Malformed ones count as not."""
    return len(traceparent) == 55 and traceparent[-1:] in b"13579bdf"


def context_from_headers(headers: Iterable[tuple[str, bytes | None]] | None) -> Context | None:
    """The remote parent that a record's headers name; None when there is none that is valid."""
    for key, value in headers or ():
        if key == TRACEPARENT and value is not None and len(value) == 55:
            try:
                _version, trace_id, span_id, flags = value.decode("ascii").split("-")
                context = SpanContext(
                    int(trace_id, 16),
                    int(span_id, 16),
                    is_remote=True,
                    trace_flags=TraceFlags(int(flags, 16)),
                )
            except ValueError:
                return None
            return trace.set_span_in_context(NonRecordingSpan(context))
    return None


def _make_exporter(settings: TelemetrySettings) -> SpanExporter | None:
    if settings.exporter == "none":
        return None
    endpoint = settings.endpoint or _DEFAULT_ENDPOINTS[settings.exporter]
    # Imported here: each exporter costs start-up time that the others need not pay.
    if settings.exporter == "zipkin":
        from opentelemetry.exporter.zipkin.json import ZipkinExporter  # noqa: PLC0415 - see above

        return ZipkinExporter(endpoint=endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - see above
        OTLPSpanExporter,
    )

    return OTLPSpanExporter(endpoint=endpoint)
