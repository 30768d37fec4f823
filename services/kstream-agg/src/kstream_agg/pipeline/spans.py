"""`consume_payload` spans: children of the spans that the incoming records name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from opentelemetry.trace import SpanKind

from kstream_agg.core.telemetry import (
    TRACEPARENT,
    context_from_headers,
    is_sampled,
    traceparent_header,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confluent_kafka import Message
    from opentelemetry.trace import Span, Tracer

    from kstream_agg.pipeline.processor import Partition

__all__ = ["BatchSpans", "record_traceparent"]

# Reading a message's headers costs about as much as decoding the record.
_LOOK_AT: Final = 200


def record_traceparent(message: Message) -> bytes | None:
    """The `traceparent` among a record's headers, if there is one."""
    headers = cast("list[tuple[str, bytes | None]] | None", message.headers())
    for name, value in headers or ():
        if name == TRACEPARENT:
            return value
    return None


class BatchSpans:
    """The spans of one batch: one for each sampled trace among its records.

    Of a large batch only some records, evenly spread, are looked at.

    Args:
        tracer: Makes the spans.
        partition: Where the batch comes from.
    """

    def __init__(self, tracer: Tracer, partition: Partition) -> None:
        self._tracer = tracer
        self._attributes: dict[str, str | int] = {
            "messaging.system": "kafka",
            "messaging.source.name": partition.topic,
            "messaging.kafka.partition": partition.number,
        }
        self._spans: list[Span] = []

    def consume(self, messages: Sequence[Message]) -> None:
        """Begin the spans of the records' traces."""
        seen: set[bytes] = set()
        for message in messages[:: max(1, len(messages) // _LOOK_AT)]:
            value = record_traceparent(message)
            if value is None or value in seen:
                continue
            seen.add(value)
            if is_sampled(value):
                self._begin("consume_payload", value, message.offset() or 0)

    def traceparent(self, name: str = "consume_payload") -> bytes:
        """What results of the batch carry: its first span, or a new one with this name."""
        if not self._spans:
            self._spans.append(self._tracer.start_span(name, attributes=self._attributes))
        return traceparent_header(self._spans[0])

    def end(self) -> None:
        """End all spans."""
        for span in self._spans:
            span.end()

    def _begin(self, name: str, traceparent: bytes, offset: int) -> None:
        context = context_from_headers([(TRACEPARENT, traceparent)])
        attributes = self._attributes | {"messaging.kafka.message.offset": offset}
        self._spans.append(
            self._tracer.start_span(
                name, context=context, kind=SpanKind.CONSUMER, attributes=attributes
            )
        )
