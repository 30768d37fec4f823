"""The changelog topic: where the state of each partition is kept, beside its results.

`{group}-{raw topic}-changelog` is compacted and has the raw topic's partitions: what belongs to
partition n of the one stands in partition n of the other.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

from confluent_kafka import OFFSET_BEGINNING, IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.names import changelog_topic
from kstream_agg.kafka.failures import kafka_failure
from kstream_agg.kafka.group_transactions import fence
from kstream_agg.kafka.reader import is_end_of_partition, make_consumer, read_failure

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confluent_kafka import Consumer

    from kstream_agg.core.settings import KafkaSettings
    from kstream_agg.kafka.writer import Headers
    from kstream_agg.pipeline.processor import Partition

__all__ = ["Changelog", "Kept", "RecordSink"]

Kept = dict[bytes, bytes]
"""The newest value of each key."""

_BATCH: Final = 10_000
_POLL_S: Final = 0.05
_SILENCE_S: Final = 30.0  # a broker that gives nothing for so long is gone
_REQUEST_S: Final = 10.0
# What a living member has committed is readable some milliseconds later. What stays open for
# longer was left by one that died in the middle, and is aborted when that is fenced.
_SETTLE_S: Final = 3.0
_LOOK_AGAIN_S: Final = 0.02


class RecordSink(Protocol):
    """Takes records: a `RecordWriter`, or the transaction of `ExactlyOnce`."""

    def produce(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Headers | None = None,
        partition: int = -1,
    ) -> None:
        """Add one record."""


class Changelog:
    """Reads and writes the changelog of a group's states.

    Args:
        settings: How to reach the brokers.
        group_id: The consumer group.
        client_id: Named in the brokers' logs and metrics.
        sink: Takes what is written.
    """

    def __init__(
        self, settings: KafkaSettings, group_id: str, client_id: str, sink: RecordSink
    ) -> None:
        self._settings = settings
        self._group_id = group_id
        self._client_id = client_id
        self._produce = sink.produce

    def name(self, partition: Partition) -> str:
        """The topic that keeps a partition's state."""
        return changelog_topic(self._group_id, partition.topic)

    def write(self, partition: Partition, key: bytes, value: bytes | None) -> None:
        """Keep a value; None drops the key's."""
        self._produce(self.name(partition), value, key=key, partition=partition.number)

    def fence(self, owner: str) -> None:
        """See to it that a former owner writes nothing any more, and abort what it left open."""
        fence(self._settings, self._client_id, owner)

    def read(self, partitions: Iterable[Partition]) -> dict[Partition, Kept]:
        """What is kept for each partition, once what is being committed has been.

        Raises:
            UnavailableError: No broker answers.
            ContractError: A changelog has not as many partitions as its raw topic.
        """
        wanted = {self._place(partition): partition for partition in partitions}
        if not wanted:
            return {}
        try:
            self._let_settle(list(wanted))
            # Never joined and never committed to: partitions are assigned by hand.
            consumer = make_consumer(self._settings, f"{self._group_id}-restore", self._client_id)
            try:
                return self._read(consumer, wanted)
            finally:
                consumer.close()
        except KafkaException as error:
            raise kafka_failure(error, "reading the changelog") from error

    def _place(self, partition: Partition) -> TopicPartition:
        return TopicPartition(self.name(partition), partition.number)

    def _let_settle(self, places: list[TopicPartition]) -> None:
        config = self._settings.client_config()
        admin = AdminClient(config | {"client.id": self._client_id, "log_level": 0})
        deadline = time.monotonic() + _SETTLE_S
        while True:
            ends = [
                _ends(admin, places, level)
                for level in (IsolationLevel.READ_UNCOMMITTED, IsolationLevel.READ_COMMITTED)
            ]
            if ends[0] == ends[1] or time.monotonic() >= deadline:
                return
            time.sleep(_LOOK_AGAIN_S)

    def _read(
        self, consumer: Consumer, wanted: dict[TopicPartition, Partition]
    ) -> dict[Partition, Kept]:
        # All at once: one that is assigned later waits for a fetch that is under way, which
        # costs about a second each.
        consumer.assign([TopicPartition(p.topic, p.partition, OFFSET_BEGINNING) for p in wanted])
        found: dict[tuple[str, int], Kept] = {(p.topic, p.partition): {} for p in wanted}
        left = set(found)
        silent_polls = 0
        while left:
            messages = consumer.consume(_BATCH, _POLL_S)
            silent_polls = 0 if messages else silent_polls + 1
            if silent_polls * _POLL_S >= _SILENCE_S:
                raise UnavailableError(
                    f"Kafka gave no record of '{min(left)[0]}' for {_SILENCE_S:.0f} s"
                )
            for message in messages:
                place = (message.topic() or "", message.partition() or 0)
                error = message.error()
                if error is None:
                    if place in left:
                        _note(found[place], message.key(), message.value())
                elif is_end_of_partition(error):
                    left.discard(place)
                elif (failure := read_failure(error)) is not None:
                    raise failure
        return {item: found[place.topic, place.partition] for place, item in wanted.items()}


def _ends(admin: AdminClient, places: list[TopicPartition], level: IsolationLevel) -> list[int]:
    futures = admin.list_offsets(
        {place: OffsetSpec.latest() for place in places},  # type: ignore[no-untyped-call]  # theirs
        isolation_level=level,
        request_timeout=_REQUEST_S,
    )
    return [int(future.result().offset) for future in futures.values()]


def _note(kept: Kept, key: object, value: object) -> None:
    if not isinstance(key, bytes):
        return
    # Anew, so that the keys stand in the order of their last values.
    kept.pop(key, None)
    if isinstance(value, bytes):
        kept[key] = value
