"""The steps' logic without threads: chunks and time in, chunks out.

A stage is offered one job and asked for outputs until there are none. When a step raises
`UnavailableError`, the stage stands where it stood, and is asked again later.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from kstream_agg.core.errors import RecordsRefusedError, UnavailableError
from kstream_agg.pipeline.chunks import Batched, Chunk, DeadLetter, Drain
from kstream_agg.pipeline.failures import Failure
from kstream_agg.pipeline.steps import BulkReducer, Shutdown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from confluent_kafka import Message

    from kstream_agg.pipeline.processor import Partition
    from kstream_agg.pipeline.records import Record
    from kstream_agg.pipeline.steps import Reducer

    FailureHandler: TypeAlias = Callable[[Failure], tuple[Record, ...]]
    """Gives the records to write in place of the failed one."""

__all__ = ["ReduceStage", "Stage", "dead_letters"]


def dead_letters(
    messages: Sequence[Message], error: Exception, step: str, handle: FailureHandler
) -> list[DeadLetter]:
    """Have the error steps take messages that have failed for one reason."""
    return [
        DeadLetter(message.offset() or 0, handle(Failure(message, error, step)))
        for message in messages
    ]


class Stage(Protocol):
    """One step of the chain."""

    @property
    def name(self) -> str:
        """The step's name."""

    @property
    def due_at(self) -> float | None:
        """When it wants to be asked without a job, in seconds of the monotonic clock."""

    def offer(self, job: Batched | Chunk | Drain) -> None:
        """Hand a job in; the job before has been worked off."""

    def next_output(self, now: float) -> Chunk | None:
        """The next output; None when the job is worked off.

        Raises:
            UnavailableError: Ask again later.
            ErrorLimitError: An error step stops the pipeline.
        """

    def reset(self) -> None:
        """Discard everything."""


@dataclass(slots=True)
class _Open:
    """What has gone into the open batch."""

    items: int = 0
    messages: list[Message] = field(default_factory=list)
    ends: dict[Partition, int] = field(default_factory=dict)
    dead: list[DeadLetter] = field(default_factory=list)
    began: float = 0.0


class ReduceStage:
    """A reducer with its open batch.

    Args:
        reducer: The step.
        name: Its name in the pipeline.
        handle: Takes failures.
    """

    def __init__(self, reducer: Reducer[Any, Any], name: str, handle: FailureHandler) -> None:
        self._reducer = reducer
        self._bulk = reducer if isinstance(reducer, BulkReducer) else None
        self._name = name
        self._handle = handle
        self._open = _Open()
        self._epoch = 0
        self._job: Chunk | None = None
        self._at = 0
        self._dead_at = 0
        self._flushing = False

    @property
    def name(self) -> str:
        """The step's name."""
        return self._name

    @property
    def due_at(self) -> float | None:
        """When the open batch's time is over."""
        if self._reducer.seconds is None or not self._open.items:
            return None
        return self._open.began + self._reducer.seconds

    def offer(self, job: Batched | Chunk | Drain) -> None:
        """Hand a chunk in, or the wish to close up."""
        if isinstance(job, Chunk):
            self._job, self._at, self._dead_at, self._epoch = job, 0, 0, job.epoch
        elif self._reducer.on_shutdown is Shutdown.FLUSH:
            self._flushing = True
        else:
            self.reset()

    def reset(self) -> None:
        """Discard the open batch and the job."""
        self._reducer.reset()
        self._open = _Open()
        self._job = None
        self._flushing = False

    def next_output(self, now: float) -> Chunk | None:
        """The next batch that is closed; see `Stage`."""
        due = self.due_at
        if due is not None and now >= due:
            self._flushing = True
        while True:
            if self._flushing:
                output = self._close()
                if output is not None:
                    return output
            if self._job is None:
                return None
            self._take(self._job, now)

    # --- taking ----------------------------------------------------------------------------

    def _take(self, job: Chunk, now: float) -> None:
        """Add from the job until the batch is full or the job is worked off."""
        if not self._open.items:
            self._open.began = now
        size = len(job.items)
        while self._at < size and not self._flushing:
            if self._bulk is None or not self._extend(job):
                self._add(job)
            self._flushing = self._open.items > 0 and self._reducer.is_full()
        if self._at < size:
            return
        self._cover_rest(job)
        self._job = None
        # What holds no items, only records that failed, waits for nothing.
        if self._reducer.flush_each_handover or not self._open.items:
            self._flushing = True

    def _extend(self, job: Chunk) -> bool:
        assert self._bulk is not None  # noqa: S101 - asked before
        rest = job.items[self._at :] if self._at else job.items
        taken = self._bulk.extend(rest)
        if taken:
            self._cover(job, taken)
        return taken > 0

    def _add(self, job: Chunk) -> None:
        try:
            self._reducer.add(job.items[self._at])
        except UnavailableError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a step raises is its record's failure
            self._fail(job, error)
        else:
            self._cover(job, 1)

    def _cover(self, job: Chunk, taken: int) -> None:
        """Note that the next `taken` items have gone into the open batch."""
        self._open.items += taken
        if job.whole:
            self._open.messages.extend(job.messages)
        else:
            until = self._at + taken
            self._open.messages.extend(job.messages[self._at : until])
            self._pass(job, (job.messages[until - 1].offset() or 0) + 1)
        self._at += taken

    def _fail(self, job: Chunk, error: Exception) -> None:
        failed = job.messages if job.whole else job.messages[self._at : self._at + 1]
        if not job.whole:
            self._pass(job, failed[0].offset() or 0)
        self._open.dead += dead_letters(failed, error, self._name, self._handle)
        if not job.whole:
            self._pass(job, (failed[0].offset() or 0) + 1)
        self._at += 1

    def _pass(self, job: Chunk, end: int) -> None:
        """Cover everything before offset `end`, with the dead letters among it."""
        while self._dead_at < len(job.dead) and job.dead[self._dead_at].offset < end:
            self._open.dead.append(job.dead[self._dead_at])
            self._dead_at += 1
        for partition in job.ends:
            self._open.ends[partition] = max(self._open.ends.get(partition, 0), end)

    def _cover_rest(self, job: Chunk) -> None:
        self._open.dead += job.dead[self._dead_at :]
        self._open.ends.update(job.ends)

    # --- closing ---------------------------------------------------------------------------

    def _close(self) -> Chunk | None:
        """Flush the open batch; None when there is nothing to hand on."""
        batch = self._open
        items: list[Any] = []
        messages: Sequence[Message] = batch.messages
        if batch.items:
            try:
                output = self._reducer.flush()
            except UnavailableError:
                raise
            except RecordsRefusedError as refused:
                self._reducer.reset()
                for place, error in sorted(refused.failed.items()):
                    batch.dead += dead_letters([messages[place]], error, self._name, self._handle)
                messages = ()
            except Exception as error:  # noqa: BLE001 - whatever a step raises fails its batch
                self._reducer.reset()
                batch.dead += dead_letters(messages, error, self._name, self._handle)
                messages = ()
            else:
                items = [] if output is None else [output]
        self._flushing = False
        self._open = _Open()
        if not batch.ends and not batch.dead:
            return None
        return Chunk(self._epoch, items, messages, batch.ends, batch.dead)
