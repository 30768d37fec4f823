"""Topics of a cluster: what there is, making, changing and removing them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from kstream_agg.core.errors import TopicMismatchError, UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.kafka.awaiting import awaitable
from kstream_agg.kafka.brokers import broker_settings
from kstream_agg.kafka.everywhere import each_knows, known_everywhere
from kstream_agg.kafka.failures import kafka_failure, mapped, no_such_topic
from kstream_agg.kafka.topics import (
    BrokerDescription,
    ClusterDescription,
    PartitionDescription,
    TopicConfiguration,
    TopicDescription,
    as_set,
    differences,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from confluent_kafka.admin import ClusterMetadata, TopicMetadata

    from kstream_agg.core.settings import KafkaSettings

__all__ = ["ClusterTopics"]

_log = get_logger(__name__)

_REQUEST_TIMEOUT_S: Final = 5.0
_INTERNAL: Final = "__"


class ClusterTopics:
    """The part of `KafkaCluster` that looks at the cluster and at its topics.

    Args:
        brokers: `host:port`, several with commas or as a sequence; settings, where more than
            addresses is needed (SASL, TLS, librdkafka's properties); None for the brokers of
            the environment variable `KAFKA_BROKERS`, else 127.0.0.1:9092.
        client_id: Named in the brokers' logs and metrics.
    """

    def __init__(
        self,
        brokers: KafkaSettings | str | Sequence[str] | None = None,
        client_id: str = "kstream-agg",
    ) -> None:
        self.settings = broker_settings(brokers)
        """How the brokers are reached."""
        self.client_id = client_id
        """Named in the brokers' logs and metrics."""
        config = self.settings.client_config()
        # librdkafka would repeat every failed connection attempt on standard error;
        # `wait_for_brokers` says it once.
        config |= {"client.id": client_id, "log_level": 0}
        self._config = config
        try:
            self._admin = AdminClient(config)
        except KafkaException as error:
            raise kafka_failure(error, "starting a Kafka client") from error

    def describe(self) -> ClusterDescription:
        """The cluster with its brokers and topics, Kafka's own topics included.

        Raises:
            UnavailableError: No broker answers.
        """
        metadata = self._metadata()
        return ClusterDescription(
            cluster_id=str(metadata.cluster_id),
            brokers=tuple(
                BrokerDescription(broker.id, str(broker.host), broker.port)
                for broker in sorted(metadata.brokers.values(), key=lambda each: each.id)
            ),
            topics=tuple(_description(topic) for _, topic in sorted(metadata.topics.items())),
        )

    def topics(self) -> dict[str, TopicDescription]:
        """All topics but Kafka's internal ones, by name.

        Raises:
            UnavailableError: No broker answers.
        """
        return {
            name: _description(topic)
            for name, topic in self._metadata().topics.items()
            if not name.startswith(_INTERNAL)
        }

    def describe_topic(self, name: str) -> TopicDescription:
        """One topic with its partitions.

        Raises:
            UnavailableError: No broker answers.
            ContractError: The topic does not exist; the remedy names those with a similar name.
        """
        known = self._metadata().topics
        if name not in known:
            raise no_such_topic(name, known)
        return _description(known[name])

    def topic_config(self, topic: str) -> dict[str, str]:
        """A topic's settings, defaults included, by Kafka's names.

        Raises:
            UnavailableError: No broker answers.
            ContractError: The topic does not exist.
        """
        try:
            entries = self._config_entries(topic)
        except KafkaException as error:
            raise kafka_failure(error, f"reading the settings of topic '{topic}'") from error
        return {name: entry.value for name, entry in entries.items() if entry.value is not None}

    def create_topics(self, topics: Sequence[TopicConfiguration]) -> list[str]:
        """Create the topics that do not exist; safe to call from several programs at once.

        The controller answers before the brokers have heard of a new topic: this returns when each
        lists it.

        Returns:
            The names of those created by this call.

        Raises:
            UnavailableError: No broker answers.
            TopicMismatchError: One exists with other settings, and is not to be kept so; the
                message lists the differences. None is created then.
            KStreamError: A broker refuses a topic.
        """
        existing = self.topics()
        wanted = {topic.name: topic for topic in topics}
        self._compare([t for t in wanted.values() if t.name in existing], existing)
        missing = [topic for topic in wanted.values() if topic.name not in existing]
        if not missing:
            return []
        futures = self._admin.create_topics(
            [
                NewTopic(t.name, t.partitions, t.replication_factor, config=dict(t.config))
                for t in missing
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
        self._wait_listed({topic.name: topic.partitions for topic in missing})
        return created

    def _compare(
        self, wanted: Iterable[TopicConfiguration], existing: Mapping[str, TopicDescription]
    ) -> None:
        said = []
        for topic in wanted:
            if topic.keep_existing:
                continue
            config = self.topic_config(topic.name) if topic.config else {}
            found = differences(topic, existing[topic.name], config)
            if found:
                said.append(f"topic '{topic.name}' exists with {', '.join(found)}")
        if said:
            raise TopicMismatchError(
                "; ".join(said),
                remedy="ask for what is there, change the topic (kstream-agg topics alter), or "
                "delete it with its records (kstream-agg topics delete)",
            )

    def _wait_listed(self, partitions: Mapping[str, int]) -> None:
        """Wait until each broker lists topics with these many partitions, all led.

        A client that comes too early would be told of an unknown topic.
        """

        def are_listed(found: ClusterMetadata) -> bool:
            known = {name: _description(topic) for name, topic in found.topics.items()}
            return all(
                name in known
                and len(known[name].details) >= count
                and all(part.leader is not None for part in known[name].details)
                for name, count in partitions.items()
            )

        if not self._wait_seen(are_listed):
            raise UnavailableError(
                "not every broker lists the new topics or partitions of "
                f"{', '.join(sorted(partitions))}",
                remedy="are enough brokers up? kstream-agg cluster status; see the brokers' logs",
            )

    def _wait_seen(self, holds: Callable[[ClusterMetadata], bool]) -> bool:
        """Wait until it holds in what each broker says of the cluster."""
        with mapped("asking each broker of its topics"):
            return known_everywhere(self._admin, self._config, holds)

    def delete_topics(self, names: Sequence[str]) -> None:
        """Delete topics; those that do not exist are passed over.

        This returns when no broker lists them any more.

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
        self._wait_seen(lambda found: not found.topics.keys() & set(names))

    def alter_topic(
        self,
        name: str,
        *,
        partitions: int | None = None,
        config: Mapping[str, str | None] | None = None,
    ) -> None:
        """Change a topic.

        Args:
            name: An existing topic.
            partitions: Its number of partitions from now on: more than it has. Keys that are
                written later may stand in another partition than before.
            config: Settings by Kafka's names; None takes the default again. Others stay.

        Raises:
            UnavailableError: No broker answers.
            ContractError: The topic does not exist, would lose partitions, or refuses a setting.
        """
        try:
            if config:
                self._alter_config(name, config)
            if partitions is not None:
                futures = self._admin.create_partitions(
                    [NewPartitions(name, partitions)], request_timeout=_REQUEST_TIMEOUT_S
                )
                futures[name].result()
                self._wait_listed({name: partitions})
        except KafkaException as error:
            raise kafka_failure(error, f"changing topic '{name}'") from error

    def _alter_config(self, name: str, config: Mapping[str, str | None]) -> None:
        entries = [
            ConfigEntry(
                key,
                value,
                incremental_operation=AlterConfigOpType.SET
                if value is not None
                else AlterConfigOpType.DELETE,
            )
            for key, value in config.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        futures = self._admin.incremental_alter_configs(
            [resource], request_timeout=_REQUEST_TIMEOUT_S
        )
        futures[resource].result()
        self._wait_altered(name, config)

    def _wait_altered(self, name: str, config: Mapping[str, str | None]) -> None:
        """Wait until each broker has heard of other settings."""
        wanted = config.items()

        def are_known(broker: int) -> bool:
            entries = self._config_entries(name, broker)
            return all(_is_set(entries[key], to) for key, to in wanted if key in entries)

        if not each_knows(self._metadata().brokers, are_known):
            raise UnavailableError(
                f"not every broker knows of the new settings of topic '{name}'",
                remedy="see the brokers' logs",
            )

    def _config_entries(self, topic: str, broker: int | None = None) -> dict[str, ConfigEntry]:
        """A topic's settings, as a broker knows them; None for any broker."""
        resource = ConfigResource(ResourceType.TOPIC, topic)
        # What is asked of a broker's own settings goes to that broker, and the rest with it.
        its_own = [] if broker is None else [ConfigResource(ResourceType.BROKER, str(broker))]
        futures = self._admin.describe_configs(
            [resource, *its_own], request_timeout=_REQUEST_TIMEOUT_S
        )
        found: dict[str, ConfigEntry] = futures[resource].result()
        return found

    def _metadata(self) -> ClusterMetadata:
        try:
            return self._admin.list_topics(timeout=_REQUEST_TIMEOUT_S)
        except KafkaException as error:
            servers = self.settings.bootstrap_servers
            raise kafka_failure(error, f"reading the topics of {servers}") from error

    adescribe = awaitable(describe)
    atopics = awaitable(topics)
    adescribe_topic = awaitable(describe_topic)
    acreate_topics = awaitable(create_topics)
    adelete_topics = awaitable(delete_topics)
    aalter_topic = awaitable(alter_topic)


def _is_set(entry: ConfigEntry, value: str | None) -> bool:
    if value is None:
        source: Any = entry.source  # a number, whatever its type says
        return ConfigSource(source) is not ConfigSource.DYNAMIC_TOPIC_CONFIG
    return entry.value is not None and as_set(entry.value) == as_set(value)


def _description(topic: TopicMetadata) -> TopicDescription:
    parts = sorted(topic.partitions.items())
    return TopicDescription(
        topic.topic or "",
        len(parts),
        min((len(part.replicas) for _, part in parts), default=0),
        tuple(
            PartitionDescription(
                number,
                part.leader if part.leader >= 0 else None,
                tuple(part.replicas),
                tuple(part.isrs),
            )
            for number, part in parts
        ),
    )
