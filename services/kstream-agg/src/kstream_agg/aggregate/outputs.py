"""What the aggregator writes: results, late records, dead letters."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from kstream_agg.aggregate.average_encoder import AverageEncoder
from kstream_agg.core.metrics import (
    DEAD_LETTERS,
    RECORDS_LATE,
    WINDOWS_EMITTED,
)
from kstream_agg.core.names import dead_letter_topic, late_topic
from kstream_agg.core.telemetry import TRACEPARENT
from kstream_agg.kafka.dlq import Origin, error_headers, late_headers
from kstream_agg.pipeline.spans import record_traceparent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from confluent_kafka import Message

    from kstream_agg.aggregate.changelog import RecordSink
    from kstream_agg.aggregate.state import Refused, Result
    from kstream_agg.core.metrics import Metrics
    from kstream_agg.kafka.wire import Rejected
    from kstream_agg.kafka.writer import Headers

__all__ = ["TopicOutputs"]


class TopicOutputs:
    """Writes what comes of one raw topic.

    Args:
        raw_topic: The topic that is aggregated.
        averages: For each family of windows the topic of its results and the id of the schema
            `Average` there.
        sink: Takes the records.
        metrics: Counts them.
    """

    def __init__(
        self,
        raw_topic: str,
        averages: Sequence[tuple[str, int]],
        sink: RecordSink,
        metrics: Metrics,
    ) -> None:
        self._averages = [
            (topic, AverageEncoder(schema_id).encode) for topic, schema_id in averages
        ]
        self._late_topic = late_topic(raw_topic)
        self._dead_letter_topic = dead_letter_topic(raw_topic)
        self._produce = sink.produce
        self._emitted = metrics.counter(WINDOWS_EMITTED)
        self._late = metrics.counter(RECORDS_LATE)
        self._dead = metrics.counter(DEAD_LETTERS)

    def write_results(self, results: Iterable[Result], traceparent: bytes) -> None:
        """Write `Average` records under the key `instrument_name|window_start`."""
        headers: Headers = [(TRACEPARENT, traceparent)]
        produce = self._produce
        emitted: Counter[str] = Counter()
        for family, record in results:
            topic, encode = self._averages[family]
            produce(
                topic,
                encode(record),
                key=f"{record['instrument_name']}|{record['window_start']}".encode(),
                headers=headers,
            )
            emitted[record["closed_by"]] += 1
        for closed_by, count in emitted.items():
            self._emitted.labels(closed_by).inc(count)

    def write_late(self, messages: Sequence[Message], refused: Iterable[Refused]) -> None:
        """Write records that are not counted, as they are."""
        for item in refused:
            message = messages[item.index]
            origin = _origin(message)
            headers = late_headers(item.reason, item.behind_ms, origin)
            self._pass_on(self._late_topic, message, headers)
            self._late.labels(item.reason).inc()

    def write_dead_letters(self, messages: Sequence[Message], rejected: Iterable[Rejected]) -> None:
        """Write records that are no trades, as they are."""
        for item in rejected:
            message = messages[item.index]
            headers = error_headers(item.error, item.error.stage, _origin(message))
            self._pass_on(self._dead_letter_topic, message, headers)
            self._dead.labels(self._dead_letter_topic, item.error.stage).inc()

    def _pass_on(self, topic: str, message: Message, headers: Headers) -> None:
        traceparent = record_traceparent(message)
        if traceparent is not None:
            headers.append((TRACEPARENT, traceparent))
        self._produce(topic, message.value(), key=message.key(), headers=headers)


def _origin(message: Message) -> Origin:
    return Origin(
        message.topic() or "",
        message.partition() or 0,
        message.offset() or 0,
        message.timestamp()[1],
    )
