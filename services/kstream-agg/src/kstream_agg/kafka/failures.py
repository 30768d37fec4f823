"""The one place where librdkafka's errors become ours."""

from __future__ import annotations

import contextlib
import difflib
from typing import TYPE_CHECKING, Final

from confluent_kafka import KafkaError, KafkaException

from kstream_agg.core.errors import ContractError, DeliveryError, KStreamError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["delivery_failure", "kafka_failure", "mapped", "no_such_topic"]

_UNAVAILABLE: Final = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._RESOLVE,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.LEADER_NOT_AVAILABLE,
        # A broker that has just started, or a partition that moves.
        KafkaError._WAIT_COORD,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NETWORK_EXCEPTION,
    }
)
_NOBODY_ANSWERS: Final = frozenset(
    {KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE}
)
_REMEDIES: Final = {
    KafkaError.UNKNOWN_TOPIC_OR_PART: "list the topics: kstream-agg topics",
    KafkaError._UNKNOWN_TOPIC: "list the topics: kstream-agg topics",
    KafkaError._UNKNOWN_PARTITION: "list the topics and their partitions: kstream-agg topics",
    KafkaError.MSG_SIZE_TOO_LARGE: "raise max.message.bytes of the topic and message.max.bytes "
    "of the client, or send less in one record",
    KafkaError.INVALID_REPLICATION_FACTOR: "ask for no more replicas than there are brokers "
    "(--replicas, topic.replication_factor)",
    KafkaError.INVALID_PARTITIONS: "a topic only ever gets more partitions; for fewer, make "
    "another topic",
    KafkaError.INVALID_CONFIG: "topic settings are listed at "
    "https://kafka.apache.org/documentation/#topicconfigs",
    KafkaError.TOPIC_ALREADY_EXISTS: "take another name, or delete it: kstream-agg topics delete",
    KafkaError.TOPIC_EXCEPTION: "names are of letters, digits, '.', '_' and '-', at most 249",
    KafkaError.INCONSISTENT_GROUP_PROTOCOL: "the group's members use another protocol or "
    "assignment strategy: take another group, or end them first (kstream-agg groups describe)",
    KafkaError.NON_EMPTY_GROUP: "end the group's members first: kstream-agg groups describe",
    KafkaError.GROUP_ID_NOT_FOUND: "list the groups: kstream-agg groups",
    KafkaError.OFFSET_OUT_OF_RANGE: "the records there are deleted or not written yet; begin with "
    "earliest or latest",
    KafkaError.NOT_ENOUGH_REPLICAS: "too few brokers hold the partition in sync: kstream-agg "
    "cluster status",
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND: "too few brokers hold the partition in sync: "
    "kstream-agg cluster status",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "grant this user the right on the topic",
    KafkaError.SASL_AUTHENTICATION_FAILED: "check kafka.sasl_username and kafka.sasl_password",
    KafkaError._AUTHENTICATION: "check kafka.sasl_mechanism, sasl_username and sasl_password",
}


def kafka_failure(error: KafkaException, doing: str) -> KStreamError:
    """Our error for one of librdkafka's.

    Args:
        error: What was raised.
        doing: What was being done, e.g. `creating topic 'x'`.
    """
    cause: KafkaError = error.args[0]
    why = cause.str()
    if why.endswith(": "):  # the broker gave no reason
        why += cause.name()
    if cause.code() in _NOBODY_ANSWERS:
        why = f"no Kafka broker answers ({why})"
    message = f"{doing} failed: {why}"
    if cause.code() in _UNAVAILABLE:
        return UnavailableError(
            message,
            remedy="is Kafka running, and kafka.bootstrap_servers (or KAFKA_BROKERS) right?",
        )
    return ContractError(message, remedy=_REMEDIES.get(cause.code()))


@contextlib.contextmanager
def mapped(doing: str) -> Iterator[None]:
    """Raise our errors for librdkafka's.

    Args:
        doing: What is being done, e.g. `creating topic 'x'`.
    """
    try:
        yield
    except KafkaException as error:
        raise kafka_failure(error, doing) from error


def delivery_failure(error: KafkaError, topic: str) -> DeliveryError:
    """Our error for a record that was not delivered."""
    return DeliveryError(
        f"Kafka did not take a record for topic '{topic}': {error.str()}",
        remedy=_REMEDIES.get(error.code()),
    )


def no_such_topic(name: str, known: Collection[str]) -> ContractError:
    """Our error for a topic that does not exist.

    Args:
        name: What was asked for.
        known: The topics there are.
    """
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}? else " if near else ""
    return ContractError(
        f"there is no topic '{name}'",
        remedy=f"{hint}make it: kstream-agg topics create {name}",
    )
