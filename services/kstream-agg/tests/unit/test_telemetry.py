"""Trace context in record headers."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kstream_agg.core.settings import TelemetrySettings
from kstream_agg.core.telemetry import (
    Telemetry,
    context_from_headers,
    is_sampled,
    traceparent_header,
)


def test_a_consumer_continues_the_producers_trace() -> None:
    exporter = InMemorySpanExporter()
    telemetry = Telemetry(
        TelemetrySettings(exporter="zipkin", sample_ratio=1.0), "raw-producer", exporter=exporter
    )
    with telemetry.tracer.start_as_current_span("produce_to_kafka") as span:
        header = traceparent_header(span)
    assert is_sampled(header)
    context = context_from_headers([("other", b"x"), ("traceparent", header)])
    with telemetry.tracer.start_as_current_span("consume_payload", context=context):
        pass
    telemetry.shutdown()
    produce, consume = exporter.get_finished_spans()
    assert produce.context is not None
    assert consume.context is not None
    assert consume.parent is not None
    assert consume.context.trace_id == produce.context.trace_id
    assert consume.parent.span_id == produce.context.span_id


def test_without_exporter_a_context_is_still_made_but_not_sampled() -> None:
    telemetry = Telemetry(TelemetrySettings(exporter="none", sample_ratio=1.0), "x")
    with telemetry.tracer.start_as_current_span("produce_to_kafka") as span:
        header = traceparent_header(span)
    telemetry.shutdown()
    version, trace_id, span_id, flags = header.decode().split("-")
    assert (version, len(trace_id), len(span_id)) == ("00", 32, 16)
    assert int(flags, 16) & 1 == 0
    assert int(trace_id, 16) != 0
    assert not is_sampled(header)


@pytest.mark.parametrize(
    "header", [b"", b"00-xyz", b"0" * 55, b"00-" + b"g" * 32 + b"-" + b"0" * 16 + b"-01"]
)
def test_malformed_contexts_are_ignored(header: bytes) -> None:
    assert context_from_headers([("traceparent", header)]) is None
