"""A Kafka in memory, for tests of pipelines: topics, partitions, groups, transactions.

It does what the contract tests check, on it and on a real broker. It knows no time of its own:
sessions end when `expel` says so, nothing is compacted, and nothing falls to retention.
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kstream_agg.core.clock import Clock, ManualClock
from kstream_agg.core.errors import ContractError
from kstream_agg.pipeline.processor import Partition
from kstream_agg.pipeline.testing.groups import Group
from kstream_agg.pipeline.testing.partition_log import (
    Entry,
    PartitionLog,
    Transaction,
    TransactionState,
    murmur2,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kstream_agg.pipeline.processor import CommitPoint
    from kstream_agg.pipeline.testing.groups import Member

__all__ = ["MemoryBroker", "StoredRecord"]


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it stands in a topic."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp_ms: int


class MemoryBroker:
    """The state of a cluster. Its clients are `MemoryConsumer` and `MemoryProducer`.

    Args:
        clock: Gives records their timestamps.
        waits: Whether a consumer that finds nothing waits as long as it is told to; without,
            it returns at once, which is what a test with a clock of its own wants.
    """

    def __init__(self, clock: Clock | None = None, *, waits: bool = False) -> None:
        self.clock: Clock = clock or ManualClock()
        self.waits = waits
        self.changed = threading.Condition(threading.RLock())
        self.activity = 0
        """Grows with every record read or written, commit, and partition that changes hands."""
        self._logs: dict[str, list[PartitionLog]] = {}
        self._groups: dict[str, Group] = {}
        self._epochs: dict[str, int] = {}
        self._open: dict[str, Transaction] = {}
        self._random = random.Random(0)  # noqa: S311 - spreads records, guards nothing

    def note(self) -> None:
        """Something has happened; under the lock."""
        self.activity += 1
        self.changed.notify_all()

    # --- topics ----------------------------------------------------------------------------

    def create_topic(self, topic: str, partitions: int = 1) -> None:
        """Create a topic; one that exists is left as it is."""
        with self.changed:
            if topic not in self._logs:
                self._logs[topic] = [PartitionLog() for _ in range(partitions)]
                for group in self._groups.values():
                    group.spread(self.partitions())
                self.note()

    def partitions(self) -> list[Partition]:
        """All partitions of all topics."""
        with self.changed:
            return [
                Partition(topic, number)
                for topic, logs in self._logs.items()
                for number in range(len(logs))
            ]

    def log(self, partition: Partition) -> PartitionLog | None:
        """A partition's log; None when there is none."""
        logs = self._logs.get(partition.topic, [])
        return logs[partition.number] if 0 <= partition.number < len(logs) else None

    def records(self, topic: str, *, committed: bool = True) -> list[StoredRecord]:
        """A topic's records, partition by partition.

        Raises:
            ContractError: There is no such topic.
        """
        with self.changed:
            if topic not in self._logs:
                raise ContractError(f"there is no topic '{topic}'")
            return [
                StoredRecord(
                    number,
                    offset,
                    entry.key,
                    entry.value,
                    tuple(entry.headers),
                    entry.timestamp_ms,
                )
                for number, log in enumerate(self._logs[topic])
                for offset, entry in log.read(0, committed=committed)
            ]

    def place(self, topic: str, key: bytes | None, partition: int = -1) -> Partition | None:
        """Where a record goes, as `murmur2_random` decides; None when there is no such place."""
        count = len(self._logs.get(topic, []))
        if partition < 0 and count:
            partition = murmur2(key) % count if key is not None else self._random.randrange(count)
        return Partition(topic, partition) if 0 <= partition < count else None

    def append(self, partition: Partition, entry: Entry) -> int:
        """Write an entry; its offset."""
        log = self.log(partition)
        assert log is not None  # noqa: S101 - `place` has found it
        offset = log.append(entry)
        if entry.transaction is not None and not entry.is_marker:
            entry.transaction.partitions.add(partition)
        self.note()
        return offset

    # --- groups ----------------------------------------------------------------------------

    def group(self, name: str) -> Group:
        """A group; it begins when it is first named."""
        return self._groups.setdefault(name, Group())

    def committed(self, group: str) -> dict[Partition, CommitPoint]:
        """What a group has committed."""
        with self.changed:
            return dict(self.group(group).offsets)

    def store(self, group: str, offsets: Mapping[Partition, CommitPoint]) -> None:
        """Commit offsets."""
        with self.changed:
            self.group(group).offsets.update(offsets)
            self.note()

    def members(self, group: str) -> Sequence[Member]:
        """A group's members, in the order they have joined."""
        with self.changed:
            return list(self.group(group).members)

    def expel(self, group: str, member: Member) -> None:
        """End a member's session, as a broker does with one that was not heard of for long."""
        with self.changed:
            self.group(group).leave(member, self.partitions())
            self.note()

    # --- transactions ----------------------------------------------------------------------

    def take_over(self, transactional_id: str) -> int:
        """Fence earlier holders of an id and abort what they have open; the new epoch."""
        with self.changed:
            if transactional_id in self._open:
                self.end(transactional_id, TransactionState.ABORTED)
            self._epochs[transactional_id] = self._epochs.get(transactional_id, -1) + 1
            return self._epochs[transactional_id]

    def is_fenced(self, transactional_id: str, epoch: int) -> bool:
        """Whether another holder has come."""
        return self._epochs.get(transactional_id) != epoch

    def open(self, transactional_id: str) -> Transaction:
        """Begin a transaction."""
        transaction = self._open[transactional_id] = Transaction()
        return transaction

    def end(self, transactional_id: str, state: TransactionState) -> None:
        """Commit or abort; each partition it has written to gets a marker, which has an offset."""
        with self.changed:
            transaction = self._open.pop(transactional_id)
            transaction.state = state
            for partition in sorted(transaction.partitions):
                self.append(partition, Entry(is_marker=True))
            self.note()
