"""Reading a compacted topic from its begin to its committed end, as a service does at start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confluent_kafka import KafkaException, TopicPartition

from kstream_agg.core.errors import UnavailableError
from kstream_agg.kafka.failures import kafka_failure
from kstream_agg.kafka.reader import is_end_of_partition, make_consumer, read_failure

if TYPE_CHECKING:
    from kstream_agg.core.settings import KafkaSettings

__all__ = ["read_compacted"]

_BATCH: Final = 5_000
_POLL_S: Final = 0.1
_SILENCE_S: Final = 30.0  # a broker that gives nothing for so long is gone
_TIMEOUT_S: Final = 10.0


def read_compacted(settings: KafkaSettings, topic: str, client_id: str) -> dict[bytes, bytes]:
    """The newest value of each key; keys with a tombstone are left out.

    Args:
        settings: How to reach the brokers.
        topic: An existing topic.
        client_id: Named in the brokers' logs and metrics.

    Raises:
        UnavailableError: No broker answers.
    """
    # Never joined and never committed to: partitions are assigned by hand.
    consumer = make_consumer(settings, f"{client_id}-restore", client_id)
    newest: dict[bytes, bytes] = {}
    try:
        partitions = consumer.list_topics(topic, _TIMEOUT_S).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        left, empty_polls = len(partitions), 0
        while left:
            messages = consumer.consume(_BATCH, _POLL_S)
            empty_polls = 0 if messages else empty_polls + 1
            if empty_polls * _POLL_S >= _SILENCE_S:
                raise UnavailableError(f"Kafka gave no record of '{topic}' for {_SILENCE_S:.0f} s")
            for message in messages:
                error = message.error()
                if error is None:
                    _note(newest, message.key(), message.value())
                elif is_end_of_partition(error):
                    left -= 1
                elif (failure := read_failure(error)) is not None:
                    raise failure
    except KafkaException as error:
        raise kafka_failure(error, f"reading topic '{topic}'") from error
    finally:
        consumer.close()
    return newest


def _note(newest: dict[bytes, bytes], key: object, value: object) -> None:
    if not isinstance(key, bytes):
        return
    if isinstance(value, bytes):
        newest[key] = value
    else:
        newest.pop(key, None)
