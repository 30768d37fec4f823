"""Reduce steps: the interface, and the usual ones.

A reducer holds one open batch. The engine adds items, in the order in which the step before has
handed them over, and flushes the batch when the reducer is full, when `seconds` have passed since
its first item, and at shutdown as `on_shutdown` says. What `flush` returns goes to the next step;
behind the last step, the offsets of all that went into it are committed.

Reducers are called from one thread, a thread of their own. What they raise:

- `UnavailableError`: something does not answer. The reducer has changed nothing; the same call
  is made again later, and reading pauses meanwhile.
- Anything else from `add`: this item's records go to the error step; the batch goes on.
- `RecordsRefusedError` from `flush`: the records it names go to the error step; the others are done
  with, nothing comes out, and `reset` follows.
- Anything else from `flush`: all records of the batch go to the error step, and `reset` follows.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar, final

from kstream_agg.core.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kstream_agg.pipeline.records import Record

__all__ = [
    "Batch",
    "BulkReducer",
    "Each",
    "Fold",
    "PassThrough",
    "Produce",
    "Reducer",
    "Shutdown",
]

InT = TypeVar("InT")
OutT = TypeVar("OutT")


@enum.unique
class Shutdown(enum.Enum):
    """What becomes of an open batch when the pipeline stops or gives partitions up."""

    FLUSH = "flush"
    """It is flushed, and its records are committed."""
    DROP = "drop"
    """It is discarded; its records are read again by whoever goes on."""


class Reducer(ABC, Generic[InT, OutT]):
    """A reduce step; see the module for how it is called."""

    on_shutdown: Shutdown = Shutdown.FLUSH
    seconds: float | None = None
    """How long a batch may stay open, from its first item on; None: without limit."""
    flush_each_handover: ClassVar[bool] = False
    """Whether to flush as soon as what was handed over at once has been added."""

    @property
    def name(self) -> str:
        """What logs, metrics and dead letters call it."""
        return type(self).__name__

    @abstractmethod
    def add(self, item: InT) -> None:
        """Add an item to the open batch."""

    @abstractmethod
    def is_full(self) -> bool:
        """Whether the open batch must be flushed before another item is added."""

    @abstractmethod
    def flush(self) -> OutT:
        """Close the open batch, which has at least one item, and begin an empty one."""

    @abstractmethod
    def reset(self) -> None:
        """Discard the open batch."""


class BulkReducer(Reducer[InT, OutT]):
    """A reducer that takes many items in one call."""

    @abstractmethod
    def extend(self, items: Sequence[InT]) -> int:
        """Add items from the front of `items` until full; must not raise.

        Returns:
            How many were added; 0 asks for `add`, one by one, this time.
        """


def _check_limits(step: str, **limits: float | None) -> None:
    for name, limit in limits.items():
        if limit is not None and limit <= 0:
            raise PipelineError(f"{step}: {name} must be more than 0, not {limit}")


class Batch(BulkReducer[InT, list[InT]]):
    """Gathers items into lists, until one of its limits is reached.

    Args:
        count: Most items.
        seconds: Longest time from the first item on.
        bytes: Size at which the batch is closed, as `size` measures; the item that reaches it is
            the batch's last.
        size: An item's size; by default its `len`.
        on_shutdown: What becomes of an open batch.

    Raises:
        PipelineError: There is no limit, or one is not positive.
    """

    def __init__(
        self,
        count: int | None = None,
        *,
        seconds: float | None = None,
        bytes: int | None = None,  # noqa: A002 - its name to whoever writes a pipeline
        size: Callable[[InT], int] = len,  # type: ignore[assignment]  # items without len need their own
        on_shutdown: Shutdown = Shutdown.FLUSH,
    ) -> None:
        if count is None and seconds is None and bytes is None:
            raise PipelineError("Batch: give count, seconds or bytes")
        _check_limits("Batch", count=count, seconds=seconds, bytes=bytes)
        self.seconds = seconds
        self.on_shutdown = on_shutdown
        self._count = count
        self._bytes = bytes
        self._size = size
        self._held = 0
        self._items: list[InT] = []

    def add(self, item: InT) -> None:
        """Add an item."""
        if self._bytes is not None:
            self._held += self._size(item)
        self._items.append(item)

    def extend(self, items: Sequence[InT]) -> int:
        """Add items until full; where they are measured, one by one."""
        if self._bytes is not None:
            return 0
        if self._count is None:
            self._items.extend(items)
            return len(items)
        room = max(1, self._count - len(self._items))
        self._items.extend(items[:room])
        return min(room, len(items))

    def is_full(self) -> bool:
        """Whether count or bytes is reached."""
        return (self._count is not None and len(self._items) >= self._count) or (
            self._bytes is not None and self._held >= self._bytes
        )

    def flush(self) -> list[InT]:
        """The items."""
        items = self._items
        self.reset()
        return items

    def reset(self) -> None:
        """Discard the items."""
        self._items = []
        self._held = 0


class Fold(Reducer[InT, OutT]):
    """Folds items into one value.

    Args:
        initial: Makes the value a batch begins with.
        fold: Takes the value and an item, gives the next value. When it raises, the value stays.
        count: Most items.
        seconds: Longest time from the first item on.
        on_shutdown: What becomes of an open batch.

    Raises:
        PipelineError: There is no limit, or one is not positive.
    """

    def __init__(
        self,
        initial: Callable[[], OutT],
        fold: Callable[[OutT, InT], OutT],
        *,
        count: int | None = None,
        seconds: float | None = None,
        on_shutdown: Shutdown = Shutdown.FLUSH,
    ) -> None:
        if count is None and seconds is None:
            raise PipelineError("Fold: give count or seconds")
        _check_limits("Fold", count=count, seconds=seconds)
        self.seconds = seconds
        self.on_shutdown = on_shutdown
        self._initial = initial
        self._fold = fold
        self._count = count
        self._added = 0
        self._value = initial()

    def add(self, item: InT) -> None:
        """Fold an item in."""
        self._value = self._fold(self._value, item)
        self._added += 1

    def is_full(self) -> bool:
        """Whether count is reached."""
        return self._count is not None and self._added >= self._count

    def flush(self) -> OutT:
        """The value."""
        value = self._value
        self.reset()
        return value

    def reset(self) -> None:
        """Begin anew."""
        self._value = self._initial()
        self._added = 0


class Each(Reducer[InT, InT]):
    """Calls a function with each item and hands the item on: a writer, for instance.

    Args:
        function: Raises `UnavailableError` to be called again later; whatever else it raises
            sends the item's records to the error step.
        name: What logs call the step; by default the function's name.
    """

    def __init__(self, function: Callable[[InT], object], name: str | None = None) -> None:
        self._function = function
        self._name = name or str(getattr(function, "__name__", type(function).__name__))
        self._items: list[InT] = []

    @property
    @final
    def name(self) -> str:
        """What logs, metrics and dead letters call it."""
        return self._name

    def add(self, item: InT) -> None:
        """Take the one item."""
        self._items.append(item)

    def is_full(self) -> bool:
        """After each item."""
        return bool(self._items)

    def flush(self) -> InT:
        """Call the function."""
        self._function(self._items[0])
        return self._items.pop()

    def reset(self) -> None:
        """Let the item go."""
        self._items.clear()


class PassThrough(Each[InT]):
    """Hands each item on as it is.

    Args:
        name: What logs call the step.
    """

    def __init__(self, name: str = "PassThrough") -> None:
        super().__init__(lambda _item: None, name)


class Produce(Reducer[InT, list["Record"]]):
    """Makes records for Kafka; the pipeline's last step.

    Args:
        encode: The records of an item.
    """

    flush_each_handover = True

    def __init__(self, encode: Callable[[InT], Iterable[Record]]) -> None:
        self._encode = encode
        self._records: list[Record] = []

    def add(self, item: InT) -> None:
        """Encode an item."""
        self._records.extend(list(self._encode(item)))

    def is_full(self) -> bool:
        """Never: it flushes behind each hand-over."""
        return False

    def flush(self) -> list[Record]:
        """The records."""
        records = self._records
        self.reset()
        return records

    def reset(self) -> None:
        """Discard the records."""
        self._records = []
