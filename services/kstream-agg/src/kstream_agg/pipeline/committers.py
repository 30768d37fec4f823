"""How a loop's work becomes final: offsets behind delivered results, or both in one transaction.

`AtLeastOnce`: 1. everything produced is delivered; 2. the offsets are committed. After a crash
between the two the same work is done again.

`ExactlyOnce`: 1. the offsets join the transaction that the results are in; 2. it is committed.
Whatever goes wrong, the whole of it is or is not there for readers of committed records, and the
loop begins again with what is.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from confluent_kafka import KafkaException, TopicPartition

from kstream_agg.core.errors import CommitUncertainError
from kstream_agg.core.logs import get_logger
from kstream_agg.core.metrics import COMMITS
from kstream_agg.pipeline.processor import Partition

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping

    from confluent_kafka import Consumer

    from kstream_agg.core.metrics import Metrics
    from kstream_agg.kafka.group_transactions import GroupTransactionWriter
    from kstream_agg.kafka.writer import Headers
    from kstream_agg.pipeline.processor import CommitPoint, Outlet

__all__ = ["AtLeastOnce", "Committer", "ExactlyOnce"]

_log = get_logger(__name__)


class Committer(Protocol):
    """Makes the work of a `ConsumerLoop` final; called from the loop's thread only."""

    claims: bool
    """Whether an assignment is committed before anything is read."""

    def start(self, stop: threading.Event) -> bool:
        """Be ready to write; called before partitions come. False when `stop` was set first.

        Raises:
            KStreamError: It cannot be.
        """

    def poll(self) -> object:
        """Serve delivery reports without waiting."""

    def commit(
        self, consumer: Consumer, points: Mapping[Partition, CommitPoint], within_s: float
    ) -> None:
        """Make final what was produced since the last commit, and these points with it.

        Raises:
            CommitUncertainError: It is not, or nobody knows: memory must be discarded.
            FencedError: Another member has taken this one's place.
            DeliveryError: A record was not delivered.
        """

    def forget(self, partition: Partition) -> None:
        """A partition has gone."""

    def abandon(self) -> None:
        """Drop what was produced since the last commit; `start` is called before more is.

        Raises:
            FencedError: Another member has taken this one's place.
        """


class AtLeastOnce:
    """Commits offsets behind delivered results.

    Args:
        outlet: Where the results go.
    """

    claims = False

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._committed: dict[Partition, CommitPoint] = {}

    def start(self, stop: threading.Event) -> bool:
        """Nothing has to be prepared."""
        return not stop.is_set()

    def poll(self) -> object:
        """Serve delivery reports without waiting."""
        return self._outlet.poll()

    def commit(
        self, consumer: Consumer, points: Mapping[Partition, CommitPoint], within_s: float
    ) -> None:
        """Commit the points that have changed, behind what was produced."""
        changed = {key: point for key, point in points.items() if self._committed.get(key) != point}
        if not changed:
            return
        # 1. Everything produced is delivered.
        self._outlet.flush(within_s)
        # 2. The offsets are committed.
        try:
            answered = consumer.commit(offsets=_as_offsets(changed), asynchronous=False)
        except KafkaException as error:
            # A rebalance is under way or the broker is away: later, or another member reads again.
            _log.warning("commit failed", reason=str(error.args[0]))
            return
        for item in answered or ():
            partition = Partition(item.topic, item.partition)
            if item.error is None:
                self._committed[partition] = changed[partition]
            else:
                _log.warning("commit failed", reason=str(item.error), partition=str(partition))

    def forget(self, partition: Partition) -> None:
        """A partition has gone."""
        self._committed.pop(partition, None)

    def abandon(self) -> None:
        """Nothing can be taken back; what was produced will be produced again."""
        self._committed.clear()


class ExactlyOnce:
    """Commits offsets and results in one transaction; results are written through it.

    Args:
        make_writer: Makes a new producer of this member's transactional id.
        metrics: Counts commits and aborts.
    """

    claims = True

    def __init__(self, make_writer: Callable[[], GroupTransactionWriter], metrics: Metrics) -> None:
        self._make_writer = make_writer
        self._writer: GroupTransactionWriter | None = None
        self._commits = metrics.counter(COMMITS)

    def start(self, stop: threading.Event) -> bool:
        """Take the transactional id; see `Committer`."""
        if self._writer is None:
            writer = self._make_writer()
            if not writer.start(stop):
                return False
            self._writer = writer
        return True

    def produce(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Headers | None = None,
        partition: int = -1,
    ) -> None:
        """Add a record to the transaction; see `GroupTransactionWriter.produce`."""
        self._open().produce(topic, value, key=key, headers=headers, partition=partition)

    def flush(self, timeout_s: float = 60.0) -> None:
        """Nothing is delivered before the commit."""

    def poll(self) -> object:
        """Serve librdkafka's callbacks without waiting."""
        if self._writer is not None:
            self._writer.poll()
        return None

    def commit(
        self, consumer: Consumer, points: Mapping[Partition, CommitPoint], within_s: float
    ) -> None:
        """Commit results and points together; see `Committer`."""
        writer = self._writer
        if writer is None or not (points or writer.pending):
            return
        deadline = time.monotonic() + within_s

        def keep_waiting() -> bool:
            return time.monotonic() < deadline

        # 1. The offsets join the transaction.
        if points:
            writer.send_offsets(consumer, _as_offsets(points), keep_waiting)
        # 2. It is committed.
        writer.commit(keep_waiting)
        self._commits.labels("committed").inc()

    def forget(self, partition: Partition) -> None:
        """Nothing is known of single partitions."""

    def abandon(self) -> None:
        """Abort, and leave the producer: after a failure only a new one is sure to work."""
        writer, self._writer = self._writer, None
        if writer is not None and writer.pending:
            self._commits.labels("aborted").inc()
            writer.abandon()

    def _open(self) -> GroupTransactionWriter:
        if self._writer is None:
            raise CommitUncertainError("there is no transaction to write in")
        return self._writer


def _as_offsets(points: Mapping[Partition, CommitPoint]) -> list[TopicPartition]:
    return [
        TopicPartition(partition.topic, partition.number, point.offset, point.metadata)
        for partition, point in points.items()
    ]
