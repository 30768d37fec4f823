"""Where the reader stands in each of its partitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confluent_kafka import TopicPartition

from kstream_agg.core.metrics import CONSUMER_LAG_RECORDS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from confluent_kafka import Consumer

    from kstream_agg.core.metrics import Metrics
    from kstream_agg.pipeline.processor import Partition

__all__ = ["Readings"]


@dataclass(slots=True)
class _Reading:
    position: int | None
    at_end_since: float | None = None


class Readings:
    """The partitions of a member, how far each has been read, and since when there is no more.

    Args:
        metrics: Told the lag.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._lag = metrics.gauge(CONSUMER_LAG_RECORDS)
        self._readings: dict[Partition, _Reading] = {}

    def __iter__(self) -> Iterator[Partition]:
        return iter(list(self._readings))

    def move(self, partition: Partition, position: int | None) -> None:
        """Everything before `position` has been read; None: reading begins at the beginning."""
        self._readings[partition] = _Reading(position)

    def forget(self, partition: Partition) -> None:
        """A partition has gone."""
        if self._readings.pop(partition, None) is not None:
            self._lag.labels(partition.topic, str(partition.number)).set(0)

    def note_ends(
        self, ends: Mapping[Partition, int], waiting: Collection[Partition], now: float
    ) -> Iterator[tuple[Partition, int, float]]:
        """Take in which ends were reached.

        Args:
            ends: End offset by partition, as the consumer has met them.
            waiting: Partitions with records that still wait.
            now: Monotonic time, s.

        Yields:
            Each partition that is read to its end, the end, and for how many seconds so far.
        """
        for partition, end in ends.items():
            reading = self._readings.get(partition)
            # Records behind this end may have come in the same poll, or still wait.
            behind = reading is None or (reading.position or 0) > end
            if reading is not None and not behind and partition not in waiting:
                reading.position = end
                if reading.at_end_since is None:
                    reading.at_end_since = now
        for partition, reading in self._readings.items():
            if reading.at_end_since is not None and reading.position is not None:
                yield partition, reading.position, now - reading.at_end_since

    def measure_lag(self, consumer: Consumer) -> int:
        """Records behind the ends of all partitions, as the consumer last saw them."""
        total = 0
        for partition, reading in self._readings.items():
            lag = 0
            if reading.at_end_since is None:
                low, high = consumer.get_watermark_offsets(TopicPartition(*partition), cached=True)
                # Without a position the first batch has not been processed yet.
                position = low if reading.position is None else reading.position
                lag = max(0, high - max(0, position))
            self._lag.labels(partition.topic, str(partition.number)).set(lag)
            total += lag
        return total
