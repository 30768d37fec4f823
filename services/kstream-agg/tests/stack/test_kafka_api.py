"""The public API on three brokers: topics, writers, readers, transactions, first errors."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType
from records import values, write

from kstream_agg.core.errors import (
    ContractError,
    DeliveryError,
    FencedError,
    InvalidRecordError,
    TopicMismatchError,
)
from kstream_agg.core.settings import KafkaSettings, RegistrySettings
from kstream_agg.deribit.testing import wait_for
from kstream_agg.kafka import (
    AvroCodec,
    Codec,
    Delivered,
    Delivery,
    JsonCodec,
    KafkaCluster,
    MessagePackCodec,
    Record,
    TextCodec,
    TopicConfiguration,
    TopicPartition,
)
from kstream_agg.kafka.registry import SchemaRegistry

if TYPE_CHECKING:
    from collections.abc import Callable

    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = pytest.mark.stack

EXAMPLES = Path(__file__).resolve().parents[4] / "examples"


def test_an_existing_topic_is_fine_as_it_is_and_otherwise_the_differences_are_listed(
    three: KafkaCluster, unique: Callable[[str], str]
) -> None:
    name = unique("made")
    made = TopicConfiguration(name, 2, 3, {"cleanup.policy": "compact,delete"})
    assert three.create_topics([made]) == [name]
    same = TopicConfiguration(name, 2, 3, {"cleanup.policy": "delete,compact"})
    assert three.create_topics([same]) == []
    other = TopicConfiguration(name, 4, 2, {"cleanup.policy": "delete"})
    with pytest.raises(TopicMismatchError) as caught:
        three.create_topics([other, TopicConfiguration(unique("never"))])
    assert "partitions 2 instead of 4" in str(caught.value)
    assert "replication factor 3 instead of 2" in str(caught.value)
    assert "cleanup.policy" in str(caught.value)
    assert "instead of delete" in str(caught.value)
    assert not any(known.startswith("never") for known in three.topics())
    three.delete_topics([name])
    with pytest.raises(ContractError, match="there is no topic"):
        three.describe_topic(name)


def test_a_topic_gets_more_partitions_and_other_settings(three: KafkaCluster, topic: str) -> None:
    three.alter_topic(topic, partitions=5, config={"retention.ms": "60000"})
    assert three.describe_topic(topic).partitions == 5
    assert three.topic_config(topic)["retention.ms"] == "60000"
    three.alter_topic(topic, config={"retention.ms": None})
    assert three.topic_config(topic)["retention.ms"] == "604800000"
    with pytest.raises(ContractError) as caught:
        three.alter_topic(topic, partitions=1)
    assert "only ever gets more" in str(caught.value.remedy)


def test_a_record_comes_back_as_it_was_written(three: KafkaCluster, topic: str) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    with three.writer(topic) as writer:
        record = Record(b"v", key="k", headers=(("h", b"1"), ("h", None)), timestamp=at)
        done = writer.produce_and_flush(record)
        assert writer.produce_and_flush(Record(None, key=b"k")).partition == done.partition
        assert (writer.delivered, writer.in_flight) == (2, 0)
    place = TopicPartition(topic, done.partition)
    with three.reader_for_partition(place, "earliest") as reader:
        found, tombstone = reader.read(2, 30)
    assert (found.value, found.key, found.headers) == (b"v", b"k", (("h", b"1"), ("h", None)))
    assert (found.timestamp, done.timestamp) == (at, at)
    assert (found.topic, found.partition, found.offset) == (topic, done.partition, done.offset)
    assert (tombstone.value, tombstone.headers) == (None, ())


class Reading(msgspec.Struct):
    celsius: float


def test_a_bad_value_fails_alone(three: KafkaCluster, topic: str) -> None:
    codec = JsonCodec[Reading](Reading)
    place = TopicPartition(topic, 1)
    with three.writer_for_partition(place, codec) as writer:
        writer.produce(Record(Reading(20.5)))
        writer.flush()
        write(three, topic, [b"no JSON"], 1)
        writer.produce(Record(Reading(21.5)))
    with three.reader_for_partition(place, "earliest", codec=codec) as reader:
        first, bad, last = reader.read(3, 30)
    assert (first.value, last.value) == (Reading(20.5), Reading(21.5))
    assert bad.raw == b"no JSON"
    with pytest.raises(InvalidRecordError, match=topic):
        _ = bad.value


AVRO = {"type": "record", "name": "Reading", "fields": [{"name": "celsius", "type": "double"}]}


def test_values_travel_in_any_format(
    three: KafkaCluster, topic: str, stack: StackEndpoints
) -> None:
    value = {"celsius": 20.5}
    with SchemaRegistry(RegistrySettings(url=stack.registry_url)) as registry:
        codecs: tuple[Codec[Any], ...] = (
            JsonCodec[Any](),
            MessagePackCodec[Any](),
            AvroCodec(registry, AVRO),
        )
        for number, codec in enumerate(codecs):
            place = TopicPartition(topic, number)
            with three.writer_for_partition(place, codec) as writer:
                writer.produce(Record(value))
            with three.reader_for_partition(place, "earliest", codec=codec) as reader:
                (found,) = reader.read(1, 30)
                assert found.value == value
                assert found.raw != repr(value).encode()
    with (
        three.writer(topic, TextCodec()) as writer,
        three.reader(topic, codec=TextCodec()) as texts,
    ):
        writer.produce_and_flush(Record("grün"))
        assert [record.value for record in texts.read(1, 30)] == ["grün"]


def test_a_partition_is_read_from_an_end_an_offset_or_a_time(
    three: KafkaCluster, topic: str
) -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    place = TopicPartition(topic, 0)
    with three.writer_for_partition(place) as writer:
        for number in range(5):
            at = begin + timedelta(hours=number)
            writer.produce(Record(str(number).encode(), timestamp=at))
    for start, expected in (
        ("earliest", [b"0", b"1"]),
        (3, [b"3", b"4"]),
        (begin + timedelta(minutes=61), [b"2", b"3"]),
    ):
        with three.reader_for_partition(place, start) as reader:  # type: ignore[arg-type]  # a Start each
            assert values(reader, 2) == expected
    with three.reader_for_partition(place) as reader:
        write(three, topic, [b"new"])
        assert values(reader, 1) == [b"new"]
    with pytest.raises(ContractError, match="no offset 9") as caught:
        three.reader_for_partition(place, 9)
    assert "from 0 up to 5" in str(caught.value.remedy)


def test_a_reader_reads_to_the_end_seeks_and_pauses(three: KafkaCluster, topic: str) -> None:
    for number in range(3):
        write(three, topic, [f"{number}{letter}".encode() for letter in "abc"], number)
    with three.reader(topic, start="earliest") as reader:
        assert len(list(reader.until_end())) == 9
        reader.seek(TopicPartition(topic, 1), 1)
        assert values(reader, 2) == [b"1b", b"1c"]
        paused = [TopicPartition(topic, 2)]
        reader.seek(TopicPartition(topic, 2), 0)
        reader.pause(paused)
        reader.seek(TopicPartition(topic, 0), 2)
        assert values(reader, 1) == [b"0c"]
        assert reader.poll(0.3) is None
        reader.resume(paused)
        assert values(reader, 3) == [b"2a", b"2b", b"2c"]


def test_a_transaction_is_seen_whole_with_the_place_of_what_it_was_made_from(
    three: KafkaCluster, topic: str, unique: Callable[[str], str]
) -> None:
    group, name, out = unique("group"), unique("program"), unique("out")
    three.create_topics([TopicConfiguration(out, 1, 3)])
    write(three, topic, [b"1", b"2"])
    transactions = three.transactions(name)
    with three.reader(topic, group=group, start="earliest") as reader:
        assert values(reader, 2) == [b"1", b"2"]

        def give_up_half_way() -> None:
            with transactions.begin():
                transactions.produce(out, Record(b"undone"))
                transactions.commit_with(reader)
                raise RuntimeError

        with pytest.raises(RuntimeError):
            give_up_half_way()
        assert three.groups.committed(group) == {}
        with transactions.begin():
            transactions.produce(out, Record(b"3", key="sum"))
            transactions.commit_with(reader)
    # Kafka marks the group's offsets when the transaction is committed, not before.
    wait_for(lambda: three.groups.committed(group) == {(topic, 0): 2}, "the offset")
    with three.reader(out, start="earliest") as reader:
        assert [record.value for record in reader.until_end()] == [b"3"]
    three.transactions(name)
    with pytest.raises(FencedError), transactions.begin():
        transactions.produce(out, Record(b"late"))


def test_an_event_loop_writes_and_reads(three: KafkaCluster, unique: Callable[[str], str]) -> None:
    topic = unique("loop")

    async def main() -> list[bytes | None]:
        assert await three.await_for_brokers(timeout_s=10)
        await three.acreate_topics([TopicConfiguration(topic, 1, 3)])
        found: list[bytes | None] = []
        async with three.reader(topic) as reader, three.writer(topic) as writer:
            deliveries = [writer.produce(Record(str(n).encode())) for n in range(500)]
            places = await asyncio.gather(*map(_awaited, deliveries))
            assert [place.offset for place in places] == list(range(500))
            assert (await writer.aproduce_and_flush(Record(b"last"))).offset == 500
            async for record in reader:
                found.append(record.value)
                if record.value == b"last":
                    break
        return found

    found = asyncio.run(main())
    assert found == [*(str(n).encode() for n in range(500)), b"last"]


async def _awaited(delivery: Delivery) -> Delivered:
    return await delivery


def test_brokers_come_from_the_environment(brokers: str, topic: str) -> None:
    found = KafkaCluster().describe()
    addresses = sorted(f"{broker.host}:{broker.port}" for broker in found.brokers)
    assert addresses == sorted(brokers.split(","))
    assert found.cluster_id
    assert not found.under_replicated
    (shown,) = [each for each in found.topics if each.name == topic]
    # Every broker leads one of the three partitions, and holds all.
    assert sorted(part.leader or 0 for part in shown.details) == [1, 2, 3]
    assert [sorted(part.in_sync) for part in shown.details] == [[1, 2, 3]] * 3


def test_the_clients_own_figures_can_be_asked_for(brokers: str, topic: str) -> None:
    quick = KafkaSettings(bootstrap_servers=brokers, properties={"statistics.interval.ms": 50})
    with KafkaCluster(quick).writer(topic) as writer:
        while "brokers" not in writer.statistics():
            writer.produce_and_flush(Record(b"x"))
        assert writer.statistics()["type"] == "producer"


def test_the_example_reads_back_what_it_writes(brokers: str, unique: Callable[[str], str]) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "write_and_read_back.py", unique("example")],
        env=os.environ | {"KAFKA_BROKERS": brokers},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "records/s read, all as written" in done.stdout
    assert done.stderr.count("\n") <= 1  # a log line at most


def settings_at_each(three: KafkaCluster, topic: str) -> list[dict[str, str]]:
    """A topic's settings as each broker says them: what is asked of one goes to that one."""
    client = AdminClient(three.settings.client_config())
    found = []
    for broker in three.describe().brokers:
        resource = ConfigResource(ResourceType.TOPIC, topic)
        its_own = ConfigResource(ResourceType.BROKER, str(broker.number))
        entries = client.describe_configs([resource, its_own])[resource].result()
        found.append({name: entry.value for name, entry in entries.items()})
    assert len(found) == 3
    return found


def test_each_broker_knows_of_a_change_when_it_is_said_to_be_made(
    three: KafkaCluster, brokers: str, unique: Callable[[str], str]
) -> None:
    for _ in range(2):
        name = unique("heard")
        three.create_topics([TopicConfiguration(name, 3, 3, {"retention.ms": "70000"})])
        assert {each["retention.ms"] for each in settings_at_each(three, name)} == {"70000"}
        three.alter_topic(name, config={"retention.ms": "60000"})
        assert {each["retention.ms"] for each in settings_at_each(three, name)} == {"60000"}
        # Any broker answers these; they are too many for one that has not heard of it.
        three.alter_topic(name, partitions=5)
        assert {KafkaCluster(brokers).describe_topic(name).partitions for _ in range(9)} == {5}
        three.delete_topics([name])
        assert not any(name in KafkaCluster(brokers).topics() for _ in range(9))


# --- the errors a newcomer meets first; no broker: test_kafka_layer.py ------------------------


def test_an_unknown_topic(three: KafkaCluster, topic: str) -> None:
    near = topic[:-1]
    for open_it in (three.writer, three.reader, three.describe_topic):
        with pytest.raises(ContractError, match=f"there is no topic '{near}'") as caught:
            open_it(near)
        assert f"did you mean {topic}" in str(caught.value.remedy)


def test_a_wrong_partition(three: KafkaCluster, topic: str) -> None:
    for open_it in (three.writer_for_partition, three.reader_for_partition):
        with pytest.raises(ContractError, match="has no partition 3") as caught:
            open_it(TopicPartition(topic, 3))
        assert caught.value.remedy == "it has 0 to 2"


def test_a_message_too_large(three: KafkaCluster, topic: str) -> None:
    writer = three.writer(topic)
    with pytest.raises(DeliveryError, match=topic) as caught:
        writer.produce(Record(bytes(2_000_000)))
    assert "max.message.bytes" in str(caught.value.remedy)
    three.alter_topic(topic, config={"max.message.bytes": "1000"})
    delivery = writer.produce(Record(os.urandom(5_000)))
    with pytest.raises(DeliveryError, match=topic) as caught:
        delivery.result(30)
    assert "max.message.bytes" in str(caught.value.remedy)
    with pytest.raises(DeliveryError, match=topic):
        writer.flush()
    with pytest.raises(DeliveryError, match=topic):
        writer.produce(Record(b"what follows a lost record"))
