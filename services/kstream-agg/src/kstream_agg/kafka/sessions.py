"""A producer and a consumer as a person sees them: a few verbs, one thing at a time.

The prompts `kstream-agg producer` and `kstream-agg consumer` are made of these.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from kstream_agg.core.errors import ContractError
from kstream_agg.kafka.record import Record
from kstream_agg.kafka.scoped import Scoped
from kstream_agg.kafka.topics import TopicConfiguration

if TYPE_CHECKING:
    from kstream_agg.kafka.cluster import KafkaCluster
    from kstream_agg.kafka.delivery import Delivered
    from kstream_agg.kafka.receiving import Reader, Start
    from kstream_agg.kafka.record import ReceivedRecord
    from kstream_agg.kafka.sending import Writer

__all__ = ["ConsumerSession", "ProducerSession", "add_topic"]

_REPLICAS: Final = 3


def add_topic(
    cluster: KafkaCluster,
    name: str,
    partitions: int = 1,
    replication_factor: int | None = None,
    config: dict[str, str] | None = None,
) -> bool:
    """Make a topic; one that exists with the same settings is fine.

    Args:
        cluster: Where.
        name: Its name.
        partitions: How many partitions.
        replication_factor: How many brokers hold each; None: three, or all where there are fewer.
        config: Topic settings by Kafka's names.

    Returns:
        Whether it was made now.

    Raises:
        UnavailableError: No broker answers.
        TopicMismatchError: It exists with other settings; the message lists them.
    """
    if replication_factor is None:
        replication_factor = min(_REPLICAS, len(cluster.describe().brokers))
    wanted = TopicConfiguration(name, partitions, replication_factor, config or {})
    return cluster.create_topics([wanted]) == [name]


class ProducerSession(Scoped):
    """Topics made and removed, records sent one by one; a context manager.

    Args:
        cluster: Where.
    """

    def __init__(self, cluster: KafkaCluster) -> None:
        self._cluster = cluster
        self._writers: dict[str, Writer[bytes]] = {}

    def add_topic(self, name: str, partitions: int = 1) -> bool:
        """Make a topic; see `add_topic`."""
        return add_topic(self._cluster, name, partitions)

    def remove_topic(self, name: str) -> None:
        """Delete a topic with its records.

        Raises:
            UnavailableError: No broker answers.
            ContractError: There is no such topic.
        """
        self._cluster.describe_topic(name)
        self._writers.pop(name, None)
        self._cluster.delete_topics([name])

    def send(self, topic: str, value: str, key: str | None = None) -> Delivered:
        """Write a text and wait until it is acknowledged.

        Returns:
            Where it stands.

        Raises:
            UnavailableError: No broker answers.
            ContractError: There is no such topic.
            DeliveryError: Kafka did not take it.
        """
        if topic not in self._writers:
            self._writers[topic] = self._cluster.writer(topic)
        return self._writers[topic].produce_and_flush(Record(value.encode(), key=key))

    def _leave(self, *, failed: bool) -> None:
        del failed  # each record was acknowledged before the next
        for writer in self._writers.values():
            writer.close()


class ConsumerSession(Scoped):
    """Topics subscribed to, alone or as a member of a group; a context manager.

    A new subscription begins with what comes after it. In a group, what `poll` has given is
    committed by the next `poll`, or when the session leaves.

    Args:
        cluster: Where.
        start: Where a new subscription begins in a partition without a committed offset.
    """

    def __init__(self, cluster: KafkaCluster, start: Start = "latest") -> None:
        self._cluster = cluster
        self._start: Start = start
        self._reader: Reader[bytes] | None = None
        self.topics: list[str] = []
        """What is subscribed to."""
        self.group: str | None = None
        """The group it is in."""

    def subscribe(self, topic: str) -> None:
        """Read a topic too.

        Raises:
            UnavailableError: No broker answers.
            ContractError: There is no such topic.
        """
        self._cluster.describe_topic(topic)
        if topic not in self.topics:
            self.topics.append(topic)
            self._read()

    def unsubscribe(self, topic: str) -> None:
        """Read a topic no more.

        Raises:
            ContractError: It is not subscribed to.
        """
        if topic not in self.topics:
            known = ", ".join(self.topics) or "nothing"
            raise ContractError(
                f"'{topic}' is not subscribed to", remedy=f"subscribed to is {known}"
            )
        self._settle()
        self.topics.remove(topic)
        self._read()

    def join_group(self, group: str) -> None:
        """Share the topics' partitions with the other members of a group from now on.

        Raises:
            UnavailableError: No broker answers.
        """
        self._part()
        self.group = group
        self._read()

    def leave_group(self) -> None:
        """Read alone again, what comes from now on.

        Raises:
            ContractError: It is in no group.
        """
        if self.group is None:
            raise ContractError("this consumer is in no group", remedy="join one: join-group NAME")
        self._part()
        self.group = None
        self._read()

    def poll(self, count: int = 100, timeout_s: float = 1.0) -> list[ReceivedRecord[bytes]]:
        """The next records, `count` at most; those that come within `timeout_s` seconds.

        Raises:
            ContractError: Nothing is subscribed to.
            KStreamError: Reading cannot go on.
        """
        if self._reader is None or not self.topics:
            raise ContractError("nothing is subscribed to", remedy="subscribe TOPIC")
        self._settle()
        first = self._reader.poll(timeout_s)
        if first is None:
            return []
        return [first, *self._reader.read(count - 1, 0.0)]

    def assigned(self) -> list[str]:
        """The partitions it reads, as `topic/number`."""
        parts = self._reader.assignment if self._reader is not None else []
        return sorted(f"{part.topic}/{part.partition}" for part in parts)

    def _read(self) -> None:
        if self._reader is None:
            if not self.topics:
                return
            self._reader = self._cluster.reader(self.topics, group=self.group, start=self._start)
        else:
            self._reader.subscribe(self.topics)

    def _settle(self) -> None:
        if self._reader is not None and self.group is not None:
            self._reader.commit()

    def _part(self) -> None:
        self._settle()
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _leave(self, *, failed: bool) -> None:
        with contextlib.ExitStack() as ends:
            if self._reader is not None:
                ends.callback(self._reader.close)
            if not failed:
                self._settle()
