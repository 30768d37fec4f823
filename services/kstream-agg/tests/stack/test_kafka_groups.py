"""Consumer groups on three brokers: members, places, subscriptions kept for scripts."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from records import values, write

from kstream_agg.core.errors import ContractError
from kstream_agg.core.settings import KafkaSettings
from kstream_agg.kafka import KafkaCluster, Rebalance, TopicConfiguration
from kstream_agg.kafka.sessions import ConsumerSession

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.stack


def test_a_group_goes_on_behind_what_it_has_committed_not_what_it_has_fetched(
    three: KafkaCluster, topic: str, unique: Callable[[str], str]
) -> None:
    group = unique("group")
    write(three, topic, [b"0", b"1", b"2", b"3"])
    with three.reader(topic, group=group, start="earliest") as reader:
        assert values(reader, 2) == [b"0", b"1"]
        reader.commit()
        assert values(reader, 1) == [b"2"]
    with three.reader(topic, group=group) as reader:
        assert values(reader, 2) == [b"2", b"3"]
    (lag,) = [each for each in three.groups.lag(group) if each.committed]
    assert (lag.partition, lag.committed, lag.end, lag.lag) == (0, 2, 4, 2)


def test_a_new_group_misses_nothing_that_comes_after_its_subscription(
    three: KafkaCluster, topic: str, unique: Callable[[str], str]
) -> None:
    write(three, topic, [b"before"])
    with three.reader(topic, group=unique("group")) as reader:
        # It has not joined yet: that happens while it polls.
        write(three, topic, [b"after"])
        assert values(reader, 1) == [b"after"]


def test_two_members_share_the_partitions_and_are_told_of_it(
    three: KafkaCluster, topic: str, unique: Callable[[str], str]
) -> None:
    group = unique("group")
    told: list[tuple[str, Rebalance]] = []
    joined = threading.Event()
    with three.reader(topic, group=group) as first:
        first.on_rebalance(
            lambda change: told.append(("before", change)),
            lambda change: told.append(("after", change)),
        )
        first.read(1, 0)
        while len(first.assignment) < 3:
            first.poll(0.1)

        def join() -> None:
            with three.reader(topic, group=group) as second:
                while not second.assignment:
                    second.poll(0.1)
                joined.wait(30)

        thread = threading.Thread(target=join, name="second")
        thread.start()
        while not any(change.kind == "revoked" for _, change in told):
            first.poll(0.1)
        while len(three.groups.describe(group).members) < 2:
            first.poll(0.1)
        with pytest.raises(ContractError, match="running members"):
            three.groups.reset(group, topic, "earliest")
        joined.set()
        while len(first.assignment) < 3:
            first.poll(0.1)
        thread.join(30)
    kinds = [(when, change.kind) for when, change in told]
    assert kinds[:2] == [("before", "assigned"), ("after", "assigned")]
    assert ("before", "revoked") in kinds
    assert three.groups.names()[group] == "empty"


def test_a_group_is_moved_to_an_end_an_offset_or_a_time(
    three: KafkaCluster, topic: str, unique: Callable[[str], str]
) -> None:
    group = unique("group")
    write(three, topic, [b"0", b"1", b"2"])
    assert [lag.lag for lag in three.groups.reset(group, topic, "earliest")] == [3, 0, 0]
    assert [lag.lag for lag in three.groups.reset(group, topic, "latest")] == [0, 0, 0]
    future = datetime.now(UTC) + timedelta(days=1)
    assert [lag.lag for lag in three.groups.reset(group, topic, future)] == [0, 0, 0]
    with pytest.raises(ContractError, match="no offset 2"):
        three.groups.reset(group, topic, 2)
    with pytest.raises(ContractError, match="no group"):
        three.groups.describe(unique("nobody"))


def test_a_group_keeps_its_subscription_while_nobody_reads(
    three: KafkaCluster, topic: str, unique: Callable[[str], str]
) -> None:
    group, other = unique("group"), unique("other")
    three.create_topics([TopicConfiguration(other, 1, 3)])
    write(three, topic, [b"before"])
    assert [lag.lag for lag in three.groups.subscribe(group, [topic, other])] == [0, 0, 0, 0]
    assert three.groups.topics(group) == sorted([topic, other])
    write(three, topic, [b"after"])
    write(three, other, [b"too"])
    # Subscribed already: it stays where it is.
    assert sum(lag.lag or 0 for lag in three.groups.subscribe(group, [topic, other])) == 2
    with three.reader([topic, other], group=group) as reader:
        assert sorted(map(str, values(reader, 2))) == ["b'after'", "b'too'"]
        reader.commit()
    write(three, topic, [b"unseen"])
    three.groups.unsubscribe(group, [topic])
    assert three.groups.topics(group) == [other]
    assert [lag.topic for lag in three.groups.lag(group)] == [other]
    with pytest.raises(ContractError, match=f"not subscribed to '{topic}'") as caught:
        three.groups.unsubscribe(group, [topic])
    assert caught.value.remedy == f"subscribed to is {other}"
    # A new subscription begins with what comes after it, whoever makes it.
    with three.reader(topic, group=group) as reader:
        write(three, topic, [b"new"])
        assert values(reader, 1) == [b"new"]


def test_a_member_commits_where_it_began_even_if_nothing_came(
    three: KafkaCluster, topic: str, unique: Callable[[str], str]
) -> None:
    group = unique("group")
    write(three, topic, [b"before"])
    with ConsumerSession(three) as first:
        first.join_group(group)
        first.subscribe(topic)
        while len(first.assigned()) < 3:
            assert first.poll(timeout_s=0.1) == []
    write(three, topic, [b"between"])
    with ConsumerSession(three) as second:
        second.join_group(group)
        second.subscribe(topic)
        assert [record.value for record in second.poll(timeout_s=30)] == [b"between"]


def test_a_group_with_another_protocol(
    brokers: str, three: KafkaCluster, topic: str, unique: Callable[[str], str]
) -> None:
    group = unique("group")
    other = KafkaSettings(
        bootstrap_servers=brokers,
        properties={"partition.assignment.strategy": "range"},
    )
    with (
        KafkaCluster(other).reader(topic, group=group) as ranged,
        three.reader(topic, group=group) as sticky,
    ):
        while len(ranged.assignment) < 3:
            ranged.poll(0.1)
        with pytest.raises(ContractError, match=group) as caught:
            sticky.read(1, 30)
    assert "take another group" in str(caught.value.remedy)


def test_a_reader_without_a_group_commits_nothing(three: KafkaCluster, topic: str) -> None:
    with (
        three.reader(topic) as reader,
        pytest.raises(ContractError, match="without a group"),
    ):
        reader.commit()
