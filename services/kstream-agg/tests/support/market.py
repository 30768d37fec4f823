"""A raw topic of a test's own, aggregators that work on it, and what they must have made of it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from itertools import count, islice
from math import isfinite
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from prometheus_client import CollectorRegistry

from kstream_agg.aggregate.agg_producer import average_topics, run_agg_producer, topics_of
from kstream_agg.aggregate.settings import AggProducerSettings, ConsumeSettings, WindowSettings
from kstream_agg.core.clock import SystemClock
from kstream_agg.core.errors import InvalidRecordError, UnavailableError
from kstream_agg.core.health import Health
from kstream_agg.core.metrics import CONSUMER_LAG_RECORDS, CONSUMER_PAUSED, Metrics
from kstream_agg.core.names import average_topic, channel_topic, dead_letter_topic, late_topic
from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.core.service import ServiceContext
from kstream_agg.core.settings import (
    KafkaSettings,
    RegistrySettings,
    TelemetrySettings,
    TopicSettings,
)
from kstream_agg.core.telemetry import Telemetry
from kstream_agg.kafka.cluster import KafkaCluster
from kstream_agg.kafka.dlq import header_value, origin_from_headers
from kstream_agg.kafka.reader import make_consumer
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.wire import RecordDecoder, RecordEncoder
from kstream_agg.kafka.writer import RecordWriter
from kstream_agg.verify.reading import TopicPart, TopicReader
from kstream_agg.verify.windows import Recomputation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from kstream_agg.stack.endpoints import StackEndpoints

WAIT_S = 120.0  # for a broker's restart on a busy machine
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
            **{
                "topic": TopicSettings(partitions=2),
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
        with self.writer() as writer:
            self.write(writer, trades, traceparent)

    def writer(self) -> RecordWriter:
        return RecordWriter(self.kafka, Metrics(CollectorRegistry()), "test")

    def write(
        self,
        writer: RecordWriter,
        trades: Iterable[dict[str, Any] | tuple[bytes, bytes | None]],
        traceparent: bytes = b"",
    ) -> None:
        headers: list[tuple[str, str | bytes | None]] = (
            [("traceparent", traceparent)] if traceparent else []
        )
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

    def read_all(self, topic: str) -> list[Record]:
        """All records of a topic, those of aborted transactions too."""
        config = {"isolation.level": "read_uncommitted"}
        settings = self.kafka.model_copy(update={"properties": config})
        records = []
        consumer = make_consumer(settings, f"read-{uuid4().hex}", "test")
        try:
            for item in self.partitions(consumer, topic):
                consumer.assign([TopicPartition(topic, item.partition, OFFSET_BEGINNING)])
                at_end = False
                while not at_end:
                    for message in consumer.consume(5_000, 0.1):
                        if message.error() is not None:
                            at_end = True
                        else:
                            records.append(
                                Record(item.partition, message.offset() or 0, None, None, [])
                            )
        finally:
            consumer.close()
        return records

    def places(self, topic: str) -> list[tuple[int, int]]:
        """Partition and offset that the headers of a topic's records name."""
        return [_place(record) for record in self.read(topic)]

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
        """What the group has committed; a broker that is just starting is asked again.

        A consumer would be made to wait while a transaction with offsets is open.
        """
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                with TopicReader(self.kafka) as reader:
                    found = reader.positions(self.settings.group_id)
            except UnavailableError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.1)
            else:
                return {
                    part.partition: position.offset
                    for part, position in found.items()
                    if part.topic == self.topic
                }

    def wait_until_all_is_taken(self) -> None:
        def is_taken() -> bool:
            try:
                with TopicReader(self.kafka) as reader:
                    spans = reader.spans([self.topic])
            except UnavailableError:  # a broker that is just starting
                return False
            found = self.committed()
            return all(
                found.get(part.partition, -1) >= span.end
                for part, span in spans.items()
                if span.end
            )

        wait_for(is_taken)


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

    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._thread.is_alive()

    def has_partitions(self) -> bool:
        [lag] = self.metrics.gauge(CONSUMER_LAG_RECORDS).collect()
        return bool(lag.samples)

    def is_paused(self) -> bool:
        """Whether a batch has been waiting for something that does not answer."""
        [paused] = self.metrics.gauge(CONSUMER_PAUSED).collect()
        return paused.samples[0].value == 1.0

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
        self._seqs: dict[bytes, set[int]] = defaultdict(set)
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
            numbers = trade["price"], trade["amount"]
            if trade["instrument_name"].encode() != record.key or not all(map(isfinite, numbers)):
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
            elif trade["trade_seq"] in self._seqs[key]:
                self.repeats += 1
            else:
                self._seqs[key].add(trade["trade_seq"])
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
    """Every window's last result, and what is late and dead, equal the recomputation, once each.

    Results of windows that the watermark has not closed are those of idle closing.
    """
    wanted, results = Recomputed(market), market.results()
    shown_early = {
        key for key, found in results.items() if all(a["closed_by"] == "idle" for a in found)
    }
    assert set(results) - shown_early - wanted.closed == set()
    assert wanted.closed - set(results) == set()
    for key, found in results.items():
        assert key is not None
        wanted.compare(key, found[-1])
        assert [average["revision"] for average in found] == list(range(len(found)))
        counts = [average["trade_count"] for average in found]
        assert sorted(set(counts)) == counts, "a result was written again without a new trade"
    late = [(_place(record), _reason(record)) for record in market.read(late_topic(market.topic))]
    assert dict(late) == wanted.late
    assert len(late) == len(wanted.late)
    dead = [_place(record) for record in market.read(dead_letter_topic(market.topic))]
    assert sorted(dead) == sorted(wanted.dead)
    return wanted


def recomputed_families(market: Market) -> list[int]:
    """Compare the results of each period with `verify`'s recomputation.

    Returns:
        How many windows were compared of each.
    """
    settings = market.settings
    topics = average_topics(market.topic, settings)
    late: dict[TopicPart, dict[int, str]] = defaultdict(dict)
    for record in market.read(late_topic(market.topic)):
        number, offset = _place(record)
        late[TopicPart(market.topic, number)][offset] = _reason(record) or ""
    positions = {TopicPart(market.topic, n): at for n, at in market.committed().items()}
    trades = [
        (
            TopicPart(market.topic, record.partition),
            record.offset,
            market.decoder.decode(record.value),
        )
        for record in market.read(market.topic)
    ]
    compared = []
    group = settings.groups.get(market.topic)
    for topic, family in zip(topics, settings.window.families, strict=True):
        averages = {}
        for record in market.read(topic):
            average = market.decoder.decode(record.value)
            averages[average["instrument_name"], average["window_start"]] = average
        recomputation = Recomputation(
            averages, family.period_ms, positions, late, family.advance_ms
        )
        for part, offset, trade in trades:
            changes = {"instrument_name": group, "trade_seq": offset} if group else {}
            recomputation.add(part, offset, trade | changes)
        rules = settings.rules
        verdicts = dict(
            recomputation.verdicts(set(recomputation.closed(rules.lateness_ms, rules.grace_ms)))
        )
        assert {key: wrong for key, wrong in verdicts.items() if wrong} == {}
        compared.append(len(verdicts))
    return compared


def _place(record: Record) -> tuple[int, int]:
    origin = origin_from_headers(record.headers)
    assert origin is not None
    return origin.partition, origin.offset


def _reason(record: Record) -> str | None:
    return header_value(record.headers, "late.reason")


def unruly_trades(market: Market, count: int, seed: int) -> list[dict[str, Any]]:
    """The first trades of `unruly_stream`."""
    return list(islice(unruly_stream(market, seed), count))


def unruly_stream(market: Market, seed: int) -> Iterator[dict[str, Any]]:
    """Trades of many windows: some repeated, some out of order, some late, some in the future."""
    chance = random.Random(seed)  # noqa: S311 - a test's data
    seqs: dict[str, int] = defaultdict(int)
    last: deque[dict[str, Any]] = deque(maxlen=200)
    for number in count():
        instrument = f"I{chance.randrange(12)}"
        kind = chance.random()
        at = number * 120
        if kind < 0.02 and last:
            trade = chance.choice(last)
        else:
            seqs[instrument] += 1
            if kind < 0.2:
                at -= chance.randrange(3_000)
            elif kind < 0.22:
                at -= chance.choice((70_000, 150_000))
            trade = market.trade(instrument, seqs[instrument], at)
            if kind > 0.99:
                trade["received_at"] -= 61_000
        last.append(trade)
        yield trade


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
def command(
    settings: AggProducerSettings, log: Path | None = None, **changes: str
) -> Iterator[subprocess.Popen[bytes]]:
    """The agg-producer as a process of its own.

    Args:
        settings: What to tell it, as far as `environment_of` does.
        log: Takes its standard error.
        changes: Further `KSTREAM__…` variables, without the prefix.
    """
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(log.open("wb")) if log is not None else subprocess.DEVNULL
        environment = environment_of(settings)
        environment |= {f"KSTREAM__{name}": value for name, value in changes.items()}
        process = subprocess.Popen(
            [sys.executable, "-m", "kstream_agg", "agg-producer"], env=environment, stderr=target
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait(WAIT_S)


def taken(market: Market) -> int:
    """How far the group has come, all partitions together."""
    return sum(market.committed().values())


def members(market: Market) -> int:
    """Members of the group that have partitions."""
    group = market.settings.group_id
    with AdminClient(market.kafka.client_config()) as admin:
        found = admin.describe_consumer_groups([group])[group].result()
    return sum(bool(member.assignment.topic_partitions) for member in found.members)


def end_of(market: Market, process: subprocess.Popen[bytes]) -> None:
    # It answers to the signal once it has begun to work.
    wait_for(lambda: members(market) > 0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_S) == 0


class Feeder:
    """Sends unruly trades until its block ends: what it waits for is Kafka, not the clock.

    Args:
        market: Where to.
        seed: Which trades.
        per_step: Trades that are sent, and acknowledged, before the next are made.
    """

    def __init__(self, market: Market, seed: int, per_step: int = 20) -> None:
        self._market = market
        self._trades = unruly_stream(market, seed)
        self._per_step = per_step
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            with self._market.writer() as writer:
                while not self._stop.wait(0.02):
                    self._market.write(writer, islice(self._trades, self._per_step))
                    writer.flush(2 * WAIT_S)
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread
            self._failure = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Send no more; all that was sent is acknowledged."""
        self._stop.set()
        self._thread.join(3 * WAIT_S)
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure

    def __exit__(self, *exc: object) -> None:
        self.stop()
