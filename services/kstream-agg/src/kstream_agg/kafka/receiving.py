"""The reader of the public API: records of topics, alone or as a member of a group."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from kstream_agg.core.errors import ContractError
from kstream_agg.kafka.assigned import Assigned, Rebalance
from kstream_agg.kafka.awaiting import awaitable
from kstream_agg.kafka.failures import kafka_failure, mapped
from kstream_agg.kafka.reader import is_end_of_partition, read_failure
from kstream_agg.kafka.record import ReceivedRecord
from kstream_agg.kafka.scoped import Scoped
from kstream_agg.kafka.starts import Start, span_of, starting_offsets

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterable

    from kstream_agg.core.settings import KafkaSettings
    from kstream_agg.kafka.codecs import Codec

__all__ = ["Reader", "Rebalance", "Start"]

T = TypeVar("T")

_BATCH: Final = 10_000
_LOOK_S: Final = 0.2
_TIMEOUT_S: Final = 10.0
_PATIENCE_S: Final = 10.0


class Reader(Assigned, Scoped, Generic[T]):
    """Reads committed records; a context manager, blocking or `async`, that leaves at its end.

        for record in reader: …            # for ever; `async for` in an event loop
        for record in reader.until_end(): …  # what stands there now
        record = reader.poll(1.0)

    Made by `KafkaCluster.reader` and `reader_for_partition`. Its calls exclude each other: from
    several threads they wait for each other.

    Args:
        settings: How to reach the brokers.
        client_id: Named in the brokers' logs and metrics.
        group: The consumer group; None for a reader on its own.
        start: Where to begin in a partition without a committed offset.
        codec: Decodes values; None: they stay bytes.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        client_id: str,
        *,
        group: str | None = None,
        start: Start = "latest",
        codec: Codec[T] | None = None,
    ) -> None:
        super().__init__(settings, client_id, group=group, start=start)
        self._codec = codec
        self._ends: dict[tuple[str, int], int] = {}
        self._closed = False

    # --- reading -------------------------------------------------------------------------------

    def poll(self, timeout_s: float = 0.0) -> ReceivedRecord[T] | None:
        """The next record; None when none comes within `timeout_s` seconds.

        Raises:
            KStreamError: Reading cannot go on; the remedy says what to do.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            message = next(self._pending, None)
            if message is not None:
                return ReceivedRecord(message, self._codec)
            left = deadline - time.monotonic()
            if not self._fill(max(0.0, min(left, _LOOK_S))) and left <= 0:
                return None

    def read(self, count: int, timeout_s: float = _TIMEOUT_S) -> list[ReceivedRecord[T]]:
        """The next records: `count` of them, or those that come within `timeout_s` seconds.

        Raises:
            KStreamError: Reading cannot go on.
        """
        deadline = time.monotonic() + timeout_s
        found: list[ReceivedRecord[T]] = []
        while len(found) < count:
            record = self.poll(max(0.0, deadline - time.monotonic()))
            if record is None:
                break
            found.append(record)
        return found

    def __iter__(self) -> Generator[ReceivedRecord[T]]:
        """All records as they come, until the reader is closed.

        Raises:
            KStreamError: Reading cannot go on.
        """
        codec = self._codec
        while not self._closed:
            for message in self._pending:
                yield ReceivedRecord(message, codec)
            self._fill(_LOOK_S)

    async def __aiter__(self) -> AsyncGenerator[ReceivedRecord[T]]:
        """All records as they come, until the reader is closed; errors as when iterating."""
        codec = self._codec
        while not self._closed:
            for message in self._pending:
                yield ReceivedRecord(message, codec)
            await asyncio.to_thread(self._fill, _LOOK_S)

    def until_end(self) -> Generator[ReceivedRecord[T]]:
        """The records up to what stands in the assigned partitions now; not for groups.

        Raises:
            KStreamError: Reading cannot go on.
            UnavailableError: The brokers do not answer.
        """
        with self._lock, mapped("asking for the ends"):
            parts = self._consumer.assignment()
            spans = {p: span_of(self._consumer, p) for p in parts}
            places = {(p.topic, p.partition): p.offset for p in self._consumer.position(parts)}
        ends = {
            key: high
            for (low, high), key in ((span, (p.topic, p.partition)) for p, span in spans.items())
            if max(low, places.get(key, low)) < high
        }
        # Partitions leave this copy when they are read so far; a mark of a transaction can stand
        # last, and only the end-of-partition event tells of those.
        self._ends = dict(ends)
        while True:
            for message in self._pending:
                key = (message.topic() or "", message.partition() or 0)
                offset = message.offset() or 0
                if offset >= ends.get(key, 0) - 1:
                    self._ends.pop(key, None)
                if offset < ends.get(key, 0):
                    yield ReceivedRecord(message, self._codec)
            if not self._ends:
                return
            self._fill(_LOOK_S)

    def _fill(self, timeout_s: float) -> bool:
        """Fetch what has come; False when that is nothing."""
        with self._lock, mapped("reading"):
            if self._closed:
                return False
            messages = self._consumer.consume(_BATCH, 0)
            if not messages:
                # One that is waited for; `consume` would wait until the batch is full.
                first = self._consumer.poll(timeout_s)
                messages = [first] if first is not None else []
            good = [m for m in messages if m.error() is None or self._take_event(m)]
            self._pending = iter(good)
            return bool(good)

    def _take_event(self, message: Message) -> bool:
        """Look at what is no record; True never."""
        error = message.error()
        assert error is not None  # noqa: S101 - why we are called
        if is_end_of_partition(error):
            key = (message.topic() or "", message.partition() or 0)
            if self._ends.get(key, 1 << 63) <= (message.offset() or 0):
                del self._ends[key]
        elif error.code() in {
            KafkaError.INCONSISTENT_GROUP_PROTOCOL,
            KafkaError.UNKNOWN_TOPIC_OR_PART,
            KafkaError._AUTO_OFFSET_RESET,  # noqa: SLF001 - its public name
        }:
            raise kafka_failure(KafkaException(error), self._doing())
        elif (failure := read_failure(error)) is not None:
            raise failure
        return False

    def _doing(self) -> str:
        return "reading" if self.group is None else f"reading in group '{self.group}'"

    # --- places --------------------------------------------------------------------------------

    def commit(self) -> None:
        """Commit the place behind the last record that was handed out, in each partition.

        Where none was, that is where the reader began with what comes next (`latest`), an offset
        or a time, so that whoever takes over misses nothing.

        Raises:
            ContractError: The reader is in no group.
            KStreamError: The group refuses, or does not answer.
        """
        with mapped(f"committing for group '{self.group}'"):
            self.hand_offsets(_commit)

    def hand_offsets(self, take: Callable[[Consumer, list[TopicPartition]], None]) -> None:
        """Give what `commit` would commit to somebody who commits it: a transaction.

        Raises:
            ContractError: The reader is in no group.
        """
        if self.group is None:
            raise ContractError("a reader without a group commits nothing", remedy="name a group")
        with self._lock:
            take(self._consumer, self.positions())

    def seek(self, partition: TopicPartition, start: Start) -> None:
        """Go on elsewhere in an assigned partition.

        Raises:
            UnavailableError: No broker answers.
            ContractError: The partition is not assigned, or does not have the offset.
        """
        with self._lock, mapped(f"seeking in '{partition.topic}'"):
            target = starting_offsets(self._consumer, [partition], start)[0]
            self._forget([partition])
            self._seek(target)

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Hand out no records of these partitions until `resume`.

        Raises:
            ContractError: One of them is not assigned.
        """
        parts = list(partitions)
        with self._lock, mapped("pausing"):
            self._consumer.pause(parts)
            for target in self._forget(parts):
                self._seek(target)

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Hand out records of paused partitions again."""
        with self._lock, mapped("resuming"):
            self._consumer.resume(list(partitions))

    # --- end -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the group and end; what was not committed is read again by others."""
        with self._lock, mapped("closing the reader"):
            if not self._closed:
                self._closed = True
                self._pending = iter(())
                self._consumer.close()

    acommit = awaitable(commit)
    apoll = awaitable(poll)
    aread = awaitable(read)
    asubscribe = awaitable(Assigned.subscribe)
    aseek = awaitable(seek)
    aclose = awaitable(close)

    def _leave(self, *, failed: bool) -> None:
        del failed  # what was not committed is not, either way
        self.close()


def _commit(consumer: Consumer, places: list[TopicPartition]) -> None:
    if places:
        consumer.commit(offsets=places, asynchronous=False)
