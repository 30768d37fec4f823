"""The aggregator as a processor of the consumer loop: one state for each partition."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kstream_agg.aggregate.progress_note import commit_point, resume_from
from kstream_agg.aggregate.state import PartitionState
from kstream_agg.core.metrics import RECORDS_REPEATED, WINDOWS_OPEN
from kstream_agg.pipeline.spans import BatchSpans

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from confluent_kafka import Message
    from opentelemetry.trace import Tracer

    from kstream_agg.aggregate.intake import Instruments, TradeReader
    from kstream_agg.aggregate.outputs import TopicOutputs
    from kstream_agg.aggregate.rules import WindowRules
    from kstream_agg.core.clock import Clock
    from kstream_agg.core.metrics import Metrics
    from kstream_agg.pipeline.processor import CommitPoint, Partition

__all__ = ["AggregatingProcessor"]


class AggregatingProcessor:
    """Counts trades, and writes the results of windows that close.

    Args:
        reader: Decodes batches.
        instruments: The numbers the reader gives to instruments.
        outputs: Where the results of each raw topic go.
        rules: What decides about windows.
        idle_timeout_s: How long the reader stands at a partition's end before windows that the
            wall clock has passed are shown.
        clock: Wall-clock time is used.
        metrics: Counts open windows and repeats.
        tracer: Makes the spans.
        follow_traces: Whether to look at the records' traces at all.
    """

    def __init__(  # noqa: PLR0913 - a composition root wires it, by name
        self,
        *,
        reader: TradeReader,
        instruments: Instruments,
        outputs: Mapping[str, TopicOutputs],
        rules: WindowRules,
        idle_timeout_s: float,
        clock: Clock,
        metrics: Metrics,
        tracer: Tracer,
        follow_traces: bool,
    ) -> None:
        self._reader = reader
        self._instruments = instruments
        self._outputs = outputs
        self._rules = rules
        self._idle_timeout_s = idle_timeout_s
        self._clock = clock
        self._tracer = tracer
        self._follow_traces = follow_traces
        self._states: dict[Partition, PartitionState] = {}
        self._repeated = metrics.counter(RECORDS_REPEATED)
        metrics.gauge(WINDOWS_OPEN).set_function(
            lambda: sum(state.open_windows for state in list(self._states.values()))
        )

    def assign(self, partition: Partition, committed: CommitPoint | None, end: int) -> int | None:
        """Make a partition's state; see `BatchProcessor`."""
        resume = resume_from(partition, committed, end, self._rules.period_ms)
        self._states[partition] = PartitionState(
            self._rules,
            self._instruments.name_of,
            start=resume.offset or 0,
            position=resume.position,
            watermark=resume.watermark,
        )
        return resume.offset

    def revoke(self, partition: Partition) -> None:
        """Forget a partition's state."""
        self._states.pop(partition, None)

    def process(self, partition: Partition, messages: Sequence[Message]) -> None:
        """Count a batch and write what comes of it; see `BatchProcessor`."""
        state, outputs = self._states[partition], self._outputs[partition.topic]
        trades, rows, rejected = self._reader.read(messages)
        # From here on nothing waits for others: the batch is taken.
        spans = BatchSpans(self._tracer, partition)
        if self._follow_traces:
            spans.consume(messages)
        first = state.position
        applied = state.apply(trades)
        if applied.results:
            outputs.write_results(applied.results, spans.traceparent())
        if applied.refused:
            refused = [replace(item, index=int(rows[item.index])) for item in applied.refused]
            outputs.write_late(messages, refused)
        if rejected:
            fresh = [item for item in rejected if (messages[item.index].offset() or 0) >= first]
            outputs.write_dead_letters(messages, fresh)
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
        """Open windows stay open: their trades are read again by whoever goes on."""

    def commit_points(self) -> dict[Partition, CommitPoint]:
        """For each partition the first trade of its oldest open window, and the position."""
        return {
            partition: commit_point(state, self._rules.period_ms)
            for partition, state in self._states.items()
        }
