"""What pipelines rely on in a broker: checked on Kafka, and on the test kit's broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Bed

    Read = Callable[[Consumer, int], list[Message]]
    Until = Callable[..., None]


def values(messages: list[Message]) -> list[bytes | str | None]:
    return [message.value() for message in messages]


def start(consumer: Consumer, topic: str) -> None:
    """Read the only partition from its beginning, outside of a group's assignment."""
    consumer.incremental_assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])


def test_records_come_as_they_were_written_in_order(bed: Bed, read: Read) -> None:
    topic = bed.topic()
    producer = bed.producer()
    producer.produce(topic, b"a", b"k", headers=[("h", b"1"), ("h", None)])
    producer.produce(topic, None, "text")
    producer.produce(topic, "text")
    producer.flush(30)
    consumer = bed.consumer(bed.unique("group"))
    start(consumer, topic)
    first, second, third = read(consumer, 3)
    assert (first.key(), first.value(), first.headers()) == (b"k", b"a", [("h", b"1"), ("h", None)])
    assert (second.key(), second.value(), second.headers()) == (b"text", None, None)
    assert (third.key(), third.value()) == (None, b"text")
    assert [message.offset() for message in (first, second, third)] == [0, 1, 2]
    assert first.timestamp()[0] == 2


def test_keys_have_their_partitions(bed: Bed, read: Read) -> None:
    topic, group = bed.topic(4), bed.unique("group")
    keys = [b"BTC-PERPETUAL", b"ETH", b"a", b"ab", b"abc", b"abcd", b"\xff\xfe\x00", b"21"]
    producer = bed.producer()
    for key in keys:
        producer.produce(topic, b"", key)
    producer.flush(30)
    consumer = bed.consumer(group)
    consumer.subscribe([topic])
    found = {message.key(): message.partition() for message in read(consumer, len(keys))}
    assert [found[key] for key in keys] == [1, 1, 0, 2, 3, 0, 0, 0]


def test_an_end_is_told_when_it_is_reached(bed: Bed, until: Until) -> None:
    topic = bed.topic()
    bed.send(topic, b"a", b"b")
    consumer = bed.consumer(bed.unique("group"))
    start(consumer, topic)
    told: list[tuple[int | None, int | None]] = []

    def step() -> None:
        for message in consumer.consume(10, 0.1):
            error = message.error()
            told.append((error.code() if error is not None else None, message.offset()))

    until(lambda: len(told) == 3, step)
    bed.send(topic, b"c")
    until(lambda: len(told) == 5, step)
    end = KafkaError._PARTITION_EOF
    assert told == [(None, 0), (None, 1), (end, 2), (None, 2), (end, 3)]


def test_a_group_goes_on_where_it_has_committed(bed: Bed, read: Read) -> None:
    topic, group = bed.topic(), bed.unique("group")
    bed.send(topic, b"a", b"b", b"c")
    first = bed.consumer(group)
    first.subscribe([topic])
    read(first, 1)
    first.commit(offsets=[TopicPartition(topic, 0, 2, "note")], asynchronous=False)
    first.close()
    second = bed.consumer(group)
    [stored] = second.committed([TopicPartition(topic, 0)], timeout=30)
    assert (stored.offset, stored.metadata) == (2, "note")
    second.subscribe([topic])
    assert values(read(second, 1)) == [b"c"]
    [other] = bed.consumer(bed.unique("group")).committed([TopicPartition(topic, 0)], timeout=30)
    assert other.offset == OFFSET_INVALID


class Follower:
    """A member that notes what it is told of its partitions."""

    def __init__(
        self, bed: Bed, topic: str, group: str, log: list[tuple[str, str, list[int]]]
    ) -> None:
        self.name = bed.unique("member")
        self.log = log
        self.owned: set[int] = set()
        self.consumer = bed.consumer(group)
        self.consumer.subscribe([topic], on_assign=self.assigned, on_revoke=self.revoked)

    def assigned(self, consumer: Consumer, items: list[TopicPartition]) -> None:
        self.owned |= {item.partition for item in items}
        self.log.append((self.name, "takes", sorted(item.partition for item in items)))
        consumer.incremental_assign(items)

    def revoked(self, consumer: Consumer, items: list[TopicPartition]) -> None:
        self.owned -= {item.partition for item in items}
        self.log.append((self.name, "gives", sorted(item.partition for item in items)))
        consumer.incremental_unassign(items)


def test_partitions_move_one_by_one_and_nobody_shares_one(bed: Bed, until: Until) -> None:
    topic, group = bed.topic(4), bed.unique("group")
    log: list[tuple[str, str, list[int]]] = []
    first = Follower(bed, topic, group, log)
    until(lambda: len(first.owned) == 4, lambda: first.consumer.consume(1, 0.1))
    second = Follower(bed, topic, group, log)

    def step() -> None:
        first.consumer.consume(1, 0.1)
        second.consumer.consume(1, 0.1)
        assert not first.owned & second.owned

    until(lambda: len(second.owned) == 2, step)
    given = [entry for entry in log if entry[1] == "gives" and entry[2]]
    assert len(first.owned) == 2
    # What stays is not taken away in between.
    assert [(name, len(numbers)) for name, _what, numbers in given] == [(first.name, 2)]
    first.consumer.close()
    until(lambda: len(second.owned) == 4, lambda: second.consumer.consume(1, 0.1))


def test_paused_partitions_give_nothing_until_they_are_resumed(bed: Bed, read: Read) -> None:
    topic = bed.topic(2)
    consumer = bed.consumer(bed.unique("group"))
    both = [TopicPartition(topic, number, OFFSET_BEGINNING) for number in (0, 1)]
    consumer.incremental_assign(both)
    consumer.pause(both[:1])
    bed.send(topic, b"a", partition=0)
    bed.send(topic, b"b", partition=1)
    assert values(read(consumer, 1)) == [b"b"]
    consumer.resume(both[:1])
    assert values(read(consumer, 1)) == [b"a"]


def test_a_seek_goes_back(bed: Bed, read: Read) -> None:
    topic = bed.topic()
    bed.send(topic, b"a", b"b", b"c")
    consumer = bed.consumer(bed.unique("group"))
    start(consumer, topic)
    read(consumer, 3)
    consumer.seek(TopicPartition(topic, 0, 1))
    assert values(read(consumer, 2)) == [b"b", b"c"]


def test_only_committed_transactions_are_read_and_their_end_takes_an_offset(
    bed: Bed, read: Read
) -> None:
    topic = bed.topic()
    producer = bed.producer(transactional_id=bed.unique("id"))
    producer.init_transactions(30)
    for value, end in ((b"no", producer.abort_transaction), (b"yes", producer.commit_transaction)):
        producer.begin_transaction()
        producer.produce(topic, value, partition=0)
        producer.flush(30)
        end(30)
    bed.send(topic, b"plain")
    consumer = bed.consumer(bed.unique("group"))
    start(consumer, topic)
    found = read(consumer, 2)
    assert [(message.value(), message.offset()) for message in found] == [
        (b"yes", 2),
        (b"plain", 4),
    ]
    low, high = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=30)
    assert (low, high) == (0, 5)


def test_an_open_transaction_holds_back_what_follows_it(bed: Bed, read: Read, until: Until) -> None:
    topic = bed.topic()
    producer = bed.producer(transactional_id=bed.unique("id"))
    producer.init_transactions(30)
    bed.send(topic, b"before")
    producer.begin_transaction()
    producer.produce(topic, b"open", partition=0)
    producer.flush(30)
    bed.send(topic, b"after")
    consumer = bed.consumer(bed.unique("group"))
    start(consumer, topic)
    told: list[Message] = []
    until(lambda: len(told) == 2, lambda: told.extend(consumer.consume(10, 0.1)))
    assert told[0].value() == b"before"
    assert told[1].error() is not None
    assert told[1].offset() == 1
    producer.commit_transaction(30)
    assert values(read(consumer, 2)) == [b"open", b"after"]


def test_a_new_holder_of_an_id_fences_the_old_one_and_aborts_its_transaction(
    bed: Bed, read: Read
) -> None:
    topic, name = bed.topic(), bed.unique("id")
    old = bed.producer(transactional_id=name)
    old.init_transactions(30)
    old.begin_transaction()
    old.produce(topic, b"zombie", partition=0)
    old.flush(30)
    new = bed.producer(transactional_id=name)
    new.init_transactions(30)
    new.begin_transaction()
    new.produce(topic, b"new", partition=0)
    new.commit_transaction(30)
    with pytest.raises(KafkaException) as raised:
        old.commit_transaction(30)
    assert raised.value.args[0].code() == KafkaError._FENCED
    assert raised.value.args[0].fatal()
    consumer = bed.consumer(bed.unique("group"))
    start(consumer, topic)
    assert values(read(consumer, 1)) == [b"new"]


def test_offsets_in_a_transaction_count_when_it_is_committed(bed: Bed, read: Read) -> None:
    topic, group = bed.topic(), bed.unique("group")
    bed.send(topic, b"a", b"b")
    consumer = bed.consumer(group)
    consumer.subscribe([topic])
    read(consumer, 2)
    producer = bed.producer(transactional_id=bed.unique("id"))
    producer.init_transactions(30)
    for offset, end in ((1, producer.abort_transaction), (2, producer.commit_transaction)):
        producer.begin_transaction()
        producer.send_offsets_to_transaction(
            [TopicPartition(topic, 0, offset)], consumer.consumer_group_metadata(), 30
        )
        end(30)
        [stored] = consumer.committed([TopicPartition(topic, 0)], timeout=30)
        assert stored.offset == (OFFSET_INVALID if offset == 1 else 2)


def test_a_member_that_has_gone_cannot_commit_in_a_transaction(bed: Bed, read: Read) -> None:
    topic, group = bed.topic(), bed.unique("group")
    bed.send(topic, b"a")
    gone = bed.consumer(group)
    gone.subscribe([topic])
    read(gone, 1)
    metadata = gone.consumer_group_metadata()
    gone.close()
    producer = bed.producer(transactional_id=bed.unique("id"))
    producer.init_transactions(30)
    producer.begin_transaction()
    with pytest.raises(KafkaException) as raised:
        producer.send_offsets_to_transaction([TopicPartition(topic, 0, 1)], metadata, 30)
    assert raised.value.args[0].code() == KafkaError.UNKNOWN_MEMBER_ID
    assert raised.value.args[0].txn_requires_abort()
    producer.abort_transaction(30)


def test_a_record_for_a_topic_that_does_not_exist_is_reported(bed: Bed) -> None:
    reports: list[KafkaError | None] = []
    producer = bed.producer(**{"topic.metadata.propagation.max.ms": 500})
    producer.produce(
        bed.unique("no-topic"), b"a", on_delivery=lambda error, _message: reports.append(error)
    )
    producer.flush(30)
    [error] = reports
    assert error is not None
    assert error.code() in {KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART}


def test_offsets_are_found_by_time(bed: Bed, request: pytest.FixtureRequest) -> None:
    if "memory" in request.node.name:
        request.applymarker(
            pytest.mark.xfail(
                strict=True, raises=AttributeError, reason="no look-up by time in memory"
            )
        )
    topic = bed.topic()
    bed.send(topic, b"a", b"b")
    consumer = bed.consumer(bed.unique("group"))
    [found] = consumer.offsets_for_times([TopicPartition(topic, 0, 0)], timeout=30)
    assert found.offset == 0
