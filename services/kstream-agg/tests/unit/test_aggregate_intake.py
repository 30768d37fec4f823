"""From messages to trades, to results, late records and dead letters, without a broker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Message
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from kstream_agg.aggregate.intake import Instruments, TradeReader
from kstream_agg.aggregate.keeping import StateKeeper
from kstream_agg.aggregate.outputs import TopicOutputs
from kstream_agg.aggregate.processor import AggregatingProcessor
from kstream_agg.aggregate.rules import EwmaRules, WindowRules, Windows
from kstream_agg.core.clock import ManualClock
from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.metrics import DEAD_LETTERS, RECORDS_LATE, Metrics
from kstream_agg.core.schemas import AVERAGE, RAW_TRADE
from kstream_agg.core.settings import TelemetrySettings
from kstream_agg.core.telemetry import Telemetry
from kstream_agg.kafka.dlq import header_value
from kstream_agg.kafka.wire import RecordDecoder, RecordEncoder
from kstream_agg.pipeline.processor import CommitPoint, Partition

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kstream_agg.kafka.writer import Headers

ENCODER = RecordEncoder(RAW_TRADE, 1)
SCHEMAS = {1: RAW_TRADE, 2: AVERAGE}
PARTITION = Partition("trades", 3)
NOW = 1_700_000_000_000 // 10_000 * 10_000
RULES = WindowRules(
    families=(Windows(10_000, 10_000),),
    grace_ms=0,
    lateness_ms=0,
    skew_ms=1_000,
    retention_ms=0,
    ewma=EwmaRules(0.5),
)
SAMPLED = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def trade(offset: int, at_ms: int, **fields: object) -> Message:
    record = {
        "instrument_name": "BTC-PERPETUAL",
        "trade_seq": offset,
        "trade_id": str(offset),
        "timestamp": NOW + at_ms,
        "direction": "buy",
        "price": 5.0,
        "amount": 2.0,
        "tick_direction": 1,
        "received_at": NOW + at_ms,
        "source": "stream",
    } | fields
    return message(offset, ENCODER.encode(record))


def message(offset: int, value: bytes | None, headers: Any = None) -> Message:  # noqa: ANN401 - as the client takes it
    return Message(
        topic=PARTITION.topic,
        partition=PARTITION.number,
        offset=offset,
        key=b"BTC-PERPETUAL",
        value=value,
        headers=headers,
        timestamp=(1, NOW),
    )


class Written:
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[tuple[str, bytes | None, bytes | None, Headers]] = []

    def produce(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Headers | None = None,
        partition: int = -1,
    ) -> None:
        del partition
        self.records.append((topic, key, value, list(headers or ())))

    def to(self, suffix: str) -> list[tuple[bytes | None, bytes | None, dict[str, Any]]]:
        return [
            (key, value, dict(headers))
            for topic, key, value, headers in self.records
            if topic == f"trades{suffix}"
        ]


class KeptInMemory:
    """A changelog topic in memory, and who was fenced."""

    def __init__(self) -> None:
        self.values: dict[Partition, dict[bytes, bytes]] = {}
        self.fenced: list[str] = []
        self.written = 0

    def name(self, partition: Partition) -> str:
        return f"group-{partition.topic}-changelog"

    def write(self, partition: Partition, key: bytes, value: bytes | None) -> None:
        self.written += 1
        kept = self.values.setdefault(partition, {})
        if value is None:
            kept.pop(key, None)
        else:
            kept[key] = value

    def fence(self, owner: str) -> None:
        self.fenced.append(owner)

    def read(self, partitions: Iterable[Partition]) -> dict[Partition, dict[bytes, bytes]]:
        return {partition: dict(self.values.get(partition, {})) for partition in partitions}


class Aggregator:
    def __init__(
        self,
        kept: KeptInMemory | None = None,
        *,
        owner: str | None = "me",
        rules: WindowRules = RULES,
        groups: dict[str, str] | None = None,
    ) -> None:
        self.kept = kept or KeptInMemory()
        self.written = Written()
        self.metrics = Metrics(CollectorRegistry())
        self.clock = ManualClock(NOW)
        self.exporter = InMemorySpanExporter()
        self.telemetry = Telemetry(
            TelemetrySettings(sample_ratio=0.0), "agg-producer", exporter=self.exporter
        )
        self.registry_answers = True
        instruments = Instruments()
        families = [(f"trades-ewma-{family.name}", 2) for family in rules.families]
        outputs = TopicOutputs("trades", families, self.written, self.metrics)
        self.processor = AggregatingProcessor(
            reader=TradeReader(self._schema_by_id, instruments, groups),
            outputs={"trades": outputs},
            keeper=StateKeeper(
                log=self.kept,
                rules=rules,
                instruments=instruments,
                owner=owner,
                before_write=lambda: None,
                metrics=self.metrics,
            ),
            idle_timeout_s=5.0,
            clock=self.clock,
            metrics=self.metrics,
            tracer=self.telemetry.tracer,
            follow_traces=True,
        )

    def _schema_by_id(self, schema_id: int) -> dict[str, Any] | None:
        if not self.registry_answers:
            raise UnavailableError("no answer")
        return SCHEMAS.get(schema_id)

    def begin(self, committed: CommitPoint | None = None) -> int | None:
        self.processor.take_over([PARTITION])
        return self.processor.assign(PARTITION, committed, 100)

    def process(self, *messages: Message) -> None:
        self.processor.process(PARTITION, messages)

    def commit(self, *, giving_up: bool = False) -> CommitPoint | None:
        return self.processor.prepare_commit([PARTITION], giving_up=giving_up).get(PARTITION)

    def results(self, suffix: str = "-ewma-10s") -> list[dict[str, Any]]:
        decode = RecordDecoder(SCHEMAS.get).decode
        return [decode(value) for _, value, _ in self.written.to(suffix)]


def test_results_go_out_under_instrument_and_window() -> None:
    aggregator = Aggregator()
    assert aggregator.begin() is None
    aggregator.process(trade(0, 0), trade(1, 5_000, price=7.0), trade(2, 10_000))
    [(key, value, headers)] = aggregator.written.to("-ewma-10s")
    assert key == f"BTC-PERPETUAL|{NOW}".encode()
    average = RecordDecoder(SCHEMAS.get).decode(value)
    assert (average["open"], average["close"], average["current"]) == (5.0, 7.0, 6.0)
    assert len(headers["traceparent"]) == 55
    assert aggregator.commit() == CommitPoint(3)


def test_refused_records_go_out_as_they_came() -> None:
    aggregator = Aggregator()
    aggregator.begin()
    late = trade(13, 1_000)
    future = trade(14, 90_000, received_at=NOW + 88_999)
    aggregator.process(trade(10, 0), message(11, None), trade(12, 30_000), late, future)
    found = aggregator.written.to("-late")
    assert [(key, value) for key, value, _ in found] == [
        (b"BTC-PERPETUAL", late.value()),
        (b"BTC-PERPETUAL", future.value()),
    ]
    assert [headers["origin.offset"] for _, _, headers in found] == [b"13", b"14"]
    assert [headers["origin.partition"] for _, _, headers in found] == [b"3", b"3"]
    assert [headers["late.reason"] for _, _, headers in found] == [b"late", b"future"]
    assert [headers["late.lateness_ms"] for _, _, headers in found] == [b"29000", b"1001"]
    samples = aggregator.metrics.counter(RECORDS_LATE).collect()
    assert {
        (sample.labels["reason"], sample.value)
        for metric in samples
        for sample in metric.samples
        if sample.name.endswith("_total")
    } == {("late", 1.0), ("future", 1.0)}


@pytest.mark.parametrize(
    "fields",
    [
        {"price": float("nan")},
        {"price": float("inf")},
        {"amount": float("-inf")},
        {"timestamp": 2**62},
        {"received_at": -(2**62)},
    ],
)
def test_what_no_average_can_hold_is_a_dead_letter(fields: dict[str, object]) -> None:
    aggregator = Aggregator()
    aggregator.begin()
    aggregator.process(trade(0, 0), trade(1, 1_000, **fields), trade(2, 2_000))
    [(_, _, headers)] = aggregator.written.to("-dlq")
    assert headers["origin.offset"] == b"1"
    assert headers["error.stage"] == b"validate"
    aggregator.process(trade(3, 10_000))
    [(_, value, _)] = aggregator.written.to("-ewma-10s")
    assert RecordDecoder(SCHEMAS.get).decode(value)["trade_count"] == 2


def test_undecodable_records_are_dead_letters_and_move_the_position() -> None:
    aggregator = Aggregator()
    aggregator.begin()
    garbage = message(1, b"garbage", [("traceparent", SAMPLED)])
    aggregator.process(trade(0, 0), garbage)
    [(key, value, headers)] = aggregator.written.to("-dlq")
    assert (key, value) == (b"BTC-PERPETUAL", b"garbage")
    assert header_value(list(headers.items()), "error.class") == "InvalidRecordError"
    assert headers["traceparent"] == SAMPLED
    assert aggregator.commit() == CommitPoint(2)
    dead = aggregator.metrics.counter(DEAD_LETTERS).collect()
    assert [s.value for m in dead for s in m.samples if s.name.endswith("_total")] == [1.0]


def test_a_registry_that_does_not_answer_leaves_everything_as_it_was() -> None:
    aggregator = Aggregator()
    aggregator.begin()
    aggregator.registry_answers = False
    aggregator.commit()
    with pytest.raises(UnavailableError):
        aggregator.process(message(0, b"garbage"), trade(1, 0))
    assert aggregator.written.records == []
    assert aggregator.commit() is None
    aggregator.registry_answers = True
    aggregator.process(message(0, b"garbage"), trade(1, 0))
    assert len(aggregator.written.to("-dlq")) == 1


def test_an_idle_partition_shows_its_windows_after_the_timeout() -> None:
    aggregator = Aggregator()
    aggregator.begin()
    aggregator.process(trade(0, 0))
    aggregator.clock.advance(20)
    aggregator.processor.stand_at_end(PARTITION, 1, 4.9)
    assert aggregator.written.records == []
    aggregator.processor.stand_at_end(PARTITION, 2, 5.0)
    [(_, value, headers)] = aggregator.written.to("-ewma-10s")
    assert RecordDecoder(SCHEMAS.get).decode(value)["closed_by"] == "idle"
    assert len(headers["traceparent"]) == 55
    assert aggregator.commit() == CommitPoint(2)


def test_sampled_traces_get_one_span_each_and_results_join_the_first() -> None:
    aggregator = Aggregator()
    aggregator.begin()
    first = trade(0, 0)
    other = SAMPLED.replace(b"0af7", b"1af7")
    unsampled = SAMPLED[:-1] + b"0"
    messages = [
        message(0, first.value(), [("traceparent", SAMPLED)]),
        message(1, trade(1, 1).value(), [("traceparent", SAMPLED)]),
        message(2, trade(2, 2).value(), [("traceparent", other)]),
        message(3, trade(3, 3).value(), [("traceparent", unsampled)]),
        message(4, trade(4, 20_000).value(), [("else", b"x"), ("traceparent", b"broken")]),
    ]
    aggregator.process(*messages)
    aggregator.telemetry.shutdown()
    spans = aggregator.exporter.get_finished_spans()
    assert [span.name for span in spans] == ["consume_payload"] * 2
    contexts = [span.context for span in spans if span.context is not None]
    assert [f"{context.trace_id:032x}"[:4] for context in contexts] == ["0af7", "1af7"]
    assert spans[0].parent is not None
    assert f"{spans[0].parent.span_id:016x}".encode() == SAMPLED.split(b"-")[2]
    [(_, _, headers)] = aggregator.written.to("-ewma-10s")
    assert headers["traceparent"].decode().split("-")[2] == f"{contexts[0].span_id:016x}"
