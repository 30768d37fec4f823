"""What the consumer loop asks of a processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from kstream_agg.core.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from confluent_kafka import Message

__all__ = ["BatchProcessor", "BusyError", "CommitPoint", "Outlet", "Partition"]


class Partition(NamedTuple):
    """A partition of a topic."""

    topic: str
    number: int


@dataclass(frozen=True, slots=True)
class CommitPoint:
    """A committed offset and the text that is kept with it.

    Args:
        offset: Where reading begins after a restart.
        metadata: Up to 4,096 bytes, the broker's limit.
    """

    offset: int
    metadata: str = ""


class BusyError(UnavailableError):
    """The processor has as much work as it may hold; it takes the same messages in a moment."""


class BatchProcessor(Protocol):
    """Takes batches, one partition at a time; called from the loop's thread only."""

    def take_over(self, partitions: Sequence[Partition]) -> None:
        """Partitions are coming; called once for all of them, before their offsets are looked up.

        Raises:
            UnavailableError: Something needed does not answer: it will be called again.
        """

    def assign(self, partition: Partition, committed: CommitPoint | None, end: int) -> int | None:
        """A partition has come: make its state.

        Args:
            partition: The partition.
            committed: What was committed last; None when nothing was.
            end: The partition's end offset.

        Returns:
            The offset to read from; None for the partition's beginning.

        Raises:
            UnavailableError: Something needed does not answer: it will be called again.
        """

    def revoke(self, partition: Partition) -> None:
        """A partition has gone: forget its state."""

    def lost(self, partitions: Sequence[Partition]) -> None:
        """Partitions have gone without notice; `revoke` follows for each.

        Raises:
            FencedError: Another member has them already, and this one ends.
        """

    def process(self, partition: Partition, messages: Sequence[Message]) -> None:
        """Take messages that follow each other in a partition.

        Raises:
            UnavailableError: Something needed does not answer. Nothing was changed: the same
                messages will be handed in again.
            BusyError: The same, and this partition alone is paused; they are handed in again at
                the next step.
        """

    def stand_at_end(self, partition: Partition, position: int, for_s: float) -> None:
        """The reader has read everything before `position` and stood there for `for_s` seconds."""

    def tick(self) -> None:
        """Called in every step of the loop, read or not: time has passed."""

    def drain(self, partitions: Collection[Partition], within_s: float) -> None:
        """These partitions go, and will be committed: finish or drop what is open of them.

        Returns after `within_s` seconds at the latest; what is not finished then is not covered
        by the commit points. Lost partitions are not drained.
        """

    def prepare_commit(
        self, partitions: Collection[Partition], *, giving_up: bool
    ) -> Mapping[Partition, CommitPoint]:
        """Write what belongs into the coming commit, and name the points that it makes final.

        Args:
            partitions: Which partitions are meant.
            giving_up: They leave this member with the commit.
        """


class Outlet(Protocol):
    """Where results go: a `RecordWriter`."""

    def poll(self) -> int:
        """Serve delivery reports without waiting."""

    def flush(self, timeout_s: float = 60.0) -> None:
        """Wait until everything produced is delivered.

        Raises:
            DeliveryError: Something was not.
        """
