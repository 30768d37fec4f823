"""The raw-producer on a real Kafka and registry, fed by the simulator and by scripted frames."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, TopicPartition
from prometheus_client import CollectorRegistry
from websockets.sync.server import ServerConnection, serve

from kstream_agg.core.clock import SystemClock
from kstream_agg.core.errors import KStreamError, SchemaIncompatibleError
from kstream_agg.core.health import Health
from kstream_agg.core.metrics import Metrics
from kstream_agg.core.names import channel_topic, dead_letter_topic
from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.core.service import ServiceContext
from kstream_agg.core.settings import KafkaSettings, RegistrySettings, TelemetrySettings
from kstream_agg.core.telemetry import Telemetry, is_sampled
from kstream_agg.deribit.raw_producer import run_raw_producer
from kstream_agg.deribit.settings import ExchangeSettings, RawProducerSettings
from kstream_agg.deribit.simulation.generator import generate_trades
from kstream_agg.deribit.simulator import simulator_in_thread
from kstream_agg.kafka.cluster import KafkaCluster
from kstream_agg.kafka.dlq import header_value
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.wire import RecordDecoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = pytest.mark.stack

WAIT_S = 60.0


@dataclass(frozen=True)
class Record:
    key: str | None
    value: bytes
    headers: list[tuple[str, bytes | None]]
    partition: int

    def header(self, name: str) -> str | None:
        return header_value(self.headers, name)


class Market:
    """Channels of a currency that only this test knows, and their topics."""

    def __init__(self, stack: StackEndpoints) -> None:
        self.currency = f"T{uuid4().hex[:8].upper()}"
        self.options = f"trades.option.{self.currency}.100ms"
        self.futures = f"trades.future.{self.currency}.100ms"
        self.topics = [channel_topic(self.options), channel_topic(self.futures)]
        self.kafka = KafkaSettings(bootstrap_servers=stack.bootstrap_servers)
        self.registry = RegistrySettings(url=stack.registry_url)
        names = ["27MAR26-100000-C", "27MAR26-90000-P", "5AUG26-580-P", "PERPETUAL"]
        self.instruments = [f"{self.currency}-{name}" for name in names]

    def settings(self, url: str, *channels: str, **changes: Any) -> RawProducerSettings:  # noqa: ANN401 - fields of the settings, checked by them
        exchange = ExchangeSettings(url=url, reconnect_min_s=0.05, subscribe_attempts=1)
        values: dict[str, Any] = {
            "kafka": self.kafka,
            "registry": self.registry,
            "transactional_id": self.currency,
            **changes,
        }
        return RawProducerSettings(
            channels=channels or (self.options,), exchange=exchange, **values
        )

    def read(self, topic: str, count: int = 0) -> list[Record]:
        """All records of a topic, waiting for `count` at least; each partition in order."""
        config: dict[str, Any] = {
            **self.kafka.client_config(),
            "group.id": f"read-{uuid4().hex}",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "fetch.queue.backoff.ms": 10,
        }
        records: list[Record] = []
        consumer = Consumer(config)
        try:
            partitions = consumer.list_topics(topic, 10).topics[topic].partitions
            starts = [TopicPartition(topic, number, 0) for number in partitions]
            consumer.assign(starts)
            deadline = time.monotonic() + WAIT_S
            open_partitions = len(starts)
            while (len(records) < count or open_partitions > 0) and time.monotonic() < deadline:
                for message in consumer.consume(10_000, 0.2):
                    if message.error() is not None:  # the end of a partition
                        open_partitions -= 1
                        continue
                    key, value = message.key(), message.value()
                    records.append(
                        Record(
                            key.decode() if isinstance(key, bytes) else None,
                            value if isinstance(value, bytes) else b"",
                            list(message.headers() or []),  # type: ignore[arg-type]  # the stubs allow more than Kafka has
                            message.partition() or 0,
                        )
                    )
        finally:
            consumer.close()
        assert len(records) >= count, f"{len(records)} of {count} records in {topic}"
        return records

    def decode(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        with SchemaRegistry(self.registry) as registry:
            decoder = RecordDecoder(registry.schema_by_id)
            return [decoder.decode(record.value) for record in records]


@pytest.fixture
def market(stack: StackEndpoints) -> Iterator[Market]:
    made = Market(stack)
    yield made
    cluster = KafkaCluster(made.kafka, "test")
    known = cluster.topics()
    cluster.delete_topics(
        [name for name in known for topic in made.topics if name.startswith(topic)]
    )


class Service:
    """The raw-producer in a thread of this process."""

    def __init__(self, settings: RawProducerSettings) -> None:
        self.health = Health()
        self.stop = threading.Event()
        telemetry = Telemetry(TelemetrySettings(), "raw-producer")
        metrics = Metrics(CollectorRegistry())
        self._context = ServiceContext(
            "raw-producer", SystemClock(), metrics, self.health, telemetry, self.stop
        )
        self._settings = settings
        self.failure: KStreamError | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            run_raw_producer(self._settings, self._context)
        except KStreamError as error:
            self.failure = error

    def join(self) -> None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop.set()
        self.join()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    tick = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        tick.wait(0.05)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def producer_process(
    stack: StackEndpoints, url: str, channels: Sequence[str], http_port: int
) -> Iterator[subprocess.Popen[str]]:
    """`kstream-agg raw-producer` as a user starts it."""
    environment = {
        **os.environ,
        **stack.environment,
        "KSTREAM__CHANNELS": ",".join(channels),
        "KSTREAM__EXCHANGE__URL": url,
        "KSTREAM__EXCHANGE__SUBSCRIBE_ATTEMPTS": "1",
        "KSTREAM__HTTP__PORT": str(http_port),
        "KSTREAM__TRANSACTIONAL_ID": channels[0],
        "KSTREAM__TELEMETRY__SAMPLE_RATIO": "1.0",
    }
    for table in ("CONNECT", "POSTGRES"):  # of other services
        for name in [name for name in environment if name.startswith(f"KSTREAM__{table}__")]:
            del environment[name]
    process = subprocess.Popen(
        [sys.executable, "-m", "kstream_agg", "raw-producer"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=WAIT_S) as answer:  # noqa: S310 - our own address
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def test_the_service_brings_every_trade_into_the_topics_and_ends_cleanly(
    stack: StackEndpoints, market: Market
) -> None:
    recording = generate_trades(seed=5, count=6_000, instruments=market.instruments)
    sent = {(t["instrument_name"], t["trade_seq"]): t for t in recording.trades}
    http_port = free_port()
    with (
        simulator_in_thread(recording) as simulator,
        producer_process(
            stack, simulator.websocket_url, [market.options, market.futures], http_port
        ) as process,
    ):
        simulator.wait_played(timeout_s=WAIT_S)
        assert status_of(f"http://127.0.0.1:{http_port}/readyz") == 200
        assert status_of(f"http://127.0.0.1:{http_port}/healthz") == 200
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, log
    futures = sum(name.endswith("PERPETUAL") for name, _ in sent)
    by_topic = [market.read(topic) for topic in market.topics]
    assert [len(records) for records in by_topic] == [len(sent) - futures, futures]
    records = by_topic[0] + by_topic[1]
    values = market.decode(records)
    partitions: dict[str, set[int]] = {}
    last_seq: dict[str, int] = {}
    for record, value in zip(records, values, strict=True):
        name, seq = value["instrument_name"], value["trade_seq"]
        assert record.key == name
        assert seq == last_seq.get(name, 0) + 1  # in order, none missing, none twice
        last_seq[name] = seq
        partitions.setdefault(name, set()).add(record.partition)
        trade = sent[name, seq]
        value["timestamp"] = round(value["timestamp"].timestamp() * 1000)
        assert {field: value[field] for field in trade} == trade
        assert value["source"] == "stream"
        assert record.header("simulated") == "true"
        assert record.header("traceparent") is not None
    assert all(len(found) == 1 for found in partitions.values())
    config = KafkaCluster(market.kafka, "test").topic_config(market.topics[0])
    assert config["message.timestamp.type"] == "LogAppendTime"
    _assert_span_in_zipkin(stack, records[0].header("traceparent") or "")


def _assert_span_in_zipkin(stack: StackEndpoints, traceparent: str) -> None:
    assert is_sampled(traceparent.encode())
    _, trace_id, span_id, _ = traceparent.split("-")
    url = f"{stack.zipkin_url}/api/v2/trace/{trace_id}"
    wait_until(lambda: status_of(url) == 200, f"trace {trace_id} in Zipkin")
    with urllib.request.urlopen(url, timeout=WAIT_S) as answer:  # noqa: S310 - our own address
        spans = json.load(answer)
    (span,) = [span for span in spans if span["id"] == span_id]
    assert span["name"] == "produce_to_kafka"
    assert span["localEndpoint"]["serviceName"] == "raw-producer"


def test_a_stop_in_the_midst_leaves_no_hole_in_what_was_taken(
    stack: StackEndpoints, market: Market
) -> None:
    perpetual = market.instruments[-1]
    recording = generate_trades(seed=6, count=30_000, instruments=[perpetual])
    topic = market.topics[1]
    cluster = KafkaCluster(market.kafka, "test")
    with (
        simulator_in_thread(recording) as simulator,
        producer_process(stack, simulator.websocket_url, [market.futures], free_port()) as process,
    ):
        wait_until(lambda: topic in cluster.topics(), "the topic")
        market.read(topic, 1)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, log
    seqs = [value["trade_seq"] for value in market.decode(market.read(topic))]
    assert seqs == list(range(1, len(seqs) + 1))


def test_an_unknown_channel_ends_the_service_with_its_name_and_no_traceback(
    stack: StackEndpoints, market: Market
) -> None:
    with (
        simulator_in_thread(generate_trades(seed=5, count=10)) as simulator,
        producer_process(stack, simulator.websocket_url, [market.options], free_port()) as process,
    ):
        _, log = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1
    assert f"error: the exchange did not subscribe '{market.options}'" in log
    assert "remedy: " in log
    assert "Traceback" not in log


def wire_trade(market: Market, seq: int, **changes: object) -> dict[str, object]:
    return {
        "timestamp": 1_789_344_933_994,
        "price": 0.05,
        "amount": 1,
        "direction": "buy",
        "instrument_name": market.instruments[0],
        "trade_seq": seq,
        "trade_id": str(seq),
        "tick_direction": 1,
        **changes,
    }


@contextlib.contextmanager
def scripted_exchange(frames: Sequence[str | bytes]) -> Iterator[str]:
    """An exchange that acknowledges everything and then sends these frames; gives its address."""

    def handle(websocket: ServerConnection) -> None:
        for _ in range(3):
            request = json.loads(websocket.recv(WAIT_S))
            result = request["params"].get("channels", {"version": "1.2.26"})
            websocket.send(json.dumps({"id": request["id"], "result": result}))
        for frame in frames:
            websocket.send(frame)
        with contextlib.suppress(Exception):
            while True:
                websocket.recv(WAIT_S)

    with serve(handle, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/ws/api/v2"
        finally:
            server.shutdown()
            thread.join()


def test_bad_frames_and_bad_trades_are_kept_as_dead_letters_and_nothing_else_is(
    market: Market,
) -> None:
    def frame(*trades: object) -> str:
        params = {"channel": market.options, "data": trades}
        return json.dumps({"method": "subscription", "params": params})

    odd = wire_trade(market, 3, trade_seq=3.0, direction="zero", new_key=1, iv=None)
    big = wire_trade(market, 4, starbase_match_id=216172782113783809)
    frames: list[str | bytes] = [
        frame(wire_trade(market, 1), wire_trade(market, 9, price=None), wire_trade(market, 2)),
        "{broken",
        frame(wire_trade(market, 9, direction="b\0y")),
        frame(wire_trade(market, 9, price=float("nan")), odd, big),
    ]
    with (
        scripted_exchange(frames) as url,
        Service(market.settings(url)) as service,
    ):
        wait_until(lambda: service.health.not_ready() is None, "the subscription")
        letters = market.read(dead_letter_topic(market.topics[0]), 4)
        values = market.decode(market.read(market.topics[0], 4))
    assert service.failure is None
    assert [value["trade_seq"] for value in values] == [1, 2, 3, 4]
    assert (values[2]["direction"], json.loads(values[2]["extra"])) == ("zero", {"new_key": 1})
    assert values[3]["starbase_match_id"] == 216172782113783809
    reasons = [letter.header("error.message") or "" for letter in letters]
    expected = ["'price' is null", "not JSON", "U+0000", "no finite number"]
    assert all(part in reason for part, reason in zip(expected, reasons, strict=True)), reasons
    assert letters[1].value == b"{broken"
    assert letters[1].header("simulated") is None


def test_an_incompatible_schema_is_refused_and_the_field_named(market: Market) -> None:
    fields = [
        {**field, "type": "string"} if field["name"] == "price" else field
        for field in RAW_TRADE["fields"]
    ]
    with SchemaRegistry(market.registry) as registry:
        registry.register_value(market.topics[0], {**RAW_TRADE, "fields": fields})
    with Service(market.settings("ws://127.0.0.1:9/")) as service:
        service.join()
    assert isinstance(service.failure, SchemaIncompatibleError)
    assert "'price'" in str(service.failure)


class Gate:
    """A port that refuses connections until it is opened, and then forwards them."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._connections: list[socket.socket] = []

    def open(self) -> None:
        self._socket.listen()
        self._start(self._accept)

    def close(self) -> None:
        for connection in (self._socket, *self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join(WAIT_S)

    def _start(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                incoming, _ = self._socket.accept()
                outgoing = socket.create_connection(self._target)
                self._connections += [incoming, outgoing]
                self._start(self._pump, incoming, outgoing)
                self._start(self._pump, outgoing, incoming)

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def gates(stack: StackEndpoints) -> Iterator[tuple[Gate, Gate]]:
    """Closed doors before the broker and before the registry."""
    broker = stack.bootstrap_servers.rpartition(":")
    registry = stack.registry_url.split("/")[2].rpartition(":")
    made = (Gate((broker[0], int(broker[2]))), Gate((registry[0], int(registry[2]))))
    yield made
    for gate in made:
        gate.close()


def test_it_waits_for_broker_and_registry_says_so_and_goes_on(
    stack: StackEndpoints, market: Market, gates: tuple[Gate, Gate]
) -> None:
    kafka_gate, registry_gate = gates
    path = stack.registry_url.split("/", 3)[3]
    recording = generate_trades(seed=7, count=100, instruments=market.instruments[:1])
    with simulator_in_thread(recording) as simulator:
        settings = market.settings(
            simulator.websocket_url,
            kafka=KafkaSettings(bootstrap_servers=f"127.0.0.1:{kafka_gate.port}"),
            registry=RegistrySettings(url=f"http://127.0.0.1:{registry_gate.port}/{path}"),
        )
        with Service(settings) as service:

            def waits_for(what: str) -> bool:
                return what in (service.health.not_ready() or "")

            wait_until(lambda: waits_for("waiting for Kafka"), "not ready without a broker")
            kafka_gate.open()
            wait_until(lambda: waits_for("waiting for the schema registry"), "not ready without it")
            registry_gate.open()
            wait_until(lambda: service.health.not_ready() is None, "ready with both")
            assert len(market.read(market.topics[0], 100)) == 100
    assert service.failure is None


def test_a_stop_while_waiting_for_a_broker_ends_it(market: Market) -> None:
    nowhere = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}")
    with Service(market.settings("ws://127.0.0.1:9/", kafka=nowhere)) as service:
        wait_until(lambda: "Kafka" in (service.health.not_ready() or ""), "the wait")
    assert service.failure is None
