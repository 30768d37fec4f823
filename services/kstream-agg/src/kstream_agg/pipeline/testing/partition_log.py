"""A partition of the in-memory broker: records, transactions, markers."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kstream_agg.pipeline.processor import Partition

__all__ = ["Entry", "PartitionLog", "Transaction", "TransactionState", "murmur2"]


@enum.unique
class TransactionState(enum.Enum):
    """How far a transaction is."""

    OPEN = "open"
    COMMITTED = "committed"
    ABORTED = "aborted"


@dataclass(eq=False, slots=True)
class Transaction:
    """Records of one producer that are read together or not at all."""

    state: TransactionState = TransactionState.OPEN
    partitions: set[Partition] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands at an offset: a record, or a transaction's end marker, which nobody reads."""

    key: bytes | None = None
    value: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    timestamp_ms: int = 0
    transaction: Transaction | None = None
    is_marker: bool = False


class PartitionLog:
    """Entries by offset, from 0."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def append(self, entry: Entry) -> int:
        """Add an entry; its offset."""
        self._entries.append(entry)
        return len(self._entries) - 1

    def end(self, *, committed: bool) -> int:
        """The offset behind what can be read: with `committed`, before the first open record."""
        if committed:
            for offset, entry in enumerate(self._entries):
                transaction = entry.transaction
                if transaction is not None and transaction.state is TransactionState.OPEN:
                    return offset
        return len(self._entries)

    def read(self, start: int, *, committed: bool) -> Iterator[tuple[int, Entry]]:
        """The records from an offset on, with their offsets."""
        for offset in range(start, self.end(committed=committed)):
            entry = self._entries[offset]
            transaction = entry.transaction
            aborted = (
                transaction is not None and transaction.state is not TransactionState.COMMITTED
            )
            if not entry.is_marker and not (committed and aborted):
                yield offset, entry


def murmur2(key: bytes) -> int:
    """The hash by which Kafka's clients spread keys over partitions, made non-negative.

    Austin Appleby's MurmurHash2, 32 bits, with the seed of Kafka's `Utils.murmur2`.
    """
    factor, mask = 0x5BD1E995, 0xFFFFFFFF
    value = 0x9747B28C ^ len(key)
    whole = len(key) - len(key) % 4
    for place in range(0, whole, 4):
        word = int.from_bytes(key[place : place + 4], "little") * factor & mask
        word = (word ^ word >> 24) * factor & mask
        value = (value * factor & mask) ^ word
    if whole < len(key):
        value = (value ^ int.from_bytes(key[whole:], "little")) * factor & mask
    value = (value ^ value >> 13) * factor & mask
    return (value ^ value >> 15) & 0x7FFFFFFF
