"""The one place where librdkafka's errors become ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confluent_kafka import KafkaError

from kstream_agg.core.errors import ContractError, DeliveryError, KStreamError, UnavailableError

if TYPE_CHECKING:
    from confluent_kafka import KafkaException

__all__ = ["delivery_failure", "kafka_failure"]

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
_REMEDIES: Final = {
    KafkaError.UNKNOWN_TOPIC_OR_PART: "list the topics: kstream-agg topics",
    KafkaError._UNKNOWN_TOPIC: "list the topics: kstream-agg topics",
    KafkaError._UNKNOWN_PARTITION: "list the topics and their partitions: kstream-agg topics",
    KafkaError.MSG_SIZE_TOO_LARGE: "raise max.message.bytes of the topic and message.max.bytes "
    "of the client, or send less in one record",
    KafkaError.INVALID_REPLICATION_FACTOR: "lower topic.replication_factor to the number of "
    "brokers",
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
    message = f"{doing} failed: {cause.str()}"
    if cause.code() in _UNAVAILABLE:
        return UnavailableError(
            message, remedy="is Kafka running, and kafka.bootstrap_servers right?"
        )
    return ContractError(message, remedy=_REMEDIES.get(cause.code()))


def delivery_failure(error: KafkaError, topic: str) -> DeliveryError:
    """Our error for a record that was not delivered."""
    return DeliveryError(
        f"Kafka did not take a record for topic '{topic}': {error.str()}",
        remedy=_REMEDIES.get(error.code()),
    )
