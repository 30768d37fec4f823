"""Topics and clusters as data: as they should be, and as the brokers have them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kstream_agg.core.settings import TopicSettings

__all__ = [
    "BrokerDescription",
    "ClusterDescription",
    "PartitionDescription",
    "TopicConfiguration",
    "TopicDescription",
    "as_set",
    "differences",
    "topic_configuration",
]

_HOUR_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class TopicConfiguration:
    """A topic as it should be created.

    Args:
        name: Its name.
        partitions: How many partitions.
        replication_factor: How many brokers hold each.
        config: Topic settings by Kafka's names, e.g. `{"cleanup.policy": "compact"}`.
        keep_existing: A topic that exists with other settings is left as it is instead of being
            an error: an operator may have changed it.
    """

    name: str
    partitions: int = 1
    replication_factor: int = 1
    config: Mapping[str, str] = field(default_factory=dict)
    keep_existing: bool = False


@dataclass(frozen=True, slots=True)
class PartitionDescription:
    """A partition: who leads it and who holds it, by the brokers' numbers.

    Attributes:
        number: Its number.
        leader: The broker that takes its records; None while there is none.
        replicas: The brokers that hold it.
        in_sync: Those of them that have all of it.
    """

    number: int
    leader: int | None
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]

    @property
    def is_under_replicated(self) -> bool:
        """A replica lags behind or is away."""
        return len(self.in_sync) < len(self.replicas)


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """A topic as the cluster has it."""

    name: str
    partitions: int
    replication_factor: int
    details: tuple[PartitionDescription, ...] = ()


@dataclass(frozen=True, slots=True)
class BrokerDescription:
    """A broker that answers, as clients reach it."""

    number: int
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class ClusterDescription:
    """A cluster: its id, the brokers that are up, and all topics, Kafka's own included."""

    cluster_id: str
    brokers: tuple[BrokerDescription, ...]
    topics: tuple[TopicDescription, ...]

    @property
    def under_replicated(self) -> tuple[tuple[str, int], ...]:
        """Topic and number of the partitions of which a replica lags behind or is away."""
        return tuple(
            (topic.name, partition.number)
            for topic in self.topics
            for partition in topic.details
            if partition.is_under_replicated
        )


def topic_configuration(
    name: str, settings: TopicSettings, *, compact: bool = False, partitions: int | None = None
) -> TopicConfiguration:
    """The configuration of one of the pipeline's topics.

    Records get the broker's time: with event time, replayed old trades would fall to retention
    at once, and trades dated in the future would be refused. A topic that exists is left as it is.

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
        keep_existing=True,
    )


def differences(
    wanted: TopicConfiguration, found: TopicDescription, config: Mapping[str, str]
) -> list[str]:
    """What of an existing topic is not as it should be, a phrase for each.

    Args:
        wanted: The topic as it should be; settings that it does not name may be anything.
        found: The topic as it is.
        config: The settings it has.
    """
    counts = [
        ("partitions", wanted.partitions, found.partitions),
        ("replication factor", wanted.replication_factor, found.replication_factor),
    ]
    said = [f"{name} {is_} instead of {should}" for name, should, is_ in counts if should != is_]
    for name, should in sorted(wanted.config.items()):
        present = config.get(name)
        if present is None or as_set(present) != as_set(should):
            said.append(f"{name} {present or 'unknown'} instead of {should}")
    return said


def as_set(value: str) -> frozenset[str]:
    """A list's order says nothing: `compact,delete` is `delete,compact`."""
    return frozenset(part.strip() for part in value.split(","))
