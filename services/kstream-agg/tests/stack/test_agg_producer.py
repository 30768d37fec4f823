"""The agg-producer on a real Kafka and registry, checked by a recomputation record by record."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, TopicPartition
from prometheus_client import CollectorRegistry

from kstream_agg.aggregate.agg_producer import run_agg_producer, topics_of
from kstream_agg.aggregate.settings import AggProducerSettings, ConsumeSettings, WindowSettings
from kstream_agg.core.clock import SystemClock
from kstream_agg.core.errors import InvalidRecordError
from kstream_agg.core.health import Health
from kstream_agg.core.metrics import CONSUMER_LAG_RECORDS, RECORDS_REPEATED, Metrics
from kstream_agg.core.names import average_topic, channel_topic, dead_letter_topic, late_topic
from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.core.service import ServiceContext
from kstream_agg.core.settings import (
    KafkaSettings,
    RegistrySettings,
    TelemetrySettings,
    TopicSettings,
)
from kstream_agg.core.telemetry import Telemetry, is_sampled
from kstream_agg.kafka.cluster import KafkaCluster
from kstream_agg.kafka.dlq import header_value, origin_from_headers
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.wire import RecordDecoder, RecordEncoder
from kstream_agg.kafka.writer import RecordWriter
from kstream_agg.verify.reading import TopicReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = pytest.mark.stack

WAIT_S = 60.0
PERIOD_S = 60
START_MS = 1_700_000_000_000 // 60_000 * 60_000
LATENESS_MS = 2_000
RETENTION_MS = 60_000


@dataclass(frozen=True)
class Record:
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


class Market:
    """A channel that only this test knows, its topics, and an aggregator's settings for it."""

    def __init__(self, stack: StackEndpoints, **changes: Any) -> None:  # noqa: ANN401 - fields of the settings, checked by them
        self.name = f"T{uuid4().hex[:8].upper()}"
        self.settings = AggProducerSettings(
            channels=(f"trades.option.{self.name}.100ms",),
            group_id=f"agg-{self.name}",
            topic=TopicSettings(partitions=2),
            **{
                "kafka": KafkaSettings(bootstrap_servers=stack.bootstrap_servers),
                "registry": RegistrySettings(url=stack.registry_url),
                "window": WindowSettings(period=PERIOD_S, idle_timeout=600, retention=60),
                "consume": ConsumeSettings(commit_interval_s=0.1),
                **changes,
            },
        )
        self.topic = channel_topic(self.settings.channels[0])
        self.averages = average_topic(self.topic, PERIOD_S)
        self.registry = SchemaRegistry(RegistrySettings(url=stack.registry_url))
        self.kafka = KafkaSettings(bootstrap_servers=stack.bootstrap_servers)
        KafkaCluster(self.kafka, "test").create_topics(topics_of(self.settings))
        self.schema_id = self.registry.register_value(self.topic, RAW_TRADE)
        self.encoder = RecordEncoder(RAW_TRADE, self.schema_id)
        self.decoder = RecordDecoder(self.registry.schema_by_id)

    def trade(self, instrument: str, seq: int, at_ms: int, **fields: object) -> dict[str, Any]:
        return {
            "instrument_name": f"{self.name}-{instrument}",
            "trade_seq": seq,
            "trade_id": f"{instrument}-{seq}",
            "timestamp": START_MS + at_ms,
            "direction": "buy",
            "price": 1.0 + seq % 13 / 8,
            "amount": 0.5 + seq % 3,
            "tick_direction": 0,
            "received_at": START_MS + at_ms + 30,
            "source": "stream",
        } | fields

    def send(
        self, *trades: dict[str, Any] | tuple[bytes, bytes | None], traceparent: bytes = b""
    ) -> None:
        headers: list[tuple[str, str | bytes | None]] = (
            [("traceparent", traceparent)] if traceparent else []
        )
        with RecordWriter(self.kafka, Metrics(CollectorRegistry()), "test") as writer:
            for trade in trades:
                if isinstance(trade, tuple):
                    writer.produce(self.topic, trade[1], key=trade[0], headers=headers)
                else:
                    key = trade["instrument_name"].encode()
                    writer.produce(self.topic, self.encoder.encode(trade), key=key, headers=headers)

    @contextlib.contextmanager
    def consumer(self, group: str) -> Iterator[Consumer]:
        consumer = Consumer(
            {
                **self.kafka.client_config(),
                "group.id": group,
                "enable.auto.commit": False,
                "fetch.queue.backoff.ms": 10,
            }
        )
        try:
            yield consumer
        finally:
            consumer.close()

    def partitions(self, consumer: Consumer, topic: str) -> list[TopicPartition]:
        found = consumer.list_topics(topic, timeout=WAIT_S).topics[topic].partitions
        return [TopicPartition(topic, number) for number in found]

    def read(self, topic: str) -> list[Record]:
        """All committed records of a topic, each partition in offset order."""
        with TopicReader(self.kafka) as reader:
            found = list(reader.read(reader.spans([topic])))
        return [Record(r.part.partition, r.offset, r.key, r.value, r.headers) for r in found]

    def results(self) -> dict[bytes | None, list[dict[str, Any]]]:
        """The averages by key, oldest first; times in ms."""
        found = defaultdict(list)
        for record in self.read(self.averages):
            average = self.decoder.decode(record.value)
            for name in ("window_start", "window_end"):
                average[name] = round(average[name].timestamp() * 1000)
            found[record.key].append(average)
        return dict(found)

    def committed(self) -> dict[int, int]:
        with self.consumer(self.settings.group_id) as consumer:
            return self._committed(consumer)

    def _committed(self, consumer: Consumer) -> dict[int, int]:
        items = consumer.committed(self.partitions(consumer, self.topic), timeout=WAIT_S)
        return {item.partition: item.offset for item in items if item.offset >= 0}

    def wait_until_all_is_taken(self) -> None:
        with self.consumer(self.settings.group_id) as consumer:
            ends = {
                item.partition: consumer.get_watermark_offsets(item, timeout=WAIT_S)[1]
                for item in self.partitions(consumer, self.topic)
            }

            def is_taken() -> bool:
                found = self._committed(consumer)
                return all(found.get(number, -1) >= end for number, end in ends.items() if end)

            wait_for(is_taken)


MakeMarket = Callable[..., Market]


@pytest.fixture
def make_market(stack: StackEndpoints) -> Iterator[MakeMarket]:
    with contextlib.ExitStack() as open_registries:

        def make(**changes: object) -> Market:
            market = Market(stack, **changes)
            open_registries.enter_context(market.registry)
            return market

        yield make


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "what was waited for has not come"
        time.sleep(0.05)


class RunningAggregator:
    """The agg-producer in a thread of this process."""

    def __init__(self, settings: AggProducerSettings, telemetry: Telemetry | None = None) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.health = Health()
        self._stop = threading.Event()
        self._telemetry = telemetry or Telemetry(TelemetrySettings(), "agg-producer")
        self._failure: BaseException | None = None
        self._settings = settings
        self._thread = threading.Thread(target=self._run)

    def has_partitions(self) -> bool:
        [lag] = self.metrics.gauge(CONSUMER_LAG_RECORDS).collect()
        return bool(lag.samples)

    def _run(self) -> None:
        context = ServiceContext(
            "agg-producer",
            SystemClock(),
            self.metrics,
            self.health,
            self._telemetry,
            self._stop,
        )
        try:
            run_agg_producer(self._settings, context)
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread
            self._failure = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure


class Recomputed:
    """The raw topic, record by record, from the definitions."""

    def __init__(self, market: Market) -> None:
        self.counted: dict[bytes, list[dict[str, Any]]] = defaultdict(list)
        self.closed: set[bytes] = set()
        self.late: dict[tuple[int, int], str] = {}
        self.dead: set[tuple[int, int]] = set()
        self.repeats = 0
        by_partition = defaultdict(list)
        for record in market.read(market.topic):
            by_partition[record.partition].append(record)
        for records in by_partition.values():
            self._partition(market, records)

    def _partition(self, market: Market, records: list[Record]) -> None:
        watermark = -1
        keys: dict[bytes, int] = {}
        for record in records:
            place = record.partition, record.offset
            try:
                trade = market.decoder.decode(record.value)
            except InvalidRecordError:
                self.dead.add(place)
                continue
            if trade["instrument_name"].encode() != record.key:
                self.dead.add(place)
                continue
            at = round(trade["timestamp"].timestamp() * 1000)
            window = at // (PERIOD_S * 1000) * PERIOD_S * 1000
            key = f"{trade['instrument_name']}|{window}".encode()
            if at > round(trade["received_at"].timestamp() * 1000) + 60_000:
                self.late[place] = "future"
                continue
            if window + PERIOD_S * 1000 + RETENTION_MS <= watermark:
                self.late[place] = "late"
            elif any(known["trade_seq"] == trade["trade_seq"] for known in self.counted[key]):
                self.repeats += 1
            else:
                self.counted[key].append(trade)
                keys[key] = window
            watermark = max(watermark, at - LATENESS_MS)
        ended = watermark - PERIOD_S * 1000
        self.closed |= {key for key, window in keys.items() if window <= ended}

    def compare(self, key: bytes, average: dict[str, Any]) -> None:
        trades = self.counted[key]
        by_seq = sorted(trades, key=lambda trade: trade["trade_seq"])
        prices = [trade["price"] for trade in trades]
        volume = sum(trade["amount"] for trade in trades)
        current = average["seed"]
        for price in prices:
            current += average["alpha"] * (price - current)
        close = pytest.approx
        assert average["trade_count"] == len(trades)
        assert average["first_trade_seq"] == by_seq[0]["trade_seq"]
        assert average["last_trade_seq"] == by_seq[-1]["trade_seq"]
        assert average["open"] == by_seq[0]["price"]
        assert average["close"] == by_seq[-1]["price"]
        assert (average["high"], average["low"]) == (max(prices), min(prices))
        assert average["volume"] == close(volume, rel=1e-9)
        assert average["sma"] == close(sum(prices) / len(prices), rel=1e-9)
        product = sum(trade["price"] * trade["amount"] for trade in trades)
        assert average["vwap"] == close(product / volume, rel=1e-9)
        assert average["current"] == close(current, rel=1e-9)


def assert_exact(market: Market) -> Recomputed:
    """Every closed window's last result, and what is late and dead, equal the recomputation."""
    wanted, results = Recomputed(market), market.results()
    assert set(results) == wanted.closed
    for key, found in results.items():
        assert key is not None
        wanted.compare(key, found[-1])
    late = {}
    for record in market.read(late_topic(market.topic)):
        origin = origin_from_headers(record.headers)
        assert origin is not None
        late[origin.partition, origin.offset] = header_value(record.headers, "late.reason")
    assert late == wanted.late
    dead = [origin_from_headers(r.headers) for r in market.read(dead_letter_topic(market.topic))]
    assert {(origin.partition, origin.offset) for origin in dead if origin} == wanted.dead
    return wanted


def unruly_trades(market: Market, count: int, seed: int) -> list[dict[str, Any]]:
    """Trades of many windows: some repeated, some out of order, some late, some in the future."""
    chance = random.Random(seed)  # noqa: S311 - a test's data
    seqs: dict[str, int] = defaultdict(int)
    trades: list[dict[str, Any]] = []
    for number in range(count):
        instrument = f"I{chance.randrange(12)}"
        kind = chance.random()
        at = number * 120
        if kind < 0.02 and trades:
            trades.append(chance.choice(trades[-200:]))
            continue
        seqs[instrument] += 1
        if kind < 0.2:
            at -= chance.randrange(3_000)
        elif kind < 0.22:
            at -= chance.choice((70_000, 150_000))
        trade = market.trade(instrument, seqs[instrument], at)
        if kind > 0.99:
            trade["received_at"] -= 61_000
        trades.append(trade)
    return trades


def test_results_late_records_and_dead_letters_are_exact(make_market: MakeMarket) -> None:
    market = make_market()
    trades: list[Any] = list(unruly_trades(market, 5_000, seed=1))
    good = market.encoder.encode(market.trade("I1", 10**6, 0))
    key = f"{market.name}-I1".encode()
    bad = [(key, b"\0\0\0\0\0"), (key, None), (key, good[:-4]), (key, good + b"\0"), (b"x", good)]
    bad.append((key, b"\0\x7f\xff\xff\xff" + good[5:]))
    for number, record in enumerate(bad):
        trades.insert(700 * number, record)
    market.send(*trades)
    with RunningAggregator(market.settings) as aggregator:
        market.wait_until_all_is_taken()
        assert aggregator.health.problems() == {}
        assert aggregator.health.not_ready() is None
        [repeated] = aggregator.metrics.counter(RECORDS_REPEATED).collect()
    wanted = assert_exact(market)
    assert len(wanted.closed) > 50
    assert {"late", "future"} == set(wanted.late.values())
    assert len(wanted.dead) == len(bad)
    assert repeated.samples[0].value == wanted.repeats > 0
    messages = [
        header_value(record.headers, "error.message")
        for record in market.read(dead_letter_topic(market.topic))
    ]
    assert any("knows no schema" in (message or "") for message in messages)


def test_a_restart_goes_on_exactly_where_it_stood(make_market: MakeMarket) -> None:
    market = make_market()
    trades = unruly_trades(market, 3_000, seed=2)
    for part in (trades[:1_000], trades[1_000:1_001], trades[1_001:]):
        market.send(*part)
        with RunningAggregator(market.settings):
            market.wait_until_all_is_taken()
    assert_exact(market)


def test_members_that_come_and_go_lose_and_double_nothing(make_market: MakeMarket) -> None:
    market = make_market()
    trades = unruly_trades(market, 4_000, seed=3)
    with RunningAggregator(market.settings):
        market.send(*trades[:1_000])
        with RunningAggregator(market.settings) as other:
            for begin in range(1_000, 3_000, 400):
                market.send(*trades[begin : begin + 400])
            wait_for(other.has_partitions)
        market.send(*trades[3_000:])
        market.wait_until_all_is_taken()
    assert_exact(market)


def test_a_quiet_topic_shows_its_last_window_and_shows_it_again_when_it_changes(
    make_market: MakeMarket,
) -> None:
    market = make_market(window=WindowSettings(period=PERIOD_S, idle_timeout=0.2))
    key = f"{market.name}-I1|{START_MS}".encode()
    with RunningAggregator(market.settings):
        market.send(market.trade("I1", 1, 0), market.trade("I1", 2, 1_000))
        wait_for(lambda: len(market.results().get(key, [])) == 1)
        market.send(market.trade("I1", 3, 59_000))
        wait_for(lambda: len(market.results()[key]) == 2)
        market.send(market.trade("I1", 4, 130_000))
        wait_for(lambda: len(market.results()) == 2)
    shown = market.results()[key]
    # The watermark closes a window that was shown and has not changed: no third record.
    assert [(a["closed_by"], a["revision"], a["trade_count"]) for a in shown] == [
        ("idle", 0, 2),
        ("idle", 1, 3),
    ]
    Recomputed(market).compare(key, shown[-1])


def test_several_channels_have_topics_of_their_own(make_market: MakeMarket) -> None:
    options = make_market()
    futures = make_market()
    settings = options.settings.model_copy(
        update={"channels": (*options.settings.channels, *futures.settings.channels)}
    )
    futures.settings = futures.settings.model_copy(update={"group_id": settings.group_id})
    options.send(*unruly_trades(options, 800, seed=4))
    futures.send(*unruly_trades(futures, 800, seed=5))
    with RunningAggregator(settings):
        options.wait_until_all_is_taken()
        futures.wait_until_all_is_taken()
    assert_exact(options)
    assert_exact(futures)


def test_spans_are_children_of_the_producers_and_results_carry_them(
    stack: StackEndpoints, make_market: MakeMarket
) -> None:
    trace_id, span_id = uuid4().hex, uuid4().hex[:16]
    tracing = TelemetrySettings(
        exporter="zipkin", endpoint=f"{stack.zipkin_url}/api/v2/spans", sample_ratio=0.0
    )
    market = make_market(telemetry=tracing)
    telemetry = Telemetry(tracing, "agg-producer")
    with RunningAggregator(market.settings, telemetry):
        market.send(
            market.trade("I1", 1, 0),
            market.trade("I1", 2, 180_000),
            traceparent=f"00-{trace_id}-{span_id}-01".encode(),
        )
        market.wait_until_all_is_taken()
    telemetry.shutdown()
    [record] = market.read(market.averages)
    traceparent = dict(record.headers)["traceparent"]
    assert traceparent is not None
    assert is_sampled(traceparent)
    assert trace_id in traceparent.decode()

    def spans() -> list[dict[str, Any]]:
        url = f"{stack.zipkin_url}/api/v2/trace/{trace_id}"
        try:
            with urllib.request.urlopen(url, timeout=WAIT_S) as answer:  # noqa: S310 - our own address
                found: list[dict[str, Any]] = json.load(answer)
        except urllib.error.HTTPError:
            return []
        return found

    wait_for(lambda: bool(spans()))
    for span in spans():
        assert span["name"] == "consume_payload"
        assert span["parentId"] == span_id
        assert span["localEndpoint"]["serviceName"] == "agg-producer"


@pytest.mark.parametrize("absent", ["Kafka", "the schema registry"])
def test_it_waits_for_what_is_absent_says_so_and_stops_when_asked(
    make_market: MakeMarket, absent: str
) -> None:
    nowhere = "127.0.0.1:1"
    market = make_market(
        **(
            {"kafka": KafkaSettings(bootstrap_servers=nowhere)}
            if absent == "Kafka"
            else {"registry": RegistrySettings(url=f"http://{nowhere}")}
        )
    )
    with RunningAggregator(market.settings) as aggregator:
        wait_for(lambda: (aggregator.health.not_ready() or "").startswith(f"waiting for {absent}"))
        assert aggregator.health.problems() == {}


def environment_of(settings: AggProducerSettings) -> dict[str, str]:
    return os.environ | {
        "KSTREAM__CHANNELS": ",".join(settings.channels),
        "KSTREAM__GROUP_ID": settings.group_id,
        "KSTREAM__KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        # A killed member must not hold its partitions for 45 s.
        "KSTREAM__KAFKA__PROPERTIES": '{"session.timeout.ms": 6000}',
        "KSTREAM__REGISTRY__URL": settings.registry.url,
        "KSTREAM__WINDOW__PERIOD": "1min",
        "KSTREAM__WINDOW__IDLE_TIMEOUT": "600",
        "KSTREAM__WINDOW__RETENTION": "1min",
        "KSTREAM__CONSUME__COMMIT_INTERVAL_S": "0.1",
        "KSTREAM__CONSUME__BATCH_RECORDS": "200",
        "KSTREAM__HTTP__PORT": "0",
    }


@contextlib.contextmanager
def command(settings: AggProducerSettings) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "kstream_agg", "agg-producer"],
        env=environment_of(settings),
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(WAIT_S)


def test_the_command_survives_sigkill_exactly_and_ends_cleanly_on_sigterm(
    make_market: MakeMarket,
) -> None:
    market = make_market()
    trades = unruly_trades(market, 6_000, seed=6)
    market.send(*trades[:3_000])
    for part in (trades[3_000:4_500], trades[4_500:]):
        with command(market.settings) as process:
            wait_for(lambda: bool(market.committed()))
            market.send(*part)
            process.send_signal(signal.SIGKILL)
    with command(market.settings) as process:
        market.wait_until_all_is_taken()
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    assert_exact(market)
