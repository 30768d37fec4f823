"""Turns what a source has received into records and hands them to the Kafka writer."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from kstream_agg.core.errors import InvalidRecordError
from kstream_agg.core.metrics import (
    DEAD_LETTERS,
    SOURCE_LAG_SECONDS,
    TRADES_RECEIVED,
    UNKNOWN_KEYS,
)
from kstream_agg.core.names import channel_topic, dead_letter_topic
from kstream_agg.core.telemetry import TRACEPARENT, traceparent_header
from kstream_agg.deribit.frames import TradeBatch
from kstream_agg.deribit.trade_encoder import TradeEncoder
from kstream_agg.kafka.dlq import error_headers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.trace import Span, Tracer

    from kstream_agg.core.metrics import Metrics
    from kstream_agg.deribit.events import BadFrame
    from kstream_agg.deribit.handover import Receipt
    from kstream_agg.kafka.writer import Headers, RecordWriter

__all__ = ["SIMULATED", "TradePublisher"]

SIMULATED: Final = "simulated"
"""Header of records that come from a simulator; its value is `true`."""

# Brokers take 1 MiB a record by default; key, headers and framing need some of it.
_MAX_VALUE_BYTES: Final = 900_000
_CHANNEL_IN_FRAME: Final = re.compile(rb'"channel"\s*:\s*"(trades\.[^"]+)"')


@dataclass(frozen=True, slots=True)
class _Route:
    topic: str
    encoder: TradeEncoder
    dead_letters: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dead_letters", dead_letter_topic(self.topic))


class TradePublisher:
    """Publishes receipts; used by one thread.

    Args:
        writer: The Kafka producer.
        channels: The channels of the settings.
        schema_ids: Topic → id of its RawTrade schema.
        metrics: Counts trades and dead letters.
        tracer: Makes a span `produce_to_kafka` a receipt.
    """

    def __init__(
        self,
        writer: RecordWriter,
        channels: Sequence[str],
        schema_ids: Mapping[str, int],
        metrics: Metrics,
        tracer: Tracer,
    ) -> None:
        self._writer = writer
        encoders = {topic: TradeEncoder(schema_id) for topic, schema_id in schema_ids.items()}
        topics = {channel: channel_topic(channel) for channel in channels}
        self._routes = {
            channel: _Route(topic, encoders[topic]) for channel, topic in topics.items()
        }
        self._tracer = tracer
        trades = metrics.counter(TRADES_RECEIVED)
        self._trades = {channel: trades.labels(channel) for channel in channels}
        self._unknown_keys = metrics.counter(UNKNOWN_KEYS)
        self._dead_letters = metrics.counter(DEAD_LETTERS)
        self._lag = metrics.gauge(SOURCE_LAG_SECONDS)
        self._queued = 0
        self._open_spans: deque[tuple[int, Span]] = deque()

    @property
    def has_open_spans(self) -> bool:
        """Whether sampled spans wait for their records' delivery."""
        return bool(self._open_spans)

    def publish(self, receipt: Receipt) -> None:
        """Queue the records of one receipt.

        Raises:
            DeliveryError: Kafka does not take records any more.
        """
        span = self._tracer.start_span(
            "produce_to_kafka",
            context=Context(),
            kind=SpanKind.PRODUCER,
            start_time=receipt.received_at_ms * 1_000_000,
        )
        headers: Headers = [(TRACEPARENT, traceparent_header(span))]
        if receipt.simulated:
            headers.append((SIMULATED, b"true"))
        content = receipt.content
        if isinstance(content, TradeBatch):
            self._publish_trades(content, receipt, headers, span)
        else:
            self._publish_frame(content, headers)
        if span.is_recording():
            self._open_spans.append((self._queued, span))
        else:
            span.end()

    def end_spans(self) -> None:
        """End the spans whose records are delivered.

        Deliveries are counted, not matched: a span ends when as many records are acknowledged as
        had been queued with its last one.
        """
        while self._open_spans and self._writer.delivered >= self._open_spans[0][0]:
            self._open_spans.popleft()[1].end()

    def _publish_trades(
        self, batch: TradeBatch, receipt: Receipt, headers: Headers, span: Span
    ) -> None:
        route = self._routes[batch.channel]
        shared = route.encoder.receipt(receipt.received_at_ms, receipt.source)
        produce, encode, topic = self._writer.produce, route.encoder.encode, route.topic
        extras = batch.extras
        for position, trade in enumerate(batch.trades):
            value = encode(trade, shared, extras.get(position) if extras else None)
            if len(value) > _MAX_VALUE_BYTES:
                error = InvalidRecordError(f"the record has {len(value)} bytes", stage="encode")
                self._set_aside(route, value, error, headers)
                continue
            produce(topic, value, key=trade.instrument_name.encode(), headers=headers)
            self._queued += 1
        for rejected in batch.rejected:
            self._set_aside(route, rejected.wire, rejected.error, headers)
        self._trades[batch.channel].inc(len(batch.trades))
        if extras:
            self._unknown_keys.inc(len(extras))
        if batch.trades:
            self._lag.set((receipt.received_at_ms - batch.trades[-1].timestamp) / 1000)
        if span.is_recording():
            span.set_attribute("messaging.destination.name", topic)
            span.set_attribute("deribit.channel", batch.channel)
            span.set_attribute("messaging.batch.message_count", len(batch.trades))

    def _publish_frame(self, bad: BadFrame, headers: Headers) -> None:
        found = _CHANNEL_IN_FRAME.search(bad.frame)
        named = found[1].decode("utf-8", "replace") if found else ""
        # Where no channel can be read, the first topic's dead letters are as good as another's.
        route = self._routes.get(named) or next(iter(self._routes.values()))
        self._set_aside(route, bad.frame, bad.error, headers)

    def _set_aside(self, route: _Route, value: bytes, error: Exception, headers: Headers) -> None:
        stage = error.stage if isinstance(error, InvalidRecordError) else "decode"
        headers = [*headers, *error_headers(error, stage)]
        if len(value) > _MAX_VALUE_BYTES:
            headers.append(("truncated.from_bytes", str(len(value)).encode()))
            value = value[:_MAX_VALUE_BYTES]
        self._writer.produce(route.dead_letters, value, headers=headers)
        self._queued += 1
        self._dead_letters.labels(route.dead_letters, stage).inc()
