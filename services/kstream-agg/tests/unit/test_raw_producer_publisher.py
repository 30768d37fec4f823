"""What becomes of a receipt: records, dead letters, headers, spans; and a writer that fails."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from kstream_agg.core.clock import ManualClock
from kstream_agg.core.errors import DeliveryError, InvalidRecordError
from kstream_agg.core.health import Health
from kstream_agg.core.metrics import DEAD_LETTERS, Metrics
from kstream_agg.core.schemas import RAW_TRADE, SOURCE_PROGRESS, TRADE_GAP
from kstream_agg.core.service import ServiceContext
from kstream_agg.core.settings import TelemetrySettings
from kstream_agg.core.telemetry import Telemetry, is_sampled
from kstream_agg.deribit import publisher
from kstream_agg.deribit.events import BadFrame
from kstream_agg.deribit.frames import TradeBatch, decode_frame
from kstream_agg.deribit.handover import HandOver, Inquiry, Receipt
from kstream_agg.deribit.lane import Lane, LaneSchemas
from kstream_agg.deribit.ledger import Anchor, Ledger
from kstream_agg.deribit.progress import Period, restore_ledger, restore_periods
from kstream_agg.deribit.publish_worker import PublishWorker
from kstream_agg.deribit.publisher import Pacing, TradePublisher
from kstream_agg.kafka.dlq import header_value
from kstream_agg.kafka.wire import RecordDecoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from kstream_agg.kafka.transactions import TransactionWriter
    from kstream_agg.kafka.writer import Headers

OPTIONS = "trades.option.BTC.100ms"
FUTURES = "trades.future.BTC.100ms"
NOW_MS = 1_789_344_935_000


@dataclass
class Record:
    topic: str
    value: bytes
    key: bytes | None
    headers: list[tuple[str, bytes | None]]

    def header(self, name: str) -> str | None:
        return header_value(self.headers, name)


@dataclass
class FakeWriter:
    """Keeps the records of transactions; commits when told to; fails when told to."""

    records: list[Record] = field(default_factory=list)
    progress: list[Record] = field(default_factory=list)
    pending: int = 0
    commits: int = 0
    failure: DeliveryError | None = None
    may_commit: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.may_commit.set()

    def produce(
        self,
        topic: str,
        value: bytes,
        *,
        key: bytes | None = None,
        headers: Headers | None = None,
    ) -> None:
        if self.failure is not None:
            raise self.failure
        typed = [(name, cast("bytes | None", content)) for name, content in headers or []]
        kept = self.progress if topic.endswith("-progress") else self.records
        kept.append(Record(topic, value, key, typed))
        self.pending += 1

    def poll(self) -> None:
        return None

    def abandon(self) -> None:
        self.pending = 0

    def commit(self, keep_waiting: Callable[[], bool]) -> None:
        while not self.may_commit.wait(0.01):
            if not keep_waiting():
                raise DeliveryError("Kafka has not committed")
        self.commits += bool(self.pending)
        self.pending = 0


class Rig:
    def __init__(self, sample_ratio: float = 0.0) -> None:
        self.writer = FakeWriter()
        self.spans = InMemorySpanExporter()
        self.metrics = Metrics(CollectorRegistry())
        self.clock = ManualClock(NOW_MS)
        settings = TelemetrySettings(sample_ratio=sample_ratio)
        self.telemetry = Telemetry(settings, "raw-producer", exporter=self.spans)
        context = ServiceContext(
            "raw-producer", self.clock, self.metrics, Health(), self.telemetry, threading.Event()
        )
        self.options, self.futures = (
            Lane(channel, LaneSchemas(number, 20, 21), Ledger())
            for channel, number in ((OPTIONS, 7), (FUTURES, 8))
        )
        self.publisher = TradePublisher(
            self.as_writer(), [self.options, self.futures], context, Pacing(interval_s=1, records=9)
        )

    def as_writer(self) -> TransactionWriter:
        return cast("TransactionWriter", self.writer)

    def publish(self, frame: bytes, **changes: Any) -> list[Record]:  # noqa: ANN401 - fields of Receipt
        try:
            content = decode_frame(frame)
        except InvalidRecordError as error:
            self.publisher.publish(Receipt(BadFrame(frame, error), NOW_MS, **changes))
        else:
            assert isinstance(content, TradeBatch)
            self.publisher.publish(Receipt(content, NOW_MS, **changes))
        return self.writer.records

    def commit(self) -> None:
        self.publisher.commit(lambda: True)

    def progress(self) -> dict[str, dict[str, Any]]:
        """The newest progress record of each subject."""
        decoder = RecordDecoder({20: SOURCE_PROGRESS, 21: TRADE_GAP}.get)
        found = [decoder.decode(record.value) for record in self.writer.progress]
        return {record["subject"]: record for record in found}

    def sources(self) -> list[tuple[int, str]]:
        """Number and source of the trades written."""
        decoder = RecordDecoder({7: RAW_TRADE, 8: RAW_TRADE}.get)
        values = [decoder.decode(record.value) for record in self.writer.records]
        return [(value["trade_seq"], value["source"]) for value in values]


def wire_trade(seq: int = 1, **changes: object) -> dict[str, object]:
    return {
        "timestamp": NOW_MS - 2_500,
        "price": 0.05,
        "amount": 1,
        "direction": "buy",
        "instrument_name": "BTC-27MAR26-100000-C",
        "trade_seq": seq,
        "trade_id": str(seq),
        "tick_direction": 1,
        **changes,
    }


def frame_of(*trades: object, channel: str = OPTIONS) -> bytes:
    params = {"channel": channel, "data": trades}
    return json.dumps({"method": "subscription", "params": params}).encode()


def test_a_trade_becomes_a_record_with_key_headers_and_all_fields() -> None:
    (record,) = Rig().publish(frame_of(wire_trade(new_key=[1])), simulated=True)
    assert record.topic == "trades-option-btc"
    assert record.key == b"BTC-27MAR26-100000-C"
    assert record.header("simulated") == "true"
    assert len(record.header("traceparent") or "") == 55
    value = RecordDecoder({7: RAW_TRADE}.get).decode(record.value)
    assert value["price"] == 0.05
    assert round(value["received_at"].timestamp() * 1000) == NOW_MS
    assert value["source"] == "stream"
    assert json.loads(value["extra"]) == {"new_key": [1]}
    assert value["iv"] is None


def test_what_the_exchange_sends_is_not_called_simulated() -> None:
    (record,) = Rig().publish(frame_of(wire_trade()))
    assert record.header("simulated") is None


def test_each_channel_has_its_topic_and_schema_id() -> None:
    rig = Rig()
    rig.publish(frame_of(wire_trade()))
    records = rig.publish(frame_of(wire_trade(), channel=FUTURES))
    assert [record.topic for record in records] == ["trades-option-btc", "trades-future-btc"]
    assert [record.value[:5] for record in records] == [b"\0\0\0\0\7", b"\0\0\0\0\x08"]


def test_a_bad_trade_goes_to_the_dead_letters_and_its_neighbours_on() -> None:
    rig = Rig()
    bad = wire_trade(2, price="dear")
    records = rig.publish(frame_of(wire_trade(1), bad, wire_trade(3)))
    topics = [record.topic for record in records]
    assert topics == ["trades-option-btc", "trades-option-btc", "trades-option-btc-dlq"]
    letter = records[2]
    assert json.loads(letter.value) == bad
    assert letter.header("error.stage") == "decode"
    assert letter.header("error.class") == "InvalidRecordError"
    assert "'price' must be a number" in (letter.header("error.message") or "")
    counted = rig.metrics.registry.get_sample_value(
        f"{DEAD_LETTERS.name}_total", {"topic": "trades-option-btc-dlq", "stage": "decode"}
    )
    assert counted == 1


@pytest.mark.parametrize(
    ("frame", "topic"),
    [
        (b"{", "trades-option-btc-dlq"),
        (frame_of(wire_trade(), channel=FUTURES)[:-1], "trades-future-btc-dlq"),
        (frame_of(wire_trade(), channel="trades.spot.ETH.raw")[:-1], "trades-option-btc-dlq"),
    ],
)
def test_a_bad_frame_goes_to_the_dead_letters_of_its_channel(frame: bytes, topic: str) -> None:
    (letter,) = Rig().publish(frame)
    assert letter.topic == topic
    assert letter.value == frame
    assert "not JSON" in (letter.header("error.message") or "")


def test_what_is_too_large_for_a_record_is_set_aside_and_says_so() -> None:
    rig = Rig()
    records = rig.publish(frame_of(wire_trade(1, new_key="x" * 1_000_000), wire_trade(2)))
    assert [record.topic for record in records] == ["trades-option-btc-dlq", "trades-option-btc"]
    letter = records[0]
    assert len(letter.value) == 900_000
    assert int(letter.header("truncated.from_bytes") or 0) > 1_000_000
    assert letter.header("error.stage") == "encode"


def test_the_span_of_a_frame_ends_when_its_records_are_committed() -> None:
    rig = Rig(sample_ratio=1.0)
    first, second = rig.publish(frame_of(wire_trade(1), wire_trade(2)))
    assert first.header("traceparent") == second.header("traceparent")
    assert is_sampled((first.header("traceparent") or "").encode())
    assert not rig.spans.get_finished_spans()
    rig.commit()
    rig.telemetry.shutdown()
    (span,) = rig.spans.get_finished_spans()
    assert span.name == "produce_to_kafka"
    assert span.start_time == NOW_MS * 1_000_000
    assert span.attributes is not None
    assert span.attributes["messaging.destination.name"] == "trades-option-btc"


def test_unsampled_frames_have_contexts_of_their_own() -> None:
    rig = Rig()
    rig.publish(frame_of(wire_trade(1)))
    first, second = rig.publish(frame_of(wire_trade(2)))
    assert first.header("traceparent") != second.header("traceparent")
    assert not is_sampled((first.header("traceparent") or "").encode())


def test_a_repeat_is_written_once_and_a_late_one_is_marked() -> None:
    rig = Rig()
    rig.publish(frame_of(wire_trade(5), wire_trade(6), wire_trade(5)))
    rig.publish(frame_of(wire_trade(9)))
    assert list(rig.options.ledger.holes()) == [("BTC-27MAR26-100000-C", (7, 8))]
    rig.publish(frame_of(wire_trade(8)))
    rig.publish(frame_of(wire_trade(7), wire_trade(9)), source="backfill")
    assert rig.sources() == [
        (5, "stream"), (6, "stream"), (9, "stream"), (8, "backfill"), (7, "backfill"),
    ]  # fmt: skip
    assert not list(rig.options.ledger.holes())


def test_a_transaction_holds_trades_and_their_progress() -> None:
    rig = Rig()
    assert rig.publisher.due_in() is None
    rig.publish(frame_of(wire_trade(5), wire_trade(8)))
    assert rig.publisher.due_in() == 1
    rig.clock.advance(0.75)
    assert rig.publisher.due_in() == 0.25
    assert not rig.writer.progress
    rig.commit()
    assert rig.publisher.due_in() is None
    assert rig.writer.commits == 1
    progress = rig.progress()
    instrument = progress["BTC-27MAR26-100000-C"]
    assert (instrument["first_seq"], instrument["highest_seq"]) == (5, 8)
    assert instrument["holes"] == "[[6,7]]"
    channel = progress[OPTIONS]
    started_ms = round(channel["started_at"].timestamp() * 1000)
    assert started_ms == NOW_MS - 2_500 - 60_000
    assert [record.key for record in rig.writer.progress] == [
        b"BTC-27MAR26-100000-C", OPTIONS.encode(),
    ]  # fmt: skip


def test_a_full_transaction_is_due_at_once() -> None:
    rig = Rig()
    rig.publish(frame_of(*(wire_trade(seq) for seq in range(1, 10))))
    assert rig.publisher.due_in() == 0


def test_what_is_given_up_is_named_in_the_gaps_topic_and_taken_if_it_comes_after_all() -> None:
    rig = Rig()
    rig.publish(frame_of(wire_trade(1), wire_trade(5)))
    count = rig.publisher.give_up(OPTIONS, "BTC-27MAR26-100000-C", 2, 3, "nobody has them")
    assert count == 2
    gap = rig.writer.records[-1]
    assert gap.topic == "trades-option-btc-gaps"
    value = RecordDecoder({21: TRADE_GAP}.get).decode(gap.value)
    assert (value["first_seq"], value["last_seq"], value["reason"]) == (2, 3, "nobody has them")
    assert list(rig.options.ledger.holes()) == [("BTC-27MAR26-100000-C", (4, 4))]
    rig.writer.records.clear()
    rig.publish(frame_of(wire_trade(3)))
    assert rig.sources() == [(3, "backfill")]


def test_a_bad_trade_is_no_hole_and_one_dead_letter_however_often_history_gives_it() -> None:
    rig = Rig()
    bad = wire_trade(2, price=None)
    rig.publish(frame_of(wire_trade(1), bad, wire_trade(3)))
    assert not list(rig.options.ledger.holes())
    rig.publish(frame_of(bad), source="backfill")
    rig.publish(frame_of(wire_trade(4, amount=None)), source="backfill")
    rig.publish(frame_of(wire_trade(4, amount=None)), source="backfill")
    letters = [record for record in rig.writer.records if record.topic.endswith("-dlq")]
    assert len(letters) == 2


def test_a_progress_restored_goes_on_where_it_was() -> None:
    rig = Rig()
    rig.publish(frame_of(wire_trade(5), wire_trade(8)))
    rig.publisher.give_up(OPTIONS, "BTC-27MAR26-100000-C", 6, 6, "nobody has it")
    rig.options.advance(NOW_MS, Anchor("BTC-27MAR26-100000-C", 8, NOW_MS))
    rig.options.set_period(Period(1_000, 2_000, 1_500))
    rig.commit()
    decoder = RecordDecoder({20: SOURCE_PROGRESS}.get)
    values = [record.value for record in rig.writer.progress]
    ledger = restore_ledger(values, decoder)
    assert ledger.channel == rig.options.ledger.channel
    entry = ledger.instruments["BTC-27MAR26-100000-C"]
    assert (entry.first, entry.highest, entry.holes, entry.gaps) == (5, 8, [(7, 7)], [(6, 6)])
    assert restore_periods(values, decoder) == [Period(1_000, 2_000, 1_500)]


def test_late_trades_are_told_once_and_again_when_they_are_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []

    class Log:
        def warning(self, event: str, **_: object) -> None:
            told.append(event)

    monkeypatch.setattr(publisher, "_log", Log())
    rig = Rig()
    for seq, lag_ms in enumerate((10, 11_000, 12_000, 6_000, 4_000, 20_000), start=1):
        rig.publish(frame_of(wire_trade(seq, timestamp=NOW_MS - lag_ms)))
    assert told == ["trades arrive late", "trades arrive in time again", "trades arrive late"]


def _receipt(seq: int) -> Receipt:
    batch = decode_frame(frame_of(wire_trade(seq)))
    assert isinstance(batch, TradeBatch)
    return Receipt(batch, NOW_MS)


def make_worker(rig: Rig, handover: HandOver, stop: threading.Event) -> PublishWorker:
    return PublishWorker(handover, rig.publisher, rig.as_writer(), rig.clock, stop.set)


def test_the_worker_writes_all_that_was_handed_over_before_it_ends() -> None:
    rig = Rig()
    handover = HandOver(100_000)
    failed = threading.Event()
    worker = make_worker(rig, handover, failed)
    for seq in range(100):
        assert handover.try_put(_receipt(seq + 1))
    inquiry = Inquiry(lambda publisher: len(publisher.lanes[OPTIONS].ledger.instruments))
    assert handover.try_put(inquiry)
    worker.start()
    handover.close()
    worker.finish(20)
    assert len(rig.writer.records) == 100
    assert rig.writer.pending == 0
    assert rig.writer.commits == 12  # 11 with nine records and the rest
    assert inquiry.answer.result(0) == 1
    assert not failed.is_set()


def test_a_failed_delivery_stops_the_service_and_is_its_error() -> None:
    rig = Rig()
    rig.writer.failure = DeliveryError("Kafka did not take a record")
    handover = HandOver(1_000)
    stop = threading.Event()
    worker = make_worker(rig, handover, stop)
    worker.start()
    handover.try_put(_receipt(1))
    assert stop.wait(20)
    with pytest.raises(DeliveryError, match="did not take"):
        worker.finish(20)


def test_a_kafka_that_takes_nothing_bounds_the_end() -> None:
    rig = Rig()
    rig.writer.may_commit.clear()
    handover = HandOver(1_000)
    stop = threading.Event()
    worker = make_worker(rig, handover, stop)
    handover.try_put(_receipt(1))
    worker.start()
    handover.close()
    with pytest.raises(DeliveryError, match="Kafka took nothing"):
        worker.finish(0.05)
    assert stop.wait(20)  # the thread's own end: it has stopped waiting


def test_it_is_unhealthy_while_records_wait_and_none_is_committed() -> None:
    rig = Rig()
    worker = make_worker(rig, HandOver(1_000), threading.Event())
    rig.publish(frame_of(wire_trade(1)))
    rig.clock.advance(59)
    assert worker.check() is None
    rig.clock.advance(2)
    assert "1 records wait" in (worker.check() or "")
    worker._step()  # commits, since it is due
    assert worker.check() is None
