"""Where a reader begins: an end, an offset or a time, as offsets."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal

from confluent_kafka import OFFSET_BEGINNING, TopicPartition

from kstream_agg.core.errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confluent_kafka import Consumer

__all__ = ["Start", "starting_offsets"]

Start = Literal["earliest", "latest"] | int | datetime
"""The oldest record, what comes from now on, an offset, or the first record at or after a time."""

_TIMEOUT_S: Final = 10.0


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
        low, high = consumer.get_watermark_offsets(part, timeout=_TIMEOUT_S)
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


def _from_time(
    consumer: Consumer, partitions: list[TopicPartition], start: datetime
) -> list[TopicPartition]:
    if start.tzinfo is None:
        raise ContractError(
            f"the time {start} has no zone", remedy="give it one: datetime(…, tzinfo=UTC)"
        )
    at_ms = round(start.timestamp() * 1000)
    asked = [TopicPartition(part.topic, part.partition, at_ms) for part in partitions]
    found = consumer.offsets_for_times(asked, timeout=_TIMEOUT_S)
    late = [part for part in found if part.offset < 0]  # nothing there is so new
    return [
        *(part for part in found if part.offset >= 0),
        *starting_offsets(consumer, late, "latest"),
    ]
