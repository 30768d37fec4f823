"""Trace context in record headers."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Literal

import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kstream_agg.core.settings import TelemetrySettings
from kstream_agg.core.telemetry import (
    Telemetry,
    context_from_headers,
    is_sampled,
    traceparent_header,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan


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


class BlockedExporter(SpanExporter):
    """An exporter whose collector never answers, until the test lets it."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.released = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        del spans
        self.asked.set()
        self.released.wait()
        return SpanExportResult.SUCCESS


def test_a_collector_that_does_not_answer_holds_nothing_up() -> None:
    exporter = BlockedExporter()
    settings = TelemetrySettings(exporter="zipkin", sample_ratio=1.0)
    telemetry = Telemetry(settings, "raw-producer", exporter=exporter)
    try:
        for _ in range(10_000):
            telemetry.tracer.start_span("produce_to_kafka").end()
        assert exporter.asked.wait(30)
        assert not exporter.released.is_set()
    finally:
        exporter.released.set()
        telemetry.shutdown()


@pytest.mark.parametrize(
    ("exporter", "path", "content_type"),
    [
        ("zipkin", "/api/v2/spans", "application/json"),
        ("otlp", "/v1/traces", "application/x-protobuf"),
    ],
)
def test_each_exporter_speaks_its_protocol(
    exporter: Literal["zipkin", "otlp"], path: str, content_type: str
) -> None:
    received: list[tuple[str, str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, self.headers["Content-Type"], body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Requests are asserted, not printed."""

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            endpoint = f"http://127.0.0.1:{server.server_address[1]}{path}"
            settings = TelemetrySettings(exporter=exporter, endpoint=endpoint, sample_ratio=1.0)
            telemetry = Telemetry(settings, "agg-producer")
            telemetry.tracer.start_span("consume_payload").end()
            telemetry.shutdown()
        finally:
            server.shutdown()
            thread.join()
    [(asked, sent_as, body)] = received
    assert (asked, sent_as) == (path, content_type)
    assert b"consume_payload" in body
    assert b"agg-producer" in body
