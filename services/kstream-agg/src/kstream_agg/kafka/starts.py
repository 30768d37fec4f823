"""Where a reader begins: an end, an offset or a time, as offsets."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition

from kstream_agg.core.errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from confluent_kafka import Consumer

__all__ = ["UNSUBSCRIBED", "Start", "patiently", "span_of", "starting_offsets"]

Start = Literal["earliest", "latest"] | int | datetime
"""The oldest record, what comes from now on, an offset, or the first record at or after a time."""

ResultT = TypeVar("ResultT")

UNSUBSCRIBED: Final = "unsubscribed"
"""Stands beside a committed offset that counts no more: the client library cannot remove one."""

_TIMEOUT_S: Final = 10.0
_LOOKS: Final = 100
_PAUSE_S: Final = 0.1
_NOT_YET: Final = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        # Of a partition that others list already.
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        # The first group of a new cluster: the topic of its offsets is being made.
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
    }
)


def starting_offsets(
    consumer: Consumer, partitions: Iterable[TopicPartition], start: Start
) -> list[TopicPartition]:
    """The partitions with the offsets that a start means now.

    Args:
        consumer: Asks the brokers.
        partitions: Which ones.
        start: Where to begin in each.

    Raises:
        KafkaException: No broker answers.
        ContractError: A partition does not have the offset, or a time has no zone.
    """
    if start == "earliest":
        return [TopicPartition(p.topic, p.partition, OFFSET_BEGINNING) for p in partitions]
    if isinstance(start, datetime):
        return _from_time(consumer, list(partitions), start)
    found = []
    for part in partitions:
        low, high = span_of(consumer, part)
        if isinstance(start, int) and not low <= start <= high:
            raise ContractError(
                f"partition {part.partition} of topic '{part.topic}' has no offset {start}",
                remedy=f"it has records from {low} up to {high - 1}"
                if low < high
                else f"it has no records; the next one gets offset {high}",
            )
        offset = start if isinstance(start, int) else high
        found.append(TopicPartition(part.topic, part.partition, offset))
    return found


def span_of(consumer: Consumer, partition: TopicPartition) -> tuple[int, int]:
    """The first offset of a partition, and the one that the next record gets.

    Raises:
        KafkaException: No broker answers.
    """
    found: tuple[int, int] = patiently(
        lambda: consumer.get_watermark_offsets(partition, timeout=_TIMEOUT_S)
    )
    return found


def patiently(call: Callable[[], ResultT]) -> ResultT:
    """A call repeated while a leader or coordinator is new, and does not know of it yet."""
    for _ in range(_LOOKS):
        try:
            return call()
        except KafkaException as error:
            if error.args[0].code() not in _NOT_YET:
                raise
            time.sleep(_PAUSE_S)
    return call()


def _from_time(
    consumer: Consumer, partitions: list[TopicPartition], start: datetime
) -> list[TopicPartition]:
    if start.tzinfo is None:
        raise ContractError(
            f"the time {start} has no zone", remedy="give it one: datetime(…, tzinfo=UTC)"
        )
    at_ms = round(start.timestamp() * 1000)
    asked = [TopicPartition(part.topic, part.partition, at_ms) for part in partitions]
    found = patiently(lambda: consumer.offsets_for_times(asked, timeout=_TIMEOUT_S))
    late = [part for part in found if part.offset < 0]  # nothing there is so new
    return [
        *(part for part in found if part.offset >= 0),
        *starting_offsets(consumer, late, "latest"),
    ]
