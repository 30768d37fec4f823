"""A consumer of the in-memory broker, with the calls of `confluent_kafka.Consumer`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    OFFSET_INVALID,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from kstream_agg.pipeline.processor import CommitPoint, Partition
from kstream_agg.pipeline.testing.groups import Member

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from kstream_agg.pipeline.testing.broker import MemoryBroker

__all__ = ["GroupMetadata", "MemoryConsumer"]


@dataclass(frozen=True, slots=True)
class GroupMetadata:
    """What a producer needs to commit offsets for a member."""

    group: str
    member: Member | None


class MemoryConsumer:
    """Reads as a member of a group; everything happens in the thread that calls `consume`.

    Args:
        broker: Where from.
        config: `group.id`, `isolation.level`, `auto.offset.reset`, `enable.partition.eof` are
            looked at.
    """

    def __init__(self, broker: MemoryBroker, config: Mapping[str, Any]) -> None:
        self._broker = broker
        self._group = str(config["group.id"])
        self._committed_only = config.get("isolation.level", "read_committed") != "read_uncommitted"
        self._from_start = config.get("auto.offset.reset", "latest") in {"earliest", "smallest"}
        self._tells_ends = bool(config.get("enable.partition.eof", False))
        self._callbacks: dict[str, Callable[..., object] | None] = {}
        self._topics: frozenset[str] = frozenset()
        self._member: Member | None = None
        self._positions: dict[Partition, int] = {}
        self._paused: set[Partition] = set()
        self._told_ends: dict[Partition, int] = {}
        self._closed = False

    @property
    def member(self) -> Member | None:
        """Its membership, to be expelled by a test."""
        return self._member

    # --- the group -------------------------------------------------------------------------

    def subscribe(
        self,
        topics: list[str],
        on_assign: Callable[..., object] | None = None,
        on_revoke: Callable[..., object] | None = None,
        on_lost: Callable[..., object] | None = None,
    ) -> None:
        """Join the group."""
        self._callbacks = {"assign": on_assign, "revoke": on_revoke, "lost": on_lost}
        self._topics = frozenset(topics)
        self._join()

    def _join(self) -> None:
        with self._broker.changed:
            self._member = Member(self._topics)
            self._broker.group(self._group).join(self._member, self._broker.partitions())
            self._broker.note()

    def _sync(self) -> None:
        """Give up and take what the group has decided."""
        member = self._member
        if member is None:
            return
        if not member.is_known:
            self._call("lost", sorted(member.owned), member)
            self._join()
            return
        with self._broker.changed:
            gone, _ = self._broker.group(self._group).due_for(member)
        if gone:
            self._call("revoke", gone, member)
        with self._broker.changed:
            _, new = self._broker.group(self._group).due_for(member)
            member.owned.update(new)
        if new:
            self._call("assign", new, member)

    def _call(self, what: str, partitions: list[Partition], member: Member) -> None:
        if not partitions:
            return
        items = [TopicPartition(*partition) for partition in partitions]
        callback = self._callbacks.get(what) or (
            self._callbacks.get("revoke") if what == "lost" else None
        )
        if callback is not None:
            callback(self, items)
        elif what == "assign":
            self.incremental_assign(items)
        if what != "assign":
            self.incremental_unassign(items)
            with self._broker.changed:
                member.owned.difference_update(partitions)
        with self._broker.changed:
            self._broker.note()

    def consumer_group_metadata(self) -> GroupMetadata:
        """For a producer that commits this consumer's offsets."""
        return GroupMetadata(self._group, self._member)

    def close(self) -> None:
        """Leave the group; partitions are revoked first."""
        if self._closed:
            return
        self._closed = True
        member = self._member
        if member is not None:
            self._call("revoke" if member.is_known else "lost", sorted(member.owned), member)
            self._broker.expel(self._group, member)

    def vanish(self) -> None:
        """What a killed process does: nothing; the group counts it out."""
        self._closed = True
        if self._member is not None:
            self._broker.expel(self._group, self._member)

    # --- partitions ------------------------------------------------------------------------

    def assignment(self) -> list[TopicPartition]:
        """The partitions it reads."""
        return [TopicPartition(*partition) for partition in self._positions]

    def incremental_assign(self, partitions: Iterable[TopicPartition]) -> None:
        """Read these too, from their offsets, or from what was committed."""
        for item in partitions:
            self.seek(item)

    def incremental_unassign(self, partitions: Iterable[TopicPartition]) -> None:
        """Read these no more."""
        for partition in map(_partition, partitions):
            self._positions.pop(partition, None)
            self._told_ends.pop(partition, None)
            self._paused.discard(partition)

    def seek(self, item: TopicPartition) -> None:
        """Read on from an offset."""
        partition = _partition(item)
        _low, end = self.get_watermark_offsets(item)
        offset = item.offset
        if offset == OFFSET_INVALID:
            committed = self._broker.committed(self._group).get(partition)
            start = OFFSET_BEGINNING if self._from_start else OFFSET_END
            offset = committed.offset if committed else start
        if offset == OFFSET_BEGINNING:
            offset = 0
        elif offset == OFFSET_END:
            offset = end
        self._positions[partition] = offset
        self._told_ends.pop(partition, None)

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Give no messages of these."""
        self._paused.update(map(_partition, partitions))

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Give messages of these again."""
        self._paused.difference_update(map(_partition, partitions))

    def get_watermark_offsets(
        self,
        item: TopicPartition,
        timeout: float = 0.0,
        cached: bool = False,  # noqa: FBT001, FBT002 - the signature of the real one
    ) -> tuple[int, int]:
        """The first offset and the one behind the last record that this consumer can read."""
        del timeout, cached
        with self._broker.changed:
            log = self._broker.log(_partition(item))
            if log is None:
                raise KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION))  # noqa: SLF001 - its public name
            return 0, log.end(committed=self._committed_only)

    # --- records ---------------------------------------------------------------------------

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[Message]:
        """Up to so many messages; first whatever happens to the group."""
        if self._closed:
            raise RuntimeError("Consumer closed")
        self._sync()
        with self._broker.changed:
            found = self._read(num_messages)
            if not found and self._broker.waits and timeout:
                self._broker.changed.wait(None if timeout < 0 else timeout)
                found = self._read(num_messages)
            return found

    def poll(self, timeout: float = -1) -> Message | None:
        """One message."""
        found = self.consume(1, timeout)
        return found[0] if found else None

    def _read(self, most: int) -> list[Message]:
        found: list[Message] = []
        for partition in sorted(self._positions.keys() - self._paused):
            log = self._broker.log(partition)
            if log is None:
                continue
            position = self._positions[partition]
            entries = log.read(position, committed=self._committed_only)
            for offset, entry in islice(entries, most - len(found)):
                found.append(
                    Message(
                        topic=partition.topic,
                        partition=partition.number,
                        offset=offset,
                        key=entry.key,
                        value=entry.value,
                        headers=list(entry.headers) or None,
                        timestamp=(2, entry.timestamp_ms),
                    )
                )
                position = offset + 1
            if len(found) < most:
                position = max(position, log.end(committed=self._committed_only))
                if self._tells_ends and self._told_ends.get(partition) != position:
                    self._told_ends[partition] = position
                    found.append(_end(partition, position))
            self._positions[partition] = position
        if found:
            self._broker.note()
        return found

    # --- offsets ---------------------------------------------------------------------------

    def committed(
        self, partitions: Iterable[TopicPartition], timeout: float = -1
    ) -> list[TopicPartition]:
        """What the group has committed of these."""
        del timeout
        stored = self._broker.committed(self._group)
        found = []
        for item in partitions:
            point = stored.get(_partition(item))
            offset, metadata = (point.offset, point.metadata) if point else (OFFSET_INVALID, "")
            found.append(TopicPartition(item.topic, item.partition, offset, metadata))
        return found

    def commit(
        self,
        *,
        offsets: Sequence[TopicPartition],
        asynchronous: bool = True,
    ) -> list[TopicPartition]:
        """Commit offsets for the group.

        Raises:
            KafkaException: The group does not count this member in any more.
        """
        del asynchronous
        if self._member is None or not self._member.is_known:
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_MEMBER_ID))
        self._broker.store(self._group, points_of(offsets))
        return list(offsets)


def points_of(offsets: Iterable[TopicPartition]) -> dict[Partition, CommitPoint]:
    """Commit points of a client's offsets."""
    return {_partition(item): CommitPoint(item.offset, item.metadata or "") for item in offsets}


def _partition(item: TopicPartition) -> Partition:
    return Partition(item.topic, item.partition)


def _end(partition: Partition, offset: int) -> Message:
    code = KafkaError._PARTITION_EOF  # noqa: SLF001 - its public name
    return Message(
        topic=partition.topic, partition=partition.number, offset=offset, error=KafkaError(code)
    )
