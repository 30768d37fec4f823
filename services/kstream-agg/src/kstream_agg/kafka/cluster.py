"""Brokers and topics: waiting for the one, creating the other."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.kafka.failures import kafka_failure

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Mapping, Sequence

    from kstream_agg.core.settings import KafkaSettings, TopicSettings

__all__ = ["KafkaCluster", "TopicConfiguration", "TopicDescription", "topic_configuration"]

_log = get_logger(__name__)

_REQUEST_TIMEOUT_S: Final = 5.0
# A new topic is in every broker's metadata within milliseconds; a loaded broker takes seconds.
_LISTED_LOOKS: Final = 100
_LISTED_PAUSE_S: Final = 0.05
_INTERNAL: Final = "__"
_HOUR_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class TopicConfiguration:
    """A topic as it should be created.

    Args:
        name: Its name.
        partitions: How many partitions.
        replication_factor: How many brokers hold each.
        config: Topic settings by Kafka's names, e.g. `{"cleanup.policy": "compact"}`.
    """

    name: str
    partitions: int = 1
    replication_factor: int = 1
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """A topic as the cluster has it."""

    name: str
    partitions: int
    replication_factor: int


def topic_configuration(
    name: str, settings: TopicSettings, *, compact: bool = False, partitions: int | None = None
) -> TopicConfiguration:
    """The configuration of one of the pipeline's topics.

    Records get the broker's time: with event time, replayed old trades would fall to retention
    at once, and trades dated in the future would be refused.

    Args:
        name: The topic.
        settings: Partitions, replication and retention.
        compact: Keep the newest record of each key (`compact,delete`) instead of deleting only.
        partitions: Overrides the settings' number.
    """
    return TopicConfiguration(
        name,
        partitions or settings.partitions,
        settings.replication_factor,
        {
            "cleanup.policy": "compact,delete" if compact else "delete",
            "message.timestamp.type": "LogAppendTime",
            "retention.ms": str(round(settings.retention_hours * _HOUR_MS)),
        },
    )


class KafkaCluster:
    """A cluster's metadata and topics.

    Args:
        settings: How to reach the brokers.
        client_id: Named in the brokers' logs and metrics.
    """

    def __init__(self, settings: KafkaSettings, client_id: str) -> None:
        self._bootstrap = settings.bootstrap_servers
        config = settings.client_config()
        # librdkafka would repeat every failed connection attempt on standard error;
        # `wait_for_brokers` says it once.
        config |= {"client.id": client_id, "log_level": 0}
        self._admin = AdminClient(config)

    def is_reachable(self, timeout_s: float = 2.0) -> bool:
        """Whether a broker answers a metadata request within `timeout_s` seconds."""
        try:
            return bool(self._admin.list_topics(timeout=timeout_s).brokers)
        except KafkaException:
            return False

    def wait_for_brokers(self, stop: threading.Event, timeout_s: float | None = None) -> bool:
        """Wait until a broker answers.

        Args:
            stop: Ends the wait early.
            timeout_s: Longest wait in seconds; None waits until `stop`.

        Returns:
            True when a broker answers, False when `stop` ended the wait.

        Raises:
            UnavailableError: None has answered within `timeout_s`.
        """
        waited = 0.0
        told = False
        while not stop.is_set():
            if self.is_reachable():
                return True
            if not told:
                _log.warning("waiting for Kafka", bootstrap_servers=self._bootstrap)
                told = True
            waited += 2.0
            if timeout_s is not None and waited >= timeout_s:
                raise UnavailableError(
                    f"no Kafka broker answers at {self._bootstrap}",
                    remedy="start the stack (make run or make demo) or correct "
                    "kafka.bootstrap_servers",
                )
            stop.wait(0.2)
        return False

    def topics(self) -> dict[str, TopicDescription]:
        """All topics but Kafka's internal ones, by name.

        Raises:
            UnavailableError: No broker answers.
        """
        try:
            metadata = self._admin.list_topics(timeout=_REQUEST_TIMEOUT_S)
        except KafkaException as error:
            raise kafka_failure(error, f"reading the topics of {self._bootstrap}") from error
        return {
            name: TopicDescription(
                name,
                len(topic.partitions),
                min((len(p.replicas) for p in topic.partitions.values()), default=0),
            )
            for name, topic in metadata.topics.items()
            if not name.startswith(_INTERNAL)
        }

    def topic_config(self, topic: str) -> dict[str, str]:
        """A topic's settings, defaults included, by Kafka's names.

        Raises:
            UnavailableError: No broker answers.
            ContractError: The topic does not exist.
        """
        resource = ConfigResource(ResourceType.TOPIC, topic)
        try:
            future = self._admin.describe_configs([resource], request_timeout=_REQUEST_TIMEOUT_S)[
                resource
            ]
            entries = future.result()
        except KafkaException as error:
            raise kafka_failure(error, f"reading the settings of topic '{topic}'") from error
        return {name: entry.value for name, entry in entries.items() if entry.value is not None}

    def create_topics(self, topics: Sequence[TopicConfiguration]) -> list[str]:
        """Create the topics that do not exist; safe to call from several services at once.

        An existing topic is left as it is: an operator may have changed it. The controller answers
        before the brokers have heard of a new topic, so its listing is waited for.

        Returns:
            The names of those created by this call.

        Raises:
            UnavailableError: No broker answers.
            KStreamError: A broker refuses a topic.
        """
        existing = self.topics()
        wanted = [topic for topic in _unique(topics) if topic.name not in existing]
        if not wanted:
            return []
        futures = self._admin.create_topics(
            [
                NewTopic(t.name, t.partitions, t.replication_factor, config=dict(t.config))
                for t in wanted
            ],
            request_timeout=_REQUEST_TIMEOUT_S,
        )
        created = []
        for name, future in futures.items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise kafka_failure(error, f"creating topic '{name}'") from error
            else:
                created.append(name)
        if created:
            _log.info("topics created", topics=created)
        self._wait_until_listed(wanted)
        return created

    def _wait_until_listed(self, topics: Iterable[TopicConfiguration]) -> None:
        names = {topic.name for topic in topics if not topic.name.startswith(_INTERNAL)}
        for _ in range(_LISTED_LOOKS):
            if names <= self.topics().keys():
                return
            time.sleep(_LISTED_PAUSE_S)
        raise UnavailableError(
            f"no broker lists the new topics {', '.join(sorted(names))}",
            remedy="see the broker's log",
        )

    def delete_topics(self, names: Sequence[str]) -> None:
        """Delete topics; those that do not exist are passed over.

        Raises:
            UnavailableError: No broker answers.
            KStreamError: A broker refuses.
        """
        if not names:
            return
        futures = self._admin.delete_topics(list(names), request_timeout=_REQUEST_TIMEOUT_S)
        for name, future in futures.items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise kafka_failure(error, f"deleting topic '{name}'") from error


def _unique(topics: Iterable[TopicConfiguration]) -> list[TopicConfiguration]:
    return list({topic.name: topic for topic in topics}.values())
