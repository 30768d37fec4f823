"""Reading a compacted topic from its begin to its committed end, as a service does at start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kstream_agg.kafka.topic_reader import TopicReader

if TYPE_CHECKING:
    from kstream_agg.core.settings import KafkaSettings

__all__ = ["read_compacted"]


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
            for message in messages:
                _note(newest, message.key(), message.value())
    return newest


def _note(newest: dict[bytes, bytes], key: object, value: object) -> None:
    if not isinstance(key, bytes):
        return
    if isinstance(value, bytes):
        newest[key] = value
    else:
        newest.pop(key, None)
