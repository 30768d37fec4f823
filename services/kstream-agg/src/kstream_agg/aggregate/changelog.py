"""The changelog topic: where the state of each partition is kept, beside its results.

`{group}-{raw topic}-changelog` is compacted and has the raw topic's partitions: what belongs to
partition n of the one stands in partition n of the other.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from kstream_agg.core.errors import ContractError
from kstream_agg.core.names import changelog_topic
from kstream_agg.kafka.compacted import keep_newest
from kstream_agg.kafka.failures import kafka_failure
from kstream_agg.kafka.group_transactions import fence
from kstream_agg.kafka.topic_reader import TopicPart, TopicReader

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kstream_agg.core.settings import KafkaSettings
    from kstream_agg.kafka.writer import Headers
    from kstream_agg.pipeline.processor import Partition

__all__ = ["Changelog", "Kept", "RecordSink"]

Kept = dict[bytes, bytes]
"""The newest value of each key."""

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
        wanted = {TopicPart(self.name(item), item.number): item for item in partitions}
        if not wanted:
            return {}
        found: dict[TopicPart, Kept] = {part: {} for part in wanted}
        try:
            self._let_settle([TopicPartition(*part) for part in wanted])
        except KafkaException as error:
            raise kafka_failure(error, "reading the changelog") from error
        with TopicReader(self._settings, self._client_id) as reader:
            # Up to an end that is known beforehand: a former owner that lives may be writing.
            spans = reader.spans({part.topic for part in wanted})
            if missing := wanted.keys() - spans.keys():
                part = min(missing)
                raise ContractError(
                    f"'{part.topic}' has no partition {part.partition}",
                    remedy="a changelog has as many partitions as its raw topic: give it those",
                )
            for part, messages in reader.batches({part: spans[part] for part in wanted}):
                keep_newest(found[part], messages)
        return {item: found[part] for part, item in wanted.items()}

    def _let_settle(self, places: list[TopicPartition]) -> None:
        config = self._settings.client_config()
        deadline = time.monotonic() + _SETTLE_S
        with AdminClient(config | {"client.id": self._client_id, "log_level": 0}) as admin:
            while True:
                ends = [
                    _ends(admin, places, level)
                    for level in (IsolationLevel.READ_UNCOMMITTED, IsolationLevel.READ_COMMITTED)
                ]
                if ends[0] == ends[1] or time.monotonic() >= deadline:
                    return
                time.sleep(_LOOK_AGAIN_S)


def _ends(admin: AdminClient, places: list[TopicPartition], level: IsolationLevel) -> list[int]:
    futures = admin.list_offsets(
        {place: OffsetSpec.latest() for place in places},  # type: ignore[no-untyped-call]  # theirs
        isolation_level=level,
        request_timeout=_REQUEST_S,
    )
    return [int(future.result().offset) for future in futures.values()]
