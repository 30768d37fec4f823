"""The batches of a member that wait for the processor, and the reading that pauses for them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from confluent_kafka import TopicPartition

from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.core.metrics import BATCH_SECONDS, CONSUMER_PAUSED, RECORDS_CONSUMED
from kstream_agg.pipeline.processor import BusyError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from confluent_kafka import Consumer, Message

    from kstream_agg.core.clock import Clock
    from kstream_agg.core.metrics import Metrics
    from kstream_agg.pipeline.processor import BatchProcessor, Partition
    from kstream_agg.pipeline.progress import Progress
    from kstream_agg.pipeline.readings import Readings

__all__ = ["WaitingBatches", "as_kafka"]

_log = get_logger(__name__)


class WaitingBatches:
    """Hands batches to a processor, in order within each partition, as often as it takes.

    Args:
        consumer: Paused and resumed.
        processor: Takes the batches.
        readings: Told how far each partition has been read.
        retry_s: Seconds before what did not answer is asked again.
        clock: Monotonic time is used.
        metrics: Counts records and time per batch.
        progress: Told when a batch is in work.
    """

    def __init__(  # noqa: PLR0913 - the loop's parts, by name
        self,
        *,
        consumer: Consumer,
        processor: BatchProcessor,
        readings: Readings,
        retry_s: float,
        clock: Clock,
        metrics: Metrics,
        progress: Progress,
    ) -> None:
        self._consumer = consumer
        self._processor = processor
        self._readings = readings
        self._retry_s = retry_s
        self._clock = clock
        self._progress = progress
        self._consumed = metrics.counter(RECORDS_CONSUMED)
        self._batch_seconds = metrics.histogram(BATCH_SECONDS)
        metrics.gauge(CONSUMER_PAUSED).set_function(lambda: self.paused)
        self._batches: deque[tuple[Partition, list[Message]]] = deque()
        self._busy: set[Partition] = set()
        self._next_retry = clock.monotonic()
        self.paused = False
        """Whether nothing is read, because something the processor needs does not answer."""

    @property
    def partitions(self) -> set[Partition]:
        """Those of which something waits."""
        return {partition for partition, _ in self._batches}

    def add(self, batches: Mapping[Partition, list[Message]]) -> None:
        """Take in what one poll has brought."""
        self._batches.extend(batches.items())

    def forget(self, partitions: Collection[Partition]) -> None:
        """Partitions have gone."""
        self._busy.difference_update(partitions)
        self._batches = deque(item for item in self._batches if item[0] not in partitions)

    def work(self) -> None:
        """Hand over all that waits, if that is due."""
        if not self._batches or (self.paused and self._clock.monotonic() < self._next_retry):
            return
        busy: set[Partition] = set()
        kept: deque[tuple[Partition, list[Message]]] = deque()
        while self._batches:
            partition, messages = self._batches[0]
            if partition in busy:
                kept.append(self._batches.popleft())
                continue
            try:
                self._hand_over(partition, messages)
            except BusyError:
                busy.add(partition)
                continue
            except UnavailableError as error:
                self._batches.extendleft(reversed(kept))
                self._pause(error)
                return
            self._batches.popleft()
        self._batches = kept
        if self.paused:
            self._consumer.resume(as_kafka(set(self._readings) - busy))
            self.paused = False
            _log.info("going on")
        self._pause_busy(busy)

    def _hand_over(self, partition: Partition, messages: Sequence[Message]) -> None:
        began = self._clock.monotonic()
        self._progress.batch_begins()
        try:
            self._processor.process(partition, messages)
        except UnavailableError:
            self._progress.batch_ends(done=False)
            raise
        self._progress.batch_ends(done=True)
        self._batch_seconds.observe(self._clock.monotonic() - began)
        self._consumed.labels(partition.topic).inc(len(messages))
        offset = messages[-1].offset()
        assert offset is not None  # noqa: S101 - what was read from a topic has an offset
        self._readings.move(partition, offset + 1)

    def _pause_busy(self, busy: set[Partition]) -> None:
        """Read no more of these alone, and of those that were busy before again."""
        new, gone = busy - self._busy, self._busy - busy
        if new:
            self._consumer.pause(as_kafka(new))
            _log.debug("reading is paused", partitions=sorted(new))
        if gone:
            self._consumer.resume(as_kafka(gone))
        self._busy = busy

    def _pause(self, error: UnavailableError) -> None:
        self._next_retry = self._clock.monotonic() + self._retry_s
        if not self.paused:
            self._consumer.pause(as_kafka(self._readings))
            self.paused = True
            self._busy = set()
            _log.warning("waiting, reading is paused", reason=str(error))


def as_kafka(partitions: Iterable[Partition]) -> list[TopicPartition]:
    """Partitions as the client names them, in order."""
    return [TopicPartition(partition.topic, partition.number) for partition in sorted(partitions)]
