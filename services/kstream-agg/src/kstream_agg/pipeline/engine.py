"""A pipeline's steps as a processor of the consumer loop.

What belongs together stays together: results and dead letters come out of the last step with the
offsets that they cover, and are given to the outlet in the loop's thread, which then names these
offsets as commit points. A commit, or a transaction, therefore holds for each partition exactly
the results of what stands before its offset.

The messages from a partition's commit point on are kept until they are covered. When partitions
go that have something under way, or a drain does not end in time, everything under way is
discarded and the kept messages of the partitions that stay go through the steps again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.core.metrics import DEAD_LETTERS, STEP_FAILURES, STEP_WAITING_RECORDS
from kstream_agg.pipeline.chain import Chain
from kstream_agg.pipeline.chunks import Batched, Chunk, Drain
from kstream_agg.pipeline.mapping import MapStage
from kstream_agg.pipeline.processor import BusyError, CommitPoint, Partition
from kstream_agg.pipeline.stages import ReduceStage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from confluent_kafka import Message

    from kstream_agg.core.clock import Clock
    from kstream_agg.core.metrics import Metrics
    from kstream_agg.kafka.writer import Headers
    from kstream_agg.pipeline.definition import Pipeline
    from kstream_agg.pipeline.failures import Failure
    from kstream_agg.pipeline.records import Record

__all__ = ["EngineLimits", "PipelineProcessor", "RecordOutlet"]

_log = get_logger(__name__)

_CLOSE_S: Final = 1.0
_DRAIN_STEP_S: Final = 0.05
_LOOK_S: Final = 0.02


class RecordOutlet(Protocol):
    """Where records go."""

    def produce(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Headers | None = None,
    ) -> None:
        """Queue one record."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """How much the steps hold, and for how long.

    Args:
        map_threads: Map lanes; partitions are spread over them.
        waiting_records: Most records that wait in front of a step.
        patience_s: How long a batch waits for room before reading is paused. A pause throws away
            what the client has read ahead, so that a moment's wait is cheaper.
        stuck_after_s: How long a step may be at work, or wait, before it counts as stuck.
    """

    map_threads: int = 1
    waiting_records: int = 20_000
    patience_s: float = 0.5
    stuck_after_s: float = 60.0


@dataclass(slots=True)
class _Held:
    """A partition's messages that are not covered yet, and how far it is covered."""

    lane: int
    point: int | None
    batches: deque[Sequence[Message]] = field(default_factory=deque)


class PipelineProcessor:
    """Runs a pipeline's steps; a `BatchProcessor`.

    Args:
        pipeline: The steps.
        outlet: Where its records go.
        limits: Threads and queues.
        clock: Monotonic time is used.
        metrics: Counts failures, dead letters and what waits.
    """

    def __init__(
        self,
        pipeline: Pipeline[Any],
        outlet: RecordOutlet,
        limits: EngineLimits,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._outlet = outlet
        self._limits = limits
        self._clock = clock
        self._inline_map = pipeline.mapper if pipeline.maps_inline else None
        self._produces = pipeline.produces
        self._error_steps = pipeline.error_steps
        self._handling = threading.Lock()
        self._seen = 0
        self.moved = 0
        """Grows with every batch that is handed to the steps, and every output they give."""
        self._held: dict[Partition, _Held] = {}
        self._is_stale = False
        self._failures = metrics.counter(STEP_FAILURES)
        self._dead_letters = metrics.counter(DEAD_LETTERS)
        self._dead_letter_topics = frozenset(pipeline.dead_letter_topics)
        reduces = pipeline.reducers
        self._chain = Chain(
            [MapStage(pipeline.mapper, self._handle) for _ in range(limits.map_threads)],
            [
                ReduceStage(reducer, f"reduce {number} {reducer.name}", self._handle)
                for number, reducer in enumerate(reduces, 1)
            ],
            capacity=limits.waiting_records,
            clock=clock,
        )
        waiting = metrics.gauge(STEP_WAITING_RECORDS)
        for name in self._chain.waiting():
            waiting.labels(name).set_function(partial(self._waiting, name))

    # --- the loop's calls ------------------------------------------------------------------

    def take_over(self, partitions: Sequence[Partition]) -> None:
        """Nothing but the committed offsets is needed."""

    def assign(self, partition: Partition, committed: CommitPoint | None, end: int) -> int | None:
        """Begin where the group has committed; see `BatchProcessor`."""
        del end
        lanes = [held.lane for held in self._held.values()]
        lane = min(range(self._limits.map_threads), key=lanes.count)
        point = committed.offset if committed else None
        self._held[partition] = _Held(lane, point)
        return point

    def revoke(self, partition: Partition) -> None:
        """Forget a partition, and all that is under way of it."""
        held = self._held.pop(partition, None)
        if held is not None and held.batches:
            self._is_stale = True

    def lost(self, partitions: Sequence[Partition]) -> None:
        """What was written of them is not committed; `revoke` does the rest."""

    def process(self, partition: Partition, messages: Sequence[Message]) -> None:
        """Hand a batch to the map; see `BatchProcessor`."""
        self._settle()
        held = self._held[partition]
        batch = Batched(self._chain.epoch, partition, messages)
        self._seen += len(messages)
        if not self._map_inline(held.lane, batch):
            try:
                self._offer(held.lane, batch)
            except BusyError:
                self._seen -= len(messages)
                raise
        held.batches.append(messages)
        self.moved += 1

    def _map_inline(self, lane: int, batch: Batched) -> bool:
        """Map a batch here and now, if that may be and can be."""
        if self._inline_map is None or not self._chain.can_pass(lane, batch):
            return False
        try:
            chunk = self._inline_map.map(batch, self._handle)
        except UnavailableError:
            # The lane's thread waits for it.
            return False
        self._chain.pass_by(chunk)
        return True

    def _offer(self, lane: int, batch: Batched) -> None:
        """Hand a batch to its lane.

        Raises:
            BusyError: There is no room, and patience has ended.
        """
        began = time.monotonic()
        lanes = {other.lane for other in self._held.values()} - {lane}
        while not self._chain.offer(lane, batch, min(self._limits.patience_s, _LOOK_S)):
            self._collect()
            patience_s = self._limits.patience_s
            if self._chain.has_idle_lane(lanes):
                # Another partition's lane could work meanwhile, if its messages were read.
                patience_s = min(patience_s, _LOOK_S)
            if time.monotonic() - began >= patience_s:
                raise BusyError("the steps are busy")

    def stand_at_end(self, partition: Partition, position: int, for_s: float) -> None:
        """Nothing depends on a topic's end."""

    def tick(self) -> None:
        """Give what has come out to the outlet, and tell the steps the time.

        Raises:
            KStreamError: A step, or an error step, cannot go on.
        """
        self._collect()
        self._chain.tick(self._clock.monotonic())

    def drain(self, partitions: Collection[Partition], within_s: float) -> None:
        """Flush or drop open batches, as each step says; see `BatchProcessor`."""
        self._settle()
        deadline = time.monotonic() + within_s
        if self._under_way(self._held):
            self._chain.drain()
            while not self._collect(_DRAIN_STEP_S):
                self._chain.tick(self._clock.monotonic())
                if time.monotonic() >= deadline:
                    _log.warning("steps have not finished in time", waiting=self._chain.waiting())
                    break
        if self._under_way(self._held.keys() - set(partitions)):
            self._restart(without=partitions)

    def prepare_commit(
        self, partitions: Collection[Partition], *, giving_up: bool
    ) -> Mapping[Partition, CommitPoint]:
        """How far partitions are covered by what was given to the outlet."""
        del giving_up
        return {
            partition: CommitPoint(held.point)
            for partition, held in self._held.items()
            if partition in partitions and held.point is not None
        }

    # --- for health and tests --------------------------------------------------------------

    def check(self) -> str | None:
        """A sentence on a stuck step; None while all is well."""
        return self._chain.stuck(self._limits.stuck_after_s)

    def wait_idle(self, within_s: float) -> bool:
        """Wait until the steps have nothing to do before time passes or a batch comes."""
        return self._chain.wait_idle(within_s)

    @property
    def has_outputs(self) -> bool:
        """Whether the next `tick` finds something to take from the steps."""
        return self._chain.has_outputs

    def close(self) -> None:
        """End the steps' threads. One that is stuck is left behind, and named in the log."""
        left = self._chain.close(_CLOSE_S)
        if left:
            _log.error("steps are still at work, they are left behind", steps=left)

    # --- parts -----------------------------------------------------------------------------

    def _waiting(self, step: str) -> float:
        return self._chain.waiting()[step]

    def _under_way(self, partitions: Iterable[Partition]) -> bool:
        return any(self._held[partition].batches for partition in partitions)

    def _collect(self, wait_s: float = 0.0) -> bool:
        """Take the steps' outputs; True when a drain has come through."""
        self._settle()
        outputs = self._chain.outputs(wait_s)
        if self._chain.failure is not None:
            raise self._chain.failure
        drained = False
        self.moved += len(outputs)
        for output in outputs:
            if isinstance(output, Drain):
                drained = True
            elif output.epoch == self._chain.epoch:
                self._deliver(output)
        return drained

    def _deliver(self, chunk: Chunk) -> None:
        for dead in chunk.dead:
            self._produce(dead.records)
        if self._produces:
            for records in chunk.items:
                self._produce(records)
        for partition, end in chunk.ends.items():
            held = self._held.get(partition)
            if held is None:
                continue
            held.point = end
            while held.batches and (held.batches[0][-1].offset() or 0) < end:
                held.batches.popleft()

    def _produce(self, records: Sequence[Record]) -> None:
        for record in records:
            self._outlet.produce(record.topic, record.value, key=record.key, headers=record.headers)

    def _settle(self) -> None:
        """Begin a new epoch once partitions have gone with something under way."""
        if self._is_stale:
            self._restart()

    def _restart(self, without: Collection[Partition] = ()) -> None:
        self._is_stale = False
        again = []
        for partition, held in self._held.items():
            if partition in without:
                held.batches.clear()
                continue
            for number, messages in enumerate(held.batches):
                rest = messages
                if number == 0 and held.point is not None:
                    point = held.point
                    rest = [message for message in messages if (message.offset() or 0) >= point]
                again.append((held.lane, Batched(0, partition, rest)))
        self._chain.restart(again)
        _log.info("steps begin anew", batches=len(again))

    def _handle(self, failure: Failure) -> tuple[Record, ...]:
        with self._handling:
            self._failures.labels(failure.step).inc()
            records: list[Record] = []
            for step in self._error_steps:
                records += step.handle(failure, self._seen)
            for record in records:
                if record.topic in self._dead_letter_topics:
                    self._dead_letters.labels(record.topic, failure.step).inc()
            return tuple(records)
