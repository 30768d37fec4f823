"""Values to and from topics, in a line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kstream_agg.kafka import KafkaCluster, Reader, Record, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["values", "write"]


def write(cluster: KafkaCluster, topic: str, written: Iterable[bytes], partition: int = 0) -> None:
    """Write values to a partition, and wait until they are acknowledged."""
    with cluster.writer_for_partition(TopicPartition(topic, partition)) as writer:
        for value in written:
            writer.produce(Record(value))


def values(reader: Reader[bytes], count: int) -> list[bytes | None]:
    """The next values; fewer when they don't come."""
    return [record.value for record in reader.read(count, 30)]
