"""Reading a compacted topic from its begin to its committed end, as a service does at start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kstream_agg.kafka.topic_reader import TopicReader

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confluent_kafka import Message

    from kstream_agg.core.settings import KafkaSettings

__all__ = ["keep_newest", "read_compacted"]


def read_compacted(settings: KafkaSettings, topic: str, client_id: str) -> dict[bytes, bytes]:
    """The newest value of each key; keys with a tombstone are left out.

    Args:
        settings: How to reach the brokers.
        topic: An existing topic.
        client_id: Named in the brokers' logs and metrics.

    Raises:
        UnavailableError: No broker answers.
    """
    newest: dict[bytes, bytes] = {}
    with TopicReader(settings, client_id) as reader:
        for _part, messages in reader.batches(reader.spans([topic])):
            keep_newest(newest, messages)
    return newest


def keep_newest(newest: dict[bytes, bytes], messages: Iterable[Message]) -> None:
    """Take in further records of a partition; keys stand in the order of their last values."""
    for message in messages:
        key, value = message.key(), message.value()
        if not isinstance(key, bytes):
            continue
        newest.pop(key, None)
        if isinstance(value, bytes):
            newest[key] = value
