"""The aggregator as a processor of the consumer loop: one state for each partition."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kstream_agg.core.metrics import RECORDS_REPEATED, WINDOWS_OPEN, WINDOWS_RETAINED
from kstream_agg.pipeline.processor import CommitPoint
from kstream_agg.pipeline.spans import BatchSpans

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from confluent_kafka import Message
    from opentelemetry.trace import Tracer

    from kstream_agg.aggregate.intake import TradeReader
    from kstream_agg.aggregate.keeping import StateKeeper
    from kstream_agg.aggregate.outputs import TopicOutputs
    from kstream_agg.aggregate.state import PartitionState
    from kstream_agg.core.clock import Clock
    from kstream_agg.core.metrics import Metrics
    from kstream_agg.pipeline.processor import Partition

__all__ = ["AggregatingProcessor"]


class AggregatingProcessor:
    """Counts trades, and writes the results of windows that close.

    Args:
        reader: Decodes batches.
        outputs: Where the results of each raw topic go.
        keeper: Keeps and restores the states.
        idle_timeout_s: How long the reader stands at a partition's end before windows that the
            wall clock has passed are shown.
        clock: Wall-clock time is used.
        metrics: Counts windows and repeats.
        tracer: Makes the spans.
        follow_traces: Whether to look at the records' traces at all.
    """

    def __init__(  # noqa: PLR0913 - a composition root wires it, by name
        self,
        *,
        reader: TradeReader,
        outputs: Mapping[str, TopicOutputs],
        keeper: StateKeeper,
        idle_timeout_s: float,
        clock: Clock,
        metrics: Metrics,
        tracer: Tracer,
        follow_traces: bool,
    ) -> None:
        self._reader = reader
        self._outputs = outputs
        self._keeper = keeper
        self._idle_timeout_s = idle_timeout_s
        self._clock = clock
        self._tracer = tracer
        self._follow_traces = follow_traces
        self._states: dict[Partition, PartitionState] = {}
        self._repeated = metrics.counter(RECORDS_REPEATED)
        metrics.gauge(WINDOWS_OPEN).set_function(
            lambda: sum(state.open_windows for state in list(self._states.values()))
        )

        metrics.gauge(WINDOWS_RETAINED).set_function(
            lambda: sum(state.retained_windows for state in list(self._states.values()))
        )

    def take_over(self, partitions: Sequence[Partition]) -> None:
        """Read what is kept of partitions that come; see `BatchProcessor`."""
        self._keeper.take_over(partitions)

    def assign(self, partition: Partition, committed: CommitPoint | None, end: int) -> int | None:
        """Make a partition's state; see `BatchProcessor`."""
        state, start = self._keeper.state_of(partition, committed, end)
        self._states[partition] = state
        return start

    def revoke(self, partition: Partition) -> None:
        """Forget a partition's state."""
        self._states.pop(partition, None)
        self._keeper.forget(partition)

    def lost(self, partitions: Sequence[Partition]) -> None:
        """End when another member has them; see `BatchProcessor`."""
        self._keeper.check_lost(partitions)

    def process(self, partition: Partition, messages: Sequence[Message]) -> None:
        """Count a batch and write what comes of it; see `BatchProcessor`."""
        state, outputs = self._states[partition], self._outputs[partition.topic]
        trades, rows, rejected = self._reader.read(messages)
        # From here on nothing waits for others: the batch is taken.
        spans = BatchSpans(self._tracer, partition)
        if self._follow_traces:
            spans.consume(messages)
        applied = state.apply(trades)
        if applied.results:
            outputs.write_results(applied.results, spans.traceparent())
        if applied.refused:
            refused = [replace(item, index=int(rows[item.index])) for item in applied.refused]
            outputs.write_late(messages, refused)
        if rejected:
            outputs.write_dead_letters(messages, rejected)
        if applied.repeated:
            self._repeated.inc(applied.repeated)
        state.advance((messages[-1].offset() or 0) + 1)
        spans.end()

    def stand_at_end(self, partition: Partition, position: int, for_s: float) -> None:
        """Show windows that have ended by the wall clock, once the partition is idle."""
        state = self._states[partition]
        state.advance(position)
        if for_s < self._idle_timeout_s:
            return
        results = state.show_ended(self._clock.now_ms())
        if results:
            spans = BatchSpans(self._tracer, partition)
            traceparent = spans.traceparent("close_idle_windows")
            self._outputs[partition.topic].write_results(results, traceparent)
            spans.end()

    def tick(self) -> None:
        """Nothing depends on steps."""

    def drain(self, partitions: Collection[Partition], within_s: float) -> None:
        """Open windows stay open: whoever goes on has them from the changelog."""

    def prepare_commit(
        self, partitions: Collection[Partition], *, giving_up: bool
    ) -> dict[Partition, CommitPoint]:
        """Write what has changed of the states, and name their positions."""
        return {
            partition: CommitPoint(state.position)
            for partition, state in self._states.items()
            if partition in partitions and self._keeper.keep(partition, state, giving_up=giving_up)
        }
