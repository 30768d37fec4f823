"""Sinks of one's own on a running stack, for tests and benchmarks: real connectors and tables.

Connectors, groups, topics and tables carry a name of their own, so that several may share a
stack. The aggregator's part is played by the caller: it writes averages and late records, and
commits a position.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import psycopg
from confluent_kafka import Consumer, TopicPartition
from psycopg import sql

from kstream_agg.core.clock import SystemClock
from kstream_agg.core.metrics import Metrics
from kstream_agg.core.names import late_topic, table_name
from kstream_agg.core.schemas import AVERAGE, RAW_TRADE
from kstream_agg.core.settings import config_dir
from kstream_agg.kafka.cluster import KafkaCluster, topic_configuration
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.wire import RecordDecoder, RecordEncoder
from kstream_agg.kafka.writer import RecordWriter
from kstream_agg.sinks.connect_api import ConnectClient
from kstream_agg.sinks.connectors import apply, load_sinks
from kstream_agg.sinks.patience import Patience
from kstream_agg.sinks.postgres import connect
from kstream_agg.sinks.settings import AGG_SINK, RAW_SINK
from kstream_agg.verify.reading import TopicReader
from kstream_agg.verify.waiting import Group, readable_by, wait_for_group

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from kstream_agg.kafka.writer import Headers
    from kstream_agg.sinks.connectors import Sink
    from kstream_agg.sinks.settings import AggregatorView, ToolSettings

__all__ = ["SinkBench", "at", "average_record", "running_sinks", "trade_record"]

_WAIT_S: Final = 120.0


def at(ms: int) -> datetime:
    """The moment at `ms` milliseconds since the epoch."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)


def trade_record(instrument: str, seq: int, at_ms: int, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - any of the schema's fields
    """A `RawTrade` with plain values; `fields` override them.

    Args:
        instrument: Its instrument_name.
        seq: Its trade_seq.
        at_ms: Its event time, ms.
        fields: Any of the schema's other fields.
    """
    return (
        dict.fromkeys(name["name"] for name in RAW_TRADE["fields"])
        | {
            "instrument_name": instrument,
            "trade_seq": seq,
            "trade_id": str(seq),
            "timestamp": at_ms,
            "direction": "buy",
            "price": 1.0,
            "amount": 1.0,
            "tick_direction": 0,
            "received_at": at_ms + 5,
            "source": "stream",
        }
        | fields
    )


def average_record(instrument: str, start_ms: int, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - any of the schema's fields
    """The `Average` of one trade of price 1 and amount 1 with trade_seq 1; `fields` override.

    Args:
        instrument: Its instrument_name.
        start_ms: Begin of its five-minute window, ms.
        fields: Any of the schema's other fields.
    """
    ones = ("seed", "current", "sma", "vwap", "open", "high", "low", "close", "volume")
    return (
        dict.fromkeys(ones, 1.0)
        | {
            "instrument_name": instrument,
            "window_start": start_ms,
            "window_end": start_ms + 300_000,
            "period": 300,
            "alpha": 0.5,
            "trade_count": 1,
            "first_trade_seq": 1,
            "last_trade_seq": 1,
            "revision": 0,
            "closed_by": "watermark",
        }
        | fields
    )


@dataclass(frozen=True, slots=True)
class SinkBench:
    """Both sinks, running, and what is needed to feed them and to look at what they wrote."""

    settings: ToolSettings
    aggregator: AggregatorView
    sinks: tuple[Sink, Sink]
    client: ConnectClient
    registry: SchemaRegistry
    _encoders: dict[str, RecordEncoder] = field(default_factory=dict)

    def patience(self, seconds: float = _WAIT_S) -> Patience:
        """A bounded wait."""
        return Patience(SystemClock(), threading.Event(), seconds)

    def encode(self, topic: str, record: dict[str, Any]) -> bytes:
        """The record as its topic holds it."""
        encoder = self._encoders.get(topic)
        if encoder is None:
            schema = AVERAGE if topic in self.aggregator.average_topics else RAW_TRADE
            encoder = RecordEncoder(schema, self.registry.register_value(topic, schema))
            self._encoders[topic] = encoder
        return encoder.encode(record)

    def write(
        self,
        topic: str,
        records: Iterable[tuple[str, bytes | None]],
        headers: Headers | None = None,
    ) -> None:
        """Write keys and values, and wait until they are delivered."""
        with RecordWriter(self.settings.kafka, Metrics(), "sink-bench") as writer:
            for key, value in records:
                writer.produce(topic, value, key=key.encode(), headers=headers)

    def write_trades(self, topic: str, trades: Iterable[dict[str, Any]]) -> None:
        """Write `RawTrade`s."""
        self.write(topic, ((t["instrument_name"], self.encode(topic, t)) for t in trades))

    def write_averages(self, topic: str, averages: Iterable[dict[str, Any]]) -> None:
        """Write `Average`s."""
        keyed = ((f"{a['instrument_name']}|{a['window_start']}", a) for a in averages)
        self.write(topic, ((key, self.encode(topic, a)) for key, a in keyed))

    def commit_aggregator(self, topic: str) -> None:
        """Commit the topic's ends for the aggregator's group.

        Args:
            topic: A raw topic.
        """
        with TopicReader(self.settings.kafka) as reader:
            spans = reader.spans([topic])
        config = self.settings.kafka.client_config() | {"group.id": self.aggregator.group_id}
        consumer = Consumer(config)
        try:
            offsets = [
                TopicPartition(part.topic, part.partition, span.end) for part, span in spans.items()
            ]
            consumer.commit(offsets=offsets, asynchronous=False)
        finally:
            consumer.close()

    def wait_written(self, sink: Sink, group_id: str | None = None) -> None:
        """Wait until a sink has committed what stands in its topics.

        Args:
            sink: The sink.
            group_id: Its consumer group, where it is not its own.
        """
        with TopicReader(self.settings.kafka) as reader:
            spans = reader.spans(sink.topics)
            must_read = readable_by(RecordDecoder(self.registry.schema_by_id))
            group = Group(group_id or sink.definition.group_id, must_read=must_read)
            wait_for_group(reader, group, spans, self.patience())

    def query(self, text: str, topic: str) -> list[tuple[Any, ...]]:
        """Rows of a query in which `{}` stands for the topic's table."""
        table = sql.Identifier(table_name(topic))
        with connect(self.settings.postgres) as connection:
            return connection.execute(sql.SQL(text).format(table)).fetchall()

    def execute(self, text: str, topic: str) -> None:
        """Run a statement in which `{}` stands for the topic's table."""
        table = sql.Identifier(table_name(topic))
        with connect(self.settings.postgres) as connection:
            connection.execute(sql.SQL(text).format(table))


@contextlib.contextmanager
def running_sinks(
    settings: ToolSettings, aggregator: AggregatorView, folder: Path, name: str
) -> Iterator[SinkBench]:
    """Both sinks on a running stack, under names of their own; removed at the end.

    Args:
        settings: Where the stack is.
        aggregator: The channels, the group that plays the aggregator, the windows.
        folder: An empty folder for the connectors' files.
        name: Put behind the connectors' names.
    """
    _copy_definitions(folder, name)
    sinks = load_sinks(aggregator, folder)
    cluster = KafkaCluster(settings.kafka, "sink-bench")
    late = [late_topic(topic) for topic in aggregator.raw_topics]
    topics = [*late, *(t for sink in sinks for t in (*sink.topics, sink.dead_letter_topic))]
    with (
        SchemaRegistry(settings.registry) as registry,
        ConnectClient(settings.connect.url, settings.connect.timeout_s) as client,
    ):
        bench = SinkBench(settings, aggregator, sinks, client, registry)
        try:
            cluster.create_topics([topic_configuration(t, settings.topic) for t in late])
            apply(sinks, settings, client, bench.patience())
            yield bench
        finally:
            for sink in sinks:
                client.delete(sink.name)
            cluster.delete_topics(topics)
            _drop_tables(settings, [table.name for sink in sinks for table in sink.tables])


def _copy_definitions(folder: Path, name: str) -> None:
    for token in (RAW_SINK, AGG_SINK):
        shutil.copytree(config_dir() / token, folder / token)
        for path in (folder / token).iterdir():
            document: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            config = document["config"] | {"consumer.override.group.id": f"{token}-{name}"}
            text = json.dumps({"name": f"{token}-{name}", "config": config})
            path.write_text(text, encoding="utf-8")


def _drop_tables(settings: ToolSettings, tables: list[str]) -> None:
    with contextlib.suppress(psycopg.Error), connect(settings.postgres) as connection:
        for table in tables:
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(table)))
