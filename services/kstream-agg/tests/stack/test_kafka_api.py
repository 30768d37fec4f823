"""The public API against the real broker: writers, readers, groups, transactions, first errors."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from kstream_agg.core.errors import (
    ContractError,
    DeliveryError,
    FencedError,
    InvalidRecordError,
    TopicMismatchError,
)
from kstream_agg.core.settings import KafkaSettings
from kstream_agg.kafka import (
    Delivered,
    Delivery,
    JsonCodec,
    KafkaCluster,
    Reader,
    Rebalance,
    Record,
    TopicConfiguration,
    TopicPartition,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = pytest.mark.stack

EXAMPLES = Path(__file__).resolve().parents[4] / "examples"


@pytest.fixture
def cluster(stack: StackEndpoints) -> KafkaCluster:
    return KafkaCluster(stack.bootstrap_servers, "api-tests")


@pytest.fixture
def topic(cluster: KafkaCluster, unique: Callable[[str], str]) -> str:
    name = unique("api")
    cluster.create_topics([TopicConfiguration(name, partitions=3)])
    return name


def write(cluster: KafkaCluster, topic: str, values: list[bytes], partition: int = 0) -> None:
    with cluster.writer_for_partition(TopicPartition(topic, partition)) as writer:
        for value in values:
            writer.produce(Record(value))


def values(reader: Reader[bytes], count: int) -> list[bytes | None]:
    return [record.value for record in reader.read(count, 30)]


def test_an_existing_topic_is_fine_as_it_is_and_otherwise_the_differences_are_listed(
    cluster: KafkaCluster, unique: Callable[[str], str]
) -> None:
    name = unique("made")
    made = TopicConfiguration(name, 2, config={"cleanup.policy": "compact,delete"})
    assert cluster.create_topics([made]) == [name]
    same = TopicConfiguration(name, 2, config={"cleanup.policy": "delete,compact"})
    assert cluster.create_topics([same]) == []
    other = TopicConfiguration(name, 4, config={"cleanup.policy": "delete"})
    with pytest.raises(TopicMismatchError) as caught:
        cluster.create_topics([other, TopicConfiguration(unique("never"))])
    assert "partitions 2 instead of 4" in str(caught.value)
    assert "cleanup.policy" in str(caught.value)
    assert "instead of delete" in str(caught.value)
    assert not any(known.startswith("never") for known in cluster.topics())


def test_a_topic_gets_more_partitions_and_other_settings(cluster: KafkaCluster, topic: str) -> None:
    cluster.alter_topic(topic, partitions=5, config={"retention.ms": "60000"})
    assert cluster.describe_topic(topic).partitions == 5
    assert cluster.topic_config(topic)["retention.ms"] == "60000"
    cluster.alter_topic(topic, config={"retention.ms": None})
    assert cluster.topic_config(topic)["retention.ms"] == "604800000"
    with pytest.raises(ContractError) as caught:
        cluster.alter_topic(topic, partitions=1)
    assert "only ever gets more" in str(caught.value.remedy)


def test_a_record_comes_back_as_it_was_written(cluster: KafkaCluster, topic: str) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    with cluster.writer(topic) as writer:
        record = Record(b"v", key="k", headers=(("h", b"1"), ("h", None)), timestamp=at)
        done = writer.produce_and_flush(record)
        assert writer.produce_and_flush(Record(None, key=b"k")).partition == done.partition
        assert (writer.delivered, writer.in_flight) == (2, 0)
    place = TopicPartition(topic, done.partition)
    with cluster.reader_for_partition(place, "earliest") as reader:
        found, tombstone = reader.read(2, 30)
    assert (found.value, found.key, found.headers) == (b"v", b"k", (("h", b"1"), ("h", None)))
    assert (found.timestamp, done.timestamp) == (at, at)
    assert (found.topic, found.partition, found.offset) == (topic, done.partition, done.offset)
    assert (tombstone.value, tombstone.headers) == (None, ())


class Reading(msgspec.Struct):
    celsius: float


def test_values_travel_through_a_codec_and_a_bad_one_fails_alone(
    cluster: KafkaCluster, topic: str
) -> None:
    codec = JsonCodec[Reading](Reading)
    place = TopicPartition(topic, 1)
    with cluster.writer_for_partition(place, codec) as writer:
        writer.produce(Record(Reading(20.5)))
        writer.flush()
        write(cluster, topic, [b"no JSON"], 1)
        writer.produce(Record(Reading(21.5)))
    with cluster.reader_for_partition(place, "earliest", codec=codec) as reader:
        first, bad, last = reader.read(3, 30)
    assert (first.value, last.value) == (Reading(20.5), Reading(21.5))
    assert bad.raw == b"no JSON"
    with pytest.raises(InvalidRecordError, match=topic):
        _ = bad.value


def test_a_partition_is_read_from_an_end_an_offset_or_a_time(
    cluster: KafkaCluster, topic: str
) -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    place = TopicPartition(topic, 0)
    with cluster.writer_for_partition(place) as writer:
        for number in range(5):
            at = begin + timedelta(hours=number)
            writer.produce(Record(str(number).encode(), timestamp=at))
    for start, expected in (
        ("earliest", [b"0", b"1"]),
        (3, [b"3", b"4"]),
        (begin + timedelta(minutes=61), [b"2", b"3"]),
    ):
        with cluster.reader_for_partition(place, start) as reader:  # type: ignore[arg-type]  # a Start each
            assert values(reader, 2) == expected
    with cluster.reader_for_partition(place) as reader:
        write(cluster, topic, [b"new"])
        assert values(reader, 1) == [b"new"]
    with pytest.raises(ContractError, match="no offset 9") as caught:
        cluster.reader_for_partition(place, 9)
    assert "from 0 up to 5" in str(caught.value.remedy)


def test_a_reader_reads_to_the_end_seeks_and_pauses(cluster: KafkaCluster, topic: str) -> None:
    for number in range(3):
        write(cluster, topic, [f"{number}{letter}".encode() for letter in "abc"], number)
    with cluster.reader(topic, start="earliest") as reader:
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


def test_a_group_goes_on_behind_what_it_has_committed_not_what_it_has_fetched(
    cluster: KafkaCluster, topic: str, unique: Callable[[str], str]
) -> None:
    group = unique("group")
    write(cluster, topic, [b"0", b"1", b"2", b"3"])
    with cluster.reader(topic, group=group, start="earliest") as reader:
        assert values(reader, 2) == [b"0", b"1"]
        reader.commit()
        assert values(reader, 1) == [b"2"]
    with cluster.reader(topic, group=group) as reader:
        assert values(reader, 2) == [b"2", b"3"]
    (lag,) = [each for each in cluster.groups.lag(group) if each.committed]
    assert (lag.partition, lag.committed, lag.end, lag.lag) == (0, 2, 4, 2)


def test_a_new_group_misses_nothing_that_comes_after_its_subscription(
    cluster: KafkaCluster, topic: str, unique: Callable[[str], str]
) -> None:
    write(cluster, topic, [b"before"])
    with cluster.reader(topic, group=unique("group")) as reader:
        # It has not joined yet: that happens while it polls.
        write(cluster, topic, [b"after"])
        assert values(reader, 1) == [b"after"]


def test_two_members_share_the_partitions_and_are_told_of_it(
    cluster: KafkaCluster, topic: str, unique: Callable[[str], str]
) -> None:
    group = unique("group")
    told: list[tuple[str, Rebalance]] = []
    joined = threading.Event()
    with cluster.reader(topic, group=group) as first:
        first.on_rebalance(
            lambda change: told.append(("before", change)),
            lambda change: told.append(("after", change)),
        )
        first.read(1, 0)
        while len(first.assignment) < 3:
            first.poll(0.1)

        def join() -> None:
            with cluster.reader(topic, group=group) as second:
                while not second.assignment:
                    second.poll(0.1)
                joined.wait(30)

        thread = threading.Thread(target=join, name="second")
        thread.start()
        while not any(change.kind == "revoked" for _, change in told):
            first.poll(0.1)
        while len(cluster.groups.describe(group).members) < 2:
            first.poll(0.1)
        with pytest.raises(ContractError, match="running members"):
            cluster.groups.reset(group, topic, "earliest")
        joined.set()
        while len(first.assignment) < 3:
            first.poll(0.1)
        thread.join(30)
    kinds = [(when, change.kind) for when, change in told]
    assert kinds[:2] == [("before", "assigned"), ("after", "assigned")]
    assert ("before", "revoked") in kinds
    assert cluster.groups.names()[group] == "empty"


def test_a_group_is_moved_to_an_end_an_offset_or_a_time(
    cluster: KafkaCluster, topic: str, unique: Callable[[str], str]
) -> None:
    group = unique("group")
    write(cluster, topic, [b"0", b"1", b"2"])
    assert [lag.lag for lag in cluster.groups.reset(group, topic, "earliest")] == [3, 0, 0]
    assert [lag.lag for lag in cluster.groups.reset(group, topic, "latest")] == [0, 0, 0]
    future = datetime.now(UTC) + timedelta(days=1)
    assert [lag.lag for lag in cluster.groups.reset(group, topic, future)] == [0, 0, 0]
    with pytest.raises(ContractError, match="no offset 2"):
        cluster.groups.reset(group, topic, 2)
    with pytest.raises(ContractError, match="no group"):
        cluster.groups.describe(unique("nobody"))


def test_a_transaction_is_seen_whole_with_the_place_of_what_it_was_made_from(
    cluster: KafkaCluster, topic: str, unique: Callable[[str], str]
) -> None:
    group, name, out = unique("group"), unique("program"), unique("out")
    cluster.create_topics([TopicConfiguration(out)])
    write(cluster, topic, [b"1", b"2"])
    transactions = cluster.transactions(name)
    with cluster.reader(topic, group=group, start="earliest") as reader:
        assert values(reader, 2) == [b"1", b"2"]

        def give_up_half_way() -> None:
            with transactions.begin():
                transactions.produce(out, Record(b"undone"))
                transactions.commit_with(reader)
                raise RuntimeError

        with pytest.raises(RuntimeError):
            give_up_half_way()
        assert cluster.groups.committed(group) == {}
        with transactions.begin():
            transactions.produce(out, Record(b"3", key="sum"))
            transactions.commit_with(reader)
    assert cluster.groups.committed(group)[topic, 0] == 2
    with cluster.reader(out, start="earliest") as reader:
        assert [record.value for record in reader.until_end()] == [b"3"]
    cluster.transactions(name)
    with pytest.raises(FencedError), transactions.begin():
        transactions.produce(out, Record(b"late"))


def test_an_event_loop_writes_and_reads(
    cluster: KafkaCluster, unique: Callable[[str], str]
) -> None:
    topic = unique("loop")

    async def main() -> list[bytes | None]:
        assert await cluster.await_for_brokers(timeout_s=10)
        await cluster.acreate_topics([TopicConfiguration(topic)])
        found: list[bytes | None] = []
        async with cluster.reader(topic) as reader, cluster.writer(topic) as writer:
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


def test_brokers_come_from_the_environment(
    stack: StackEndpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BROKERS", stack.bootstrap_servers)
    found = KafkaCluster().describe()
    assert [f"{broker.host}:{broker.port}" for broker in found.brokers] == [stack.bootstrap_servers]
    assert found.cluster_id


def test_the_clients_own_figures_can_be_asked_for(stack: StackEndpoints, topic: str) -> None:
    quick = KafkaSettings(
        bootstrap_servers=stack.bootstrap_servers, properties={"statistics.interval.ms": 50}
    )
    with KafkaCluster(quick).writer(topic) as writer:
        while "brokers" not in writer.statistics():
            writer.produce_and_flush(Record(b"x"))
        assert writer.statistics()["type"] == "producer"


def test_the_example_reads_back_what_it_writes(
    stack: StackEndpoints, unique: Callable[[str], str]
) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "write_and_read_back.py", unique("example")],
        env=os.environ | {"KAFKA_BROKERS": stack.bootstrap_servers},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "records/s read, all as written" in done.stdout
    assert done.stderr.count("\n") <= 1  # a log line at most


# --- the errors a newcomer meets first; no broker: test_kafka_layer.py ------------------------


def test_an_unknown_topic(cluster: KafkaCluster, topic: str) -> None:
    near = topic[:-1]
    for open_it in (cluster.writer, cluster.reader, cluster.describe_topic):
        with pytest.raises(ContractError, match=f"there is no topic '{near}'") as caught:
            open_it(near)
        assert f"did you mean {topic}" in str(caught.value.remedy)


def test_a_wrong_partition(cluster: KafkaCluster, topic: str) -> None:
    for open_it in (cluster.writer_for_partition, cluster.reader_for_partition):
        with pytest.raises(ContractError, match="has no partition 3") as caught:
            open_it(TopicPartition(topic, 3))
        assert caught.value.remedy == "it has 0 to 2"


def test_a_group_with_another_protocol(
    stack: StackEndpoints, cluster: KafkaCluster, topic: str, unique: Callable[[str], str]
) -> None:
    group = unique("group")
    other = KafkaSettings(
        bootstrap_servers=stack.bootstrap_servers,
        properties={"partition.assignment.strategy": "range"},
    )
    with (
        KafkaCluster(other).reader(topic, group=group) as ranged,
        cluster.reader(topic, group=group) as sticky,
    ):
        while len(ranged.assignment) < 3:
            ranged.poll(0.1)
        with pytest.raises(ContractError, match=group) as caught:
            sticky.read(1, 30)
    assert "take another group" in str(caught.value.remedy)


def test_a_message_too_large(cluster: KafkaCluster, topic: str) -> None:
    writer = cluster.writer(topic)
    with pytest.raises(DeliveryError, match=topic) as caught:
        writer.produce(Record(bytes(2_000_000)))
    assert "max.message.bytes" in str(caught.value.remedy)
    cluster.alter_topic(topic, config={"max.message.bytes": "1000"})
    delivery = writer.produce(Record(os.urandom(5_000)))
    with pytest.raises(DeliveryError, match=topic) as caught:
        delivery.result(30)
    assert "max.message.bytes" in str(caught.value.remedy)
    with pytest.raises(DeliveryError, match=topic):
        writer.flush()
    with pytest.raises(DeliveryError, match=topic):
        writer.produce(Record(b"what follows a lost record"))


def test_a_reader_without_a_group_commits_nothing(cluster: KafkaCluster, topic: str) -> None:
    with (
        cluster.reader(topic) as reader,
        pytest.raises(ContractError, match="without a group"),
    ):
        reader.commit()
