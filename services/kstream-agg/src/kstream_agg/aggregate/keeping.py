"""Keeping the states of a member's partitions, and finding them again.

Taking a partition over:

1. What its changelog keeps is read, to the end of what is committed.
2. A former owner that has not signed off is fenced, and the changelog read again: what it had
   open is aborted now, and it can commit nothing any more.
3. The changelog's position is compared with the committed offset. Both were written in one
   transaction; where they differ, one of them was changed by hand or lost.
4. With the next commit the new owner signs on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from kstream_agg.aggregate.kept import POSITION_KEY, Note, changes_of, note_in, restore
from kstream_agg.aggregate.state import PartitionState
from kstream_agg.core.errors import ContractError, FencedError, KStreamError
from kstream_agg.core.logs import get_logger
from kstream_agg.core.metrics import RESTORE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kstream_agg.aggregate.changelog import Kept
    from kstream_agg.aggregate.intake import Instruments
    from kstream_agg.aggregate.rules import WindowRules
    from kstream_agg.core.metrics import Metrics
    from kstream_agg.pipeline.processor import CommitPoint, Partition

__all__ = ["StateKeeper", "StateLog"]

_log = get_logger(__name__)


class StateLog(Protocol):
    """What is needed of a `Changelog`."""

    def name(self, partition: Partition) -> str:
        """Where a partition's state is kept."""

    def write(self, partition: Partition, key: bytes, value: bytes | None) -> None:
        """Keep a value; None drops the key's."""

    def fence(self, owner: str) -> None:
        """See to it that a former owner writes nothing any more."""

    def read(self, partitions: Iterable[Partition]) -> dict[Partition, Kept]:
        """What is kept for each partition."""


class StateKeeper:
    """Keeps and restores states.

    Args:
        log: The changelog.
        rules: The settings that decide about windows.
        instruments: Numbers the instruments.
        owner: This member's transactional id; None without transactions.
        before_write: Called before changes are written. Without transactions it waits until all
            results are delivered: a state must never be ahead of them.
        metrics: Measures restoring.
    """

    def __init__(  # noqa: PLR0913 - a composition root wires it, by name
        self,
        *,
        log: StateLog,
        rules: WindowRules,
        instruments: Instruments,
        owner: str | None,
        before_write: Callable[[], None],
        metrics: Metrics,
    ) -> None:
        self._state_log = log
        self._rules = rules
        self._instruments = instruments
        self._owner = owner
        self._before_write = before_write
        self._restore_seconds = metrics.histogram(RESTORE_SECONDS)
        self._kept: dict[Partition, Kept] = {}
        self._notes: dict[Partition, Note] = {}
        self._outdated: dict[Partition, list[bytes]] = {}

    def take_over(self, partitions: Sequence[Partition]) -> None:
        """Read what is kept, and fence former owners.

        Raises:
            UnavailableError: Kafka does not answer.
            ContractError: A changelog cannot be read.
        """
        began = time.monotonic()
        # 1. What is kept is read.
        kept = self._state_log.read(partitions)
        # 2. Former owners are fenced.
        owners = {note.owner for note in map(note_in, kept.values()) if note is not None}
        former = {owner for owner in owners if owner not in {None, self._owner}}
        for owner in sorted(filter(None, former)):
            _log.warning("fencing a former worker", transactional_id=owner)
            self._state_log.fence(owner)
        if former:
            kept = self._state_log.read(partitions)
        self._kept |= kept
        self._restore_seconds.observe(time.monotonic() - began)

    def state_of(
        self, partition: Partition, committed: CommitPoint | None, end: int
    ) -> tuple[PartitionState, int | None]:
        """Make a partition's state.

        Args:
            partition: The partition, taken over.
            committed: What was committed last; None when nothing was.
            end: The partition's end offset.

        Returns:
            The state, and where reading begins; None for the partition's beginning.

        Raises:
            ContractError: State and committed offset do not belong together.
        """
        kept = self._kept.pop(partition)
        note = note_in(kept)
        self._notes.pop(partition, None)
        name_of = self._instruments.name_of
        if note is not None and note.fingerprint != self._rules.fingerprint:
            _log.warning(
                "beginning anew",
                reason="the settings of windows or averages have changed",
                topic=partition.topic,
                partition=partition.number,
            )
            self._outdated[partition] = [key for key in kept if key != POSITION_KEY]
            return PartitionState(self._rules, name_of), None
        # 3. Position and committed offset are compared.
        self._compare(partition, note, committed, end)
        if note is None:
            return PartitionState(self._rules, name_of), None
        self._notes[partition] = note
        state = restore(note, kept, self._rules, self._instruments, name_of)
        _log.info(
            "state restored",
            topic=partition.topic,
            partition=partition.number,
            keys=len(kept),
            position=note.position,
        )
        return state, note.position

    def _compare(
        self, partition: Partition, note: Note | None, committed: CommitPoint | None, end: int
    ) -> None:
        at, stands = committed.offset if committed else 0, note.position if note else 0
        if at == stands and stands <= end:
            return
        # Without transactions a crash can come between the state and the offset behind it.
        if self._owner is None and at < stands <= end:
            return
        log = self._state_log.name(partition)
        raise ContractError(
            f"the state of {partition.topic}, partition {partition.number}, stands at {stands} "
            f"in '{log}', the committed offset is {at if committed else 'missing'} and the "
            f"partition's end {end}: they do not belong together",
            remedy="was one of the topics deleted or an offset set by hand? to begin anew, "
            f"delete the topic '{log}' and the group's offsets, or choose another group_id",
        )

    def keep(self, partition: Partition, state: PartitionState, *, giving_up: bool) -> bool:
        """Write what has changed; False when nothing has.

        Args:
            partition: The partition.
            state: Its state.
            giving_up: Sign off.
        """
        rules = self._rules
        values, gone = changes_of(state, rules, self._instruments.name_of)
        gone += self._outdated.pop(partition, [])
        # 4. The owner signs on, and off.
        note = Note(
            state.position,
            state.watermark,
            state.horizon,
            rules.fingerprint,
            None if giving_up else self._owner,
        )
        if not values and not gone and self._notes.get(partition) == note:
            return False
        self._before_write()
        write = self._state_log.write
        for key, value in values:
            write(partition, key, value)
        write(partition, POSITION_KEY, note.packed())
        # Last: without transactions, a replay from an earlier position must find them.
        for key in gone:
            write(partition, key, None)
        self._notes[partition] = note
        return True

    def check_lost(self, partitions: Sequence[Partition]) -> None:
        """Whether partitions that were lost have gone to another member.

        Raises:
            FencedError: They have.
        """
        if self._owner is None:
            return
        mine = {item: self._notes[item] for item in partitions if item in self._notes}
        try:
            found = self._state_log.read(mine)
        except KStreamError as error:
            _log.warning("who has the lost partitions is not known", reason=str(error))
            return
        notes = [note_in(found[item]) for item in mine]
        if any(note is None or note.owner != self._owner for note in notes):
            raise FencedError(
                "another worker has taken this one's partitions over",
                remedy="it was away for longer than the group waits (session.timeout.ms, "
                "max.poll.interval.ms); start it again",
            )

    def forget(self, partition: Partition) -> None:
        """A partition has gone."""
        for known in (self._kept, self._notes, self._outdated):
            known.pop(partition, None)
