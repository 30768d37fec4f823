"""A pipeline: topics, a map, reduce steps, error steps.

    Pipeline("trades", group="sizes")
        .map(parse)
        .reduce(Batch(count=1000, seconds=5))
        .reduce(Each(write))
        .on_error(DeadLetterTopic(), StopAfter(ratio=0.5))

A pipeline is a value: each call gives a new one. Its reducers hold state: a pipeline is run once
at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from kstream_agg.core.errors import PipelineError
from kstream_agg.pipeline.failures import DeadLetterTopic, StopAfter
from kstream_agg.pipeline.mapping import BatchMap, RecordMap
from kstream_agg.pipeline.steps import Produce, Reducer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from confluent_kafka import Message

    from kstream_agg.pipeline.failures import ErrorStep
    from kstream_agg.pipeline.mapping import Mapper, PolledBatch
    from kstream_agg.pipeline.records import Record

__all__ = ["Pipeline"]

ItemT = TypeVar("ItemT")
NextT = TypeVar("NextT")


class _Covered(Reducer[Any, None]):
    """Stands behind a map without reduce steps: what comes is done with."""

    flush_each_handover = True
    name = "covered"

    def add(self, item: object) -> None:
        """Let go."""

    def is_full(self) -> bool:
        """Never."""
        return False

    def flush(self) -> None:
        """Nothing comes out."""

    def reset(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class _Definition:
    topics: tuple[str, ...]
    group: str
    mapper: Mapper | None = None
    maps_inline: bool = False
    reducers: tuple[Reducer[Any, Any], ...] = ()
    error_steps: tuple[ErrorStep, ...] = ()
    produces: bool = False


class Pipeline(Generic[ItemT]):
    """What becomes of a topic's records; `ItemT` is what comes out of its last step so far.

    Args:
        topics: The topic or topics to read.
        group: The consumer group.

    Raises:
        PipelineError: No topic is named, or no group.
    """

    def __init__(self: Pipeline[Message], *topics: str, group: str) -> None:
        if not topics or not all(topics):
            raise PipelineError("a pipeline needs at least one topic")
        if not group:
            raise PipelineError("a pipeline needs a consumer group")
        self._definition = _Definition(topics, group)

    # --- building --------------------------------------------------------------------------

    def map(self, function: Callable[[ItemT], NextT]) -> Pipeline[NextT]:
        """Map each record by itself: the first map takes the message, the next its result.

        Maps of different partitions run at the same time (`map_threads`), those of one in order.
        What the function raises sends the record to the error step; `UnavailableError` has it
        called again later.

        Raises:
            PipelineError: It stands behind a reduce step or a batch map.
        """
        mapper = self._definition.mapper
        if self._definition.reducers or isinstance(mapper, BatchMap):
            raise PipelineError("map: stands behind a reduce step or a batch map; use reduce")
        record_map = mapper.then(function) if isinstance(mapper, RecordMap) else RecordMap(function)
        return self._with(mapper=record_map)

    def map_batch(
        self, function: Callable[[PolledBatch], NextT], *, inline: bool = False
    ) -> Pipeline[NextT]:
        """Map the records of one poll of a partition at once, by columns for instance.

        Args:
            function: Takes the batch.
            inline: Call it in the thread that reads, as long as the steps behind have room: for a
                function that waits for nothing, and holds Python's lock so much that a thread of
                its own would only take turns with the reading one.

        Raises:
            PipelineError: It is not the first step.
        """
        if self._definition.mapper is not None or self._definition.reducers:
            raise PipelineError("map_batch: must be the first step")
        return self._with(mapper=BatchMap(function), maps_inline=inline)

    def reduce(self, reducer: Reducer[ItemT, NextT]) -> Pipeline[NextT]:
        """Add a reduce step; it works in sequence over the output of all that stands before.

        Raises:
            PipelineError: It stands behind `produce`, or is in this pipeline already.
        """
        if self._definition.produces:
            raise PipelineError("reduce: nothing can stand behind produce")
        if any(reducer is step for step in self._definition.reducers):
            raise PipelineError("reduce: a reducer can be one step only, it holds state")
        return self._with(reducers=(*self._definition.reducers, reducer))

    def produce(self, encode: Callable[[ItemT], Iterable[Record]]) -> Pipeline[list[Record]]:
        """Write records to Kafka, as the last step; what `encode` raises goes to the error step.

        With exactly-once they stand in one transaction with the offsets of what they come from.

        Raises:
            PipelineError: The pipeline produces already.
        """
        pipeline = self.reduce(Produce(encode))
        return pipeline._with(produces=True)  # noqa: SLF001 - of the same class

    def on_error(self, *steps: ErrorStep) -> Pipeline[ItemT]:
        """Set what becomes of records that fail; each step gets each of them, in this order.

        Without error steps the first failure stops the pipeline.
        """
        return self._with(error_steps=steps)

    def _with(self, **changes: Any) -> Pipeline[Any]:  # noqa: ANN401 - fields of the definition
        changed = cast("Pipeline[Any]", Pipeline(*self.topics, group=self.group))
        changed._definition = replace(self._definition, **changes)  # noqa: SLF001 - of the same class
        return changed

    # --- what the engine asks --------------------------------------------------------------

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics it reads."""
        return self._definition.topics

    @property
    def group(self) -> str:
        """Its consumer group."""
        return self._definition.group

    @property
    def mapper(self) -> Mapper:
        """The map; messages as they are when there is none."""
        return self._definition.mapper or RecordMap(_as_it_is, "messages")

    @property
    def maps_inline(self) -> bool:
        """Whether the thread that reads may map."""
        return self._definition.maps_inline

    @property
    def reducers(self) -> tuple[Reducer[Any, Any], ...]:
        """The reduce steps, at least one."""
        return self._definition.reducers or (_Covered(),)

    @property
    def produces(self) -> bool:
        """Whether what comes out of the last step are records to write."""
        return self._definition.produces

    @property
    def dead_letter_topics(self) -> list[str]:
        """The topics its error steps write to."""
        steps = [step for step in self.error_steps if isinstance(step, DeadLetterTopic)]
        return [topic for step in steps for topic in step.topics(self.topics)]

    @property
    def error_steps(self) -> tuple[ErrorStep, ...]:
        """The error steps."""
        return self._definition.error_steps or (StopAfter(count=0),)


def _as_it_is(message: Message) -> Message:
    return message
