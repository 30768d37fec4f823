"""A cluster: waiting for its brokers, its topics and groups, and clients of it."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, overload

from confluent_kafka import KafkaException

from kstream_agg.core.errors import ContractError, UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.kafka.awaiting import awaitable
from kstream_agg.kafka.groups import ConsumerGroups
from kstream_agg.kafka.receiving import Reader
from kstream_agg.kafka.sending import Writer
from kstream_agg.kafka.topic_admin import ClusterTopics
from kstream_agg.kafka.topics import TopicConfiguration, TopicDescription, topic_configuration
from kstream_agg.kafka.transacting import Transactions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confluent_kafka import TopicPartition

    from kstream_agg.kafka.codecs import Codec
    from kstream_agg.kafka.receiving import Start

__all__ = ["KafkaCluster", "TopicConfiguration", "TopicDescription", "topic_configuration"]

_log = get_logger(__name__)

T = TypeVar("T")


class KafkaCluster(ClusterTopics):
    """A Kafka cluster: its topics, its groups, and readers and writers of them.

    Every method blocks; one with an `a` before its name is the same to be awaited.

    Args:
        brokers: `host:port`, several with commas or as a sequence; settings, where more than
            addresses is needed (SASL, TLS, librdkafka's properties); None for the brokers of
            the environment variable `KAFKA_BROKERS`, else 127.0.0.1:9092.
        client_id: Named in the brokers' logs and metrics.
    """

    def is_reachable(self, timeout_s: float = 2.0) -> bool:
        """Whether a broker answers a metadata request within `timeout_s` seconds."""
        try:
            return bool(self._admin.list_topics(timeout=timeout_s).brokers)
        except KafkaException:
            return False

    def wait_for_brokers(
        self, stop: threading.Event | None = None, timeout_s: float | None = None
    ) -> bool:
        """Wait until a broker answers.

        Args:
            stop: Ends the wait early; None: nothing does.
            timeout_s: Longest wait in seconds; None waits until `stop`.

        Returns:
            True when a broker answers, False when `stop` ended the wait.

        Raises:
            UnavailableError: None has answered within `timeout_s`.
        """
        stop = stop or threading.Event()
        servers = self.settings.bootstrap_servers
        waited = 0.0
        told = False
        while not stop.is_set():
            if self.is_reachable():
                return True
            waited += 2.0
            if timeout_s is not None and waited >= timeout_s:
                raise UnavailableError(
                    f"no Kafka broker answers at {servers}",
                    remedy="start the stack (make run or make demo), or name the brokers: "
                    "kafka.bootstrap_servers in the settings, KAFKA_BROKERS in the environment",
                )
            if not told:
                _log.warning("waiting for Kafka", bootstrap_servers=servers)
                told = True
            stop.wait(0.2)
        return False

    @cached_property
    def groups(self) -> ConsumerGroups:
        """Its consumer groups."""
        return ConsumerGroups(self._admin)

    @overload
    def writer(self, topic: str) -> Writer[bytes]: ...
    @overload
    def writer(self, topic: str, codec: Codec[T]) -> Writer[T]: ...
    def writer(self, topic: str, codec: Codec[Any] | None = None) -> Writer[Any]:
        """A writer to a topic; a key decides the partition.

        Args:
            topic: An existing topic.
            codec: Encodes values; default: they are bytes.

        Raises:
            UnavailableError: No broker answers.
            ContractError: The topic does not exist.
        """
        self.describe_topic(topic)
        return Writer(self.settings, self.client_id, topic, codec=codec)

    @overload
    def writer_for_partition(self, partition: TopicPartition) -> Writer[bytes]: ...
    @overload
    def writer_for_partition(self, partition: TopicPartition, codec: Codec[T]) -> Writer[T]: ...
    def writer_for_partition(
        self, partition: TopicPartition, codec: Codec[Any] | None = None
    ) -> Writer[Any]:
        """A writer to one partition, whatever the keys.

        Args:
            partition: A partition of an existing topic.
            codec: Encodes values; default: they are bytes.

        Raises:
            UnavailableError: No broker answers.
            ContractError: There is no such topic or partition.
        """
        self._require(partition)
        return Writer(
            self.settings, self.client_id, partition.topic, partition.partition, codec=codec
        )

    def transactions(self, transactional_id: str) -> Transactions:
        """A writer of transactions, to any topics.

        Args:
            transactional_id: The same at every start of the program; a second program with it
                takes over, and this one is refused.

        Raises:
            UnavailableError: No broker answers.
            KStreamError: The brokers refuse.
        """
        return Transactions(self.settings, self.client_id, transactional_id)

    @overload
    def reader(
        self, topics: str | Sequence[str], *, group: str | None = ..., start: Start = ...
    ) -> Reader[bytes]: ...
    @overload
    def reader(
        self,
        topics: str | Sequence[str],
        *,
        group: str | None = ...,
        start: Start = ...,
        codec: Codec[T],
    ) -> Reader[T]: ...
    def reader(
        self,
        topics: str | Sequence[str],
        *,
        group: str | None = None,
        start: Start = "latest",
        codec: Codec[Any] | None = None,
    ) -> Reader[Any]:
        """A reader of all committed records of topics.

        Args:
            topics: Existing topics; none to `subscribe` later.
            group: The consumer group, whose members share the partitions; it goes on behind
                what it has committed. None reads all partitions alone and commits nothing.
            start: Where to begin in a partition without a committed offset: with what comes
                after this call (`latest`), with the oldest record (`earliest`), at an offset, or
                with the first record at or after a time.
            codec: Decodes values; default: they stay bytes.

        Raises:
            UnavailableError: No broker answers.
            ContractError: A topic does not exist.
        """
        made: Reader[Any] = Reader(
            self.settings, self.client_id, group=group, start=start, codec=codec
        )
        try:
            made.subscribe([topics] if isinstance(topics, str) else topics)
        except BaseException:
            made.close()
            raise
        return made

    @overload
    def reader_for_partition(
        self, partition: TopicPartition, start: Start = ...
    ) -> Reader[bytes]: ...
    @overload
    def reader_for_partition(
        self, partition: TopicPartition, start: Start = ..., *, codec: Codec[T]
    ) -> Reader[T]: ...
    def reader_for_partition(
        self,
        partition: TopicPartition,
        start: Start = "latest",
        *,
        codec: Codec[Any] | None = None,
    ) -> Reader[Any]:
        """A reader of one partition, in no group.

        Args:
            partition: A partition of an existing topic.
            start: `earliest`, `latest`, an offset, or a time (aware).
            codec: Decodes values; default: they stay bytes.

        Raises:
            UnavailableError: No broker answers.
            ContractError: There is no such topic or partition.
        """
        self._require(partition)
        made: Reader[Any] = Reader(self.settings, self.client_id, start=start, codec=codec)
        try:
            made.assign([partition])
        except BaseException:
            made.close()
            raise
        return made

    def _require(self, partition: TopicPartition) -> None:
        count = self.describe_topic(partition.topic).partitions
        if not 0 <= partition.partition < count:
            raise ContractError(
                f"topic '{partition.topic}' has no partition {partition.partition}",
                remedy=f"it has 0 to {count - 1}" if count > 1 else "it has partition 0 only",
            )

    await_for_brokers = awaitable(wait_for_brokers)
