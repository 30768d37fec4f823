"""The consumer loop: poll a batch, hand it to a processor, commit behind what is delivered.

The commit protocol, every `commit_interval_s`, before partitions are given up, and at the end:

1. The processor writes what belongs into the commit and names its points: they cover only what it
   has taken and produced.
2. The committer makes final what was produced, and the points (`pipeline.committers` says how).

What was taken since is read again after a crash, and by a processor that resumes exactly from its
points counted once.

The assignment protocol, when partitions come and after a commit that failed or may have:

1. Memory of what is not committed is discarded; the committer starts anew where it has to.
2. The processor takes the partitions over.
3. Their committed offsets are looked up, and the processor makes its state from them.
4. Where the committer asks for it, the assignment is committed.
5. Reading begins where the processor says.

While something the processor needs does not answer, its batch is kept, the partitions are paused
and the loop goes on polling, so that the group keeps its member. So it does with partitions that
cannot be taken yet: they are assigned and paused, and taken later, or lost.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, KafkaException, TopicPartition

from kstream_agg.core.errors import CommitUncertainError, KStreamError, UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.kafka.failures import kafka_failure
from kstream_agg.pipeline.batches import split_poll
from kstream_agg.pipeline.processor import CommitPoint, Partition
from kstream_agg.pipeline.readings import Readings
from kstream_agg.pipeline.waiting import WaitingBatches, as_kafka

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from confluent_kafka import Consumer

    from kstream_agg.core.clock import Clock
    from kstream_agg.core.metrics import Metrics
    from kstream_agg.pipeline.committers import Committer
    from kstream_agg.pipeline.processor import BatchProcessor
    from kstream_agg.pipeline.progress import Progress

__all__ = ["ConsumerLoop", "LoopSettings"]

_log = get_logger(__name__)

# `consume` waits for a full batch or so long: what a quiet topic's records wait at most.
_POLL_S: Final = 0.1
_LAG_INTERVAL_S: Final = 1.0
_REQUEST_TIMEOUT_S: Final = 10.0
_COMMIT_WITHIN_S: Final = 60.0
# A cause that does not go away must show: so many commits in a row, and the loop ends.
_UNCERTAIN_LIMIT: Final = 5


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How the loop reads and commits.

    Args:
        batch_records: Most records of one poll.
        commit_interval_s: Seconds between commits.
        stop_within_s: How long finishing may take, in seconds: at the end, and when partitions
            are given up.
        retry_s: Seconds before what did not answer is asked again.
        take_attempts: How often in a row partitions are tried to be taken. A broker's restart is
            waited for.
    """

    batch_records: int = 10_000
    commit_interval_s: float = 1.0
    stop_within_s: float = 10.0
    retry_s: float = 1.0
    take_attempts: int = 90


class ConsumerLoop:
    """Reads topics as a member of a group; everything happens in the thread that calls `run`.

    Args:
        consumer: Not subscribed yet; it is closed when `run` ends.
        topics: What to subscribe to.
        processor: Takes the batches.
        committer: Makes results and offsets final.
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
        committer: Committer,
        settings: LoopSettings,
        clock: Clock,
        metrics: Metrics,
        progress: Progress,
    ) -> None:
        self._consumer = consumer
        self._topics = list(topics)
        self._processor = processor
        self._committer = committer
        self._settings = settings
        self._clock = clock
        self._progress = progress
        self._readings = Readings(metrics)
        self._waiting = WaitingBatches(
            consumer=consumer,
            processor=processor,
            readings=self._readings,
            retry_s=settings.retry_s,
            clock=clock,
            metrics=metrics,
            progress=progress,
        )
        self._failure: BaseException | None = None
        self._uncertain: CommitUncertainError | None = None
        self._uncertain_commits = 0
        self._stop = threading.Event()
        self._parked: set[Partition] = set()
        self._take_attempts = 0
        now = clock.monotonic()
        self._next_commit = now + settings.commit_interval_s
        self._next_lag = now
        self._next_take = now

    def run(self, stop: threading.Event) -> None:
        """Read until `stop` is set; what was taken is then delivered and committed.

        Raises:
            KStreamError: The processor, the committer or the consumer cannot go on. What is not
                committed is read again by the next run.
        """
        self._stop = stop
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
            self._or_anew(self._step)

    def finish(self) -> None:
        """Deliver and commit what was taken."""
        with self._noting_failures():
            self._end()

    def close(self) -> None:
        """Leave the group; after a failure nothing is committed."""
        if self._failure is not None:
            with contextlib.suppress(KStreamError):
                self._committer.abandon()
        self._consumer.close()

    @contextlib.contextmanager
    def _noting_failures(self) -> Iterator[None]:
        try:
            yield
        except KafkaException as error:
            self._failure = error
            raise kafka_failure(error, "reading") from error
        except BaseException as error:
            self._failure = error
            raise

    def _end(self) -> None:
        within_s = self._settings.stop_within_s
        try:
            self._processor.drain(list(self._readings), within_s)
            self._commit(within_s, going=self._readings)
        except CommitUncertainError as error:
            # The next run begins with what is committed.
            self._failure = error
            _log.warning("ended without a last commit", reason=str(error))

    def _step(self) -> None:
        polled = self._consumer.consume(self._settings.batch_records, _POLL_S)
        if self._failure is not None:
            raise self._failure
        if self._uncertain is not None:
            raise self._uncertain
        if self._parked and self._clock.monotonic() >= self._next_take:
            self._take_parked()
        batches, ends = split_poll(polled)
        self._waiting.add(batches)
        self._waiting.work()
        now = self._clock.monotonic()
        for standing in self._readings.note_ends(ends, self._waiting.partitions, now):
            self._processor.stand_at_end(*standing)
        self._processor.tick()
        self._committer.poll()
        now = self._clock.monotonic()
        if now >= self._next_lag:
            self._next_lag = now + _LAG_INTERVAL_S
            self._progress.set_lag(self._readings.measure_lag(self._consumer))
        if now >= self._next_commit:
            self._commit()
            self._next_commit = self._clock.monotonic() + self._settings.commit_interval_s

    # --- commits ---------------------------------------------------------------------------

    def _commit(
        self, within_s: float = _COMMIT_WITHIN_S, *, going: Iterable[Partition] = ()
    ) -> None:
        """Commit everything; the partitions `going` leave this member with it."""
        leaving = set(going) & set(self._readings)
        staying = set(self._readings) - leaving
        # 1. The processor writes what belongs into the commit and names its points.
        points = dict(self._processor.prepare_commit(staying, giving_up=False))
        points |= self._processor.prepare_commit(leaving, giving_up=True)
        # 2. The committer makes it final.
        self._committer.commit(self._consumer, points, within_s)
        self._uncertain_commits = 0

    def _or_anew(self, step: Callable[[], None]) -> None:
        try:
            step()
        except CommitUncertainError as error:
            try:
                self._begin_anew(error)
            except UnavailableError:
                if not self._stop.is_set():
                    raise

    def _begin_anew(self, error: CommitUncertainError) -> None:
        """After a commit that failed or may have: begin with what is committed."""
        self._count_uncertain(error)
        partitions = [*self._readings, *self._parked]
        if partitions:
            self._consumer.incremental_unassign(as_kafka(partitions))
        self._forget(partitions)
        self._uncertain = None
        self._committer.abandon()
        if partitions:
            self._take(self._consumer, partitions)
        self._next_commit = self._clock.monotonic() + self._settings.commit_interval_s

    def _count_uncertain(self, error: CommitUncertainError) -> None:
        self._uncertain_commits += 1
        _log.warning("beginning anew with what is committed", reason=str(error))
        if self._uncertain_commits >= _UNCERTAIN_LIMIT:
            raise error

    # --- partitions come and go ------------------------------------------------------------

    def _on_assign(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        # What is raised in a callback would not reach our caller as it is.
        try:
            self._take(consumer, [Partition(item.topic, item.partition) for item in assigned])
        except KafkaException as error:
            self._failure = kafka_failure(error, "taking partitions")
        except KStreamError as error:
            self._failure = error

    def _take(self, consumer: Consumer, partitions: Sequence[Partition]) -> None:
        """Assign partitions to this member; those that cannot be taken yet stand still."""
        starts: list[TopicPartition] | None = None
        while starts is None:
            try:
                starts = self._start_all(consumer, partitions)
            except UnavailableError as error:
                self._take_attempts += 1
                if self._stop.is_set() or self._take_attempts >= self._settings.take_attempts:
                    raise
                _log.warning("taking partitions: trying again", reason=str(error))
                self._park(consumer, partitions)
                return
            except CommitUncertainError as error:
                self._count_uncertain(error)
                self._committer.abandon()
        self._take_attempts = 0
        # 5. Reading begins where the processor says.
        consumer.incremental_assign(starts)
        if self._waiting.paused:
            consumer.pause(starts)

    def _park(self, consumer: Consumer, partitions: Sequence[Partition]) -> None:
        """Assign partitions and read nothing of them; the loop goes on polling."""
        # What some have got so far is made anew.
        self._forget(partitions)
        consumer.incremental_assign([TopicPartition(*item, OFFSET_END) for item in partitions])
        consumer.pause(as_kafka(partitions))
        self._parked.update(partitions)
        self._next_take = self._clock.monotonic() + self._settings.retry_s

    def _take_parked(self) -> None:
        partitions = sorted(self._parked)
        self._parked.clear()
        self._consumer.incremental_unassign(as_kafka(partitions))
        self._take(self._consumer, partitions)

    def _start_all(
        self, consumer: Consumer, partitions: Sequence[Partition]
    ) -> list[TopicPartition]:
        # 1. The committer is ready.
        if not self._committer.start(self._stop):
            raise UnavailableError("stopped before Kafka's transactions could begin")
        # 2. The processor takes the partitions over.
        self._processor.take_over(partitions)
        # 3. Committed offsets become state.
        try:
            found = _committed(consumer, as_kafka(partitions))
            starts = [self._start(consumer, item) for item in found]
        except KafkaException as error:
            raise kafka_failure(error, "taking partitions") from error
        # 4. The assignment is committed.
        if self._committer.claims:
            self._commit()
        return starts

    def _start(self, consumer: Consumer, item: TopicPartition) -> TopicPartition:
        partition = Partition(item.topic, item.partition)
        committed = CommitPoint(item.offset, item.metadata or "") if item.offset >= 0 else None
        _low, end = consumer.get_watermark_offsets(item, timeout=_REQUEST_TIMEOUT_S)
        start = self._processor.assign(partition, committed, end)
        self._readings.move(partition, start)
        _log.info(
            "partition assigned",
            topic=partition.topic,
            partition=partition.number,
            start="beginning" if start is None else start,
        )
        return TopicPartition(*partition, OFFSET_BEGINNING if start is None else start)

    def _on_revoke(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        partitions = [Partition(item.topic, item.partition) for item in revoked]
        if self._failure is None and self._uncertain is None:
            within_s = self._settings.stop_within_s
            try:
                self._processor.drain(partitions, within_s)
                self._commit(within_s, going=partitions)
            except CommitUncertainError as error:
                self._doubt(error)
            except KStreamError as error:
                self._failure = error
        self._forget(partitions)
        consumer.incremental_unassign(revoked)

    def _on_lost(self, consumer: Consumer, lost: list[TopicPartition]) -> None:
        # Another member may have them already: nothing may be committed any more.
        partitions = [Partition(item.topic, item.partition) for item in lost]
        _log.warning("partitions lost", partitions=[item.partition for item in lost])
        self._doubt(CommitUncertainError("the group has given this member's partitions away"))
        if self._failure is None:
            try:
                self._processor.lost(partitions)
            except KStreamError as error:
                self._failure = error
        self._forget(partitions)
        consumer.incremental_unassign(lost)

    def _doubt(self, error: CommitUncertainError) -> None:
        """Abort before partitions go; what stays begins anew after the callback."""
        self._uncertain = error
        try:
            self._committer.abandon()
        except KStreamError as fenced:
            self._failure = fenced

    def _forget(self, partitions: Sequence[Partition]) -> None:
        self._waiting.forget(set(partitions))
        self._parked.difference_update(partitions)
        # The processor knows nothing of those that were never taken.
        for partition in sorted(set(partitions).intersection(self._readings)):
            self._processor.revoke(partition)
            self._committer.forget(partition)
            self._readings.forget(partition)


def _committed(consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
    found = consumer.committed(partitions, timeout=_REQUEST_TIMEOUT_S)
    for item in found:
        if item.error is not None:
            raise KafkaException(item.error)
    return found
