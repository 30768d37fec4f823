"""A producer of the in-memory broker, with the calls of `confluent_kafka.Producer`."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaError, KafkaException, Message

from kstream_agg.pipeline.testing.consumer import points_of
from kstream_agg.pipeline.testing.partition_log import Entry, TransactionState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from confluent_kafka import TopicPartition

    from kstream_agg.pipeline.processor import CommitPoint, Partition
    from kstream_agg.pipeline.testing.broker import MemoryBroker
    from kstream_agg.pipeline.testing.consumer import GroupMetadata
    from kstream_agg.pipeline.testing.partition_log import Transaction

__all__ = ["MemoryProducer"]


def _error(code: int, *, fatal: bool = False, must_abort: bool = False) -> KafkaException:
    return KafkaException(KafkaError(code, fatal=fatal, txn_requires_abort=must_abort))


class MemoryProducer:
    """Writes records at once; their delivery is reported by `poll` and `flush`.

    Args:
        broker: Where to.
        config: `transactional.id` and `on_delivery` are looked at.
    """

    def __init__(self, broker: MemoryBroker, config: Mapping[str, Any]) -> None:
        self._broker = broker
        named = config.get("transactional.id")
        self._id = str(named) if named is not None else None
        self._on_delivery: Callable[..., object] | None = config.get("on_delivery")
        self._epoch = -1
        self._transaction: Transaction | None = None
        self._offsets: dict[str, dict[Partition, CommitPoint]] = {}
        self._reports: deque[tuple[Callable[..., object], KafkaError | None, Message]] = deque()

    def __len__(self) -> int:
        return len(self._reports)

    def produce(  # noqa: PLR0913, PLR0917 - the signature of the real one
        self,
        topic: str,
        value: bytes | str | None = None,
        key: bytes | str | None = None,
        partition: int = -1,
        on_delivery: Callable[..., object] | None = None,
        timestamp: int = 0,
        headers: Sequence[tuple[str, bytes | str | None]] | None = None,
    ) -> None:
        """Write a record."""
        if self._id is not None:
            self._check()
            if self._transaction is None:
                raise _error(KafkaError._STATE)  # noqa: SLF001 - its public name
        value, key = _as_bytes(value), _as_bytes(key)
        plain = [(name, _as_bytes(content)) for name, content in headers or ()]
        error, offset, number = None, -1, partition
        with self._broker.changed:
            place = self._broker.place(topic, key, partition)
            if place is None:
                error = KafkaError(KafkaError._UNKNOWN_TOPIC)  # noqa: SLF001 - its public name
            else:
                at = timestamp or self._broker.clock.now_ms()
                entry = Entry(key, value, plain, at, self._transaction)
                offset, number = self._broker.append(place, entry), place.number
        report = on_delivery or self._on_delivery
        if report is not None:
            message = Message(topic=topic, partition=number, offset=offset, key=key, value=value)
            self._reports.append((report, error, message))

    def poll(self, timeout: float = 0.0) -> int:
        """Report deliveries."""
        del timeout
        served = 0
        while self._reports:
            report, error, message = self._reports.popleft()
            report(error, message)
            served += 1
        return served

    def flush(self, timeout: float = -1) -> int:
        """Report all deliveries."""
        self.poll(timeout)
        return 0

    def vanish(self) -> None:
        """What a killed process does: nothing. What it has open is aborted, here at once."""
        if self._id is not None and not self._broker.is_fenced(self._id, self._epoch):
            self._broker.take_over(self._id)

    def purge(self, **_options: bool) -> None:
        """Nothing is queued."""

    # --- transactions ----------------------------------------------------------------------

    def init_transactions(self, timeout: float = -1) -> None:
        """Take the transactional id over."""
        del timeout
        if self._id is None:
            raise _error(KafkaError._NOT_CONFIGURED)  # noqa: SLF001 - its public name
        self._epoch = self._broker.take_over(self._id)

    def begin_transaction(self) -> None:
        """Begin."""
        self._check()
        if self._transaction is not None:
            raise _error(KafkaError._STATE)  # noqa: SLF001 - its public name
        self._transaction = self._broker.open(self._id or "")

    def send_offsets_to_transaction(
        self, offsets: Sequence[TopicPartition], metadata: GroupMetadata, timeout: float = -1
    ) -> None:
        """Commit a consumer's offsets with the transaction.

        Raises:
            KafkaException: The group does not count that member in any more: abort.
        """
        del timeout
        self._check()
        if metadata.member is None or not metadata.member.is_known:
            raise _error(KafkaError.UNKNOWN_MEMBER_ID, must_abort=True)
        self._offsets.setdefault(metadata.group, {}).update(points_of(offsets))

    def commit_transaction(self, timeout: float = -1) -> None:
        """Commit records and offsets."""
        self.flush(timeout)
        self._end(TransactionState.COMMITTED)

    def abort_transaction(self, timeout: float = -1) -> None:
        """Have nobody read the records."""
        self.flush(timeout)
        self._end(TransactionState.ABORTED)

    def _end(self, state: TransactionState) -> None:
        self._check()
        if self._transaction is None:
            raise _error(KafkaError._STATE)  # noqa: SLF001 - its public name
        with self._broker.changed:
            self._broker.end(self._id or "", state)
            if state is TransactionState.COMMITTED:
                for group, points in self._offsets.items():
                    self._broker.store(group, points)
        self._transaction = None
        self._offsets = {}

    def _check(self) -> None:
        if self._id is None or self._broker.is_fenced(self._id, self._epoch):
            raise _error(KafkaError._FENCED, fatal=True)  # noqa: SLF001 - its public name


def _as_bytes(value: bytes | str | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
