"""The consumer loop: poll a batch, hand it to a processor, commit behind what is delivered.

The commit protocol, every `commit_interval_s`, when partitions are revoked, and at the end:

1. The processor names its commit points: they cover only what it has taken and produced.
2. All that was produced is delivered, or an error ends the loop.
3. The points are committed, synchronously; those that have not changed are left out.

What was taken since is read again after a crash: at least once, and a processor that resumes
exactly from its points makes it exact.

While something the processor needs does not answer, its batch is kept, the partitions are paused
and the loop goes on polling, so that the group keeps its member.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confluent_kafka import OFFSET_BEGINNING, KafkaException, TopicPartition

from kstream_agg.core.errors import KStreamError, UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.core.metrics import (
    BATCH_SECONDS,
    CONSUMER_LAG_RECORDS,
    RECORDS_CONSUMED,
)
from kstream_agg.kafka.failures import kafka_failure
from kstream_agg.pipeline.batches import split_poll
from kstream_agg.pipeline.processor import BusyError, CommitPoint, Partition

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Iterator, Sequence

    from confluent_kafka import Consumer, Message

    from kstream_agg.core.clock import Clock
    from kstream_agg.core.metrics import Metrics
    from kstream_agg.pipeline.processor import BatchProcessor, Outlet
    from kstream_agg.pipeline.progress import Progress

__all__ = ["ConsumerLoop", "LoopSettings"]

_log = get_logger(__name__)

# `consume` waits for a full batch or so long: what a quiet topic's records wait at most.
_POLL_S: Final = 0.1
_LAG_INTERVAL_S: Final = 1.0
_REQUEST_TIMEOUT_S: Final = 10.0
_RETRY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How the loop reads and commits.

    Args:
        batch_records: Most records of one poll.
        commit_interval_s: Seconds between commits.
        stop_within_s: How long finishing may take, in seconds: at the end, and when partitions
            are given up.
    """

    batch_records: int = 10_000
    commit_interval_s: float = 1.0
    stop_within_s: float = 10.0


@dataclass(slots=True)
class _Reading:
    """Where the reader stands in a partition."""

    position: int | None
    at_end_since: float | None = None


class ConsumerLoop:
    """Reads topics as a member of a group; everything happens in the thread that calls `run`.

    Args:
        consumer: Not subscribed yet; it is closed when `run` ends.
        topics: What to subscribe to.
        processor: Takes the batches.
        outlet: Where the processor's results go.
        settings: Batch and commit.
        clock: Monotonic time is used.
        metrics: Counts records, lag and time per batch.
        progress: Told what the loop does.
    """

    def __init__(  # noqa: PLR0913 - a composition root wires it, by name
        self,
        *,
        consumer: Consumer,
        topics: Sequence[str],
        processor: BatchProcessor,
        outlet: Outlet,
        settings: LoopSettings,
        clock: Clock,
        metrics: Metrics,
        progress: Progress,
    ) -> None:
        self._consumer = consumer
        self._topics = list(topics)
        self._processor = processor
        self._outlet = outlet
        self._settings = settings
        self._clock = clock
        self._progress = progress
        self._consumed = metrics.counter(RECORDS_CONSUMED)
        self._lag = metrics.gauge(CONSUMER_LAG_RECORDS)
        self._batch_seconds = metrics.histogram(BATCH_SECONDS)
        self._readings: dict[Partition, _Reading] = {}
        self._committed: dict[Partition, CommitPoint] = {}
        self._pending: deque[tuple[Partition, list[Message]]] = deque()
        self._paused = False
        self._failure: BaseException | None = None
        now = clock.monotonic()
        self._next_commit = now + settings.commit_interval_s
        self._next_lag = now
        self._next_retry = now

    def run(self, stop: threading.Event) -> None:
        """Read until `stop` is set; what was taken is then delivered and committed.

        Raises:
            KStreamError: The processor, the outlet or the consumer cannot go on. What is not
                committed is read again by the next run.
        """
        try:
            self.begin()
            while not stop.is_set():
                self.step()
            self.finish()
        finally:
            self.close()

    def begin(self) -> None:
        """Subscribe. `run` in single steps: `begin`, `step` …, `finish`, and `close` always."""
        with self._noting_failures():
            self._consumer.subscribe(
                self._topics,
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_lost,
            )

    def step(self) -> None:
        """Poll once, and do all that is due."""
        with self._noting_failures():
            self._step()

    def finish(self) -> None:
        """Deliver and commit what was taken."""
        with self._noting_failures():
            self._processor.drain(list(self._readings), self._settings.stop_within_s)
            self._commit(self._readings, self._settings.stop_within_s)

    def close(self) -> None:
        """Leave the group; after a failure nothing is committed."""
        self._consumer.close()

    @contextmanager
    def _noting_failures(self) -> Iterator[None]:
        try:
            yield
        except KafkaException as error:
            self._failure = error
            raise kafka_failure(error, "reading") from error
        except BaseException as error:
            self._failure = error
            raise

    def _step(self) -> None:
        polled = self._consumer.consume(self._settings.batch_records, _POLL_S)
        if self._failure is not None:
            raise self._failure
        batches, ends = split_poll(polled)
        self._pending.extend(batches.items())
        now = self._clock.monotonic()
        if self._pending and (not self._paused or now >= self._next_retry):
            self._work()
        self._note_ends(ends)
        self._processor.tick()
        self._outlet.poll()
        now = self._clock.monotonic()
        if now >= self._next_lag:
            self._next_lag = now + _LAG_INTERVAL_S
            self._measure_lag()
        if now >= self._next_commit:
            self._commit(self._readings)
            self._next_commit = self._clock.monotonic() + self._settings.commit_interval_s

    # --- batches ---------------------------------------------------------------------------

    def _work(self) -> None:
        while self._pending:
            partition, messages = self._pending[0]
            began = self._clock.monotonic()
            self._progress.batch_begins()
            try:
                self._processor.process(partition, messages)
            except UnavailableError as error:
                self._progress.batch_ends(done=False)
                self._pause(error)
                return
            self._pending.popleft()
            self._progress.batch_ends(done=True)
            self._batch_seconds.observe(self._clock.monotonic() - began)
            self._consumed.labels(partition.topic).inc(len(messages))
            offset = messages[-1].offset()
            assert offset is not None  # noqa: S101 - what was read from a topic has an offset
            self._readings[partition] = _Reading(offset + 1)
        if self._paused:
            self._consumer.resume(_as_kafka(self._readings))
            self._paused = False
            _log.debug("going on")

    def _pause(self, error: UnavailableError) -> None:
        busy = isinstance(error, BusyError)
        self._next_retry = self._clock.monotonic() + (0.0 if busy else _RETRY_S)
        if not self._paused:
            self._consumer.pause(_as_kafka(self._readings))
            self._paused = True
            if busy:
                _log.debug("reading is paused", reason=str(error))
            else:
                _log.warning("waiting, reading is paused", reason=str(error))

    def _note_ends(self, ends: dict[Partition, int]) -> None:
        now = self._clock.monotonic()
        waiting = {partition for partition, _ in self._pending}
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
                self._processor.stand_at_end(
                    partition, reading.position, now - reading.at_end_since
                )

    def _measure_lag(self) -> None:
        total = 0
        for partition, reading in self._readings.items():
            lag = 0
            if reading.at_end_since is None and reading.position is not None:
                _low, high = self._consumer.get_watermark_offsets(
                    TopicPartition(*partition), cached=True
                )
                lag = max(0, high - reading.position)
            self._lag.labels(partition.topic, str(partition.number)).set(lag)
            total += lag
        self._progress.set_lag(total)

    # --- commits ---------------------------------------------------------------------------

    def _commit(self, partitions: Iterable[Partition], within_s: float = 60.0) -> None:
        # 1. The processor names its commit points.
        wanted = set(partitions)
        points = {
            partition: point
            for partition, point in self._processor.commit_points().items()
            if partition in wanted and self._committed.get(partition) != point
        }
        if not points:
            return
        # 2. All that was produced is delivered.
        self._outlet.flush(within_s)
        # 3. The points are committed.
        offsets = [
            TopicPartition(partition.topic, partition.number, point.offset, point.metadata)
            for partition, point in points.items()
        ]
        try:
            answered = self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            # A rebalance is under way or the broker is away: later, or another member reads again.
            _log.warning("commit failed", reason=str(error.args[0]))
            return
        for item in answered or ():
            partition = Partition(item.topic, item.partition)
            if item.error is None:
                self._committed[partition] = points[partition]
            else:
                _log.warning("commit failed", reason=str(item.error), partition=str(partition))

    # --- partitions come and go ------------------------------------------------------------

    def _on_assign(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        # What is raised in a callback would not reach our caller as it is.
        try:
            starts = [self._start(consumer, item) for item in _committed(consumer, assigned)]
            consumer.incremental_assign(starts)
            if self._paused:
                consumer.pause(starts)
        except KafkaException as error:
            self._failure = kafka_failure(error, "taking partitions")
        except KStreamError as error:
            self._failure = error

    def _start(self, consumer: Consumer, item: TopicPartition) -> TopicPartition:
        partition = Partition(item.topic, item.partition)
        committed = CommitPoint(item.offset, item.metadata or "") if item.offset >= 0 else None
        _low, end = consumer.get_watermark_offsets(item, timeout=_REQUEST_TIMEOUT_S)
        start = self._processor.assign(partition, committed, end)
        self._readings[partition] = _Reading(start)
        _log.info(
            "partition assigned",
            topic=partition.topic,
            partition=partition.number,
            start="beginning" if start is None else start,
        )
        return TopicPartition(*partition, OFFSET_BEGINNING if start is None else start)

    def _on_revoke(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        partitions = [Partition(item.topic, item.partition) for item in revoked]
        if self._failure is None:
            try:
                self._processor.drain(partitions, self._settings.stop_within_s)
                self._commit(partitions, self._settings.stop_within_s)
            except KStreamError as error:
                self._failure = error
        self._forget(partitions)
        consumer.incremental_unassign(revoked)

    def _on_lost(self, consumer: Consumer, lost: list[TopicPartition]) -> None:
        # Another member may have them already: nothing may be committed any more.
        _log.warning("partitions lost", partitions=[item.partition for item in lost])
        self._forget([Partition(item.topic, item.partition) for item in lost])
        consumer.incremental_unassign(lost)

    def _forget(self, partitions: Sequence[Partition]) -> None:
        gone = set(partitions)
        self._pending = deque(item for item in self._pending if item[0] not in gone)
        for partition in partitions:
            self._processor.revoke(partition)
            self._committed.pop(partition, None)
            if self._readings.pop(partition, None) is not None:
                self._lag.labels(partition.topic, str(partition.number)).set(0)


def _committed(consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
    found = consumer.committed(partitions, timeout=_REQUEST_TIMEOUT_S)
    for item in found:
        if item.error is not None:
            raise KafkaException(item.error)
    return found


def _as_kafka(partitions: Iterable[Partition]) -> list[TopicPartition]:
    return [TopicPartition(partition.topic, partition.number) for partition in partitions]
