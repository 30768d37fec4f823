"""The map step: messages of one partition in, items out, in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from kstream_agg.core.errors import UnavailableError
from kstream_agg.pipeline.chunks import Batched, Chunk, DeadLetter, Drain
from kstream_agg.pipeline.stages import dead_letters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from confluent_kafka import Message

    from kstream_agg.pipeline.processor import Partition
    from kstream_agg.pipeline.stages import FailureHandler

__all__ = ["BatchMap", "MapStage", "Mapper", "PolledBatch", "RecordMap"]


class PolledBatch:
    """Messages that follow each other in a partition, as a batch map gets them.

    Args:
        partition: Where they come from.
        messages: In offset order, at least one.
    """

    def __init__(self, partition: Partition, messages: Sequence[Message]) -> None:
        self.partition = partition
        self.messages = messages
        self.rejected: dict[int, Exception] = {}
        """Place in `messages` to what is wrong with it."""

    def reject(self, index: int, error: Exception) -> None:
        """Send the message at this place to the error step; the others go on."""
        self.rejected[index] = error


class Mapper(Protocol):
    """Makes a chunk of a batch."""

    @property
    def name(self) -> str:
        """The step's name."""

    def map(self, batch: Batched, handle: FailureHandler) -> Chunk:
        """Map a batch.

        Raises:
            UnavailableError: Nothing was done; the same batch is handed in again later.
        """


class RecordMap:
    """A function of one message, once a message.

    Args:
        function: What it raises sends its message to the error step; `UnavailableError` has the
            whole batch mapped again later.
        name: The step's name.
    """

    def __init__(self, function: Callable[[Any], Any], name: str | None = None) -> None:
        self._function = function
        self.name = name or f"map {function_name(function)}"

    def then(self, function: Callable[[Any], Any]) -> RecordMap:
        """This map, and a function of what it returns."""
        first = self._function
        return RecordMap(
            lambda message: function(first(message)), f"{self.name}, {function_name(function)}"
        )

    def map(self, batch: Batched, handle: FailureHandler) -> Chunk:
        """Map a batch; see `Mapper`."""
        function = self._function
        items: list[Any] = []
        failed: dict[int, Exception] = {}
        for index, message in enumerate(batch.messages):
            try:
                items.append(function(message))
            except UnavailableError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a map raises is its record's failure
                failed[index] = error
        return _chunk(batch, items, failed, self.name, handle, whole=False)


class BatchMap:
    """A function of a whole batch: one item for all its messages, by columns for instance.

    Args:
        function: What it raises sends all messages to the error step; single ones are refused
            with `PolledBatch.reject`.
    """

    def __init__(self, function: Callable[[PolledBatch], Any]) -> None:
        self._function = function
        self.name = f"map {function_name(function)}"

    def map(self, batch: Batched, handle: FailureHandler) -> Chunk:
        """Map a batch; see `Mapper`."""
        polled = PolledBatch(batch.partition, batch.messages)
        try:
            items = [self._function(polled)]
        except UnavailableError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a map raises fails its batch
            return _chunk(
                batch, [], dict.fromkeys(range(len(batch.messages)), error), self.name, handle
            )
        if len(polled.rejected) == len(batch.messages):
            items = []
        return _chunk(batch, items, polled.rejected, self.name, handle)


class MapStage:
    """The map as a stage of the chain; several run side by side, each for some partitions.

    Args:
        mapper: The step.
        handle: Takes failures.
    """

    due_at: float | None = None

    def __init__(self, mapper: Mapper, handle: FailureHandler) -> None:
        self._mapper = mapper
        self._handle = handle
        self._job: Batched | None = None

    @property
    def name(self) -> str:
        """The step's name."""
        return self._mapper.name

    def offer(self, job: Batched | Chunk | Drain) -> None:
        """Hand a batch in; a map has nothing to close up."""
        if isinstance(job, Batched):
            self._job = job

    def next_output(self, now: float) -> Chunk | None:
        """The mapped batch, then None; see `Stage`."""
        del now
        if self._job is None:
            return None
        chunk = self._mapper.map(self._job, self._handle)
        self._job = None
        return chunk

    def reset(self) -> None:
        """Forget the job."""
        self._job = None


def function_name(function: object) -> str:
    """What a step made of this function is called."""
    return str(getattr(function, "__name__", type(function).__name__))


def _chunk(  # noqa: PLR0913 - the parts of a chunk, by name
    batch: Batched,
    items: list[Any],
    failed: Mapping[int, Exception],
    step: str,
    handle: FailureHandler,
    *,
    whole: bool = True,
) -> Chunk:
    messages: Sequence[Message] = batch.messages
    end = (messages[-1].offset() or 0) + 1
    dead: list[DeadLetter] = []
    if failed:
        for index in sorted(failed):
            dead += dead_letters([messages[index]], failed[index], step, handle)
        messages = [message for index, message in enumerate(messages) if index not in failed]
    return Chunk(batch.epoch, items, messages, {batch.partition: end}, dead, whole)
