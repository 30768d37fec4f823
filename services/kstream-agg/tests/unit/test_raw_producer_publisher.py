"""What becomes of a receipt: records, dead letters, headers, spans; and a writer that fails."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from kstream_agg.core.clock import ManualClock
from kstream_agg.core.errors import DeliveryError, InvalidRecordError
from kstream_agg.core.metrics import DEAD_LETTERS, Metrics
from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.core.settings import TelemetrySettings
from kstream_agg.core.telemetry import Telemetry, is_sampled
from kstream_agg.deribit.events import BadFrame
from kstream_agg.deribit.frames import TradeBatch, decode_frame
from kstream_agg.deribit.handover import HandOver, Receipt
from kstream_agg.deribit.publisher import TradePublisher
from kstream_agg.deribit.raw_producer import PublishWorker
from kstream_agg.kafka.dlq import header_value
from kstream_agg.kafka.wire import RecordDecoder

if TYPE_CHECKING:
    from kstream_agg.kafka.writer import Headers, RecordWriter

OPTIONS = "trades.option.BTC.100ms"
FUTURES = "trades.future.BTC.100ms"
IDS = {"trades-option-btc": 7, "trades-future-btc": 8}
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
    """Keeps records; acknowledges when told to; fails when told to."""

    records: list[Record] = field(default_factory=list)
    delivered: int = 0
    failure: DeliveryError | None = None

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
        self.records.append(Record(topic, value, key, typed))

    @property
    def in_flight(self) -> int:
        return len(self.records) - self.delivered

    def poll(self) -> int:
        return 0

    def flush(self, timeout_s: float) -> None:
        del timeout_s
        self.delivered = len(self.records)


class Rig:
    def __init__(self, sample_ratio: float = 0.0) -> None:
        self.writer = FakeWriter()
        self.spans = InMemorySpanExporter()
        self.metrics = Metrics(CollectorRegistry())
        settings = TelemetrySettings(sample_ratio=sample_ratio)
        self.telemetry = Telemetry(settings, "raw-producer", exporter=self.spans)
        self.publisher = TradePublisher(
            self.as_writer(), [OPTIONS, FUTURES], IDS, self.metrics, self.telemetry.tracer
        )

    def as_writer(self) -> RecordWriter:
        return cast("RecordWriter", self.writer)

    def publish(self, frame: bytes, *, simulated: bool = False) -> list[Record]:
        try:
            content = decode_frame(frame)
        except InvalidRecordError as error:
            self.publisher.publish(Receipt(BadFrame(frame, error), NOW_MS, "stream", simulated))
        else:
            assert isinstance(content, TradeBatch)
            self.publisher.publish(Receipt(content, NOW_MS, "stream", simulated))
        return self.writer.records


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


def test_the_span_of_a_frame_ends_when_its_records_are_delivered() -> None:
    rig = Rig(sample_ratio=1.0)
    first, second = rig.publish(frame_of(wire_trade(1), wire_trade(2)))
    assert first.header("traceparent") == second.header("traceparent")
    assert is_sampled((first.header("traceparent") or "").encode())
    open_after = []
    for rig.writer.delivered in (1, 2):
        rig.publisher.end_spans()
        open_after.append(rig.publisher.has_open_spans)
    assert open_after == [True, False]
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
    assert not rig.publisher.has_open_spans


def _receipt(seq: int) -> Receipt:
    batch = decode_frame(frame_of(wire_trade(seq)))
    assert isinstance(batch, TradeBatch)
    return Receipt(batch, NOW_MS)


def test_the_worker_writes_all_that_was_handed_over_before_it_ends() -> None:
    rig = Rig()
    handover = HandOver(1_000)
    failed = threading.Event()
    worker = PublishWorker(handover, rig.publisher, rig.as_writer(), ManualClock(), failed.set)
    for seq in range(100):
        assert handover.try_put(_receipt(seq))
    worker.start()
    handover.close()
    worker.finish(20)
    assert len(rig.writer.records) == rig.writer.delivered == 100
    assert not failed.is_set()


def test_a_failed_delivery_stops_the_service_and_is_its_error() -> None:
    rig = Rig()
    rig.writer.failure = DeliveryError("Kafka did not take a record")
    handover = HandOver(1_000)
    stop = threading.Event()
    worker = PublishWorker(handover, rig.publisher, rig.as_writer(), ManualClock(), stop.set)
    worker.start()
    handover.try_put(_receipt(1))
    assert stop.wait(20)
    with pytest.raises(DeliveryError, match="did not take"):
        worker.finish(20)


def test_a_kafka_that_takes_nothing_bounds_the_end() -> None:
    rig = Rig()
    handover = HandOver(1_000)
    worker = PublishWorker(handover, rig.publisher, rig.as_writer(), ManualClock(), lambda: None)
    handover.try_put(_receipt(1))
    worker.start()  # the hand-over is not closed: the thread goes on for ever, as one that waits
    try:
        with pytest.raises(DeliveryError, match="Kafka took nothing"):
            worker.finish(0.05)
    finally:
        handover.close()
        worker.finish(20)


def test_it_is_unhealthy_while_records_wait_and_none_is_delivered() -> None:
    rig = Rig()
    clock = ManualClock()
    handover = HandOver(1_000)
    worker = PublishWorker(handover, rig.publisher, rig.as_writer(), clock, lambda: None)
    rig.publish(frame_of(wire_trade(1)))

    def look_after(seconds: float) -> str | None:
        clock.advance(seconds)
        worker._note_progress()
        return worker.check()

    assert look_after(59) is None
    assert "1 records wait" in (look_after(2) or "")
    rig.publish(frame_of(wire_trade(2)))
    rig.writer.delivered = 1
    assert look_after(1) is None
    assert look_after(61) is not None
    rig.writer.delivered = 2
    assert look_after(1_000) is None
    assert look_after(1_000) is None
