"""Topics, writer and registry against the real broker and registry."""

from __future__ import annotations

import copy
import threading
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from prometheus_client import CollectorRegistry

from kstream_agg.core.errors import (
    ContractError,
    DeliveryError,
    SchemaIncompatibleError,
    UnavailableError,
)
from kstream_agg.core.metrics import RECORDS_DELIVERED, Metrics
from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.core.settings import KafkaSettings, RegistrySettings, TopicSettings
from kstream_agg.deribit.testing import wait_for
from kstream_agg.kafka.cluster import KafkaCluster, TopicConfiguration, topic_configuration
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.transactions import TransactionWriter
from kstream_agg.kafka.writer import RecordWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = pytest.mark.stack

NOBODY_LISTENS = "127.0.0.1:1"


@pytest.fixture
def kafka(stack: StackEndpoints) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=stack.bootstrap_servers)


@pytest.fixture
def cluster(kafka: KafkaSettings) -> KafkaCluster:
    return KafkaCluster(kafka, "tests")


@pytest.fixture
def registry(stack: StackEndpoints) -> Iterator[SchemaRegistry]:
    with SchemaRegistry(RegistrySettings(url=stack.registry_url)) as registry:
        yield registry


def read_all(kafka: KafkaSettings, topic: str, count: int, partitions: int) -> list[Any]:
    config = kafka.client_config() | {"group.id": "unused", "enable.auto.commit": False}
    consumer = Consumer(config)
    try:
        consumer.assign(
            [TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(partitions)]
        )
        found: list[Any] = []
        while len(found) < count:
            messages = consumer.consume(count - len(found), timeout=30)
            assert messages, f"only {len(found)} of {count} records came"
            found += messages
        return found
    finally:
        consumer.close()


def test_a_writer_that_was_replaced_says_so_whatever_meets_it(
    kafka: KafkaSettings, cluster: KafkaCluster, unique: Callable[[str], str]
) -> None:
    name = unique("fenced")
    cluster.create_topics([TopicConfiguration(name)])
    first, second = (
        TransactionWriter(kafka, Metrics(CollectorRegistry()), "tests", name) for _ in range(2)
    )
    assert first.start(threading.Event())
    first.produce(name, b"x")
    assert second.start(threading.Event())
    # Its client finds out by itself; the next record is then refused with "fatal error" alone.
    with pytest.raises(DeliveryError, match="has taken over the transactional id"):
        wait_for(lambda: first.produce(name, b"y"), "the refusal")


def test_topics_are_created_once_and_kept_as_they_are(
    cluster: KafkaCluster, unique: Callable[[str], str]
) -> None:
    name = unique("topics")
    wanted = topic_configuration(name, TopicSettings(partitions=3, retention_hours=2), compact=True)
    assert cluster.create_topics([wanted, wanted]) == [name]
    other = topic_configuration(name, TopicSettings(partitions=5))
    assert cluster.create_topics([other]) == []
    assert cluster.topics()[name].partitions == 3
    config = cluster.topic_config(name)
    assert config["cleanup.policy"] in {"compact,delete", "delete,compact"}
    assert config["message.timestamp.type"] == "LogAppendTime"
    assert config["retention.ms"] == "7200000"
    cluster.delete_topics([name, unique("never-made")])


def test_an_unknown_topic_is_named(cluster: KafkaCluster, unique: Callable[[str], str]) -> None:
    name = unique("never-made")
    with pytest.raises(ContractError, match=name) as caught:
        cluster.topic_config(name)
    assert caught.value.remedy is not None
    assert "kstream-agg topics" in caught.value.remedy


def test_an_absent_broker_is_one_sentence_with_a_remedy() -> None:
    absent = KafkaCluster(KafkaSettings(bootstrap_servers=NOBODY_LISTENS), "tests")
    with pytest.raises(UnavailableError, match=NOBODY_LISTENS) as caught:
        absent.writer("t")
    assert "no Kafka broker answers" in str(caught.value)
    assert "is Kafka running" in str(caught.value.remedy)
    with pytest.raises(UnavailableError, match="listing the groups"):
        absent.groups.names()
    with pytest.raises(UnavailableError, match="no Kafka broker answers") as caught:
        absent.wait_for_brokers(threading.Event(), timeout_s=1)
    assert caught.value.remedy is not None
    stop = threading.Event()
    stop.set()
    assert absent.wait_for_brokers(stop) is False


def test_a_key_stands_in_order_where_java_clients_would_put_it(
    kafka: KafkaSettings, cluster: KafkaCluster, unique: Callable[[str], str]
) -> None:
    topic = unique("writer")
    cluster.create_topics([topic_configuration(topic, TopicSettings(partitions=4))])
    metrics = Metrics()
    with RecordWriter(kafka, metrics, "tests") as writer:
        for number in range(200):
            writer.produce(topic, str(number).encode(), key=b"BTC-PERPETUAL", headers=[("h", b"1")])
    records = read_all(kafka, topic, 200, 4)
    assert [int(record.value()) for record in records] == list(range(200))
    # murmur2(b"BTC-PERPETUAL") & 0x7fffffff modulo 4, as org.apache.kafka.common.utils.Utils has it
    assert {record.partition() for record in records} == {murmur2(b"BTC-PERPETUAL") % 4}
    assert metrics.counter(RECORDS_DELIVERED).labels(topic)._value.get() == 200


def murmur2(data: bytes) -> int:
    """The positive murmur2 hash of Kafka's default partitioner."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = (0x9747B28C ^ len(data)) & mask
    whole = len(data) & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    tail = data[whole:]
    for position in reversed(range(len(tail))):
        h ^= tail[position] << 8 * position
    if tail:
        h = h * m & mask
    h = (h ^ h >> 13) * m & mask
    return (h ^ h >> 15) & 0x7FFFFFFF


def test_a_lost_record_stops_the_writer(unique: Callable[[str], str]) -> None:
    settings = KafkaSettings(
        bootstrap_servers=NOBODY_LISTENS,
        properties={"delivery.timeout.ms": 300, "log_level": 0},
    )
    writer = RecordWriter(settings, Metrics(), "tests")
    topic = unique("nowhere")
    writer.produce(topic, b"x")
    with pytest.raises(DeliveryError, match=topic):
        writer.flush(30)
    with pytest.raises(DeliveryError, match=topic):
        writer.produce(topic, b"y")


def test_a_full_queue_slows_its_source_down_and_loses_nothing(
    kafka: KafkaSettings, cluster: KafkaCluster, unique: Callable[[str], str]
) -> None:
    topic = unique("full")
    cluster.create_topics([topic_configuration(topic, TopicSettings(partitions=1))])
    tight = kafka.model_copy(update={"properties": {"queue.buffering.max.messages": 10}})
    with RecordWriter(tight, Metrics(), "tests") as writer:
        for number in range(500):
            writer.produce(topic, str(number).encode())
            assert writer.in_flight <= 10
    assert len(read_all(kafka, topic, 500, 1)) == 500


def test_a_schema_has_one_id_and_grows_by_nullable_fields(
    registry: SchemaRegistry, unique: Callable[[str], str]
) -> None:
    topic = unique("schemas")
    assert registry.wait(threading.Event())
    first = registry.register_value(topic, RAW_TRADE)
    assert registry.register_value(topic, RAW_TRADE) == first
    grown = copy.deepcopy(RAW_TRADE)
    grown["fields"].append({"name": "venue", "type": ["null", "string"], "default": None})
    second = registry.register_value(topic, grown)
    assert second != first
    found = registry.schema_by_id(second)
    assert found is not None
    assert found["fields"][-1]["name"] == "venue"
    assert registry.schema_by_id(1_000_000_000) is None


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ({"name": "venue", "type": "string"}, "'venue' is new and has no default"),
        ({"name": "price", "type": "string"}, '\'price\' was "double" and would be "string"'),
    ],
)
def test_an_incompatible_schema_is_refused_by_the_fields_name(
    registry: SchemaRegistry, unique: Callable[[str], str], field: dict[str, Any], says: str
) -> None:
    topic = unique("schemas")
    registry.register_value(topic, RAW_TRADE)
    changed = copy.deepcopy(RAW_TRADE)
    kept = [old for old in changed["fields"] if old["name"] != field["name"]]
    changed["fields"] = [*kept, field]
    with pytest.raises(SchemaIncompatibleError, match=says):
        registry.register_value(topic, changed)


def test_an_absent_registry_is_one_sentence_with_a_remedy() -> None:
    settings = RegistrySettings(url=f"http://{NOBODY_LISTENS}", timeout_s=1)
    with SchemaRegistry(settings) as absent:
        with pytest.raises(UnavailableError, match=NOBODY_LISTENS) as caught:
            absent.schema_by_id(1)
        assert caught.value.remedy is not None
        with pytest.raises(UnavailableError, match=NOBODY_LISTENS):
            absent.register_value("t", RAW_TRADE)
